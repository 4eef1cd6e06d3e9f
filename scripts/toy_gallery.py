"""Trains the systems of points in the plane and draws them side by side: one picture.

  python scripts/toy_gallery.py --workdir=runs/toys --out=toys.png [--systems=vdm,edm]

Each system takes a minute or two on 2 CPU cores.  Existing runs are not trained again.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.studies import toys

WORKDIR = cli.run_directory('The directory of the runs.')
OUT = cli.path('out', 'The .png file to write.')
OVERWRITE = cli.overwrite()
CHOSEN = flags.DEFINE_list('systems', list(toys.SYSTEMS), 'Which systems to train.')
TRAIN_STEPS = flags.DEFINE_integer('train_steps', None, 'Steps of training.  Default: as in the '
                                   'configs.')


def main():
  cli.wrote(OUT.value, *toys.study(WORKDIR.value, OUT.value, bootstrap.ROOT / 'configs',
                                   **cli.values(OVERWRITE, CHOSEN, TRAIN_STEPS)))


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, required={'workdir': 'runs/toys', 'out': 'toys.png'}, alone=True)
