"""EDM's stochastic sampler, against the exact spread of Gaussian data."""
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.sampling import grids, rectified_flow
from vdm_jax import oracles, processes, random, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, flow, from_alpha_sigma, ve, vp
from vdm_jax.samplers import sample
from vdm_jax.samplers.edm import edm
from vdm_jax.samplers.runge_kutta import HEUN, MIDPOINT, RK3, rho_rk
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

LINEAR = schedules.Linear(6.0, -4.0)
ORACLE = oracles.Gaussian(0.0, 0.4)


def kernels(sampler, times):
  """(gain, std) of the affine kernel of every step."""
  plan, key = sampler.plan(times), jax.random.split(jax.random.key(0), 1)

  def at(z, noise):
    with mock.patch.object(random, 'normal', lambda keys, like: jnp.full_like(like, noise)):
      step = lambda t, s, row: sampler.step(key, jnp.full((1, 1), z), t, s, row)[0, 0]
      return jax.vmap(step)(times[:-1], times[1:], plan)

  return at(1.0, 0.0), jnp.abs(at(0.0, 1.0))


def spreads(sampler, lengths, start):
  """Standard deviation at t = 0, from `start` at t = 1, by var_s = gain^2 var + std^2."""
  def spread(times):
    gain, std = kernels(sampler, times)
    step = lambda var, k: (jnp.where(k[2], k[0]**2 * var + k[1]**2, var), None)
    real = times[1:] != times[:-1]
    return jnp.sqrt(jax.lax.scan(step, start**2, (gain, std, real))[0])
  return jax.jit(jax.vmap(spread))(grids(lengths))


@pytest.mark.long
@pytest.mark.parametrize('process,tableau', [
    (GaussianProcess(LINEAR, vp), HEUN), (GaussianProcess(LINEAR, ve), HEUN),
    (rectified_flow(), MIDPOINT)], ids=['vp', 've', 'rectified flow'])
def test_churned_or_not_the_spread_is_that_of_the_data_to_second_order(process, tableau):
  """However much noise is put in, the flow takes it out: only the error of the steps is left."""
  at_1, at_0 = process(jnp.ones(())), process(jnp.zeros(()))
  start, exact = (jnp.hypot(0.4 * level.alpha, level.sigma) for level in (at_1, at_0))
  for churn, low, high in [(0.0, 0.0, np.inf), (20.0, 0.05, 20.0)]:
    got = spreads(edm(ORACLE, process, churn, low, high, 1.0, tableau), [64, 128, 256, 512], start)
    error = np.abs(got - exact)
    # Where churning begins and ends at a step of the grid, the error is not smooth in its length.
    np.testing.assert_allclose(np.log2(error[0] / error[-1]) / 3.0, 2, atol=0.15)
    assert error[-1] < 1e-4


@pytest.mark.long
def test_noise_is_added_between_the_two_levels_alone_and_never_above_the_process():
  process = GaussianProcess(LINEAR, flow)
  times = jnp.linspace(1.0, 0.0, 21)
  level = process(times[:-1])
  ratio = level.sigma / level.alpha
  stds = lambda *options: jax.jit(lambda: kernels(edm(ORACLE, process, *options), times)[1])()
  std = stds(100.0, 0.5, 5.0)
  np.testing.assert_array_equal(std > 0.0, (ratio >= 0.5) & (ratio <= 5.0))
  asked = []

  def denoise(z, level, cond=None):
    jax.debug.callback(lambda a: asked.append(float(a)), level.logsnr)
    return ORACLE(z, level)

  keys = jax.random.split(jax.random.key(0), 1)
  jax.jit(lambda: sample(edm(denoise, process, 100.0), keys, jnp.ones((1, 1)), times))()
  jax.effects_barrier()
  assert len(asked) == 40
  np.testing.assert_allclose(min(asked), -4.0, rtol=1e-9)  # also from the second step on
  assert np.sum(np.isclose(asked, -4.0)) >= 2
  std = stds(100.0)
  assert std[0] == 0.0 and (std[1:] > 0.0).all()


@pytest.mark.long
def test_the_share_of_the_churn_that_a_step_has_counts_no_padding():
  process = GaussianProcess(LINEAR)
  keys, z = jax.random.split(jax.random.key(0), 5), jnp.linspace(-2.0, 2.0, 5)[:, None]
  run = jax.jit(lambda churn, times: sample(edm(ORACLE, process, churn), keys, z, times))
  plain = run(2.0, grids([10])[0])
  np.testing.assert_allclose(run(2.0, grids([10, 15])[0]), plain, rtol=1e-12)
  assert np.abs(plain - run(0.0, grids([10])[0])).max() > 0.01


@pytest.mark.long
def test_without_churn_it_is_the_flow_alone():
  keys, z = jax.random.split(jax.random.key(0), 5), jnp.linspace(-2.0, 2.0, 5)[:, None]
  for process in (GaussianProcess(LINEAR, ve), rectified_flow()):
    both = edm(ORACLE, process, tableau=RK3), rho_rk(ORACLE, process, RK3)
    run = lambda both=both: [sample(sampler, keys, z, grids([8])[0]) for sampler in both]
    got, flow_alone = jax.jit(run)()
    np.testing.assert_allclose(got, flow_alone, rtol=1e-12)


@pytest.mark.long
def test_draws_are_new_at_every_step_and_the_data_s_moments_come_out():
  """The library's own draws, within four standard errors, from sigma = 80 down to 0."""
  def denoise(z, level, cond=None):
    x, eps, _ = oracles.Gaussian(0.7, 0.4)(z, level)
    undefined = jnp.where(level.expand(z).sigma > 0.0, 0.0, jnp.nan)
    return Estimate(x + undefined, eps + undefined)

  n, rho = 10_000, 7.0
  process = from_alpha_sigma(jnp.ones_like, lambda t: 80.0 * t**rho)
  z = processes.sample_prior(process, jax.random.split(jax.random.key(1), n), jnp.zeros((n, 1)))
  keys = jax.random.split(jax.random.key(2), n)
  sampler = edm(denoise, process, 40.0, 0.05, 50.0)
  got = jax.jit(lambda: sample(sampler, keys, z, jnp.linspace(1.0, 0.0, 81)))()
  np.testing.assert_allclose(np.mean(got), 0.7, atol=4 * 0.4 / n**0.5)
  np.testing.assert_allclose(np.std(got), 0.4, rtol=4 / (2 * n)**0.5 + 2e-3)


def test_a_negative_churn_is_refused():
  with pytest.raises(InputError, match='s_churn=-1'):
    edm(ORACLE, rectified_flow(), s_churn=-1.0)
