"""Trains five flows of points in the plane and draws how their trajectories straighten.

  python scripts/straighten.py --workdir=runs/toys --out=straightening.png

There are five flows: with independent noise, with minibatch OT, with a learned coupling, after one
reflow, and after two.  They take ten minutes on one CPU core.  Existing runs are not trained again.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.studies import straightening, toys

WORKDIR = cli.run_directory('The directory of the runs.')
OUT = cli.path('out', 'The .png file to write.')
OVERWRITE = cli.overwrite()
TRAIN_STEPS = flags.DEFINE_integer('train_steps', None, 'Steps of training.  Default: as in the '
                                   'configs.')
PAIRS = flags.DEFINE_integer('pairs', toys.PAIRS, 'Pairs that each reflow is trained on.')


def main():
  straightening.study(WORKDIR.value, OUT.value, bootstrap.ROOT / 'configs',
                      **cli.values(OVERWRITE, TRAIN_STEPS, PAIRS))
  cli.wrote(OUT.value)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, required={'workdir': 'runs/toys', 'out': 'a.png'}, alone=True)
