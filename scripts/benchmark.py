"""Measures a config: its speed, what it costs to compile, its precision, its memory, its scaling.

  python scripts/benchmark.py train --config=configs/cifar10/vdm.py --blocks=4 --features=64
  python scripts/benchmark.py train --config=configs/cifar10/vdm.py --json > train.json
  python scripts/benchmark.py eval --workdir=runs/digits
  python scripts/benchmark.py sample --config=configs/digits/vdm.py --sampler_steps=100
  python scripts/benchmark.py data --config=configs/cifar10/vdm.py --data_dir=DIR
  python scripts/benchmark.py compile --config=configs/digits/vdm.py --depths=1,2,4,8
  python scripts/benchmark.py precision --workdir=runs/cifar10 --data_dir=DIR
  python scripts/benchmark.py memory [--config=configs/cifar10/vdm.py] [--markdown]
  python scripts/benchmark.py scaling --config=configs/cifar10/vdm.py

Only `data`, `precision`, and the start to the first step that `compile` measures, need the data
themselves.  `memory` (by default of all published configs) and `scaling` compile for the CPU, and
run nothing.
"""
import sys
from pathlib import Path

import cli
from absl import flags

from vdm_jax.benchmark import memory, precision, report, scaling, speed
from vdm_jax.errors import InputError

CONFIG = cli.config_flag()
WORKDIR = cli.run_directory('eval, sample, precision: a run, in the place of --config.')
BLOCKS = flags.DEFINE_integer('blocks', None, 'In the place of config.model.blocks.')
FEATURES = flags.DEFINE_integer('features', None, 'In the place of config.model.features.')
BATCH_SIZE = flags.DEFINE_integer(
    'batch_size', None, 'In the place of config.data.batch_size: images, or for eval and precision '
    'evaluations of the network, at a time; scaling: images on each device.')
REPETITIONS = flags.DEFINE_integer('repetitions', None, 'Measured ones; default: what 20 s hold, '
                                   'at least 3.')
WARM_UP = flags.DEFINE_integer('warm_up', 1, 'Repetitions before, not measured.')
COLD = flags.DEFINE_bool('cold', False, 'train: compile without the persistent cache.')
PEAK = flags.DEFINE_float('peak_tflops', 0.0, 'What one device can do; default: as stated of it, '
                          'in bfloat16, where that is known.')
TIMES = flags.DEFINE_integer('times', 32, 'eval, precision: evaluations of the network for each '
                             'image.')
SAMPLER_STEPS = flags.DEFINE_integer('sampler_steps', 250, 'sample: of the ancestral sampler.')
DEPTHS = flags.DEFINE_list('depths', ['1', '2', '4', '8'], 'compile: values of --blocks.')
START = flags.DEFINE_bool('start', True, 'compile: also the time from start to first step.')
SPLIT = flags.DEFINE_string('split', 'test', 'precision: train, validation or test.')
EXAMPLES = flags.DEFINE_integer('examples', None, 'precision: only the first so many images.')
REPEATS = flags.DEFINE_integer('repeats', 1, 'precision: independent repetitions of all draws.')
AVERAGE = flags.DEFINE_string('average', '', "precision: an EMA of the config, or 'raw'; ours: the "
                              'longest.')
MARKDOWN = flags.DEFINE_bool('markdown', False, 'Print the lists of rows as tables of Markdown.')
DATA_DIR = cli.path('data_dir', 'Where TFDS data sets are: config.data.data_dir.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object on stdout, and nothing else there.')


def of_config(blocks: int | None = None) -> speed.Subject:
  if CONFIG.value is None:
    raise InputError('config', None, 'it is missing', 'name a config file' + (
        ', as this command takes no workdir' if WORKDIR.value else ''))
  if DATA_DIR.value:
    CONFIG.value.data.data_dir = DATA_DIR.value
  return speed.of_config(cli.config_file(), CONFIG.value, features=FEATURES.value,
                         batch_size=BATCH_SIZE.value,
                         blocks=BLOCKS.value if blocks is None else blocks)


def of_run_or_config() -> speed.Subject:
  if not WORKDIR.value:
    return of_config()
  if CONFIG.value is not None or BLOCKS.value is not None or FEATURES.value is not None:
    raise InputError('workdir', WORKDIR.value, 'a run has its config',
                     'leave out config, blocks and features')
  return speed.of_run(WORKDIR.value, batch_size=BATCH_SIZE.value,
                      data_dir=DATA_DIR.value or '')


def repetitions() -> dict:
  return {'repetitions': REPETITIONS.value, 'warm_up': WARM_UP.value}


def train() -> dict:
  return speed.train(of_config(), cold=COLD.value, peak_tflops=PEAK.value, **repetitions())


def evaluate() -> dict:
  return speed.evaluate(of_run_or_config(), times=TIMES.value, peak_tflops=PEAK.value,
                        **repetitions())


def sample() -> dict:
  return speed.sample(of_run_or_config(), sampler_steps=SAMPLER_STEPS.value,
                      peak_tflops=PEAK.value, **repetitions())


def data() -> dict:
  return speed.data(of_config(), **repetitions())


def compilation() -> dict:
  depths = cli.integers('depths', DEPTHS.value)
  if not depths:
    raise InputError('depths', None, 'it is empty', 'name one or more')
  start = {}
  if START.value and CONFIG.value is not None:  # before this process takes the accelerator
    given = [arg for arg in sys.argv[1:] if arg.startswith(('--config', '--data_dir='))]
    given += [f'--config.{field}={value}' for field, value in [
        ('model.blocks', BLOCKS.value), ('model.features', FEATURES.value),
        ('data.batch_size', BATCH_SIZE.value)] if value is not None]
    start = speed.start_to_first_step(
        [sys.executable, str(cli.ROOT / 'scripts' / 'train.py'), *given])
  return speed.compilation([of_config(depth) for depth in depths], start=start)


def compare_precisions() -> dict:
  if not WORKDIR.value:
    raise InputError('workdir', None, 'it is missing', 'name a run')
  if CONFIG.value is not None:
    raise InputError('workdir', WORKDIR.value, 'a run has its config', 'leave out config')
  return precision.compare(
      WORKDIR.value, split=SPLIT.value, examples=EXAMPLES.value, repeats=REPEATS.value,
      times=TIMES.value, average=AVERAGE.value, data_dir=DATA_DIR.value or '',
      **({} if BATCH_SIZE.value is None else {'batch_size': BATCH_SIZE.value}))


def account_for_memory() -> dict:
  scaling.simulate(1)
  if CONFIG.value is None:
    return memory.memory(memory.published(cli.ROOT / 'configs'))
  return memory.memory({Path(cli.config_file()).stem: (cli.config_file(), CONFIG.value)})


def rehearse_scaling() -> dict:
  if CONFIG.value is None:
    raise InputError('config', None, 'it is missing', 'name a config file')
  scaling.simulate(max(scaling.DEVICES))
  return scaling.scaling(cli.config_file(), CONFIG.value, blocks=BLOCKS.value,
                         features=FEATURES.value,
                         **({} if BATCH_SIZE.value is None else {'batch_size': BATCH_SIZE.value}))


COMMANDS = {'train': train, 'eval': evaluate, 'sample': sample, 'data': data,
            'compile': compilation, 'precision': compare_precisions,
            'memory': account_for_memory, 'scaling': rehearse_scaling}


def main(arguments):
  if len(arguments) != 1 or arguments[0] not in COMMANDS:
    what = f'{" ".join(arguments)!r} is no measurement' if arguments else 'no measurement is named'
    raise InputError(problem=what, remedy=f'name one of {", ".join(COMMANDS)} (and further '
                     'options as --name=value)')
  command = arguments[0]
  result = COMMANDS[command]()
  if MARKDOWN.value and not JSON.value:
    print(report.markdown(result))
  else:
    report.show(command, result, JSON.value)


if __name__ == '__main__':
  cli.run(main, arguments=True)
