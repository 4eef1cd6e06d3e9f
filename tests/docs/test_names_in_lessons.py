"""Beside tests/docs/test_pages.py: the names in the lessons and in the table of papers exist."""
import importlib
import pkgutil
import re
import runpy
import types
from pathlib import Path

import pytest

import vdm_jax
from vdm_jax.samplers import catalogue

ROOT = Path(__file__).parents[2]
LEARN = ROOT / 'docs' / 'learn'


def modules() -> dict[str, list]:
  """Every module of the library, by its last name."""
  found: dict[str, list] = {}
  for info in pkgutil.walk_packages(vdm_jax.__path__, 'vdm_jax.'):
    found.setdefault(info.name.rpartition('.')[2], []).append(info.name)
  return found


def exists(name: str, by_name: dict[str, list]) -> bool:
  """Whether `a.b.c` is an attribute of a module that ends in a, or of a class or value a."""
  head, *rest = name.removeprefix('vdm_jax.').split('.')
  starts = [importlib.import_module(module) for module in by_name.get(head, [])]
  starts += [getattr(importlib.import_module(f'vdm_jax.{home}'), head)
             for home in ('typing', 'decoders', 'schedules', 'processes')
             if hasattr(importlib.import_module(f'vdm_jax.{home}'), head)]
  return any(reaches(start, rest) for start in starts)


def reaches(start, rest: list[str]) -> bool:
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


def test_the_functions_that_the_pages_name_exist():
  by_name = modules()
  names = {(page.name, name) for page in LEARN.glob('*.md') for name in re.findall(
      r'`((?:\w+\.)+\w+)`', re.sub(r'```.*?```', '', page.read_text(), flags=re.DOTALL))
      if not name.endswith(('.py', '.md', '.json', '.npz', '.sh'))}
  assert len(names) > 80
  assert not [name for name in sorted(names) if not exists(name[1], by_name)]


def test_the_tests_configs_and_samplers_in_the_table_of_papers_exist():
  text = (LEARN / 'papers.md').read_text()
  files = set(re.findall(r'`((?:tests|configs)/[\w/]+\.py)', text))
  assert len(files) > 40
  assert not [file for file in files if not (ROOT / file).exists()]
  systems = runpy.run_path(str(ROOT / 'configs/systems.py'))['SYSTEMS']
  named = {name for cell in re.findall(r'`configs/systems\.py:[^|]*', text)
           for name in re.findall(r':(\w+)`', cell)}
  assert len(named) > 20 and named <= set(systems)
  samplers = set(re.findall(r'--sampler=(\w+)', text)) - {'NAME'}
  assert len(samplers) > 8 and samplers <= set(catalogue.SAMPLERS)


@pytest.mark.parametrize('page', sorted(LEARN.glob('*.md')), ids=lambda page: page.stem)
def test_a_lesson_draws_the_pictures_that_it_shows(page):
  """By a block, or by a command where they are of a run; under the name of the picture."""
  text = page.read_text()
  drawn = [Path(name).name for name in re.findall(r"save(?:fig|_png)\('([^']+)'", text)]
  by_commands = [Path(name).name for name in re.findall(r'--(?:out|trace)=(\S+\.png)', text)]
  shown = re.findall(r'!\[[^]]*\]\(([^)]+)\)', text)
  names = [Path(picture).name for picture in shown]
  assert drawn == [name for name in names if name not in by_commands]
  assert all((page.parent / picture).stat().st_size < 200_000 for picture in shown)
