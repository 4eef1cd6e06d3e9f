"""Training in two lines reaches what is known in closed form, by the steps of a run."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax import random, train
from vdm_jax.errors import InputError
from vdm_jax.objectives import weighted_diffusion
from vdm_jax.processes import GaussianProcess
from vdm_jax.schedules import Linear
from vdm_jax.train import fitting, parallel, step
from vdm_jax.train.window import Diverged
from vdm_jax.typing import Estimate

MEAN, STD, B = np.float32([0.7, -0.4]), 0.5, 64
PROCESS = GaussianProcess(Linear(4.0, -4.0))


def belief(params):
  """The posterior mean of N(mean, STD^2), whose mean alone is to be found."""
  def denoise(z, level, cond=None):
    level = level.expand(z)
    gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
    x = params['mean'] + gain * (z - level.alpha * params['mean'])
    return Estimate(x, (z - level.alpha * x) / level.sigma)
  return denoise


def loss(params, x, context):
  return weighted_diffusion(belief(params), PROCESS, x, context.t, context.keys)


def batches(steps):
  rng = np.random.default_rng(0)
  return [(MEAN + STD * rng.standard_normal((B, 2))).astype(np.float32) for _ in range(steps)]


START = {'mean': jnp.zeros(2)}


@pytest.mark.long
def test_the_mean_of_gaussian_data_is_found_within_the_error_of_its_estimate():
  """The loss is quadratic in the mean, of curvature c, with the minimum at that of the data.

  An average of SGD that has converged has the error of an average of independent gradients: those
  of the last 1 / (1 - rate) steps and twice as many, their variance measured at the minimum.
  """
  rate, lr = 0.99, 0.05
  found = train.fit(loss, START, optax.sgd(lr), batches(1500), ema=rate, progress=False)
  exact = {'mean': jnp.asarray(MEAN)}

  @jax.jit
  def gradient(x, key):
    t = random.stratified(jax.random.uniform(key), jnp.arange(B), B)
    keys = random.per_example(key, jnp.arange(B))
    mean = lambda params: jnp.mean(weighted_diffusion(belief(params), PROCESS, x, t, keys)[0])
    return jax.grad(mean)(exact)['mean'], jax.hessian(mean)(exact)['mean']['mean']

  seen = [gradient(x, jax.random.key(i)) for i, x in enumerate(batches(200))]
  noise, curvature = np.stack([g for g, _ in seen]), np.mean([h for _, h in seen], axis=0)
  # Both filters, of the descent and of the average, only smooth: the error is at most that of an
  # average of gradients weighted as the average weighs its steps.
  error = noise.std(axis=0) / np.diag(curvature) * np.sqrt((1 - rate) / (1 + rate))
  assert (np.diag(curvature) * lr * 1500 > 20.0).all()  # no trace of the start is left
  assert (error < 0.05).all()
  assert (np.abs(found['mean'] - MEAN) < 4.0 * error).all()


@pytest.mark.long
def test_its_steps_are_those_of_a_run():
  some, tx = batches(5), optax.adam(0.1)
  averaged, last = train.fit(loss, START, tx, iter(some), ema=0.5, seed=3, raw=True, progress=False)
  update = jax.jit(lambda state, x: step.make_step(loss, tx, {'ema': 0.5})(
      state, x, random.key(3), parallel.Axis())[0])
  state = step.init(START, tx)
  for x in some:
    state = update(state, x)
  np.testing.assert_allclose(averaged['mean'], state.ema['ema']['mean'], rtol=1e-6)
  np.testing.assert_allclose(last['mean'], state.params['mean'], rtol=1e-6)
  assert np.abs(averaged['mean'] - last['mean']).min() > 1e-3


def test_a_look_at_the_loss_after_the_last_step_changes_nothing(monkeypatch):
  """Each step takes longer than the bar waits between two looks, the last step too."""
  quiet = train.fit(loss, START, optax.sgd(0.1), batches(3), progress=False)
  seconds = iter(range(0, 1000, 2))
  monkeypatch.setattr(fitting.time, 'monotonic', lambda: float(next(seconds)))
  looked = train.fit(loss, START, optax.sgd(0.1), batches(3), progress=False)
  np.testing.assert_array_equal(looked['mean'], quiet['mean'])


def test_an_average_of_rate_zero_is_the_parameters_and_what_was_given_is_left_alone():
  given = {'mean': jnp.ones(2)}
  averaged, last = train.fit(loss, given, optax.sgd(0.1), batches(3), ema=0.0, raw=True,
                             progress=False)
  np.testing.assert_array_equal(averaged['mean'], last['mean'])
  np.testing.assert_array_equal(given['mean'], np.ones(2))


def test_a_loss_that_is_not_finite_is_told_by_its_step():
  def bad(params, x, context):
    nats, terms = loss(params, x, context)
    return nats + jnp.log(1.5 - context.step), terms  # NaN from step 2 on
  with pytest.raises(Diverged, match='loss is not finite at step 2'):
    train.fit(bad, START, optax.sgd(0.1), batches(4), progress=False)


@pytest.mark.parametrize('given,message', [
    ({'batches': iter(())}, 'batches: there is none; give a list'),
    ({'batches': [{'x': np.zeros((B, 2)), 'y': np.zeros(3)}]}, r'leaves of \[3, 64\] examples'),
    ({'ema': 1.0}, 'ema.ema=1.0')])
def test_what_cannot_be_fitted_is_refused_in_one_line(given, message):
  given = {'batches': batches(1), **given}
  with pytest.raises(InputError, match=message):
    train.fit(loss, START, optax.sgd(0.1), progress=False, **given)
