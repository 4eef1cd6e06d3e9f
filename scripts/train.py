"""Trains a config, or goes on with a run: the same command does both.

  python scripts/train.py --config=configs/cifar10/vdm.py --workdir=runs/cifar10 --data_dir=DIR
"""
import sys

import cli
import jax
from absl import flags

from vdm_jax import runs
from vdm_jax.train import loop

CONFIG = cli.config_flag()
WORKDIR = flags.DEFINE_string('workdir', None, 'Where the run is kept; made, or resumed.')
DATA_DIR = flags.DEFINE_string('data_dir', '', 'Where TFDS data sets are: config.data.data_dir.')
SEEDS = flags.DEFINE_list('seeds', [], 'One run for each of these, in WORKDIR/seed_N.')
INIT_FROM = flags.DEFINE_string('init_from', '', "Start from the weights of this workdir's run.")
PROFILE = flags.DEFINE_integer('profile', 0, 'Trace so many steps, into WORKDIR/profile.')
DEBUG_NANS = flags.DEFINE_bool('debug_nans', False, 'Stop at the operation that makes a NaN.')


def main():
  jax.config.update('jax_debug_nans', DEBUG_NANS.value)
  config = CONFIG.value
  if DATA_DIR.value:
    config.data.data_dir = DATA_DIR.value
  options = {'init_from': INIT_FROM.value, 'profile': PROFILE.value}
  try:
    if SEEDS.value:
      seeds = cli.integers('seeds', SEEDS.value)
      runs.train_seeds(config, cli.config_file(), WORKDIR.value, seeds, **options)
    else:
      runs.train(config, cli.config_file(), WORKDIR.value, **options)
  except loop.Diverged as error:
    print(f'error: {error}', file=sys.stderr)
    return 1


if __name__ == '__main__':
  cli.run(main, required=['config', 'workdir'],
          kept='Its checkpoints are kept, and the same command goes on from the last.')
