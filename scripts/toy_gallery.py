"""Trains the systems of points in the plane and draws them side by side: one picture.

  python scripts/toy_gallery.py --workdir=runs/toys --out=toys.png [--systems=vdm,edm]

A run that is there already is not trained again.  2 CPU cores: ten minutes.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.studies import toys

WORKDIR = cli.run_directory('A directory for the runs.')
OUT = cli.path('out', 'The .png to write.')
OVERWRITE = cli.overwrite()
CHOSEN = flags.DEFINE_list('systems', list(toys.SYSTEMS), f'Of {", ".join(toys.SYSTEMS)}.')
TRAIN_STEPS = flags.DEFINE_integer('train_steps', None, "Of training; default: the configs'.")


def main():
  cli.wrote(OUT.value, *toys.study(WORKDIR.value, OUT.value, bootstrap.ROOT / 'configs',
                                   **cli.values(OVERWRITE, CHOSEN, TRAIN_STEPS)))


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, required={'workdir': 'runs/toys', 'out': 'toys.png'}, alone=True)
