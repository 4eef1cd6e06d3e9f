"""Samplers, against exact maps, the published orders and the exact spread for Gaussian data.

A grid may be padded with steps of length zero, so grids of many lengths run as one program.
"""
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.sampling import (
  MIXTURE,
  on_grids,
  quantile_map,
  rectified_flow,
  spread,
  transition,
)
from vdm_jax import denoisers, oracles, processes, random, schedules, targets
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, flow, from_alpha_sigma, sub_vp, ve, vp
from vdm_jax.samplers import ancestral, ddim, encode, heun, sample
from vdm_jax.samplers.sampling import tempered

pytestmark = pytest.mark.usefixtures('x64')

SAMPLERS = [ddim, ancestral, heun]
OFFICIAL = GaussianProcess(schedules.Linear(13.3, -5.0))
HALF = oracles.Gaussian(0.0, 0.5)


@pytest.mark.long
def test_ancestral_noise_is_new_at_every_step_and_of_unit_variance():
  """The same chain with the library's own draws, within four standard errors."""
  n = 20_000
  got = on_grids(ancestral(HALF, OFFICIAL), jax.random.normal(jax.random.key(1), (n, 1)), [10, 50])
  spread = np.std(got[:, :, 0], axis=1)
  np.testing.assert_allclose(spread, [0.338525, 0.457558], rtol=4 / (2 * n)**0.5)
  np.testing.assert_allclose(np.mean(got[:, :, 0], axis=1), 0.0, atol=4 * 0.46 / n**0.5)


@pytest.mark.long
def test_an_ancestral_step_draws_from_the_posterior_at_the_estimate():
  t, s = jnp.array([1.0, 0.7, 0.2]), jnp.array([0.5, 0.6, 0.0])
  for process in (GaussianProcess(schedules.Cosine(6.0, -6.0), sub_vp), rectified_flow()):
    gain, std = transition(ancestral(HALF, process), t, s)
    at_t, at_s = process(t), process(s)
    z = jnp.ones((3, 1))
    mean, expected = processes.posterior(z, HALF(z, at_t).x, at_t, at_s)
    np.testing.assert_allclose(gain, mean[:, 0], rtol=1e-9)
    np.testing.assert_allclose(std, expected[:, 0], rtol=1e-9, atol=1e-12)


@pytest.mark.long
def test_eta_moves_between_the_flow_and_the_ancestral_step():
  """Song et al. (2021), eq. 16: the fresh noise has eta times the ancestral deviation."""
  t, s = jnp.array([0.9, 0.5]), jnp.array([0.6, 0.1])
  # A denoiser that knows x = 0 makes every choice of eta leave the variance of q(z_s | x = 0).
  blind = oracles.Gaussian(0.0, 0.0)
  _, full = transition(ancestral(blind, OFFICIAL), t, s)
  for eta in (0.0, 0.3, 1.0):
    gain, std = transition(ddim(blind, OFFICIAL, eta), t, s)
    at_t, at_s = OFFICIAL(t), OFFICIAL(s)
    np.testing.assert_allclose(std, eta * full, rtol=1e-9)
    np.testing.assert_allclose(gain**2 * at_t.sigma**2 + std**2, at_s.sigma**2, rtol=1e-9)


@pytest.mark.first(1)
@pytest.mark.parametrize('make,order', [(ddim, 1), (heun, 2)])
def test_the_order_of_convergence_on_a_mixture_is_the_published_one(make, order):
  weights, means, stds = map(jnp.array, MIXTURE)
  mixture = oracles.Mixture(weights, means[:, None], stds)
  process = GaussianProcess(schedules.Linear(3.0, -2.5))
  z = np.linspace(-2.0, 2.0, 8)[:, None]
  exact = quantile_map(z, process(jnp.ones(())), process(jnp.zeros(())))
  got = on_grids(make(mixture, process), jnp.asarray(z), [160, 320, 640])
  error = np.sqrt(np.mean((got - exact)**2, axis=(1, 2)))
  np.testing.assert_allclose(np.log2(error[:-1] / error[1:]), order, atol=0.06)
  assert error[-1] < 10.0**(-order - 1)


ELSEWHERE = {'ve': GaussianProcess(schedules.Linear(6.0, -4.0), ve),
             'flow': GaussianProcess(schedules.Linear(6.0, -4.0), flow),
             'edm': from_alpha_sigma(jnp.ones_like, lambda t: 80.0 * t**3),  # to sigma = 0
             'rectified flow': rectified_flow()}


@pytest.mark.long
@pytest.mark.parametrize('name', ELSEWHERE)
def test_a_network_of_one_curve_gives_the_same_samples_on_another(name):
  oracle, elsewhere = oracles.Gaussian(0.7, 0.4), ELSEWHERE[name]

  def on_vp_alone(z, level, cond=None):
    known = jnp.abs(jnp.hypot(level.alpha, level.sigma) - 1.0) < 1e-9
    return jax.tree.map(lambda a: jnp.where(known, a, jnp.nan), oracle(z, level))

  def share(of):
    def at(t):
      level = elsewhere(t)
      return getattr(level, of) / jnp.hypot(level.alpha, level.sigma)
    return at

  trained = from_alpha_sigma(share('alpha'), share('sigma'))  # the same logsnr on vp
  keys = jax.random.split(jax.random.key(0), 4)
  unit = jnp.linspace(-1.5, 1.5, 4)[:, None]

  def draw(make, denoise, process):
    z = sample(make(denoise, process), keys, processes.prior_std(process) * unit,
               jnp.linspace(1.0, 0.0, 9))
    return z / process(jnp.zeros(())).alpha

  @jax.jit
  def run():
    moved = denoisers.on_curve(on_vp_alone, vp)
    return [(draw(make, moved, elsewhere), draw(make, on_vp_alone, trained))
            for make in (ddim, ancestral)]

  for got, expected in run():
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    assert np.std(got) > 0.1


@pytest.mark.parametrize('make,order', [(ddim, 1), (heun, 2)])
def test_rectified_flow_converges_from_pure_noise_to_pure_data(make, order):
  """alpha = 0 at the start and sigma = 0 at the end, where the exact map is z -> m + s z."""
  oracle = oracles.Gaussian(0.7, 0.4)
  z = jnp.linspace(-2.0, 2.0, 5)[:, None]
  got = on_grids(make(oracle, rectified_flow()), z, [64, 128, 256])
  error = np.abs(got - (0.7 + 0.4 * z)).max(axis=(1, 2))
  np.testing.assert_allclose(np.log2(error[:-1] / error[1:]), order, atol=0.15)
  assert error[-1] < 10.0**(-order - 1)


@pytest.mark.parametrize('make', [ddim, heun])
def test_a_deterministic_sampler_run_upwards_encodes_data_as_noise(make):
  """From sigma = 0 to alpha = 0: the inverse of the exact map, z_1 = (x - m) / s."""
  sampler = make(oracles.Gaussian(0.7, 0.4), rectified_flow())
  x = jnp.linspace(-0.2, 1.6, 5)[:, None]
  keys = jax.random.split(jax.random.key(0), 5)
  got = jax.jit(lambda: sample(sampler, keys, x, jnp.linspace(0.0, 1.0, 257)))()
  np.testing.assert_allclose(got, (x - 0.7) / 0.4, atol=0.02)


@pytest.mark.long
def test_ancestral_rectified_flow_approaches_the_spread_of_the_data():
  """From alpha = 0 to sigma = 0 the chain falls short of it by what twice the steps halve."""
  short = [0.4 - spread(ancestral(oracles.Gaussian(0.0, 0.4), rectified_flow()), steps)
           for steps in (500, 1000)]
  assert 0.0 < short[1] < 2e-3
  np.testing.assert_allclose(short[0] / short[1], 2.0, rtol=0.02)


@pytest.mark.long
def test_a_network_of_zero_noise_is_not_defined_and_heun_needs_none():
  """EDM's own coordinates: sigma from 80 to 0 at alpha = 1, c_noise = log(sigma) / 4 = -inf."""
  process = from_alpha_sigma(lambda t: jnp.ones_like(t), lambda t: 80.0 * t**3)
  inputs = lambda z, level: (z, jnp.log(level.sigma) / 4)

  def network(z, noise, cond):
    sigma = jnp.exp(4 * noise)
    noise_dependent = jnp.where(jnp.isfinite(noise), 1.0, jnp.nan)  # as any embedding of -inf
    optimal = 0.3**2 * z / (0.3**2 + sigma**2)
    r = jnp.hypot(sigma, 0.5)
    return noise_dependent * (optimal - 0.25 * z / r**2) * r / (0.5 * sigma)

  denoise = denoisers.denoiser(network, targets.edm(), inputs)
  z = 80.0 * jnp.linspace(-2.0, 2.0, 5)[:, None]
  got = on_grids(heun(denoise, process), z, [200, 180])
  exact = oracles.Gaussian(0.0, 0.3).flow_map(z, process(jnp.ones(())), process(jnp.zeros(())))
  np.testing.assert_allclose(got, jnp.broadcast_to(exact, got.shape), atol=2e-3)


def test_samples_of_centred_data_are_as_much_smaller_as_their_noise():
  """The flow of N(0, s^2) is linear, and so is every step of DDIM."""
  process, z = GaussianProcess(schedules.Linear(6.0, -4.0)), jnp.linspace(-2.0, 2.0, 4)[:, None]
  sampler = ddim(oracles.Gaussian(0.0, 0.5), process)
  keys, times = jax.random.split(jax.random.key(0), 4), np.linspace(1.0, 0.0, 9)
  np.testing.assert_allclose(sample(tempered(sampler, 0.7), keys, z, times),
                             0.7 * sample(sampler, keys, z, times), rtol=1e-12)


def test_a_step_of_length_zero_is_the_identity():
  z = jnp.linspace(-2.0, 2.0, 5)[:, None]
  keys, t = jax.random.split(jax.random.key(0), 5), jnp.array([0.0, 0.3, 1.0])

  @jax.jit
  def steps():
    return [jax.vmap(lambda t, make=make, process=process: make(oracles.Gaussian(0.7, 0.4), process)
                     .step(keys, z, t, t, None))(t)
            for make in SAMPLERS for process in (OFFICIAL, rectified_flow())]
  for got in steps():
    np.testing.assert_allclose(got, jnp.broadcast_to(z, (3, 5, 1)), rtol=1e-12, atol=1e-12)


@pytest.mark.long
def test_image_i_is_the_same_however_many_are_drawn():
  sampler = ancestral(HALF, OFFICIAL)
  keys = jax.random.split(jax.random.key(0), 8)
  like = jnp.zeros((8, 2, 2))
  draw = lambda keys, like: sample(sampler, keys, processes.sample_prior(OFFICIAL, keys, like),
                                   jnp.linspace(1.0, 0.0, 9))
  some = draw(keys, like)
  np.testing.assert_allclose(draw(keys[3:5], like[3:5]), some[3:5], rtol=1e-12)
  assert len(np.unique(some)) == some.size


@pytest.mark.parametrize('make', SAMPLERS)
def test_a_sampler_declares_how_often_it_asks_the_denoiser(make):
  asked = []

  def denoise(z, level, cond=None):
    asked.append(1)
    return HALF(z, level)

  sampler = make(denoise, OFFICIAL)
  sampler.step(jax.random.split(jax.random.key(0), 1), jnp.ones((1, 1)), jnp.array(0.5),
               jnp.array(0.4), None)
  assert len(asked) == sampler.evaluations


@pytest.mark.first(2)
@pytest.mark.parametrize('make', SAMPLERS)
def test_float32_stays_float32_and_near_float64(make):
  def run():
    sampler = make(oracles.Gaussian(0.7, 0.4), OFFICIAL)
    keys = jax.random.split(jax.random.key(0), 5)
    z = jnp.linspace(-2.0, 2.0, 5)[:, None]
    noise = jnp.linspace(-1.0, 1.0, 5)[:, None]  # draws of the two precisions differ
    with mock.patch.object(random, 'normal', lambda keys, like: noise.astype(like.dtype)):
      return jax.jit(lambda: sample(sampler, keys, z, jnp.linspace(1.0, 0.0, 101)))()

  with jax.enable_x64(False):
    single = run()
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, run(), atol=1e-5)


@pytest.mark.parametrize('times,message', [
    ([0.0, 0.5, 1.0], 'must decrease'),
    ([1.0, 1.0, 1.0], 'all 1; give a grid of at least one step'),
    ([3.0, 1.0, -0.5], r'from 3 to -0\.5; give times in \[0, 1\]'),
    ([1.0, np.nan], 'not finite'),
    ([1.0], 'at least two'),
])
def test_what_is_no_grid_is_refused_with_the_reason(times, message):
  keys, z = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 1))
  with pytest.raises(InputError, match=message):
    sample(ddim(HALF, OFFICIAL), keys, z, np.array(times))


def test_keys_that_are_not_one_for_each_image_are_refused():
  key = jax.random.key(0)
  for keys in (key, jax.random.split(key, 3)):
    with pytest.raises(InputError, match=r'^keys: .*z \(2, 1\); .*keys \[B\] and z \[B'):
      sample(ddim(HALF, OFFICIAL), keys, jnp.ones((2, 1)), np.array([1.0, 0.0]))


def test_an_eta_that_no_variance_allows_is_refused():
  for eta in (-0.1, 2.0):
    with pytest.raises(InputError, match=f'eta={eta}: '):
      ddim(HALF, OFFICIAL, eta=eta)


def test_what_is_not_finite_is_reported_with_its_causes():
  keys, z, grid = jax.random.split(jax.random.key(0), 2), jnp.ones((2, 1)), np.linspace(0.0, 1.0, 5)
  broken = lambda z, level: jax.tree.map(lambda a: jnp.where(level.t < 0.6, jnp.nan, a),
                                         HALF(z, level))
  with pytest.raises(InputError, match=r'the sample .* from t = 0\.5 .*score where alpha = 0'):
    sample(ddim(broken, OFFICIAL), keys, z, grid[::-1])
  with pytest.raises(InputError, match=r'the encoding .* from t = 0 .*the sampler is stochastic'):
    encode(ancestral(HALF, OFFICIAL), keys, z, grid)
