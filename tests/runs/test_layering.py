"""Imports point down only: every module has a room, and every room a list of those it may use."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = 'vdm_jax'

# The mathematics, from the bottom up: each may use those before it, and `errors`.
MATHEMATICS = ['typing', 'values', 'random', 'units', 'schedules', 'processes', 'interpolants',
               'targets', 'inputs', 'denoisers', 'weightings', 'decoders', 'dequantisers',
               'guidance', 'inverse', 'volumes', 'oracles']
ROOMS = {
    'errors': [],
    **{room: ['errors', *MATHEMATICS[:i]] for i, room in enumerate(MATHEMATICS)},
    # Devices, processes that work together, files.
    'machine': ['typing', 'errors'],
    # Tables of the docs.
    'measured': ['errors', 'machine'],
    # Siblings, but a likelihood evaluates the bounds of `objectives`, and the chains of `samplers`
    # with their variances.
    'objectives': [*MATHEMATICS, 'errors'],
    'samplers': [*MATHEMATICS, 'errors', 'machine'],
    'likelihood': [*MATHEMATICS, 'errors', 'machine', 'objectives', 'samplers'],
    # It changes given images by the samplers, and knows no network.
    'editing': [*MATHEMATICS, 'errors', 'samplers'],
    # The steps of MeanFlow and of a distilled flow lie in objectives, beside their losses.
    'certification': [*MATHEMATICS, 'errors', 'objectives', 'samplers'],
    # The laws of z_t and of samples, and what they say of a sampler's error.
    'laws': [*MATHEMATICS, 'errors'],
    'convergence': [*MATHEMATICS, 'errors', 'samplers', 'likelihood', 'laws'],
    # It judges samples of data whose distribution is known.
    'evaluation': [*MATHEMATICS, 'errors', 'machine', 'samplers', 'data'],
    # It follows the chains of `objectives`, as the bounds of `likelihood` do.
    # It finishes what has arrived by the chains of `samplers`.
    'codec': [*MATHEMATICS, 'errors', 'machine', 'objectives', 'likelihood', 'samplers'],
    # The nouns together: a model that draws, and bounds the likelihood of data.
    'model': [*MATHEMATICS, 'errors', 'machine', 'samplers', 'likelihood', 'codec'],
    # Beside the mathematics, and apart from it.
    'nn': ['typing', 'errors', 'random'],
    'data': ['errors', 'machine'],
    'train': ['typing', 'errors', 'random', 'machine'],
}
# Parameters that render to pictures.
ROOMS['scenes'] = ['typing', 'values', 'errors']
ROOMS['systems'] = list(ROOMS)
ROOMS['recipes'] = []
# What the estimates of `likelihood` say of a run, and what must hold between them.
ROOMS['ledger'] = [*MATHEMATICS, 'errors', 'machine', 'likelihood', 'objectives', 'samplers',
                   'codec']
# A published checkpoint becomes the parameters of a system.
ROOMS['published'] = ['typing', 'errors', 'random', 'schedules', 'machine', 'nn', 'systems']
# A run's directory, and what the commands do with it.
ROOMS['runs'] = [*ROOMS, PACKAGE]
# What measures all of it, and programs that show one idea.
ROOMS['benchmark'] = ROOMS['studies'] = [*ROOMS['runs'], 'runs']
# The command line, which nothing uses.
ROOMS['cli'] = [*ROOMS]
ROOMS[PACKAGE] = ['typing', 'model', 'runs']
OUTSIDE = {'configs', 'scripts', 'tests'}  # which use the package, and which it never imports
_ACCELERATED = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'chex', 'tensorflow', 'torch'}
NEVER = dict.fromkeys(  # by room or module
    ['data', 'errors', 'recipes', 'vdm_jax.machine', 'vdm_jax.machine.files',
     'vdm_jax.machine.config_files'], _ACCELERATED)


def imported(source: str, module: str, is_package: bool) -> set[str]:
  """Absolute dotted names of all that a module imports, wherever in the file it does so."""
  names = set()
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      base = [node.module] if node.module else []
      if node.level:
        here = module.split('.')
        base = here[:len(here) - node.level + is_package] + base
      names |= {'.'.join([*base, alias.name]) for alias in node.names}
  return names


def modules():
  """(dotted name, path, room) of every module of the package."""
  for path in sorted((ROOT / PACKAGE).rglob('*.py')):
    parts = path.relative_to(ROOT).with_suffix('').parts
    parts = parts[:-1] if parts[-1] == '__init__' else parts
    yield '.'.join(parts), path, parts[1] if len(parts) > 1 else PACKAGE


@pytest.mark.parametrize('statement,name', [
    ('import vdm_jax.random', 'vdm_jax.random'),
    ('import vdm_jax.nn.mlp as mlp', 'vdm_jax.nn.mlp'),
    ('from vdm_jax import random', 'vdm_jax.random'),
    ('from vdm_jax.nn import mlp', 'vdm_jax.nn.mlp'),
    ('from vdm_jax.nn.mlp import MLP', 'vdm_jax.nn.mlp.MLP'),
    ('from . import vlb', 'vdm_jax.objectives.vlb'),
    ('from .vlb import continuous', 'vdm_jax.objectives.vlb.continuous'),
    ('from .. import random', 'vdm_jax.random'),
    ('from ..nn.mlp import MLP', 'vdm_jax.nn.mlp.MLP'),
    ('def f():\n  from vdm_jax import nn', 'vdm_jax.nn'),
    ('import configs.digits', 'configs.digits'),
])
def test_every_form_of_import_is_seen(statement, name):
  assert imported(statement, 'vdm_jax.objectives.denoising', is_package=False) == {name}


def test_a_relative_import_in_a_package_starts_at_the_package_itself():
  assert imported('from . import vlb', 'vdm_jax.objectives', True) == {'vdm_jax.objectives.vlb'}


def test_every_module_has_a_room():
  homeless = [str(path) for _, path, room in modules() if room not in ROOMS]
  assert not homeless, f'no room in ROOMS, nor in docs/design.md: {homeless}'


@pytest.mark.long
def test_imports_point_down_only():
  wrong = []
  for module, path, room in modules():
    for name in imported(path.read_text(), module, path.name == '__init__.py'):
      package, *rest = name.split('.')
      if package == PACKAGE:
        # `import vdm_jax` alone hides what is used; name the room.
        target = rest[0] if rest else PACKAGE
        fine = target == room or target in ROOMS.get(room, [])
      else:
        fine = package not in OUTSIDE | NEVER.get(room, set()) | NEVER.get(module, set())
      if not fine:
        wrong.append(f'{module} imports {name}; `{room}` may use {ROOMS.get(room)}')
  assert not wrong, '\n'.join(wrong)


def test_a_script_is_a_thin_main():
  for path in sorted((ROOT / 'scripts').glob('*.py')):
    text = path.read_text()
    defined = {node.name for node in ast.walk(ast.parse(text))
               if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    assert len(text.splitlines()) <= 40, f'{path}: its logic belongs into the package'
    assert defined <= {'main'}, f'{path} defines {defined}'


@pytest.mark.long
def test_what_tests_share_is_imported_from_tests_support():
  # But for a user's files, which lie beside each other.
  files = [path for path in (ROOT / 'tests').rglob('*.py') if path.parent.name != 'newcomer']
  for path in files:
    module = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    for name in imported(path.read_text(), module, False):
      first, *rest = name.split('.')
      by_itself = first in {file.stem for file in files} and first != 'conftest'
      fine = rest[:1] == ['support'] if first == 'tests' else not by_itself
      assert fine, f'{path} imports {name}'


def test_the_readers_of_data_load_no_jax():
  """They run in processes of their own, where JAX would cost seconds and take the accelerator."""
  code = 'import sys, vdm_jax.data; print({"jax", "flax", "tensorflow"} & set(sys.modules))'
  done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True)
  assert done.stdout == 'set()\n', done.stdout + done.stderr
