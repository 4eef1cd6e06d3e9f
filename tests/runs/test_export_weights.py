"""Exported weights are those of the run, by name, with what is needed to use them."""
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors

from tests.support import tiny_config
from vdm_jax import data
from vdm_jax.errors import InputError
from vdm_jax.published import fitting, readers
from vdm_jax.runs import exporting, workdir
from vdm_jax.train import step as step_lib
from vdm_jax.train.checkpoint import Checkpoints

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run with checkpoints of steps 5 and 10, whose averages and parameters all differ."""
  config = tiny_config.get_config()
  spec = data.resolve(config.data)
  config.data.update(shape=spec.shape, levels=spec.levels, classes=spec.classes)
  directory = tmp_path_factory.mktemp('runs') / 'run'
  workdir.prepare(directory, config, tiny_config.__file__)
  experiment = workdir.import_config(tiny_config.__file__).build(config)
  params = experiment.init(jax.random.key(0))
  checkpoints = Checkpoints(directory, 2)
  for number in (5, 10):
    state = step_lib.init(params, experiment.tx, experiment.ema)
    ema = {name: jax.tree.map(lambda u, k=k, number=number: u + number + k / 4, params)
           for k, name in enumerate(state.ema, 1)}
    checkpoints.save(jax.device_get(state.replace(step=jax.numpy.int32(number), ema=ema)))
  checkpoints.close()
  return directory


def fitted(flat, like):
  return fitting.fit(flat, like, lambda name: name)


@pytest.mark.long
@pytest.mark.parametrize('average, step', [('', 'latest'), ('fast', 5), ('raw', 'latest')])
def test_the_weights_come_back_bit_for_bit(run, tmp_path, average, step):
  out = tmp_path / 'new' / 'w.safetensors'
  trained = exporting.export(run, out, average=average, step=step)
  want = workdir.load_trained(run, average=average, step=step)
  back = fitted(readers.read(out), want.params)
  assert jax.tree.structure(back) == jax.tree.structure(want.params)
  for u, v in zip(jax.tree.leaves(back), jax.tree.leaves(want.params), strict=True):
    assert u.dtype == v.dtype
    np.testing.assert_array_equal(u, v)
  with safetensors.safe_open(out, 'numpy') as file:
    assert 'net/dense_in/kernel' in list(file.keys())
    assert file.metadata() == {'step': str(want.step), 'average': want.average}
  about = json.loads(out.with_suffix('.json').read_text())
  assert (about['step'], about['average']) == (trained.step, trained.average) == (
      want.step, average or 'slow')
  assert about['config']['model']['features'] == 8
  assert sorted(os.listdir(out.parent)) == ['w.json', 'w.safetensors']


@pytest.mark.long
def test_what_cannot_be_exported_is_said_and_nothing_is_written(run, tmp_path):
  for directory, out, options, message in (
      (run, 'w.npz', {}, r'out=.*its name must end in \.safetensors'),
      (tmp_path / 'none', 'w.safetensors', {}, 'holds no run'),
      (run, 'w.safetensors', {'average': 'none'}, "average='none': "),
      (run, 'w.safetensors', {'step': 3}, 'step=3: ')):
    with pytest.raises(InputError, match=message):
      exporting.export(directory, tmp_path / out, **options)
  assert not os.listdir(tmp_path)


@pytest.mark.long
def test_the_command_writes_both_files(run, tmp_path):
  done = subprocess.run(
      [sys.executable, str(ROOT / 'scripts' / 'export_weights.py'), f'--workdir={run}',
       f'--out={tmp_path / "w.safetensors"}'], capture_output=True, text=True, timeout=120,
      env={**os.environ, 'JAX_PLATFORMS': 'cpu'})
  assert done.returncode == 0, done.stderr
  assert 'step 10, average slow' in done.stdout
  fitted(readers.read(tmp_path / 'w.safetensors'), workdir.load_trained(run).params)
  assert (tmp_path / 'w.json').exists()
  for name in ('w.safetensors', 'w.json'):
    assert f'{tmp_path / name}' in done.stdout
    with pytest.raises(InputError, match=f'{name}.*: it is there already'):
      exporting.export(run, tmp_path / 'w.safetensors')
    (tmp_path / 'w.safetensors').unlink(missing_ok=True)
