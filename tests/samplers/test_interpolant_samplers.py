"""The SDEs of an interpolant keep its marginals at every e(t)."""
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import interpolants, oracles, random
from vdm_jax.interpolants import Drift
from vdm_jax.objectives import flow_matching
from vdm_jax.processes import RectifiedFlow
from vdm_jax.samplers import interpolants as samplers
from vdm_jax.samplers import sample
from vdm_jax.typing import Sampler

pytestmark = pytest.mark.usefixtures('x64')

M, S, K, R = 0.4, 0.5, -1.0, 0.8  # x ~ N(M, S^2) at t = 0, y ~ N(K, R^2) at t = 1
MADE = interpolants.interpolant(interpolants.trigonometric(), interpolants.brownian(0.7))


def drifts(z, t, cond=None):
  """In closed form: all is Gaussian."""
  at = MADE(t)
  variance = (at.a * S)**2 + (at.b * R)**2 + at.gamma**2
  score = -(z - at.a * M - at.b * K) / variance
  slope = at.da * at.a * S**2 + at.db * at.b * R**2 + at.gamma_dgamma
  return Drift(at.da * M + at.db * K - slope * score, score)


def moments(sampler, times, mean, variance):
  """Mean and variance at the last time, step by step: each is z -> p z + q + c noise."""
  keys = random.per_example(random.key(0), jnp.arange(1))

  def at(z, noise):
    with mock.patch.object(random, 'normal', lambda keys, like: jnp.full_like(like, noise)):
      step = lambda t, s: sampler.step(keys, jnp.full((1, 1), z), t, s, None)[0, 0]
      return jax.jit(jax.vmap(step))(jnp.asarray(times[:-1]), jnp.asarray(times[1:]))
  shift, scaled, noisy = at(0.0, 0.0), at(1.0, 0.0), at(0.0, 1.0)
  for q, p, c in zip(*map(np.asarray, (shift, scaled - shift, noisy - shift)), strict=True):
    mean, variance = p * mean + q, p**2 * variance + c**2
  return mean, variance**0.5


DIFFUSIVITIES = {'flow': samplers.none, 'constant': lambda t: 0.5 + 0.0 * t,
                 'large': lambda t: 3.0 + 0.0 * t, 'in time': lambda t: 2.0 * t * (1.0 - t)}


@pytest.mark.long
@pytest.mark.parametrize('name', DIFFUSIVITIES)
def test_marginals_are_kept_down_and_up_at_every_diffusivity(name):
  """To first order: the error halves with the step."""
  sampler = samplers.euler(drifts, DIFFUSIVITIES[name])
  errors = []
  for n in (2000, 4000):
    down = np.linspace(1.0, 0.0, n + 1)
    errors.append([abs(np.subtract(moments(sampler, down, K, R**2), (M, S))).max(),
                   abs(np.subtract(moments(sampler, down[::-1], M, S**2), (K, R))).max()])
  assert np.max(errors[1]) < 3e-3
  assert (np.asarray(errors[1]) < 0.6 * np.asarray(errors[0]) + 1e-6).all()


@pytest.mark.long
@pytest.mark.parametrize('e', [0.0, 0.7])
def test_a_mirror_goes_through_noise_and_back_to_the_same_distribution(e):
  """z ~ N(M, S^2 + gamma^2) at every t, so its score is known, and its drift is -gamma gamma' s.

  The flow maps each z_1 to itself; with e > 0 only the distribution comes back.
  """
  made = interpolants.interpolant(interpolants.mirror, interpolants.brownian(2.0))

  def through_noise(z, t, cond=None):
    at = made(t)
    score = -(z - M) / (S**2 + at.gamma**2)
    return Drift(-at.gamma_dgamma * score, score)
  sampler = samplers.euler(through_noise, lambda t: e + 0.0 * t)
  for start, end in ((1.0, 0.5), (1.0, 0.0), (0.0, 1.0)):
    std = (S**2 + 2.0 * end * (1.0 - end))**0.5
    moved = moments(sampler, np.linspace(start, end, 4001), M, S**2)
    np.testing.assert_allclose(moved, (M, std), rtol=2e-3)
  if not e:
    flow = moments(sampler, np.linspace(1.0, 0.0, 4001), M + 1.0, 0.0)
    np.testing.assert_allclose(flow, (M + 1.0, 0.0), rtol=2e-3)


@pytest.mark.long
@pytest.mark.parametrize('s,public', [(0.5, 0.459), (1.0, 0.886), (2.0, 1.709)])
def test_the_sde_of_rectified_flow_keeps_the_data_s_deviation_and_the_public_one_does_not(
    s, public):
  """gnobitab/RectifiedFlow, sigma_variance = 1: its 1000 steps, and ours with as much noise."""
  process, oracle, n = RectifiedFlow(), oracles.Gaussian(0.0, s), 1000

  def theirs(keys, z, t, s, _):
    tau = 0.999 * (1.0 - t) + 1e-3  # their time: 0 is noise
    noise_std = 1.0 - tau
    p = -flow_matching.velocity(oracle, process, z, 1.0 - tau)
    drift = p + noise_std**2 / (2.0 * (1.0 - tau)**2) * (
        0.5 * tau * (1.0 - tau) * p - 0.5 * (2.0 - tau) * z)
    return z + drift / n + noise_std / n**0.5 * random.normal(keys, z)

  down = np.linspace(1.0, 0.0, n + 1)
  mean, std = moments(Sampler(theirs), down, 0.0, 1.0)
  np.testing.assert_allclose((mean, std), (0.0, public), atol=6e-4)  # three digits are known
  diffusivity = lambda t: 0.5 * jnp.square(t)
  ours = samplers.euler(samplers.of_process(oracle, process), diffusivity)
  np.testing.assert_allclose(moments(ours, down, 0.0, 1.0), (0.0, s), rtol=2e-3, atol=1e-12)


@pytest.mark.long
def test_euler_of_the_interpolant_runs_by_the_sampler_s_own_driver():
  keys = random.per_example(random.key(0), jnp.arange(4000))
  y = K + R * random.normal(random.stream(keys, 'y'), jnp.zeros((4000, 1)))
  x = jax.jit(lambda y: sample(samplers.euler(drifts, DIFFUSIVITIES['in time']), keys, y,
                               np.linspace(1.0, 0.0, 201)))(y)
  assert abs(x.mean() - M) < 4 * S / 4000**0.5 + 0.01
  assert abs(x.std() - S) < 4 * S / 8000**0.5 + 0.01
