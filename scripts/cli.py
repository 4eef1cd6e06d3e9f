"""What all scripts share: the package is found from a checkout, and a user's error is one line."""
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

from vdm_jax.errors import InputError


def integers(flag: str, values: Sequence[str]) -> list[int]:
  """The numbers of a list flag.  Raises InputError."""
  try:
    return [int(value) for value in values]
  except ValueError:
    raise InputError(f'--{flag}={",".join(values)}: whole numbers, separated by commas.') from None


def _parse(argv: list[str]) -> list[str]:
  for arg in argv:
    if arg.startswith('--config='):  # which may import a neighbour of its own
      sys.path.append(str(Path(arg.removeprefix('--config=')).absolute().parent))
  try:
    return flags.FLAGS(argv)
  except flags.Error as error:
    lines = str(error).rstrip().splitlines()
    if 'Traceback' not in str(error):
      _exit(lines[0])
    # Raised by get_config: what it says of the input, or else all that helps to find its mistake.
    _exit(lines[-1].partition('InputError: ')[2] or error)
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
  text = str(error)
  if 'Failed loading config file' in text:  # the last of its lines says why
    text = f'--config: {text.splitlines()[-1].strip()}'
  print(f'error: {text}', file=sys.stderr)
  sys.exit(2)


def run(main, required=(), arguments: bool = False) -> None:
  """absl's app.run with `required` flags; InputError and OSError are one line and exit code 2.

  main: of no arguments, or of the list of what follows the flags where `arguments` is set.
  """
  def guarded(argv):
    try:
      if argv[1:] and not arguments:
        raise InputError(f'{argv[1]!r} is no flag.')
      return main(argv[1:]) if arguments else main()
    except (InputError, OSError) as error:
      _exit(error)

  flags.mark_flags_as_required(list(required))
  logging.set_verbosity(logging.WARNING)  # libraries that report every file they touch
  app.run(guarded, flags_parser=_parse)
