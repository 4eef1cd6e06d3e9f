"""The flags and the `main` of scripts/benchmark.py."""
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from vdm_jax import cli
from vdm_jax.benchmark import measurements, report, target_table
from vdm_jax.errors import InputError, require

CONFIG = cli.config_flag()
WORKDIR = cli.run_directory('eval, sample, pairs, codec, precision: a run, instead of --config.')
BLOCKS = flags.DEFINE_integer('blocks', None, 'Replaces config.model.blocks.')
FEATURES = flags.DEFINE_integer('features', None, 'Replaces config.model.features.')
BATCH_SIZE = flags.DEFINE_integer(
    'batch_size', None, 'Replaces config.data.batch_size.  eval, precision: evaluations of the '
    'network at a time; scaling: images on each device; codec: lanes; else: images at a time.')
REPETITIONS = flags.DEFINE_integer('repetitions', None, 'How many repetitions are measured.  '
                                   'Default: as many as fit into 20 s, at least 3.')
WARM_UP = flags.DEFINE_integer('warm_up', 1, 'How many repetitions run first and are not measured.')
COLD = flags.DEFINE_bool('cold', False, 'train: compile without the persistent cache.')
PEAK = flags.DEFINE_float('peak_tflops', 0.0, 'Peak of one device, in TFLOP/s.  Default: the '
                          'published peak in bfloat16, where it is known.')
TIMES = flags.DEFINE_integer('times', 32, 'eval, precision: evaluations of the network for each '
                             'image.')
SAMPLER_STEPS = flags.DEFINE_integer('sampler_steps', 250, 'sample: steps of the ancestral '
                                     'sampler.  pairs: steps of DDIM.')
CHAIN_STEPS = flags.DEFINE_integer('chain_steps', 20, 'codec: T, the steps of the chain.')
DEPTHS = flags.DEFINE_list('depths', ['1', '2', '4', '8'], 'compile: numbers of blocks to compile.')
TARGET = flags.DEFINE_string('target', '', 'compile: a machine that need not be here, such as '
                             'h200, h200x8, v5e:2x4 or v5p:4x4x4.  The step is compiled for it, '
                             'and not run.  targets: fill only the rows of this machine.')
LARGEST = flags.DEFINE_bool('largest', False, 'compile, with --target: the largest power of two '
                            'of images on each device that fits, instead of the batch size.')
START = flags.DEFINE_bool('start', True, 'compile: also measure the time from start to first step.')
SPLIT = flags.DEFINE_string('split', 'test', 'precision: train, validation or test.')
EXAMPLES = flags.DEFINE_integer('examples', None, 'precision: how many images, from the first on.  '
                                'Default: all.')
REPEATS = flags.DEFINE_integer('repeats', 1, 'precision: independent repetitions of all draws.')
AVERAGE = cli.average("precision: a name in config.ema, or 'raw'.  Default: the slowest.")
MARKDOWN = flags.DEFINE_bool('markdown', False, 'Print Markdown tables.')
MEASURED, ROW = cli.measured(), cli.row()
DATA_DIR = cli.config_data_dir()
DATA_NAME = cli.moved_data()
JSON = flags.DEFINE_bool('json', False, 'Print one JSON object on stdout, and nothing else.')


def main(configs: Path, arguments: Sequence[str]):
  """configs: the folder of the published configs; arguments: the name of one measurement."""
  names = measurements.MEASUREMENTS
  if len(arguments) != 1 or arguments[0] not in names:
    words = ' '.join(arguments)
    what = f'{words!r} is not a measurement' if words else 'no measurement is named'
    raise InputError(problem=what, remedy=f'name one of {", ".join(names)} (and further '
                     'options as --name=value)')
  cli.check_row(MEASURED.value, ROW.value)
  fills = arguments[0] == 'targets'  # and writes each row itself
  if fills:
    target_table.check_target(TARGET.value)
    require(not ROW.value, 'row', ROW.value, 'targets fills all open rows', 'leave it out')
  if fills and MEASURED.value and not Path(MEASURED.value).exists():
    cli.keep(MEASURED.value, 'benchmark.py targets', target_table.cells())
  result = measurements.measure(arguments[0], _settings(configs))
  if fills:
    report.show(arguments[0], result, JSON.value)
    return
  if ROW.value:
    cli.keep_row(MEASURED.value, ROW.value, report.figures(result))
  elif MEASURED.value:
    tables, path = report.cells(result), Path(MEASURED.value)
    for name, cells in tables.items():  # of several, a file each
      file = path.with_stem(f'{path.stem}_{name}') if len(tables) > 1 else path
      cli.keep(str(file), f'benchmark.py {arguments[0]}, {name}', cells)
  if MARKDOWN.value and not JSON.value:
    print(report.markdown(result))
  else:
    report.show(arguments[0], result, JSON.value)


def _settings(configs: Path) -> measurements.Settings:
  config = {} if CONFIG.value is None else {'config_file': cli.config_file(),
                                            'config': cli.config()}
  return measurements.Settings(
      **config, depths=cli.integers('depths', DEPTHS.value), published=configs,
      table=Path(MEASURED.value) if MEASURED.value else None, script=cli.script('benchmark.py'),
      training=_training() if START.value else (), **cli.values(
          WORKDIR, DATA_DIR, DATA_NAME, BLOCKS, FEATURES, BATCH_SIZE, REPETITIONS, WARM_UP, COLD,
          PEAK, TIMES, SAMPLER_STEPS, CHAIN_STEPS, TARGET, LARGEST, SPLIT, EXAMPLES, REPEATS,
          AVERAGE))


def _training() -> list[str]:
  """The command that trains the measured run."""
  given = '--config', '--data_dir=', '--data_name='
  words = [word for word in sys.argv[1:] if word.startswith(given)]
  words += [f'--config.{field}={flag.value}' for field, flag in [
      ('model.blocks', BLOCKS), ('model.features', FEATURES), ('data.batch_size', BATCH_SIZE)]
            if flag.value is not None]
  return [sys.executable, str(cli.script('train.py').resolve()), *words]
