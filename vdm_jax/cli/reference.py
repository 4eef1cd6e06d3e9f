"""The reference of the commands: the docstring and the flags of each script, as Markdown."""
import re
import runpy
import sys
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from vdm_jax import measured
from vdm_jax.cli import processes

__all__ = ['Command', 'commands', 'markdown']

_HEAD = """\
<!-- Written by scripts/render_docs.py from the scripts themselves: change those. -->
# Commands

This page is for users of the command line. It lists every script and every flag, generated from the
scripts.

`python scripts/NAME.py --help` prints the same. Start the scripts with the interpreter of `.venv`.
A command with `--config` also takes each field of that config as a flag, as in
`--config.train.steps=100`; `--config=FILE --help` lists the fields. An empty default means
that the flag is not set.
"""
_SEVERAL = """\
## Several processes

Commands that run in several processes take these flags. TPU slices, SLURM, Open MPI and Kubernetes
need none of them.
"""


class Command(NamedTuple):
  """The docstring and the flags of a script."""
  text: str                      # its docstring
  flags: dict[str, flags.Flag]   # its own, by name


def commands(folder: Path) -> dict[str, Command]:
  """{name: command} of the scripts in `folder`, which are imported but not started.

  Call it once in a process, because a script's flags are defined when it is first imported.
  """
  found = {}
  sys.path.insert(0, str(folder))
  try:
    for path in sorted(folder.glob('*.py')):
      before = set(flags.FLAGS)
      module = runpy.run_path(str(path), run_name=path.stem)
      own = {flag.name: flag for flag in flags.FLAGS.get_key_flags_for_module(path.stem)}
      for name in set(flags.FLAGS) - before:  # another script has one of that name
        delattr(flags.FLAGS, name)
      if 'cli' in module:  # or it is no command
        found[path.stem] = Command(module['__doc__'], own)
  finally:
    sys.path.remove(str(folder))
  return found


def markdown(found: dict[str, Command]) -> str:
  """The page of these commands."""
  parts = [_HEAD]
  for name, command in found.items():
    parts += [f'## {name}.py\n', _text(command.text)]
    if command.flags:
      parts.append(_table([command.flags[key] for key in sorted(command.flags)]))
  parts += [_SEVERAL, _table([flags.FLAGS[flag.name] for flag in processes.FLAGS])]
  return '\n'.join(parts)


def _text(docstring: str) -> str:
  """A docstring as Markdown.  Its indented lines are command lines."""
  paragraphs = re.split(r'\n\s*\n', docstring.strip())
  lines = lambda text: '\n'.join(line.removeprefix('  ') for line in text.splitlines())
  return '\n\n'.join(f'```console\n{lines(text)}\n```' if text.startswith('  ') else text
                     for text in paragraphs) + '\n'


def _table(of: list[flags.Flag]) -> str:
  rows = [[f'`--{flag.name}`', _default(flag.default), _cell(flag.help or '')] for flag in of]
  # Brackets would be a reference, and a bar the end of a cell.
  escaped = [[re.sub(r'([|\[\]])', r'\\\1', cell) for cell in row] for row in rows]
  return measured.markdown([['flag', 'default', 'meaning'], *escaped]) + '\n'


def _cell(text: str) -> str:
  """A help text in one line, in which the items of its lists still begin on lines of their own."""
  return re.sub(r'\s+', ' ', re.sub(r'\n\s*\n|\n(?=- )', '<br>', text.strip()))


def _default(value: Any) -> str:
  if value is None or value is False or value in ('', []):
    return ''
  return f'`{",".join(map(str, value))}`' if isinstance(value, list) else f'`{value}`'
