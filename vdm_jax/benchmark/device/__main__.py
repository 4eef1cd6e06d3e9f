"""Checks an accelerator within some minutes: see `scripts/device_check.sh --help`.

The process of the check starts a process for each stage and waits for it.  It leaves the
accelerator to these processes.
"""
import argparse
import datetime
import importlib.metadata
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from vdm_jax.benchmark.device import stages
from vdm_jax.errors import InputError, require

ROOT = Path(__file__).resolve().parents[3]
REQUIRED = ('jax', 'flax', 'optax', 'numpy', 'scipy', 'diffrax', 'equinox', 'rich', 'tqdm', 'absl')
NOTED = ('vdm_jax', 'jax', 'jaxlib', 'jax-cuda13-plugin', 'flax', 'optax', 'orbax-checkpoint',
         'diffrax', 'numpy', 'pytest', 'scikit-learn')


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
      prog='scripts/device_check.sh', allow_abbrev=False,
      description='Measures an accelerator and vdm_jax on it: the tests marked gpu, the training '
      'step, the cost of bfloat16 in bits/dim, resuming, sampling, ode, and a training for the '
      'remaining time.  All results are in one JSON file, which is written after every point.')
  parser.add_argument('--out', default='device_check.json', help='The JSON file.  Stages of '
                      'earlier calls stay in it.  Default: %(default)s.')
  parser.add_argument('--minutes', type=float, default=12.0, help='The whole time in minutes.  The '
                      'last stage takes what the others leave.  Default: %(default)g.')
  parser.add_argument('--stages', default='', help='Names of stages, separated by commas.  '
                      'Default: all.')
  parser.add_argument('--data_dir', default='', help='A folder with cifar-10-binary.tar.gz, or '
                      'with downloads/cifar-10-binary.tar.gz.  Default: photographs in '
                      'scikit-learn, or random waves.')
  parser.add_argument('--tiny', action='store_true',
                      help='Rehearse with tiny sizes, on any device.')
  # Of the process of one stage.
  parser.add_argument('--stage', default='', help=argparse.SUPPRESS)
  parser.add_argument('--seconds', type=float, default=0.0, help=argparse.SUPPRESS)
  parser.add_argument('--folder', default='', help=argparse.SUPPRESS)
  return parser


def main(arguments: Sequence[str] | None = None) -> int:
  """Runs the check, or one of its stages, and returns the exit status."""
  options = _parser().parse_args(arguments)
  try:
    if absent := stages.missing(REQUIRED):
      raise InputError(problem=f'{sys.executable} has no {" and no ".join(absent)}',
                       remedy='name another interpreter: PYTHON=... scripts/device_check.sh')
    return _stage(options) if options.stage else _check(options)
  except InputError as error:
    print(f'error: {error.as_flag()}', file=sys.stderr)
    return 2


def _check(options: argparse.Namespace) -> int:
  from vdm_jax.benchmark.device import checks
  require(options.minutes > 0, 'minutes', options.minutes, 'it must be more than 0')
  chosen = stages.chosen([stage for stage, _ in checks.STAGES],
                         [name for name in options.stages.split(',') if name])
  record = stages.Record(options.out)
  record.read()  # raises InputError now, not after the first stage
  record.about(
      command=shlex.join(['scripts/device_check.sh', *sys.argv[1:]]), minutes=options.minutes,
      date=datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'), tiny=options.tiny,
      python=platform.python_version(), versions=_versions(), cores=os.cpu_count())
  os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
  os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
  begun = time.monotonic()
  with tempfile.TemporaryDirectory() as folder:
    command = lambda stage, seconds: [
        sys.executable, '-m', 'vdm_jax.benchmark.device', f'--stage={stage.name}',
        f'--seconds={seconds}', f'--folder={folder}', f'--out={record.path}',
        f'--data_dir={options.data_dir}', *(['--tiny'] if options.tiny else [])]
    stages.run(chosen, record, 60.0 * options.minutes, stages.in_process(command),
               say=lambda line: print(line, flush=True))
  found = record.read()['stages']
  wrong = [stage.name for stage in chosen if found[stage.name]['status'] != 'done']
  print(f'{record.path}: {len(chosen) - len(wrong)} of {len(chosen)} stages done in '
        f'{(time.monotonic() - begun) / 60:.1f} minutes'
        + (f'; not done: {", ".join(wrong)}' if wrong else ''))
  return 1 if wrong else 0


def _stage(options: argparse.Namespace) -> int:
  """The process of a stage.  Its error goes into the record."""
  begun = time.monotonic()
  record = stages.Record(options.out)
  try:
    from vdm_jax.benchmark.device import checks
    check = {stage.name: check for stage, check in checks.STAGES}[options.stage]
    check(checks.Task(options.stage, record, lambda: options.seconds - (time.monotonic() - begun),
                      checks.TINY if options.tiny else checks.Sizes(), options.data_dir,
                      Path(options.folder)))
  except Exception as error:
    record.note(options.stage, error=stages.one_line(error),
                traceback=traceback.format_exc()[-4000:])
    traceback.print_exc()
    return 1
  return 0


def _versions() -> dict[str, str | None]:
  out = {}
  for name in NOTED:
    try:
      out[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      out[name] = None
  return out


if __name__ == '__main__':
  sys.exit(main())
