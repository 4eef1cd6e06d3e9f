"""Quasi-Taylor samplers: exact in the second order for data at a point, and there alone."""
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.sampling import MIXTURE, grids, on_grids, quantile_map, rectified_flow
from vdm_jax import oracles, processes, random, schedules
from vdm_jax.processes import GaussianProcess, flow, sub_vp, ve, vp
from vdm_jax.samplers import ancestral, ddim, sample
from vdm_jax.samplers.taylor import quasi_ito_taylor, quasi_taylor

pytestmark = pytest.mark.usefixtures('x64')

POINT = oracles.Gaussian(0.7, 0.0)
PROCESS = GaussianProcess(schedules.Linear(3.0, -2.5))


def kernels(sampler, times):
  """(z_s from z = 1 without noise, gain, std) of the affine kernel of every step."""
  plan, key = sampler.plan(times), jax.random.split(jax.random.key(0), 1)

  def at(z, noise):
    with mock.patch.object(random, 'normal', lambda keys, like: jnp.full_like(like, noise)):
      step = lambda t, s, row: sampler.step(key, jnp.full((1, 1), z), t, s, row)[0, 0]
      return jax.vmap(step)(times[:-1], times[1:], plan)

  one, zero = at(1.0, 0.0), at(0.0, 0.0)
  return one, one - zero, at(0.0, 1.0) - zero


def slope(error):
  return np.log2(error[:-1] / error[1:])


@pytest.mark.long
def test_on_straight_lines_one_step_is_exact_for_data_at_a_point():
  z = jnp.linspace(-2.0, 2.0, 5)[:, None]
  keys = jax.random.split(jax.random.key(0), 5)
  for times in (jnp.array([0.9, 0.2]), jnp.array([1.0, 0.0])):
    got = sample(quasi_taylor(POINT, rectified_flow()), keys, z, times)
    exact = POINT.flow_map(z, *map(rectified_flow(), times))
    np.testing.assert_allclose(got, exact, rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize('curve', [vp, ve, flow, sub_vp])
def test_for_data_at_a_point_a_step_errs_in_the_third_order(curve):
  """Against the exact flow, and the exact posterior q(z_s | z_t, x): its mean and variance."""
  process = GaussianProcess(schedules.Cosine(3.0, -2.5), curve)

  @jax.jit
  @jax.vmap
  def errors(s):
    at_t, at_s = process(0.6), process(s)
    z, x = jnp.ones((1, 1)), jnp.full((1, 1), 0.7)
    expected, std = processes.posterior(z, x, at_t, at_s)
    mean, _, spread = kernels(quasi_ito_taylor(POINT, process), jnp.stack([0.6, s]))
    ode, _, none = kernels(quasi_taylor(POINT, process), jnp.stack([0.6, s]))
    return jnp.stack([ode - POINT.flow_map(z, at_t, at_s)[0], mean - expected[0],
                      spread**2 - std[0]**2, none])

  ode, mean, variance, none = np.abs(errors(0.6 - 0.1 * 0.5**np.arange(5)))[:, :, 0].T
  for error in (ode, mean, variance):
    np.testing.assert_allclose(slope(error)[-2:], 3, atol=0.15)
  assert (none == 0.0).all()


@pytest.mark.parametrize('make,claim', [(quasi_taylor, 2), (ddim, np.inf)])
def test_for_data_at_a_point_the_order_is_two_where_ddim_is_exact(make, claim):
  z = np.linspace(-2.0, 2.0, 8)[:, None]
  exact = POINT.flow_map(jnp.asarray(z), PROCESS(jnp.ones(())), PROCESS(jnp.zeros(())))
  got = on_grids(make(POINT, PROCESS), jnp.asarray(z), [20, 40, 80, 160])
  error = np.abs(got - exact).max(axis=(1, 2))
  if claim == 2:
    np.testing.assert_allclose(slope(error), 2, atol=0.1)
  else:
    np.testing.assert_allclose(error, 0.0, atol=1e-12)


def test_for_other_data_the_order_is_one_since_the_ideal_derivatives_are_not_true():
  weights, means, stds = map(jnp.array, MIXTURE)
  z = np.linspace(-2.0, 2.0, 8)[:, None]
  exact = quantile_map(z, PROCESS(jnp.ones(())), PROCESS(jnp.zeros(())))
  oracle = oracles.Mixture(weights, means[:, None], stds)
  got = on_grids(quasi_taylor(oracle, PROCESS), jnp.asarray(z), [80, 160, 320, 640])
  error = np.sqrt(np.mean((got - exact)**2, axis=(1, 2)))
  np.testing.assert_allclose(slope(error), 1, atol=0.03)
  assert error[-1] < 1e-3


@pytest.mark.long
def test_the_stochastic_one_spreads_gaussian_data_to_first_order():
  oracle = oracles.Gaussian(0.0, 0.5)
  process = GaussianProcess(schedules.Linear(6.0, -6.0))

  @jax.jit
  @jax.vmap
  def spread(times):
    start = process(times[0])
    _, gain, std = kernels(quasi_ito_taylor(oracle, process), times)
    step = lambda variance, k: (k[0]**2 * variance + k[1]**2, None)
    variance = jnp.square(0.5 * start.alpha) + jnp.square(start.sigma)
    # A padded step is the identity, which `sample` sees to.
    real = times[1:] != times[:-1]
    kernel = jnp.where(real, gain, 1.0), jnp.where(real, std, 0.0)
    return jnp.sqrt(jax.lax.scan(step, variance, kernel)[0])

  at_0 = process(jnp.zeros(()))
  error = np.abs(spread(grids([100, 200, 400, 800])) - jnp.hypot(0.5 * at_0.alpha, at_0.sigma))
  np.testing.assert_allclose(slope(error), 1, atol=0.1)
  assert error[-1] < 5e-3


@pytest.mark.first(1)
@pytest.mark.parametrize('make,limit', [(quasi_taylor, ddim), (quasi_ito_taylor, ancestral)])
def test_steps_from_alpha_zero_and_to_sigma_zero_are_of_first_order(make, limit):
  oracle = oracles.Gaussian(0.7, 0.4)
  keys, z = jax.random.split(jax.random.key(0), 5), jnp.linspace(-2.0, 2.0, 5)[:, None]
  pairs = jnp.array([[1.0, 0.6], [0.4, 0.0], [1.0, 0.0]])
  got, expected = (jax.jit(jax.vmap(lambda times, m=m: sample(
      m(oracle, rectified_flow()), keys, z, times)))(pairs) for m in (make, limit))
  np.testing.assert_allclose(got, expected, rtol=1e-12)


@pytest.mark.first(1)
@pytest.mark.parametrize('make', [quasi_taylor, quasi_ito_taylor])
def test_float32_stays_float32_and_near_float64(make):
  def run(times):
    sampler = make(oracles.Gaussian(0.7, 0.4), PROCESS)
    keys = jax.random.split(jax.random.key(0), 5)
    z, noise = jnp.linspace(-2.0, 2.0, 5)[:, None], jnp.linspace(-1.0, 1.0, 5)[:, None]
    with mock.patch.object(random, 'normal', lambda keys, like: noise.astype(like.dtype)):
      return jax.jit(lambda times: sample(sampler, keys, z, times))(jnp.asarray(times, z.dtype))

  times = np.linspace(1.0, 0.0, 21)
  plain = run(times)
  with jax.enable_x64(False):
    single = run(times)
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, plain, atol=1e-5)
