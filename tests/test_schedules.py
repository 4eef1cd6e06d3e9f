"""Schedules: end points, monotonicity, published definitions, and how they cross jit."""
import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import schedules
from vdm_jax.processes import GaussianProcess, sde, ve, vp

pytestmark = pytest.mark.usefixtures('x64')

FIXED = [schedules.Linear(), schedules.Cosine(), schedules.BetaLinear(), schedules.GeometricSigma()]
LEARNED = [schedules.LearnedLinear(), schedules.Monotone(features=32),
           schedules.PinnedMonotone(features=32)]
name = lambda s: type(s).__name__


def times(n=101):
  return jnp.linspace(0.0, 1.0, n)


def scrambled(module, key):
  """Normal parameters for `module`, of either sign; its scalars, which are ends, stay in order."""
  params = module.init(key, jnp.zeros(1))['params']
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  draws = [jax.random.normal(k, u.shape) for k, u in zip(keys, leaves, strict=True)]
  return tree.unflatten([10.0 * draw if u.ndim else u + draw
                         for u, draw in zip(leaves, draws, strict=True)])


@pytest.mark.parametrize('schedule', FIXED, ids=name)
def test_a_fixed_schedule_decreases(schedule):
  assert (np.diff(schedule(times())) < 0).all()


@pytest.mark.parametrize('module', LEARNED, ids=name)
def test_a_learned_schedule_decreases_whatever_its_parameters(module):
  curves = jax.jit(jax.vmap(
      lambda key: schedules.Bound(scrambled(module, key), module)(times())))(
          jax.random.split(jax.random.key(0), 32))
  assert curves.shape == (32, 101)
  assert np.std(curves[:, 50]) > 0.5  # they are 32 different schedules
  assert (np.diff(curves, axis=1) < 0).all()


@pytest.mark.parametrize('schedule', [schedules.Linear(7.0, -3.0), schedules.Cosine(7.0, -3.0)],
                         ids=name)
def test_end_points_are_the_ones_asked_for(schedule):
  np.testing.assert_allclose(schedule(jnp.array([0.0, 1.0])), [7.0, -3.0], rtol=1e-9)


def test_end_points_of_a_pinned_schedule_are_its_parameters():
  module = schedules.PinnedMonotone(features=16)
  params = scrambled(module, jax.random.key(3))
  ends = schedules.Bound(params, module)(jnp.array([0.0, 1.0]))
  np.testing.assert_allclose(ends, [params['logsnr_max'], params['logsnr_min']], rtol=1e-12)


def test_the_official_learned_schedules_start_as_the_straight_line():
  t = times(11)
  # The network adds a mean of products of weights of 0.01 each.
  for module, off in (schedules.LearnedLinear(), 1e-5), (schedules.Monotone(), 1e-3):
    params = module.init(jax.random.key(1), t)['params']
    np.testing.assert_allclose(schedules.Bound(params, module)(t), 13.3 - 18.3 * t, atol=off,
                               err_msg=name(module))


def test_alpha_of_the_cosine_schedule_is_the_cosine_of_an_angle_linear_in_time():
  angle = np.arccos(GaussianProcess(schedules.Cosine(), vp)(times()).alpha)
  np.testing.assert_allclose(np.diff(angle, n=2), 0.0, atol=1e-9)


def test_sigma_of_the_geometric_schedule_runs_from_0_01_to_50_in_equal_ratios():
  sigma = np.asarray(GaussianProcess(schedules.GeometricSigma(), ve)(times()).sigma)
  np.testing.assert_allclose(sigma[[0, -1]], [0.01, 50.0], rtol=1e-6)
  np.testing.assert_allclose(sigma[1:] / sigma[:-1], 5000**0.01, rtol=1e-6)


def test_beta_linear_is_the_sde_of_its_beta():
  """dz = -beta/2 z dt + sqrt(beta) dw, and alpha^2 = exp(-int beta) integrated numerically."""
  process = GaussianProcess(schedules.BetaLinear(), vp)
  u = lambda t: 1e-3 + (1 - 1e-3) * np.asarray(t)
  beta = lambda u: 0.1 + 19.9 * u
  t = times(33)
  f, g = sde(process(t))
  np.testing.assert_allclose(f, -0.5 * beta(u(t)) * (1 - 1e-3), rtol=1e-6)
  np.testing.assert_allclose(g**2, beta(u(t)) * (1 - 1e-3), rtol=1e-6)
  integral = [np.trapezoid(beta(grid), grid) for grid in np.linspace(0.0, u(t), 65).T]
  np.testing.assert_allclose(process(t).alpha**2, np.exp(-np.array(integral)), rtol=1e-6)


def chain(steps):
  """logsnr of the chain of Ho et al. (2020) with betas 0.1/T to 20/T in T steps, float64."""
  log_kept = np.cumsum(np.log1p(-np.linspace(0.1, 20.0, steps) / steps))
  return log_kept - np.log(-np.expm1(log_kept))


def test_beta_linear_is_the_limit_of_the_chain_of_ddpm():
  # At T = 1000 the published chain runs from 9.2102 to -10.1177.
  np.testing.assert_allclose(chain(1000)[[0, -1]], [9.2102, -10.1177], atol=1e-4)
  limit = schedules.BetaLinear(t_min=0.0)
  t = np.array([0.25, 0.5, 1.0])
  off = [np.abs(chain(n)[(n * t).astype(int) - 1] - limit(t)).max() for n in (10_000, 100_000)]
  assert off[1] < 1e-3
  np.testing.assert_allclose(off[0] / off[1], 10.0, rtol=0.01)  # of first order in 1/T


def test_the_float32_ends_of_the_fixed_schedules_are_close():
  with jax.enable_x64(False):
    ends = [schedule(jnp.array([0.0, 1.0])) for schedule in FIXED[:2]]
  assert all(u.dtype == jnp.float32 for u in ends)
  np.testing.assert_allclose(ends, [[13.3, -5.0]] * 2, atol=2e-5)


def test_another_value_of_a_fixed_schedule_is_not_traced_again():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def sigma(process, t):
    return process(t).sigma

  for high in (3.0, 4.0, 5.0):
    got = sigma(GaussianProcess(schedules.Linear(high, -high)), jnp.array([0.0]))
    np.testing.assert_allclose(got, (1 + np.exp(high))**-0.5, rtol=1e-6)


def test_a_module_built_and_bound_anew_is_not_traced_again():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def end(schedule):
    return schedule(jnp.ones(()))

  for low in (-1.0, -2.0, -3.0):
    module = schedules.LearnedLinear(logsnr_max=13.3, logsnr_min=-5.0)
    params = {'b': jnp.array([-1.0]), 'w': jnp.array([1.0 - low])}
    np.testing.assert_allclose(end(schedules.Bound(params, module)), low, rtol=1e-6)
