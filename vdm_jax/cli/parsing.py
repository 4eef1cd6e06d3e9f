"""Parses a command line: it sets the flags, prints the help, or fails with one line."""
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from absl import flags

from vdm_jax.cli import configs, processes
from vdm_jax.cli.messages import fail
from vdm_jax.errors import InputError

_HELP = {'-h', '--help', '-help', '-?'}


class Command(NamedTuple):
  """The requirements of a command on its command line; see `running.run`."""
  required: Mapping[str, str]  # {flag: an example of its value}
  alone: bool                  # without other processes
  resumes: bool                # it takes the config of the run in --workdir
  configs: Path | None         # the folder whose configs are proposed


def read(argv: list[str], command: Command) -> list[str]:
  """Sets the flags, and returns the other arguments.  Ends the process after showing help."""
  shows_help = bool(_HELP & set(argv[1:]))
  try:
    if not shows_help:  # before the shared disk is looked at
      (processes.require_alone if command.alone else processes.join)(argv)
    argv = [argv[0], *configs.expanded(argv[1:], command.configs)]
    if command.resumes:
      argv = configs.resumed(argv)
    if shows_help:
      _help([argument for argument in argv if argument not in _HELP], command)
      sys.exit(0)
    rest = _parse(argv)
    printing = 'print_config' in flags.FLAGS and flags.FLAGS.print_config
    for name, example in command.required.items():
      if flags.FLAGS[name].value is None and (not printing or name == 'config'):
        none = (f', and {flags.FLAGS.workdir} holds no run to go on with'
                if command.resumes and name == 'config' and flags.FLAGS.workdir else '')
        raise InputError(name, None, f'it is missing{none}', f'give it, as in --{name}={example}')
    if printing:
      print('\n'.join(configs.fields(flags.FLAGS.config)))
      sys.exit(0)
    return rest
  except (flags.Error, InputError) as error:
    fail(error)


def _help(argv: list[str], command: Command) -> None:
  """Prints the script's purpose, its flags, and the fields of its config or the known configs."""
  print(sys.modules['__main__'].__doc__)
  print('Flags:\n' + flags.FLAGS.main_module_help().strip().partition('\n')[2])
  if not command.alone:
    print('  --coordinator, --num_processes, --process_id: for several processes; see --helpfull.')
  if 'config' not in flags.FLAGS:
    return
  if configs.named(argv):
    _parse(argv)
    print('\nFields of the config, and their values:\n')
    print('\n'.join(f'  {field}' for field in configs.fields(flags.FLAGS.config)))
  else:
    print('\nConfigs (--config=FILE --help lists the fields of one):\n')
    print('\n'.join(f'  {file}: {line}' for file, line in configs.listed(command.configs).items()))


def _parse(argv: list[str]) -> list[str]:
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    # absl wraps what a config file, or a path, has to say of itself.
    cause = error.__context__
    fail(cause if isinstance(cause, InputError) else
         str(error).rstrip().splitlines()[0].removeprefix('flag '))
  except OSError as error:  # of the config file's
    fail(error)
  except (AttributeError, KeyError) as error:  # config_flags, of a field that is not there
    names = [word.lstrip('-').partition('=')[0] for word in argv if word.startswith('--config.')]
    field = re.search(r"'(\w+)\\?'", str(error))
    unknown = [f'--{name}' for name in names if field and field[1] in name.split('.')]
    if not unknown or not field:
      raise  # an error in the config file itself
    hint = re.search(r'Did you mean "(\w+)"', str(error))
    fail(f'{unknown[0]}: the config has no field {field[1]!r}'
         + (f'; did you mean {hint[1]!r}?' if hint else '.'))
