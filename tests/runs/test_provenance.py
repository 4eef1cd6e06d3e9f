"""What made a file is written into it."""
import subprocess
import sys
import tomllib
from pathlib import Path

import vdm_jax
from vdm_jax.runs import provenance

ROOT = Path(__file__).parents[2]


def git(folder, *arguments):
  return subprocess.run(['git', '-c', 'user.name=a', '-c', 'user.email=a@b', *arguments],
                        cwd=folder, check=True, capture_output=True, text=True).stdout.strip()


def test_the_commit_is_that_of_the_checkout_and_says_where_files_differ(tmp_path):
  git(tmp_path, 'init')
  (tmp_path / 'a').write_text('1')
  git(tmp_path, 'add', '.')
  git(tmp_path, 'commit', '-m', 'a')
  git(tmp_path, 'tag', 'v1')  # a name is no commit
  head = git(tmp_path, 'rev-parse', 'HEAD')
  assert provenance._commit(tmp_path) == head
  (tmp_path / 'a').write_text('2')
  assert provenance._commit(tmp_path) == f'{head}-dirty'
  (tmp_path / 'inside').mkdir()  # an environment in somebody's checkout
  assert provenance._commit(tmp_path / 'inside') == ''


def test_the_version_is_that_of_the_package():
  declared = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
  assert declared.get('version', vdm_jax.__version__) == vdm_jax.__version__
  assert provenance.provenance()['vdm_jax'] == vdm_jax.__version__


def test_the_command_can_be_pasted(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['train.py', '--workdir=my runs/a'])
  assert provenance.provenance()['command'] == "train.py '--workdir=my runs/a'"


def test_a_change_of_the_library_is_a_clause_and_no_change_is_none():
  there = {'vdm_jax': '1.0', 'commit': 'abc', 'jax': '1', 'date': 'then', 'command': 'train.py'}
  now = there | {'jax': '2', 'date': 'now', 'command': 'evaluate.py'}
  assert provenance.changed(there, now) == provenance.changed({}, now) == ''
  assert provenance.changed(there, now | {'commit': 'def'}) == (
      'vdm_jax 1.0 of commit abc there, 1.0 of commit def now')
  assert provenance.changed(there | {'commit': ''}, now | {'vdm_jax': '2.0', 'commit': ''}) == (
      'vdm_jax 1.0 of commit abc there, 2.0 now'.replace(' of commit abc', ''))
