"""The pages of the docs as tests read them: prose, blocks, commands, links, and code that runs."""
import ast
import contextlib
import importlib.util
import io
import os
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax

from vdm_jax import measured

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT)): path for path in measured.pages(ROOT)}
SCRIPTS = {path.name for path in (ROOT / 'scripts').glob('*.py')}
_FENCE = re.compile(r'^( *)(`{3,})(\w*)\n(.*?)^\1\2 *$', re.DOTALL | re.MULTILINE)
_FILE = re.compile(r'# (\w+\.py)\n')
_PAIR = re.compile(r'.*: *(\S+) +(\S+)')
_TRUTHS = ('True', 'False')
# What ends a command in a line of a shell.
_ENDS = {'|', '||', '&', '&&', ';', '>', '>>', 'then', 'done'}


class Ran(NamedTuple):
  """What the Python blocks of a page did."""
  printed: str
  names: dict[str, Any]            # of the namespace that blocks share
  files: dict[str, ModuleType]     # the blocks that are files, by their names without .py


class Command(NamedTuple):
  """A script as a page starts it."""
  script: str            # 'train.py'
  arguments: list[str]   # what follows it


def blocks(text: str, *languages: str) -> list[str]:
  """The fenced blocks of these languages, without the indentation of their fence."""
  return [re.sub(f'^{match[1]}', '', match[4], flags=re.MULTILINE)
          for match in _FENCE.finditer(text) if match[3] in languages]


def unclosed(text: str) -> int:
  """The fences that are of no block: neither its start, ``` and one word, nor its end."""
  return len(re.findall(r'^ *(?:```|~~~)', text, re.MULTILINE)) - 2 * len(_FENCE.findall(text))


def languages(text: str) -> set[str]:
  """The words after the fences, '' where there is none."""
  return {match[3] for match in _FENCE.finditer(text)}


def prose(text: str) -> str:
  """A page without its fenced blocks and comments; lines keep their place."""
  blank = lambda match: '\n' * match[0].count('\n')
  return re.sub(r'<!--.*?-->', blank, _FENCE.sub(blank, text), flags=re.DOTALL)


def spans(text: str) -> list[str]:
  """What stands between single backticks."""
  return re.findall(r'`([^`]+)`', prose(text))


def programs(text: str) -> dict[str, str]:
  """{name.py: source} of the Python blocks that are files."""
  return {match[1]: block for block in blocks(text, 'python') if (match := _FILE.match(block))}


def apart(text: str) -> list[str]:
  """The programs for a trained run: the blocks marked `py`, and what `python -c` is given."""
  lines = [line for block in blocks(text, 'console') for line in block.splitlines()]
  return blocks(text, 'py') + [shlex.split(line)[2] for line in lines
                               if line.startswith('python -c ')]


def commands(text: str) -> list[Command]:
  """Every script that a page starts, in a block or between backticks."""
  lines = []
  for block in blocks(text, '', 'console', 'bash', 'sh'):
    lines += block.replace('\\\n', ' ').splitlines()
  found = []
  for line in lines + spans(text):
    words = _words(line)
    for i, word in enumerate(words):
      name = word.rpartition('/')[2]
      if name in SCRIPTS or re.fullmatch(r'(.*/)?scripts/[a-z]\w*\.py', word):
        end = next((j for j in range(i + 1, len(words)) if words[j] in _ENDS), len(words))
        found.append(Command(name, words[i + 1:end]))
  return found


def _words(line: str) -> list[str]:
  """The words of a line of a shell, or of prose that is none; brackets mean `if you like`."""
  line = re.sub(r' #.*|[\[\]()]', ' ', line)
  lexer = shlex.shlex(line, posix=True, punctuation_chars=';|&<>')
  lexer.whitespace_split, lexer.commenters = True, ''
  try:
    return list(lexer)
  except ValueError:  # an apostrophe
    return line.split()


def slugs(text: str) -> set[str]:
  """The anchors of a page's headings."""
  found = {}
  for heading in re.findall(r'^#+ (.*)', prose(text), re.MULTILINE):
    words = re.sub(r'[^\w\- ]', '', re.sub(r'\[(.*?)\]\(.*?\)', r'\1', heading).lower())
    slug = words.strip().replace(' ', '-')
    found[slug] = found.get(slug, -1) + 1
  return {f'{slug}-{i}' if i else slug for slug, count in found.items() for i in range(count + 1)}


def run(text: str, folder: Path) -> Ran:
  """Runs the Python blocks of a page in order, in `folder`.

  Blocks share one namespace, but for those that begin with `# name.py`: each is a file of that
  name, which is imported, and which later blocks may import too.
  """
  names, files, out = {'__name__': 'page'}, {}, io.StringIO()
  path, here = list(sys.path), os.getcwd()
  try:
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    with contextlib.redirect_stdout(out):
      for block in blocks(text, 'python'):
        if match := _FILE.match(block):
          file = folder / match[1]
          file.write_text(block)
          spec = importlib.util.spec_from_file_location(file.stem, file)
          assert spec and spec.loader and file.stem not in sys.modules, file.stem
          module = importlib.util.module_from_spec(spec)
          files[file.stem] = sys.modules[file.stem] = module
          spec.loader.exec_module(module)
        else:
          exec(compile(block, 'a block of the page', 'exec'), names)
  finally:
    os.chdir(here)
    sys.path[:] = path
    for name in files:
      del sys.modules[name]
    jax.config.update('jax_enable_x64', False)  # where a block has set it
  return Ran(out.getvalue(), names, files)


def pairs(printed: str) -> list[tuple[str, str, str]]:
  """(line, left, right) of the lines `what: left right` where a side is a number, True or False."""
  return [(line, match[1], match[2]) for line in printed.splitlines()
          if (match := _PAIR.fullmatch(line)) and (_is_value(match[1]) or _is_value(match[2]))]


def promised(text: str) -> int:
  """How many calls of print in a page's Python blocks are of the form print('what:', ...)."""
  calls = [node for block in blocks(text, 'python') for node in ast.walk(ast.parse(block))
           if isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'print']
  return sum(any(_ends(argument).endswith(':') for argument in call.args) for call in calls)


def _ends(argument: ast.expr) -> str:
  """A text, or the last part of an f-string if that is a text; '' for anything else."""
  part = argument.values[-1] if isinstance(argument, ast.JoinedStr) else argument
  return part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else ''


def _is_value(word: str) -> bool:
  try:
    float(word)
  except ValueError:
    return word in _TRUTHS
  return True


def agree(left: str, right: str) -> bool:
  """Whether two printed values are equal.

  Numbers are equal to 2e-6, or those of four digits and more by the last digit.  True and False are
  equal only to themselves.  A word that is neither, such as '[0.1]', is equal to nothing.
  """
  if not (_is_value(left) and _is_value(right)):
    return False
  if left in _TRUTHS or right in _TRUTHS:
    return left == right
  a, b = float(left), float(right)
  unit = max(map(_last_digit, (left, right)))
  return abs(a - b) <= max(2e-6 * abs(b), 1.01 * unit if unit < 2e-3 * abs(b) else 0.0)


def _last_digit(number: str) -> float:
  """What one more in the last digit is worth; of a whole number, which is exact, nothing."""
  digits, _, exponent = number.lower().partition('e')
  decimals = digits.partition('.')[2]
  return 10.0**(int(exponent or 0) - len(decimals)) if decimals or exponent else 0.0
