"""What all scripts share: the package is found from a checkout, and a user's error is one line."""
import codecs
import contextlib
import difflib
import faulthandler
import functools
import importlib.util
import io
import logging as python_logging
import os
import re
import shlex
import sys
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
if _absent := [name for name in ('absl', 'jax', 'ml_collections')
               if importlib.util.find_spec(name) is None]:
  sys.exit(f'error: {sys.executable} has no {" and no ".join(_absent)}: make the environment by '
           f'`bash {os.path.relpath(ROOT / "scripts" / "setup.sh")}` (once), then start '
           f'{os.path.relpath(ROOT / ".venv" / "bin" / "python")} '
           f'{" ".join([sys.argv[0], *map(shlex.quote, sys.argv[1:])])}')
# Compiled programs are kept: a second start does not compile again.
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(ROOT / '.cache' / 'jax'))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from vdm_jax.errors import InputError
from vdm_jax.machine import distributed, files, signals

flags.disclaim_key_flags()  # what is defined here belongs to the script, for its --help
PROCESSES = [
    flags.DEFINE_string('coordinator', None, 'Of several processes: HOST:PORT of process 0.  A TPU '
                        'slice, SLURM and Open MPI need none of these three.'),
    flags.DEFINE_integer('num_processes', None, 'Of several processes: how many there are.  1 '
                         'alone: this one, whatever the environment says.'),
    flags.DEFINE_integer('process_id', None, 'Of several processes: which this is, from 0 on.')]


# ------------------------------------------------------------ kinds of flags


class _Path(flags.ArgumentParser):
  """A path, by `files.user_path` or another function of (field, path)."""

  def __init__(self, name: str, check):
    self._name, self._check = name, check

  def parse(self, argument: str) -> str:
    return str(self._check(self._name, argument))

  def flag_type(self) -> str:
    return 'path'


def path(name: str, help_text: str) -> flags.FlagHolder[str | None]:
  """A flag of one path, with ~ expanded; None where it is not given."""
  return flags.DEFINE(_Path(name, files.user_path), name, None, help_text)


def run_directory(help_text: str = 'The directory of the run.', name: str = 'workdir'
                  ) -> flags.FlagHolder[str | None]:
  """As `path`, of a directory that holds a run."""
  return flags.DEFINE(_Path(name, files.run_directory), name, None, help_text)


def moved_data() -> flags.FlagHolder[str | None]:
  """--data_name, of data that are not where the run found them."""
  return path('data_name', "Where the run's data are, if not where they were: ./photos, x.npz.")


class _ConfigFile(flags.ArgumentParser):
  """FILE.py or FILE.py:VARIANT -> its config, locked: a flag cannot add a field."""

  def parse(self, argument):
    from vdm_jax.runs import workdir
    try:
      return workdir.open_config(argument).lock()
    except (TypeError, ValueError) as error:
      if isinstance(error, InputError):
        raise
      raise RuntimeError(f'--config={argument}') from error  # absl would hide where it was raised


def config_flag() -> flags.FlagHolder:
  """--config, --config.FIELD for all of its fields, and --print_config."""
  flags.DEFINE_bool('print_config', False, "Print the config's fields as flags, and end.")
  found = config_flags.DEFINE_config_file('config', None, 'The config file, FILE.py or '
                                          'FILE.py:VARIANT.')
  flags.FLAGS['config'].parser = _ConfigFile()
  return found


def config_file() -> str:
  """The path that --config names, without a variant."""
  return flags.FLAGS['config'].config_filename.partition(':')[0]


def overwrite() -> flags.FlagHolder[bool]:
  return flags.DEFINE_bool('overwrite', False, 'Replace files that are there already.')


def integers(flag: str, values: Sequence[str]) -> list[int]:
  """The numbers of a list flag.  Raises InputError."""
  try:
    return [int(value) for value in values]
  except ValueError:
    raise InputError(flag, values, 'these are no whole numbers',
                     'give such, separated by commas') from None


# ------------------------------------------------------------- what is said


def command(script: str, *arguments: str | Path, **given: str | Path) -> str:
  """How another script is called from here."""
  words = [*map(str, arguments), *(f'--{name}={value}' for name, value in given.items())]
  return ' '.join(['python', *map(shlex.quote, [str(Path(sys.argv[0]).with_name(script)), *words])])


def wrote(*paths: str | Path, then: str = '', verb: str = 'wrote') -> None:
  """Says, on process 0, which files were written, and which command is next."""
  if jax.process_index() == 0:
    print(f'{verb} {", ".join(map(str, paths))}')
    if then:
      print(f'next: {then}')


_SPELT = {'±': '+-', '─': '-', '━': '-', '│': '|', '┃': '|', '…': '...', '–': '-', '—': '-',
          '×': 'x', '≤': '<=', '≥': '>='}


def _spell(error: UnicodeError) -> tuple[str, int]:
  """What a terminal cannot show, in letters that it can."""
  if not isinstance(error, UnicodeEncodeError):
    raise error
  plain = lambda u: unicodedata.normalize('NFKD', u).encode('ascii', 'ignore').decode() or '?'
  return ''.join(_SPELT.get(u) or plain(u)
                 for u in error.object[error.start:error.end]), error.end


class _Stream(io.FileIO):
  """Drops what nobody reads any more, as after `| head`: a run goes on, and ends as ever."""

  def write(self, data) -> int | None:
    try:
      return super().write(data)
    except BrokenPipeError:
      return len(data)


def _open(stream, descriptor: int):
  if stream is None:  # closed from the start
    return None
  return io.TextIOWrapper(
      io.BufferedWriter(_Stream(descriptor, 'w', closefd=False)), encoding=stream.encoding,
      errors='spelt', line_buffering=stream.line_buffering, write_through=stream.write_through)


# ------------------------------------------------------------------- parsing


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


def _configs() -> dict[str, str]:
  """The config files of this checkout, as they are named from here, and their first lines."""
  first = lambda file: file.read_text().strip().strip('"').partition('\n')[0]
  inside = Path.cwd().is_relative_to(ROOT)
  return {os.path.relpath(file) if inside else str(file): first(file)
          for file in sorted((ROOT / 'configs').rglob('*.py'))}


def _with_config_found(argv: list[str]) -> list[str]:
  """argv, with the path in --config expanded.  Raises InputError where there is no such file."""
  out = list(argv)
  for i, arg in enumerate(argv):
    if arg == '--config' and i + 1 < len(argv):
      i, before, text = i + 1, '', argv[i + 1]
    elif arg.startswith('--config='):
      before, text = '--config=', arg.removeprefix('--config=')
    else:
      continue
    name, colon, variant = text.partition(':')
    file = files.user_path('config', name)
    if not file.is_file():
      known = {*_configs(), *map(str, file.parent.glob('*.py'))}
      near = difflib.get_close_matches(str(file), known, n=3)
      raise InputError(
          'config', text, 'there is no such file', 'there is ' + ' and '.join(near) if near else
          'choose a file of your own, or one of ' + ', '.join(_configs()))
    out[i] = f'{before}{file}{colon}{variant}'
  return out


def _with_config_of_run(argv: list[str]) -> list[str]:
  """argv, with the config of the run in --workdir, if there is one, where none is named."""
  own = flags.FlagValues()
  own['workdir'] = flags.FLAGS['workdir']
  if any(re.match('--?config(=|$)', arg) for arg in argv):
    return argv
  with contextlib.suppress(flags.Error):  # which is said when all are read
    own(argv, known_only=True)
    if own.workdir and (kept := Path(own.workdir, 'config.json')).is_file():
      return [argv[0], f'--config={kept}', *argv[1:]]
  return argv


def _fields(values: ConfigDict, prefix: str = '--config') -> Iterator[str]:
  """The fields of a config, as the flags that would set them."""
  for name, value in values.items():
    if isinstance(value, ConfigDict):
      yield from _fields(value, f'{prefix}.{name}')
    else:
      text = str(value)
      plain = "'" in text and not set(text) & set('"$`!\\')
      yield f'{prefix}.{name}=' + (f'"{text}"' if plain else shlex.quote(text) if text else '')


def _help(argv: list[str], alone: bool) -> None:
  """What the script is, its flags, and its config's fields or the configs that there are."""
  print(sys.modules['__main__'].__doc__)
  print('Flags:\n' + flags.FLAGS.main_module_help().strip().partition('\n')[2])
  if not alone:
    print('  --coordinator, --num_processes, --process_id: of several processes, see --helpfull.')
  if 'config' not in flags.FLAGS:
    return
  if any(arg.startswith('--config=') or arg == '--config' for arg in argv):
    _parse(argv, alone=True)
    print('\nFields of the config, and their values:\n')
    print('\n'.join(f'  {field}' for field in _fields(flags.FLAGS.config)))
  else:
    print('\nConfigs (--config=FILE --help lists the fields of one):\n')
    print('\n'.join(f'  {file}: {line}' for file, line in _configs().items()))


def _read(argv: list[str], required: Mapping[str, str], alone: bool, resumes: bool) -> list[str]:
  """What follows the flags, which are then set.  Ends here where only help is asked for."""
  try:
    argv = [argv[0], *_with_config_found(argv[1:])]
    if resumes:
      argv = _with_config_of_run(argv)
    if {'-h', '--help', '-help', '-?'} & set(argv[1:]):
      _help([arg for arg in argv if arg not in ('-h', '--help', '-help', '-?')], alone)
      sys.exit(0)
    rest = _parse(argv, alone)
    printing = 'print_config' in flags.FLAGS and flags.FLAGS.print_config
    for name, example in required.items():
      if flags.FLAGS[name].value is None and (not printing or name == 'config'):
        none = (f', and {flags.FLAGS.workdir} holds no run to go on with'
                if resumes and name == 'config' and flags.FLAGS.workdir else '')
        raise InputError(name, None, f'it is missing{none}', f'give it, as in --{name}={example}')
    if printing:
      print('\n'.join(_fields(flags.FLAGS.config)))
      sys.exit(0)
    return rest
  except InputError as error:
    _exit(error)


def _parse(argv: list[str], alone: bool) -> list[str]:
  if not alone:
    _join(argv)
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    # absl wraps what a config file, or a path, has to say of itself.
    cause = error.__context__
    _exit(cause if isinstance(cause, InputError) else
          str(error).rstrip().splitlines()[0].removeprefix('flag '))
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


def run(main, required: Mapping[str, str] | None = None, arguments: bool = False,
        alone: bool = False, resumes: bool = False,
        kept: str = 'Nothing of this command is kept.') -> None:
  """absl's app.run; InputError and OSError are one line and exit code 2.

  required: flags that have to be given, each with an example.  main: of no arguments, or of
  the list of what follows the flags where `arguments` is set.  It runs when the other processes are
  there, if there are any.  alone: it has no use for them.  resumes: without --config it takes that
  of the run in --workdir.
  Ctrl-C, SIGTERM and SIGHUP end it with one line, in which `kept` says what is left of its work; a
  reader of its output that is gone does not.
  """
  def guarded(argv):
    faulthandler.enable(2)  # absl has set it up; to where C++ writes, which `distributed` reads
    try:
      if argv[1:] and not arguments:
        raise InputError(problem=f'{argv[1]!r} is no flag', remedy="begin one with '--'")
      with signals.lasting_output():
        return main(argv[1:]) if arguments else main()
    except (InputError, OSError) as error:
      _exit(error)
    except Exception as error:
      distributed.fail(error)
      raise

  codecs.register_error('spelt', _spell)
  sys.stdout, sys.stderr = _open(sys.stdout, 1), _open(sys.stderr, 2)
  logging.set_verbosity(logging.WARNING)  # libraries that report every file they touch
  # Orbax prints the tracebacks of its threads, and raises the same error where it is waited for.
  logging.get_absl_logger().addFilter(
      lambda record: 'orbax' not in record.pathname or record.levelno < python_logging.ERROR)
  python_logging.getLogger('asyncio').setLevel(python_logging.CRITICAL)
  with signals.ending(kept):
    app.run(guarded, flags_parser=functools.partial(_read, required=required or {}, alone=alone,
                                                 resumes=resumes))
