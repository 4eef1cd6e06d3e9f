"""The wheel, without the checkout: what it contains, and that it works where it is installed."""
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vdm_jax

ROOT = Path(__file__).parents[2]


def python(*arguments, packages, cwd):
  """Standard output of Python with these packages before its own, started in `cwd`."""
  environment = {**os.environ, 'PYTHONPATH': str(packages)}
  done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=environment,
                        capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """Built from a copy, as the build leaves folders beside its sources."""
  source, out = (tmp_path_factory.mktemp(name) for name in ('source', 'wheel'))
  shutil.copytree(ROOT / 'vdm_jax', source / 'vdm_jax',
                  ignore=shutil.ignore_patterns('__pycache__'))
  for name in ('pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  build = 'import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])'
  python('-c', build, out, packages='', cwd=source)
  [path] = out.glob('*.whl')
  return path


@pytest.fixture(scope='module')
def unpacked(wheel, tmp_path_factory):
  folder = tmp_path_factory.mktemp('packages')
  zipfile.ZipFile(wheel).extractall(folder)
  return folder


@pytest.mark.long
def test_the_wheel_contains_the_package_its_types_and_nothing_else(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  about = f'vdm_jax-{vdm_jax.__version__}.dist-info/'
  expected = {p.relative_to(ROOT).as_posix() for p in (ROOT / 'vdm_jax').rglob('*.py')}
  assert {name for name in names if not name.startswith(about)} == expected | {'vdm_jax/py.typed'}
  assert f'{about}licenses/LICENSE' in names


def test_its_metadata_are_those_of_the_project(wheel):
  text = zipfile.ZipFile(wheel).read(f'vdm_jax-{vdm_jax.__version__}.dist-info/METADATA').decode()
  field = lambda name: re.findall(rf'^{name}: (.*)$', text, re.MULTILINE)
  assert field('Version') == [vdm_jax.__version__]
  assert field('License-Expression') == ['Apache-2.0']
  assert set(field('Provides-Extra')) == {'train', 'data', 'eval', 'ssim', 'plan', 'test', 'docs',
                                          'cuda13', 'tpu', 'music', 'brain'}
  without_extra = [line for line in field('Requires-Dist') if 'extra ==' not in line]
  assert without_extra and not any('==' in line for line in without_extra)


@pytest.mark.long
def test_an_unpacked_wheel_runs_the_first_program_of_the_readme(unpacked, tmp_path):
  [program] = re.findall(r'```python\n(# circle\.py\n.*?)```', (ROOT / 'README.md').read_text(),
                         re.DOTALL)
  (tmp_path / 'circle.py').write_text(program + '\nimport vdm_jax\nprint(vdm_jax.__file__)\n')
  radius, file = python('circle.py', packages=unpacked, cwd=tmp_path).splitlines()
  assert abs(float(radius.removeprefix('radius')) - 1.0) < 0.05
  assert Path(file) == unpacked / 'vdm_jax' / '__init__.py'


@pytest.mark.long
def test_an_installed_wheel_loads_a_run(wheel, tmp_path):
  """Made by `pip install` in a folder of its own; the run was trained by the checkout."""
  from tests.support import tiny_config
  from vdm_jax import runs
  packages, run = tmp_path / 'packages', tmp_path / 'run'
  subprocess.run([sys.executable, '-m', 'pip', 'install', '--quiet', '--no-deps', '--no-index',
                  '--disable-pip-version-check', '--target', packages, wheel], check=True)
  config = tiny_config.get_config()
  config.data.update(data_dir=str(tmp_path / 'data'))
  config.train.update(steps=10)
  runs.train(config, Path(tiny_config.__file__), run)
  (tmp_path / 'elsewhere').mkdir()
  code = ('import sys, jax.numpy as jnp, vdm_jax; model = vdm_jax.load(sys.argv[1]); '
          'level = model.process(jnp.full(3, 0.5)); z = jnp.ones((3, *model.shape)); '
          'estimate = model.denoise(z, level); level = level.expand(z); '
          'print(abs(level.alpha * estimate.x + level.sigma * estimate.eps - z).max()); '
          'print(vdm_jax.__file__)')
  error, file = python('-c', code, run, packages=packages, cwd=tmp_path / 'elsewhere').splitlines()
  assert float(error) < 1e-5
  assert Path(file) == packages / 'vdm_jax' / '__init__.py'
