"""The site that mkdocs.yml makes of the docs."""
import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
API = ROOT / 'docs' / 'reference' / 'api'
# Of this environment, or on the path.
MKDOCS = shutil.which('mkdocs', path=f'{Path(sys.executable).parent}:{os.environ["PATH"]}')


def test_every_room_of_the_package_has_a_page_of_its_docstrings():
  package = ROOT / 'vdm_jax'
  rooms = {path.stem for path in package.glob('[!_]*.py')} | {
      path.parent.name for path in package.glob('*/__init__.py')}
  assert {page.stem for page in API.glob('*.md')} == rooms | {'index'}
  index = (API / 'index.md').read_text()
  for room in rooms:
    assert f'::: vdm_jax.{room}\n' in (API / f'{room}.md').read_text()
    file = next(path for path in (package / f'{room}.py', package / room / '__init__.py')
                if path.exists())
    first = (ast.get_docstring(ast.parse(file.read_text())) or '').splitlines()[0]
    first = first.replace('|', r'\|')
    assert f'| [`vdm_jax.{room}`]({room}.md) | {first} |\n' in index


@pytest.mark.long
@pytest.mark.skipif(MKDOCS is None, reason='mkdocs is not there: pip install -e ".[docs]"')
def test_the_site_builds_without_a_warning(tmp_path):
  done = subprocess.run([MKDOCS, 'build', '--strict', '--site-dir', str(tmp_path)], cwd=ROOT,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  of_room = (tmp_path / 'reference' / 'api' / 'schedules' / 'index.html').read_text()
  assert 'Cosine' in of_room and 'Nichol and Dhariwal' in of_room
