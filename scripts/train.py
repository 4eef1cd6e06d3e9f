"""Trains a config, or goes on with a run: by the same command, or by its directory alone.

  python scripts/train.py --config=configs/cifar10/vdm.py --workdir=runs/cifar10 --data_dir=DIR
  python scripts/train.py --workdir=runs/cifar10
"""
import shlex
import sys
from pathlib import Path

import cli
import jax
from absl import flags

from vdm_jax import runs
from vdm_jax.train import loop

CONFIG = cli.config_flag()
WORKDIR = cli.run_directory('Where the run is kept; made, or resumed.')
DATA_DIR = cli.path('data_dir', 'Where TFDS data sets are: config.data.data_dir.')
DATA_NAME = cli.moved_data()
SEEDS = flags.DEFINE_list('seeds', [], 'One run for each of these, in WORKDIR/seed_N.')
INIT_FROM = cli.run_directory("Start from the weights of this workdir's run.", 'init_from')
EXTEND = flags.DEFINE_bool('extend', False, 'Let the learning rate of a run fall to 0 later, at a '
                           'larger --config.optimizer.decay_steps.')
PROFILE = flags.DEFINE_integer('profile', 0, 'Trace so many steps, into WORKDIR/profile.')
DEBUG_NANS = flags.DEFINE_bool('debug_nans', False, 'Stop at the operation that makes a NaN.')


def main():
  jax.config.update('jax_debug_nans', DEBUG_NANS.value)
  config = CONFIG.value
  if DATA_DIR.value:
    config.data.data_dir = DATA_DIR.value
  if DATA_NAME.value:
    config.data.name = DATA_NAME.value
  options = {'init_from': INIT_FROM.value or '', 'profile': PROFILE.value,
             'extend': EXTEND.value}
  try:
    if SEEDS.value:
      seeds = cli.integers('seeds', SEEDS.value)
      runs.train_seeds(config, cli.config_file(), WORKDIR.value, seeds, **options)
    else:
      runs.train(config, cli.config_file(), WORKDIR.value, **options)
  except loop.Diverged as error:
    print(f'error: {error}', file=sys.stderr)
    return 1
  directories = [Path(WORKDIR.value, f'seed_{seed}') for seed in SEEDS.value] or [WORKDIR.value]
  then = [cli.command('evaluate.py', workdir=directories[0]),
          cli.command('sample.py', workdir=directories[0], out='samples.png')]
  cli.wrote(*directories, verb='kept in', then=', '.join(then))
  if PROFILE.value and jax.process_index() == 0:
    profile = Path(directories[-1], 'profile')
    traces = sorted(profile.rglob('*.trace.json.gz'))
    print(f'trace: {traces[-1]}; open it in https://ui.perfetto.dev, or `pip install xprof` and '
          f'`xprof --logdir={shlex.quote(str(profile))}`' if traces else
          'trace: none, since the run had too few steps left')


if __name__ == '__main__':
  cli.run(main, required={'config': 'configs/digits/vdm.py', 'workdir': 'runs/digits'},
          resumes=True,
          kept='Its checkpoints are kept, and the same command goes on from the last.')
