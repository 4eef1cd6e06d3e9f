"""The messages of a command: an error, the files written, the next command."""
import shlex
import sys
from pathlib import Path
from typing import NoReturn

import jax

from vdm_jax.errors import InputError
from vdm_jax.machine import distributed


def script(name: str) -> Path:
  """The path of the script with this name, beside the script that was started."""
  return Path(sys.argv[0]).with_name(name)


def command(name: str, *arguments: str | Path, **options: str | Path) -> str:
  """The command line that calls another script from here."""
  words = [str(script(name)), *map(str, arguments),
           *(f'--{option}={value}' for option, value in options.items())]
  return ' '.join(['python', *map(shlex.quote, words)])


def wrote(*paths: str | Path, then: str = '', verb: str = 'wrote') -> None:
  """Prints, on process 0, which files were written and which command is next."""
  if jax.process_index() == 0:
    print(f'{verb} {", ".join(map(str, paths))}')
    if then:
      print(f'next: {then}')


def fail(error: Exception | str) -> NoReturn:
  """Prints in one line what was wrong with the command, and ends with exit code 2."""
  text = error.as_flag() if isinstance(error, InputError) else str(error)
  print(f'error: {text}', file=sys.stderr)
  distributed.leave(2)
