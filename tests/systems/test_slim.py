"""A slim student: who teaches it, who moves, and which teachers are refused."""
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import slim_config
from tests.support.slim_config import Tiny
from vdm_jax import runs
from vdm_jax.errors import InputError
from vdm_jax.runs import workdir
from vdm_jax.systems.chains import ddpm
from vdm_jax.systems.distilled import slim
from vdm_jax.train import parallel
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Context


def built(**model):
  config = slim_config.get_config()
  config.model.update(model)
  return slim.experiment(config, net=Tiny(), teacher=Tiny(0.5)), config


def context(train=True):
  return Context((jnp.arange(8) + 0.5) / 8, jax.random.split(jax.random.key(1), 8), jnp.int32(0),
                 train=train)


@pytest.mark.long
def test_the_student_moves_and_its_teacher_stays():
  experiment, _ = built()
  params = jax.jit(experiment.init)(jax.random.key(0))
  assert params.keys() == {'net', 'student'}
  state = step_lib.init(params, experiment.tx, experiment.ema, experiment.aux)
  update = jax.jit(lambda *args: experiment.update(*args, parallel.Axis()))
  after, metrics = update(state, experiment.data.batch(0), jax.random.key(2))
  jax.tree.map(np.testing.assert_array_equal, after.params['net'], params['net'])
  moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), after.params['student'],
                       params['student'])
  assert min(jax.tree.leaves(moved)) > 0.0
  assert metrics.keys() >= {'student_eps_error', 'student_spatial', 'student_spectral'}


@pytest.mark.long
def test_a_student_with_its_teacher_s_weights_is_apart_from_it_by_the_scale():
  """Outputs h and h / 2 are apart by h / 2, at every z: the distance is known from eps_hat."""
  experiment, config = built(spatial=0.0, spectral=0.0)
  params = jax.jit(experiment.init)(jax.random.key(0))
  params = {'net': params['net'], 'student': params['net']}
  batch = experiment.data.batch(0)
  losses, terms = jax.jit(lambda: experiment.loss(params, batch, context()))()
  plain, _ = jax.jit(lambda: ddpm.experiment(config, net=Tiny()).loss(
      {'net': params['net']}, batch, context()))()
  np.testing.assert_allclose(losses, plain, rtol=1e-4)  # L_simple alone, of the same draws
  # Of sums over the data, a term is 1/64.  |h/2|^2 is within |eps_hat|^2 / 4, |tanh| <= 1.
  assert float(terms['spatial'].max()) <= 0.25
  assert float(terms['spatial'].min()) > 0.0
  full, _ = built()
  both, terms = jax.jit(lambda: full.loss(params, batch, context()))()
  np.testing.assert_allclose(
      (both - losses) * np.log(2), 0.1 * (terms['spatial'] + terms['spectral']), rtol=1e-3)


@pytest.mark.parametrize('field,value', [('spatial', -0.1), ('spectral', -1.0), ('floor', 0.0),
                                         ('variances', True)])
def test_factors_that_are_none_are_refused(field, value):
  with pytest.raises(InputError, match=f'config.model.{field}={value}') as error:
    built(**{field: value})
  assert '\n' not in str(error.value)


def run_config(system='slim', **changes):
  config = slim_config.get_config(system)
  for name, value in changes.items():
    config.update_from_flattened_dict({name.replace('__', '.'): value})
  return config


@pytest.mark.long
def test_a_student_learns_from_the_run_that_it_starts_from_and_is_loaded_without_it(tmp_path):
  file, teacher, directory = slim_config.__file__, tmp_path / 'teacher', tmp_path / 'slim'
  runs.train(run_config('teacher'), file, teacher)
  learned = workdir.load_trained(teacher).params['net']
  for start, changes, says in [
      ({}, {}, 'init_from: its teacher is the network of another run'),
      ({'init_from': teacher}, {'model__hidden': 32}, 'init_from=.*it has no net/.* of this shape'),
      ({'init_from': teacher}, {'model__timesteps': 500}, 'the teacher has another process')]:
    with pytest.raises(InputError, match=says) as error:
      runs.train(run_config(**changes), file, directory, **start)
    assert '\n' not in str(error.value)
  assert not directory.exists()

  runs.train(run_config(train__steps=1), file, directory, init_from=teacher)
  shutil.rmtree(teacher)
  runs.train(run_config(), file, directory)  # goes on without it
  trained = workdir.load_trained(directory)
  jax.tree.map(np.testing.assert_array_equal, trained.params['net'], learned)
  model = trained.experiment.model(trained.params)
  images = model.sample(jax.random.key(0), 2, sampler='ddim', steps=3)
  assert images.shape == (2, 8, 8, 1) and 0 <= images.min() and images.max() <= 16
