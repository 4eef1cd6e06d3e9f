"""Beside tests/docs/test_pages.py: the table of papers, and the pictures of the lessons."""
import re
import runpy
from pathlib import Path

import pytest

from vdm_jax.samplers import catalogue

ROOT = Path(__file__).parents[2]
LEARN = ROOT / 'docs' / 'learn'


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
