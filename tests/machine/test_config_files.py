"""Config files and their neighbours: two of one name in one process, nothing left for others."""
import subprocess
import sys
from pathlib import Path

import pytest

from vdm_jax.errors import InputError
from vdm_jax.machine import config_files

CONFIG = 'def get_config():\n  return None\n\n\ndef build(config):\n  return None\n\n\n'


def folder(path, **texts):
  """A folder of files; `parts__noise` is parts/noise.py, `leaf` gets what a config must have."""
  for name, text in texts.items():
    file = path / f'{name.replace("__init", "/__init__").replace("__noise", "/noise")}.py'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + '\n' + (CONFIG if name == 'leaf' else ''))
  return path / 'leaf.py'


@pytest.mark.parametrize('order', ['ab', 'ba', 'aba', 'abab'])
def test_each_config_file_has_its_own_neighbours_in_any_order(tmp_path, order):
  files = {name: folder(tmp_path / name, leaf='import base_cfg\nNAME = base_cfg.NAME\n'
                        'def late():\n  import late_cfg\n  return late_cfg.NAME',
                        base_cfg='from deeper_cfg import NAME', deeper_cfg=f'NAME = {name!r}',
                        late_cfg=f'NAME = "late {name}"') for name in set(order)}
  modules = [config_files.read(files[name]).module() for name in order]
  assert [module.NAME for module in modules] == list(order)
  assert [module.late() for module in modules] == [f'late {name}' for name in order]


def test_an_import_leaves_nothing_for_others(tmp_path):
  before, names = list(sys.path), ('leaf', 'base_cfg', 'parts')
  file = folder(tmp_path, leaf='import base_cfg, parts.noise', base_cfg='', parts__noise='')
  config_files.read(file).module()
  assert sys.path == before and not any(name in sys.modules for name in names)
  with pytest.raises(ModuleNotFoundError):
    __import__('base_cfg')
  assert not list(tmp_path.rglob('__pycache__'))


@pytest.mark.parametrize('line,value', [
    ('import one', 'one.VALUE'), ('import one as other', 'other.VALUE'),
    ('from one import VALUE', 'VALUE'), ('from one import *', 'VALUE'),
    ('from . import one', 'one.VALUE'), ('from .one import VALUE', 'VALUE'),
    ('import parts.noise', 'parts.noise.VALUE'), ('import parts.noise as p', 'p.VALUE'),
    ('from parts import noise', 'noise.VALUE'), ('from parts.noise import VALUE', 'VALUE'),
    ('from parts import *', 'noise.VALUE'), ('import bare.noise', 'bare.noise.VALUE'),
    ('from bare import noise', 'noise.VALUE'), ('import parts', 'parts.LIFTED'),
    ('from parts import up', 'up'), ('import circle', 'circle.VALUE')])
def test_every_form_of_import_finds_a_neighbour(tmp_path, line, value):
  """And all that it ran is in what was read: nothing but the folder's copy is needed."""
  texts = {'one': 'VALUE = 7', 'parts__noise': 'from .deeper import VALUE', 'bare__noise': '',
           'parts__init': '__all__ = ["noise"]\nfrom .noise import VALUE as LIFTED\n'
           'def __getattr__(name):\n  import one\n  if name == "up":\n    return one.VALUE\n'
           '  raise AttributeError(name)',
           'circle': 'import leaf\nVALUE = 7'}
  file = folder(tmp_path / 'first', leaf='', **texts)
  (file.parent / 'parts' / 'deeper.py').write_text('VALUE = 7\n')
  (file.parent / 'bare' / 'noise.py').write_text('VALUE = 7\n')
  file.write_text(f'{CONFIG}def late():\n  {line}\n  return {value}\n' if '*' not in line else
                  f'{CONFIG}{line}\n\n\ndef late():\n  return {value}\n')
  source = config_files.read(file)
  for name, text in source.neighbours.items():
    copy = tmp_path / 'second' / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(text)
  (tmp_path / 'second' / 'leaf.py').write_text(source.text)
  (tmp_path / 'first').rename(tmp_path / 'gone')
  assert source.module().late() == 7  # of what was read, whatever became of the files
  assert config_files.read(tmp_path / 'second' / 'leaf.py').module().late() == 7


def test_only_what_is_imported_is_a_neighbour(tmp_path):
  file = folder(tmp_path, leaf='import json, numpy, vdm_jax, one', one='import two', two='',
                three='', parts__init='', parts__noise='')
  assert list(config_files.read(file).neighbours) == ['one.py', 'two.py']


@pytest.mark.parametrize('name', ['random', 'scipy', 'vdm_jax'])
def test_a_neighbour_with_the_name_of_an_installed_package_is_refused(tmp_path, name):
  """Which of the two is meant is not guessed; a relative import says it."""
  file = folder(tmp_path, leaf=f'import {name}', **{name: 'NAME = "mine"'})
  with pytest.raises(InputError, match=f"imports '{name}'.*both.*{name}.py.*rename"):
    config_files.read(file)
  folder(tmp_path, leaf=f'from .{name} import NAME')
  assert config_files.read(file).module().NAME == 'mine'


def test_a_folder_of_installed_packages_is_no_folder_of_neighbours():
  """A config may lie beside the package itself: that is the library, not a neighbour."""
  place = Path(config_files.__file__).parents[2] / 'beside.py'
  assert not config_files._is_installed(place, 'no_such_module', place)
  assert config_files._is_installed(place, 'vdm_jax', place.parent / 'vdm_jax' / '__init__.py')


def test_what_is_missing_is_named_in_one_line_with_the_remedy(tmp_path):
  file = folder(tmp_path, leaf='import one', one='import gone_cfg')
  with pytest.raises(InputError, match=r"one.py.*imports 'gone_cfg'.*neither installed nor in.*"
                     'put gone_cfg.py into') as error:
    config_files.read(file).module()
  assert '\n' not in str(error.value)
  folder(tmp_path, leaf='try:\n  import gone_cfg\nexcept ImportError:\n  gone_cfg = None')
  assert config_files.read(file).module().gone_cfg is None  # a config may do without


def test_a_config_that_is_no_python_is_one_line(tmp_path):
  file = folder(tmp_path, leaf='x = (')
  with pytest.raises(InputError, match=r'leaf.py.*line 1 is not Python'):
    config_files.read(file)


def test_dataclasses_with_postponed_annotations_work_in_a_config(tmp_path):
  """They look their module up in sys.modules."""
  file = folder(tmp_path, leaf='from __future__ import annotations\nimport dataclasses\n'
                '@dataclasses.dataclass\nclass A:\n  x: int = 3')
  assert config_files.read(file).module().A().x == 3


@pytest.mark.parametrize('variant,match', [
    (':x', 'no such variant.*choose one of a, b'), ('', 'needs a variant.*VARIANT')])
def test_a_variant_that_does_not_exist_is_one_line(tmp_path, variant, match):
  file = tmp_path / 'leaf.py'
  file.write_text(CONFIG + 'VARIANTS = "a", "b"\n'
                  'def get_config(variant):\n  return {"a": 1, "b": 2}[variant]\n')
  module = config_files.read(file).module()
  assert config_files.get_config(module, f'{file}:b') == 2
  with pytest.raises(InputError, match=match):
    config_files.get_config(module, f'{file}{variant}')


def test_a_variant_of_a_config_that_has_none_is_one_line(tmp_path):
  file = folder(tmp_path, leaf='')
  with pytest.raises(InputError, match='has no variants.*leave out :x'):
    config_files.get_config(config_files.read(file).module(), f'{file}:x')


def test_reading_a_config_file_needs_no_accelerator_library():
  code = ('import sys\nfrom vdm_jax.machine import config_files\n'
          "assert 'jax' not in sys.modules and 'flax' not in sys.modules")
  subprocess.run([sys.executable, '-c', code], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize('line,name,nearest', [
    ('config.train.update(stepss=60)', 'stepss', 'steps'),
    ('config.optimizer.warmup_step = 5', 'warmup_step', 'warmup_steps'),
    ('config.data.update(batchsize=6)', 'batchsize', 'batch_size'),
    ('config.model.feature = 3', 'feature', 'features'),
    ('config.model.update(dropuot=0.5)', 'dropuot', 'dropout'),
    ('config.sede = 3', 'sede', 'seed')])
def test_a_misspelt_field_of_a_config_file_is_refused_with_the_nearest_name(tmp_path, line, name,
                                                                            nearest):
  with pytest.raises(InputError, match=f"line 6 of leaf.py sets the field '{name}'.*{nearest}"):
    opened(tmp_path, line)


def test_fields_of_a_config_s_own_are_named_when_it_is_made(tmp_path):
  found = opened(tmp_path, 'config.ema.update(longer=0.99999); config.model.weight = 2', 'weight=1')
  assert found.model.weight == 2 and found.ema.longer == 0.99999


def opened(tmp_path, line, own=''):
  file = folder(tmp_path, leaf='')
  file.write_text('from vdm_jax.systems.variational import vdm\n\n\ndef get_config():\n'
                  f'  config = vdm.default_config({own})\n  {line}\n  return config\n\n\n'
                  'def build(config):\n  pass\n')
  return config_files.get_config(config_files.read(file).module(), str(file))


@pytest.mark.parametrize('line', ['from vdm_jax.systems import vdm', 'import vdm_jax.weights.edm',
                                  'from vdm_jax.workdir import load'])
def test_a_config_of_another_version_says_so_and_what_to_do(tmp_path, line):
  file = tmp_path / 'leaf.py'
  file.write_text(f'{line}\n{CONFIG}')
  with pytest.raises(InputError, match='another version of vdm_jax .*put the config of this') as no:
    config_files.read(file).module()
  assert '\n' not in str(no.value)
