"""Denoising MCMC: what its chain on data and level leaves invariant, and what it draws."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, from_alpha_sigma, sub_vp, ve, vp
from vdm_jax.samplers import ddim, heun, sample
from vdm_jax.samplers.denoising_mcmc import ChainState, denoising_mcmc, level_posterior
from vdm_jax.samplers.langevin import mala
from vdm_jax.samplers.multistep import Coefficients, multistep
from vdm_jax.samplers.splitting import plms
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

# Modes 13 standard deviations apart: no chain at the level of the data would ever cross.
MIXTURE = oracles.Mixture(jnp.array([0.8, 0.2]), jnp.array([[1.0, 1.0], [-1.0, -0.5]]),
                          jnp.array([0.15, 0.1]))
exactly = functools.partial(mala, log_prob=MIXTURE.log_prob, step_size=0.5)


def split(n):
  return jax.random.split(jax.random.key(0), n)


def from_one_mode(process, times, n):
  """All chains at the first level, in the lesser mode."""
  z = process(times[0]).alpha * jnp.array([-1.0, -0.5]) + jnp.zeros((n, 2))
  return ChainState(z, jnp.zeros(n, int))


@functools.cache
def drawn(n=3000):
  process, times = GaussianProcess(schedules.Linear(7.0, -4.0), sub_vp), np.linspace(1.0, 0.0, 17)
  logits = level_posterior(MIXTURE.log_prob, process, times)
  run = lambda chain: denoising_mcmc(MIXTURE, process, split(n), chain, times, logits, 50,
                                     corrector=exactly, sampler=heun)
  return jax.device_get(jax.jit(run)(from_one_mode(process, times, n)))


@pytest.mark.long
def test_the_chain_is_at_every_level_equally_often():
  index, p = drawn().chain.index, 1 / 17
  shares = np.bincount(index, minlength=17) / len(index)
  np.testing.assert_allclose(shares, p, atol=4 * (p * (1 - p) / len(index))**0.5)


@pytest.mark.long
def test_denoised_draws_have_the_weights_and_moments_of_the_modes():
  """From chains that all began in the mode of weight 0.2."""
  x = drawn().z
  right = x @ np.array([1.0, 0.75]) > 0.0
  np.testing.assert_allclose(np.mean(right), 0.8, atol=4 * (0.16 / len(x))**0.5)
  # At logsnr 7 the draws keep noise of sigma / alpha = e^-3.5.
  alpha = float(GaussianProcess(schedules.Linear(7.0, -4.0), sub_vp)(0.0).alpha)
  for mode, mean, std in [(right, [1.0, 1.0], 0.15), (~right, [-1.0, -0.5], 0.1)]:
    u, std = x[mode] / alpha, np.hypot(std, np.exp(-3.5))
    np.testing.assert_allclose(u.mean(axis=0), mean, atol=4 * std / len(u)**0.5)
    # One per cent is Heun's.
    np.testing.assert_allclose(u.std(axis=0), std, rtol=4 / (2 * len(u))**0.5 + 0.01)


def test_the_posterior_of_the_level_is_bayes_rule_in_the_units_of_the_data():
  """u = x + (sigma / alpha) eps has a density that no curve changes: the same posterior on all."""
  times, u = jnp.linspace(1.0, 0.0, 6), np.random.default_rng(1).normal(size=(4, 2))
  gauss = oracles.Gaussian(0.3, 0.5)
  got = []
  for curve in (vp, ve, sub_vp):
    process = GaussianProcess(schedules.Linear(6.0, -4.0), curve)
    logits = level_posterior(gauss.log_prob, process, times)
    got.append(jax.jit(lambda u, logits=logits: jax.nn.softmax(logits(u), axis=-1))(u))
  variance = 0.25 + np.exp(-np.linspace(-4.0, 6.0, 6))
  square = np.sum((u - 0.3)**2, axis=1)
  density = np.exp(-0.5 * square[:, None] / variance) / variance  # two dimensions
  for posterior in got:
    np.testing.assert_allclose(posterior, density / density.sum(axis=1, keepdims=True), rtol=1e-9)


@pytest.mark.long
def test_evaluations_of_a_draw_are_those_of_its_moves_and_of_its_own_way_down():
  n, times, asked = 5, np.linspace(1.0, 0.0, 9), []
  process = GaussianProcess(schedules.Linear(7.0, -4.0), vp)

  def denoise(z, level, cond=None):
    jax.debug.callback(lambda z: asked.append(len(z)), z)
    return MIXTURE(z, level)

  logits = level_posterior(MIXTURE.log_prob, process, times)
  run = lambda chain: denoising_mcmc(denoise, process, split(n), chain, times, logits, 3,
                                     corrector=exactly, sampler=ddim)
  draw = jax.block_until_ready(jax.jit(run)(from_one_mode(process, times, n)))
  jax.effects_barrier()
  # Two a move, for the Metropolis test.
  np.testing.assert_array_equal(draw.evaluations, 3 * 2 + (8 - draw.chain.index))
  assert len(np.unique(draw.evaluations)) > 1
  assert sum(asked) == n * (3 * 2 + 8)  # all take the steps of the longest way together


@pytest.mark.long
def test_a_multistep_method_starts_anew_at_the_level_of_its_chain():
  """As `sample` from there alone, on the rest of the grid."""
  def second_order(denoise, process):
    plan = lambda times: Coefficients(
        jnp.where(jnp.arange(times.shape[0] - 1) == 0, 0.0, 0.1)[:, None])
    return multistep(denoise, process, plan, depth=2, of='x')

  process, times = GaussianProcess(schedules.Linear(7.0, -4.0), vp), np.linspace(1.0, 0.0, 9)
  chain = ChainState(jnp.asarray(np.random.default_rng(2).normal(size=(3, 2))),
                     jnp.array([0, 3, 6]))
  draw = jax.jit(lambda: denoising_mcmc(
      MIXTURE, process, split(3), chain, times, lambda u: u, 0, sampler=second_order))()
  for i, index in enumerate([0, 3, 6]):
    run = functools.partial(sample, second_order(MIXTURE, process), split(1))
    alone = jax.jit(run)(chain.z[i:i + 1], times[index:])
    np.testing.assert_allclose(draw.z[i:i + 1], alone, rtol=1e-12)
  np.testing.assert_array_equal(draw.evaluations, [8, 5, 2])


@pytest.mark.long
def test_each_chain_is_denoised_with_its_own_condition():
  """A denoiser that is told the datum: every chain ends at its own, where sigma = 0."""
  process = from_alpha_sigma(lambda t: 1.0 - 0.9 * t, lambda t: t)
  times = jnp.linspace(1.0, 0.0, 5)
  told = lambda z, level, cond: Estimate(
      cond, (z - level.expand(z).alpha * cond) / level.expand(z).sigma)
  cond = jnp.asarray(np.random.default_rng(3).normal(size=(4, 2)))
  logits = lambda u: jnp.array([0.0, 0.0, 0.0, 0.0, -jnp.inf]) + jnp.zeros((4, 1))
  chain = ChainState(jnp.ones((4, 2)), jnp.zeros(4, int))
  draw = jax.jit(lambda: denoising_mcmc(told, process, split(4), chain, times, logits, 6,
                                        sampler=ddim, cond=cond))()
  np.testing.assert_allclose(draw.z, cond, rtol=1e-12)
  assert np.all(draw.chain.index < 4)


def test_a_sampler_whose_steps_differ_in_their_calls_is_refused():
  """`vmap` runs both branches of a condition: each step of PLMS would cost two evaluations."""
  process = GaussianProcess(schedules.Linear(7.0, -4.0), vp)
  draw = lambda sampler: denoising_mcmc(
      MIXTURE, process, split(2), ChainState(jnp.ones((2, 2)), jnp.zeros(2, int)),
      jnp.linspace(1.0, 0.0, 5), lambda u: jnp.zeros((2, 5)), 0, sampler=sampler)
  with pytest.raises(InputError, match='sampler: one of its steps calls .*; take .*heun'):
    draw(plms)
  # With order 1 it has no such step.
  np.testing.assert_array_equal(draw(functools.partial(plms, order=1)).evaluations, [4, 4])


def test_a_grid_where_alpha_vanishes_is_refused():
  process = from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)
  with pytest.raises(InputError, match='alpha = 0 at t = 1'):
    denoising_mcmc(MIXTURE, process, split(2), ChainState(jnp.ones((2, 2)), jnp.zeros(2, int)),
                   jnp.linspace(1.0, 0.0, 5), lambda u: u, 1)
