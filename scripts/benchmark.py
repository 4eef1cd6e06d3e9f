"""Measures a config: how fast it trains, evaluates and samples, reads its data, and compiles.

  python scripts/benchmark.py train --config=configs/cifar10.py --n_layer=4 --embd=64 --batch=8
  python scripts/benchmark.py train --config=configs/cifar10.py --json > train.json
  python scripts/benchmark.py eval --workdir=runs/digits
  python scripts/benchmark.py sample --config=configs/digits.py --sampler_steps=100
  python scripts/benchmark.py data --config=configs/cifar10.py --data_dir=DIR
  python scripts/benchmark.py compile --config=configs/digits.py --depths=1,2,4,8

Only `data`, and the start to the first step that `compile` measures, need the data themselves.
"""
import sys

import cli
from absl import flags
from ml_collections import config_flags

from vdm_jax.benchmark import report, speed
from vdm_jax.errors import InputError

CONFIG = config_flags.DEFINE_config_file('config', None, 'The config file.', lock_config=True)
WORKDIR = flags.DEFINE_string('workdir', '', 'eval, sample: a run, in the place of --config.')
N_LAYER = flags.DEFINE_integer('n_layer', None, 'In the place of config.model.blocks.')
EMBD = flags.DEFINE_integer('embd', None, 'In the place of config.model.features.')
BATCH = flags.DEFINE_integer('batch', None, 'In the place of config.data.batch_size: images, or '
                             'for eval evaluations of the network, at a time.')
STEPS = flags.DEFINE_integer('steps', None, 'Measured repetitions; default: what 20 s hold, at '
                             'least 3.')
WARM_UP = flags.DEFINE_integer('warm_up', 1, 'Repetitions before, not measured.')
COLD = flags.DEFINE_bool('cold', False, 'train: compile without the persistent cache.')
PEAK = flags.DEFINE_float('peak_tflops', 0.0, 'What one device can do; default: as stated of it, '
                          'in bfloat16, where that is known.')
TIMES = flags.DEFINE_integer('times', 32, 'eval: evaluations of the network for each image.')
SAMPLER_STEPS = flags.DEFINE_integer('sampler_steps', 250, 'sample: of the ancestral sampler.')
DEPTHS = flags.DEFINE_list('depths', ['1', '2', '4', '8'], 'compile: values of n_layer.')
START = flags.DEFINE_bool('start', True, 'compile: also the time from start to first step.')
DATA_DIR = flags.DEFINE_string('data_dir', '', 'Where TFDS data sets are: config.data.data_dir.')
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object on stdout, and nothing else there.')


def config_file() -> str:
  return config_flags.get_config_filename(flags.FLAGS['config']).split(':')[0]


def of_config(n_layer: int | None = None) -> speed.Subject:
  if CONFIG.value is None:
    raise InputError('--config: name a config file' + (
        '; this command takes no --workdir.' if WORKDIR.value else '.'))
  if DATA_DIR.value:
    CONFIG.value.data.data_dir = DATA_DIR.value
  return speed.of_config(config_file(), CONFIG.value, embd=EMBD.value, batch=BATCH.value,
                         n_layer=N_LAYER.value if n_layer is None else n_layer)


def of_run_or_config() -> speed.Subject:
  if not WORKDIR.value:
    return of_config()
  if CONFIG.value is not None or N_LAYER.value is not None or EMBD.value is not None:
    raise InputError('--workdir: a run has its config; leave out --config, --n_layer and --embd.')
  return speed.of_run(WORKDIR.value, batch=BATCH.value, data_dir=DATA_DIR.value)


def repetitions() -> dict:
  return {'steps': STEPS.value, 'warm_up': WARM_UP.value}


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
    raise InputError('--depths: name one or more.')
  start = {}
  if START.value and CONFIG.value is not None:  # before this process takes the accelerator
    given = [arg for arg in sys.argv[1:] if arg.startswith(('--config', '--data_dir='))]
    given += [f'--config.{field}={value}' for field, value in [
        ('model.blocks', N_LAYER.value), ('model.features', EMBD.value),
        ('data.batch_size', BATCH.value)] if value is not None]
    start = speed.start_to_first_step(
        [sys.executable, str(cli.ROOT / 'scripts' / 'train.py'), *given])
  return speed.compilation([of_config(depth) for depth in depths], start=start)


COMMANDS = {'train': train, 'eval': evaluate, 'sample': sample, 'data': data,
            'compile': compilation}


def main(arguments):
  if len(arguments) != 1 or arguments[0] not in COMMANDS:
    given = f'{" ".join(arguments)!r}: ' if arguments else ''
    raise InputError(f'{given}name one of {", ".join(COMMANDS)} (and further options as '
                     '--name=value).')
  command = arguments[0]
  report.show(command, COMMANDS[command](), JSON.value)


if __name__ == '__main__':
  cli.run(main, arguments=True)
