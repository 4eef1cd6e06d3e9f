"""What all scripts share: the package is found from a checkout, and a user's error is one line."""
import faulthandler
import functools
import logging as python_logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
# Compiled programs are kept: a second start does not compile again.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

from absl import app, flags, logging
from ml_collections import config_flags

from vdm_jax import distributed, signals
from vdm_jax.errors import InputError

PROCESSES = [
    flags.DEFINE_string('coordinator', None, 'Of several processes: HOST:PORT of process 0.  A TPU '
                        'slice, SLURM and Open MPI need none of these three.'),
    flags.DEFINE_integer('num_processes', None, 'Of several processes: how many there are.  1 '
                         'alone: this one, whatever the environment says.'),
    flags.DEFINE_integer('process_id', None, 'Of several processes: which this is, from 0 on.')]


class _ConfigFile(flags.ArgumentParser):
  """FILE.py or FILE.py:VARIANT -> its config, locked: a flag cannot add a field."""

  def parse(self, argument):
    from vdm_jax import workdir  # two seconds, which a script without --config need not pay
    try:
      return workdir.open_config(argument).lock()
    except (TypeError, ValueError) as error:
      if isinstance(error, InputError):
        raise
      raise RuntimeError(f'--config={argument}') from error  # absl would hide where it was raised


def config_flag() -> flags.FlagHolder:
  """--config, and --config.FIELD for all of its fields."""
  found = config_flags.DEFINE_config_file('config', None, 'The config file, FILE.py or '
                                          'FILE.py:VARIANT.')
  flags.FLAGS['config'].parser = _ConfigFile()
  return found


def config_file() -> str:
  """The path that --config names, without a variant."""
  return flags.FLAGS['config'].config_filename.partition(':')[0]


def integers(flag: str, values: Sequence[str]) -> list[int]:
  """The numbers of a list flag.  Raises InputError."""
  try:
    return [int(value) for value in values]
  except ValueError:
    raise InputError(f'--{flag}={",".join(values)}: whole numbers, separated by commas.') from None


def _join(argv: list[str]) -> None:
  """Starts with the other processes: before a config is read, which may touch a device."""
  own = flags.FlagValues()
  for flag in PROCESSES:
    own[flag.name] = flags.FLAGS[flag.name]
  try:
    own(argv, known_only=True)
    distributed.start(own.coordinator, own.num_processes, own.process_id)
  except (flags.Error, InputError) as error:
    _exit(error)


def _parse(argv: list[str], alone: bool) -> list[str]:
  if not alone:
    _join(argv)
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    # absl wraps what the config file has to say of its input.
    cause = error.__context__
    _exit(cause if isinstance(cause, InputError) else str(error).rstrip().splitlines()[0])
  except OSError as error:  # of the config file's
    _exit(error)
  except (AttributeError, KeyError) as error:  # config_flags, of a field that is not there
    given = [arg.lstrip('-').partition('=')[0] for arg in argv if arg.startswith('--config.')]
    name = re.search(r"'(\w+)\\?'", str(error))
    unknown = [f'--{path}' for path in given if name and name[1] in path.split('.')]
    if not unknown:
      raise  # an error in the config file itself
    hint = re.search(r'Did you mean "(\w+)"', str(error))
    _exit(f'{unknown[0]}: the config has no field {name[1]!r}'
          + (f'; did you mean {hint[1]!r}?' if hint else '.'))


def _exit(error) -> None:
  text = error.as_flag() if isinstance(error, InputError) else str(error)
  print(f'error: {text}', file=sys.stderr)
  distributed.leave(2)


def run(main, required=(), arguments: bool = False, alone: bool = False,
        kept: str = 'Nothing of this command is kept.') -> None:
  """absl's app.run with `required` flags; InputError and OSError are one line and exit code 2.

  main: of no arguments, or of the list of what follows the flags where `arguments` is set.  It runs
  when the other processes are there, if there are any.  alone: it has no use for them.
  Ctrl-C, SIGTERM and SIGHUP end it with one line, in which `kept` says what is left of its work; a
  reader of its output that is gone does not.
  """
  def guarded(argv):
    faulthandler.enable(2)  # absl has set it up; to where C++ writes, which `distributed` reads
    try:
      if argv[1:] and not arguments:
        raise InputError(f'{argv[1]!r} is no flag.')
      with signals.lasting_output():
        return main(argv[1:]) if arguments else main()
    except (InputError, OSError) as error:
      _exit(error)
    except Exception as error:
      distributed.fail(error)
      raise

  flags.mark_flags_as_required(list(required))
  logging.set_verbosity(logging.WARNING)  # libraries that report every file they touch
  # Orbax prints the tracebacks of its threads, and raises the same error where it is waited for.
  logging.get_absl_logger().addFilter(
      lambda record: 'orbax' not in record.pathname or record.levelno < python_logging.ERROR)
  python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)
  with signals.ending(kept):
    app.run(guarded, flags_parser=functools.partial(_parse, alone=alone))
