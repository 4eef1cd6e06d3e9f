"""The package as others depend on it: its names, its version, its requirements and their lock."""
import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import vdm_jax

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
# A choice of machine, a rendering of the docs, one more number, a format of music, a head, an
# environment: the lock leaves them open.
NOT_LOCKED = {'cuda13', 'tpu', 'docs', 'ssim', 'plan', 'music', 'brain'}
PYTHONS = ['3.11', '3.12', '3.13']


def requirements(lines, python):
  """{name: [requirements]} of those that hold on this Python."""
  out = {}
  for requirement in map(Requirement, lines):
    if requirement.marker is None or requirement.marker.evaluate({'python_version': python}):
      out.setdefault(canonicalize_name(requirement.name), []).append(requirement)
  return out


def locked(python):
  text = (ROOT / 'requirements.txt').read_text()
  lines = (line.partition('#')[0].strip() for line in text.splitlines())
  return requirements(filter(None, lines), python)


def ranges(python):
  extras = PROJECT['optional-dependencies']
  lines = PROJECT['dependencies'] + [line for name, lines in extras.items()
                                     if name not in NOT_LOCKED for line in lines]
  return {name: found for name, found in requirements(lines, python).items() if name != 'vdm-jax'}


@pytest.mark.parametrize('python', PYTHONS)
def test_every_pin_of_the_lock_is_within_the_range_of_the_package(python):
  pins, allowed = locked(python), ranges(python)
  for name, [pin] in pins.items():
    [exact] = pin.specifier
    assert exact.operator == '==', f'{pin} is no pin'
    for requirement in allowed.get(name, []):
      assert exact.version in requirement.specifier, f'{pin}, but pyproject.toml has {requirement}'


@pytest.mark.parametrize('python', PYTHONS)
def test_the_lock_and_the_package_name_the_same_requirements(python):
  assert set(locked(python)) == set(ranges(python))


def test_extras_of_the_package_itself_exist():
  extras = PROJECT['optional-dependencies']
  for lines in extras.values():
    for requirement in map(Requirement, lines):
      if canonicalize_name(requirement.name) == 'vdm-jax':
        assert requirement.extras <= set(extras)


@pytest.mark.long
def test_what_the_package_imports_is_required_by_it():
  """By the room's own name in an import; those that come with another are named here."""
  within = {'PIL': 'pillow', 'absl': 'absl-py', 'sklearn': 'scikit-learn', 'orbax':
            'orbax-checkpoint', 'tensorboardX': 'tensorboardx', 'ml_dtypes': 'jax',
            'pillow_jxl': 'pillow-jxl-plugin', 'fontTools': 'fonttools'}
  required = set(ranges('3.11'))
  for path in sorted((ROOT / 'vdm_jax').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text())):
      names = ([alias.name for alias in node.names] if isinstance(node, ast.Import) else
               [node.module] if isinstance(node, ast.ImportFrom) and node.module else [])
      for name in (name.partition('.')[0] for name in names):
        if name not in sys.stdlib_module_names and name != 'vdm_jax':
          assert canonicalize_name(within.get(name, name)) in required, f'{path}: {name}'


def test_the_version_is_one_of_a_release_and_read_from_the_package():
  assert re.fullmatch(r'\d+\.\d+\.\d+', vdm_jax.__version__)
  assert 'version' not in PROJECT and 'version' in PROJECT['dynamic']


def test_the_package_alone_loads_neither_jax_nor_numpy():
  code = 'import sys, vdm_jax; print({"jax", "flax", "numpy"} & set(sys.modules))'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout == 'set()\n', done.stdout + done.stderr


def defined(tree):
  """The public names that a module defines itself, and its __all__, or None."""
  names, exported = set(), None
  for node in tree.body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      names.add(node.name)
    elif isinstance(node, (ast.Assign, ast.AnnAssign)):
      targets = node.targets if isinstance(node, ast.Assign) else [node.target]
      found = {target.id for target in targets if isinstance(target, ast.Name)}
      if found == {'__all__'}:
        exported = ast.literal_eval(node.value)
      names |= found
  return {name for name in names if not name.startswith('_')}, exported


@pytest.mark.first(14)
@pytest.mark.parametrize('path', sorted((ROOT / 'vdm_jax').glob('*.py')), ids=lambda p: p.stem)
def test_a_module_exports_the_public_names_that_it_defines(path):
  """`__all__` is in order, so that two changes seldom meet; of `typing` also its ArrayLike."""
  names, exported = defined(ast.parse(path.read_text()))
  more = {'__init__': {'__version__'}, 'typing': {'ArrayLike'}}.get(path.stem, set())
  assert exported == sorted(names | more)


def test_a_room_exports_names_that_it_has():
  for path in sorted((ROOT / 'vdm_jax').glob('*/__init__.py')):
    tree = ast.parse(path.read_text())
    imported = {alias.asname or alias.name for node in tree.body
                if isinstance(node, ast.ImportFrom) for alias in node.names}
    names, exported = defined(tree)
    assert (exported or []) == sorted(names | imported), path
