"""The names that pages use: whether a dotted name is there, and which configs are named."""
import importlib
import pkgutil
import re
import types
from pathlib import Path

import vdm_jax
from tests.support import pages

_CLASSES = ('typing', 'decoders', 'schedules', 'processes')  # pages name their classes alone


def modules() -> dict[str, list[str]]:
  """Every module of the library, by its last name."""
  found: dict[str, list[str]] = {}
  for info in pkgutil.walk_packages(vdm_jax.__path__, 'vdm_jax.'):
    found.setdefault(info.name.rpartition('.')[2], []).append(info.name)
  return found


def exists(name: str, by_name: dict[str, list[str]]) -> bool:
  """Whether `a.b.c` is an attribute of a module that ends in a, or of a class or value a."""
  head, *rest = name.removeprefix('vdm_jax.').split('.')
  starts = [importlib.import_module(module) for module in by_name.get(head, [])]
  homes = [importlib.import_module(f'vdm_jax.{home}') for home in _CLASSES]
  starts += [getattr(home, head) for home in homes if hasattr(home, head)]
  return any(_reaches(start, rest) for start in starts)


def _reaches(start, rest: list[str]) -> bool:
  for name in rest:
    if isinstance(start, types.ModuleType) and not hasattr(start, name):
      try:
        start = importlib.import_module(f'{start.__name__}.{name}')
        continue
      except ImportError:
        return False
    if not hasattr(start, name):
      return False
    start = getattr(start, name)
  return True


def variants(text: str, folders: list[Path]) -> list[tuple[Path, str]]:
  """(file, variant) of every `FILE.py:VARIANT` that a page names in its prose.

  After such a name, or after a config without a variant, a span `:OTHER` of the same paragraph is a
  variant of the same file.  Files that lie in none of `folders` and placeholders in capitals are
  left out.
  """
  found = []
  for paragraph in re.split(r'\n\s*\n', pages.prose(text)):
    file = None
    for span in pages.spans(paragraph):
      match = re.fullmatch(r'([\w/]+\.py)?(?::([a-z0-9][\w,]*))?', span)
      if match and match[1]:
        places = [folder / match[1] for folder in folders]
        file = next((place for place in places if place.is_file()), None)
      if match and match[2] and file:
        found.append((file, match[2]))
  return found


def samplers(text: str) -> list[str]:
  """The samplers that flags and strings of a page name, in order; files and capitals not."""
  lists = re.findall(r"""(?:--samplers?=|\bsampler=["'])([\w.,:/]+)""", text)
  return [name for names in lists for name in names.split(',')
          if re.fullmatch('[a-z][a-z0-9_]*', name)]
