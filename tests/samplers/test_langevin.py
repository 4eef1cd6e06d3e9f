"""Langevin dynamics, against the variance that it is known to have and a known experiment."""
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, processes, random, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, flow, from_alpha_sigma, sub_vp, ve, vp
from vdm_jax.samplers import sample
from vdm_jax.samplers.langevin import (
    annealed_corrector,
    annealed_langevin,
    annealed_variance,
    annealing_step_size,
    langevin_corrector,
    mala,
    ula,
)

pytestmark = pytest.mark.usefixtures('x64')

HALF = oracles.Gaussian(0.0, 0.5)
GEOMETRIC = GaussianProcess(schedules.GeometricSigma(0.1, 10.0), ve)


def split(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def rectified_flow():
  return from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)


# ------------------------------------------------------------------ step sizes


@pytest.mark.parametrize('sigma_1,levels,n_steps,epsilon', [
    (50.0, 232, 5, 6.2e-6), (90.0, 500, 5, 3.3e-6), (190.0, 1086, 3, 1.8e-6),
    (348.0, 2311, 3, 0.9e-6)])
def test_the_step_sizes_of_ncsnv2_are_the_published_ones(sigma_1, levels, n_steps, epsilon):
  """CIFAR-10, CelebA, LSUN tower and FFHQ of Song and Ermon (2020), all with sigma_L = 0.01."""
  growth = (sigma_1 / 0.01)**(1 / (levels - 1))
  got = 0.01**2 * jax.jit(annealing_step_size, static_argnums=1)(growth, n_steps)
  np.testing.assert_allclose(got, epsilon, rtol=0, atol=0.05e-6)  # two digits are printed


def test_the_variance_after_k_moves_is_that_of_the_recursion():
  for growth, n_steps, h in [(1.05, 5, 0.06), (3.0, 1, 0.5), (1.5, 40, 0.01)]:
    variance = growth**2
    for _ in range(n_steps):
      variance = (1.0 - h)**2 * variance + 2.0 * h
    np.testing.assert_allclose(annealed_variance(growth, n_steps, h), variance, rtol=1e-12)


@pytest.mark.long
def test_no_other_step_size_brings_the_variance_nearer_to_one():
  growth, n_steps = np.array([1.01, 1.2, 3.0, 20.0]), 4
  best = jax.jit(lambda: annealed_variance(growth, n_steps, annealing_step_size(growth, n_steps)))()
  others = annealed_variance(growth, n_steps, np.linspace(1e-4, 1.0, 4001)[:, None])
  assert np.all(best <= others + 1e-12)
  np.testing.assert_allclose(best, others.min(axis=0), rtol=1e-4)
  assert np.all(best > 1.0)


# ----------------------------------------------------------- annealed dynamics


def variances(sampler, n, times):
  """Variance of n chains from N(0, 100) at every time, and its relative standard error."""
  z = 10.0 * np.random.default_rng(1).normal(size=(n, 1))
  _, seen = jax.jit(lambda z: sample(sampler, split(n), z, times, trace=sampler.value))(z)
  return np.var(seen[..., 0], axis=1), (2.0 / n)**0.5


@pytest.mark.long
def test_for_data_at_a_point_the_moves_leave_the_variance_that_ncsnv2_plans():
  """At the first level down from one where the variance is right."""
  point, times = oracles.Gaussian(0.0, 0.0), np.linspace(1.0, 0.0, 9)
  got, error = variances(annealed_langevin(point, GEOMETRIC, n_steps=3), 10_000, times)
  growth = 100.0**(1 / 8)
  planned = jax.jit(lambda: annealed_variance(growth, 3, annealing_step_size(growth, 3)))()
  np.testing.assert_allclose(got[1] / (10.0 / growth)**2, planned, rtol=4 * error)
  assert planned < 0.9 * growth**2


@pytest.mark.long
def test_the_variance_of_gaussian_data_follows_its_recursion_down_the_levels():
  """Per move (1 - h / V)^2 v + 2 h with V the variance of the marginal, h = epsilon s_i^2 / s_L^2.

  By hand from the algorithm; s_L = 0.1 is the last sigma.
  """
  times, epsilon, n_steps = np.linspace(1.0, 0.0, 7), 2e-3, 4
  sampler = annealed_langevin(HALF, GEOMETRIC, n_steps, epsilon)
  got, error = variances(sampler, 10_000, times)
  variance, expected = 100.0, [100.0]
  for sigma in 10.0 * 0.01**(np.arange(1, 7) / 6):
    h = epsilon * sigma**2 / 0.1**2
    for _ in range(n_steps):
      variance = (1.0 - h / (0.25 + sigma**2))**2 * variance + 2.0 * h
    expected.append(variance)
  np.testing.assert_allclose(got, expected, rtol=4 * error)


@pytest.mark.long
def test_one_move_a_level_is_exactly_the_affine_map_of_its_step_size():
  times, epsilon = np.linspace(1.0, 0.0, 7), 2e-3
  sampler = annealed_langevin(HALF, GEOMETRIC, 1, epsilon)
  sigma = 10.0 * 0.01**(np.arange(1, 7) / 6)

  @jax.jit
  def steps(z, noise):
    with mock.patch.object(random, 'normal', lambda keys, like: jnp.full_like(like, noise)):
      step = lambda t, s, plan: sampler.step(split(1), jnp.full((1, 1), z), t, s, plan)
      return jax.vmap(step)(times[:-1], times[1:], sampler.plan(times))[:, 0, 0]

  h = epsilon * sigma**2 / 0.1**2
  np.testing.assert_allclose(steps(1.0, 0.0), 1.0 - h / (0.25 + sigma**2), rtol=1e-12)
  np.testing.assert_allclose(steps(0.0, 1.0)**2, 2.0 * h, rtol=1e-12)


@pytest.mark.long
def test_annealed_dynamics_finds_the_weights_of_far_modes_where_plain_dynamics_does_not():
  """Song and Ermon (2019), section 3.2.2 and figure 3: 0.8 and 0.2 at +-(5, 5), from the uniform
  distribution on [-8, 8]^2; sigma from 20 to 1 in 10 levels of 100 moves, h = 0.05 at the last."""
  n = 2000
  points = oracles.Mixture(jnp.array([0.8, 0.2]), jnp.array([[5.0, 5.0], [-5.0, -5.0]]),
                           jnp.zeros(2))
  z = np.random.default_rng(2).uniform(-8.0, 8.0, size=(n, 2))
  # No moves are made at the first time of a grid: one more level above.
  level = GaussianProcess(schedules.GeometricSigma(1.0, 20.0**(10 / 9)), ve)
  times = np.linspace(1.0, 0.0, 11)

  @jax.jit
  def plain():
    move = ula(points, 0.05)
    at = level(jnp.zeros(()))
    body = lambda i, z: move.step(
        jax.vmap(lambda key: jax.random.fold_in(key, i))(split(n)), z, at, at)
    return jax.lax.fori_loop(0, 300, body, z)

  sampler = annealed_langevin(points, level, 100, 0.05)
  annealed = jax.jit(lambda: sample(sampler, split(n), z, times))
  share = lambda z: np.mean(np.sum(z, axis=1) > 0.0)
  np.testing.assert_allclose(share(annealed()), 0.8, atol=4 * (0.16 / n)**0.5)
  assert share(plain()) < 0.6


@pytest.mark.long
def test_on_every_curve_annealed_samples_are_the_same_in_its_own_units():
  oracle, unit = oracles.Gaussian(0.7, 0.4), np.linspace(-1.5, 1.5, 4)[:, None]

  @jax.jit
  def run():
    out = []
    for curve in (vp, ve, flow, sub_vp):
      process = GaussianProcess(schedules.Linear(6.0, -4.0), curve)
      z = processes.prior_std(process) * unit
      z = sample(annealed_langevin(oracle, process, 3), split(4), z, jnp.linspace(1.0, 0.0, 9))
      out.append(z / process(jnp.zeros(())).alpha)
    return jnp.stack(out)

  got = np.asarray(run())
  np.testing.assert_allclose(got, np.broadcast_to(got[:1], got.shape), rtol=1e-9)
  assert np.std(got[0]) > 0.1


@pytest.mark.long
def test_a_last_step_to_sigma_zero_is_the_final_denoising():
  """x = u + sigma_L^2 score(u), after all the moves at sigma_L."""
  process = from_alpha_sigma(jnp.ones_like, lambda t: 3.0 * t**2)
  sampler = annealed_langevin(HALF, process, 4, 0.001)
  times = np.array([1.0, 0.7, 0.4, 0.2, 0.0])
  z = 3.0 * np.linspace(-1.0, 1.0, 5)[:, None]
  run = jax.jit(lambda: sample(sampler, split(5), z, times, trace=sampler.value))
  end, seen = jax.tree.map(np.asarray, run())
  sigma = 3.0 * 0.2**2
  np.testing.assert_allclose(end, seen[-2] * 0.25 / (0.25 + sigma**2), rtol=1e-12)
  assert np.abs(end - seen[-2]).max() > 1e-3


@pytest.mark.long
@pytest.mark.parametrize('process', [
    rectified_flow(),
    # alpha at t = 1 is 6e-17.
    from_alpha_sigma(lambda t: jnp.cos(0.5 * jnp.pi * t), lambda t: jnp.sin(0.5 * jnp.pi * t))],
    ids=['rectified_flow', 'cosine'])
def test_annealed_samples_go_from_pure_noise_to_the_points_of_a_data_set(process):
  data = jnp.array([[-2.0], [0.5], [3.0]])
  sampler = annealed_langevin(oracles.Empirical(data), process, 3)
  z = np.random.default_rng(3).normal(size=(300, 1))
  grids = np.stack([np.pad(np.linspace(1.0, 0.0, n + 1), (0, 40 - n)) for n in (40, 37)])
  got = jax.jit(jax.vmap(lambda times: sample(sampler, split(300), z, times)))(grids)
  got = np.asarray(got)
  nearest = np.abs(got - np.asarray(data)[:, 0])
  np.testing.assert_allclose(nearest.min(axis=-1), 0.0, atol=1e-3)
  shares = np.mean(nearest.argmin(axis=-1)[..., None] == np.arange(3), axis=1)
  np.testing.assert_allclose(shares, 1 / 3, atol=4 * (2 / 9 / 300)**0.5)


@pytest.mark.long
@pytest.mark.parametrize('process,epsilon', [(GEOMETRIC, 1e-4), (rectified_flow(), None)],
                         ids=['finite', 'infinite'])
def test_a_padded_grid_gives_the_same_annealed_samples(process, epsilon):
  sampler = annealed_langevin(oracles.Gaussian(0.7, 0.4), process, 2, epsilon)
  z, times = np.linspace(-2.0, 2.0, 5)[:, None], np.linspace(1.0, 0.0, 5)
  run = jax.jit(lambda times: sample(sampler, split(5), z, times))
  np.testing.assert_allclose(run(np.pad(times, (0, 3), mode='edge')), run(times), rtol=1e-12)


def test_a_level_costs_as_many_evaluations_as_declared():
  asked = []

  def denoise(z, level, cond=None):
    jax.debug.callback(lambda: asked.append(1))
    return HALF(z, level)

  sampler = annealed_langevin(denoise, GEOMETRIC, 7)
  times = jnp.linspace(1.0, 0.0, 4)
  jax.block_until_ready(jax.jit(lambda: sample(sampler, split(1), jnp.ones((1, 1)), times))())
  jax.effects_barrier()
  assert len(asked) == 3 * sampler.evaluations == 21


def test_annealed_dynamics_without_moves_is_refused():
  with pytest.raises(InputError, match='n_steps=0: '):
    annealed_langevin(HALF, GEOMETRIC, 0)


# ----------------------------------------------------------------- correctors


def move(corrector, z, noise, at_t, at_s):
  """Moves with given draws.  z, noise: [moves, B, ...]."""
  def one(z, noise):
    with mock.patch.object(random, 'normal', lambda keys, like: noise):
      return corrector.step(split(len(z)), z, at_t, at_s)
  return jax.jit(jax.vmap(one))(z, noise)


@pytest.mark.parametrize('curve', [ve, vp])
def test_a_langevin_corrector_has_the_signal_to_noise_ratio_it_is_told(curve):
  """Song et al. (2021), algorithms 4 and 5: |h score| / |sqrt(2 h) noise| is r on `ve`, and
  r sqrt(1 - beta) on `vp`, the beta of the step from t to s."""
  process = GaussianProcess(schedules.Linear(6.0, -4.0), curve)
  at_t, at_s = jax.jit(lambda: (process(0.6), process(0.5)))()
  z, noise = np.random.default_rng(4).normal(size=(2, 5, 3, 2))
  corrector = langevin_corrector(HALF, 0.16)
  up, down = move(corrector, np.stack([z, z]), np.stack([noise, -noise]), at_t, at_s)
  norm = lambda u: np.sqrt(np.sum(np.square(u), axis=(1, 2)))
  up, down, at_t, at_s = jax.tree.map(np.asarray, (up, down, at_t, at_s))
  drift, kick = 0.5 * (up + down) - z, 0.5 * (up - down)
  # q(z_t | z_s) has variance beta on `vp`: alpha_t^2 / alpha_s^2 = 1 - beta.
  expected = 0.16 * (1.0 if curve is ve else
                     np.sqrt(1.0 - (at_t.sigma**2 - at_s.sigma**2) / at_s.alpha**2))
  np.testing.assert_allclose(norm(drift) / norm(kick), expected, rtol=1e-9)
  # And it is Langevin's: the square of the noise is twice the step along the score.
  score = -z / (0.25 * at_t.alpha**2 + at_t.sigma**2)
  np.testing.assert_allclose((norm(kick) / norm(noise))**2, 2.0 * norm(drift) / norm(score))


@pytest.mark.long
def test_a_corrected_image_depends_on_its_neighbours_only_where_norms_are_averaged():
  z = np.random.default_rng(5).normal(size=(6, 4))

  @functools.partial(jax.jit, static_argnums=0)
  def run(over_batch):
    step = langevin_corrector(HALF, over_batch=over_batch).step
    at_t, at_s, keys = GEOMETRIC(0.6), GEOMETRIC(0.5), split(6)
    return step(keys, z, at_t, at_s)[:2], step(keys[:2], z[:2], at_t, at_s)

  np.testing.assert_allclose(*run(False), rtol=1e-12)
  together, alone = map(np.asarray, run(True))
  assert np.abs(together - alone).max() > 1e-3


@pytest.mark.long
def test_in_few_dimensions_norms_of_one_example_widen_a_gaussian_by_a_known_share():
  """(1 + 2 / D)^2 of the variance for small steps: with h = c |noise|^2 / |z|^2 the mean of h score
  is proportional to D, that of 2 h noise noise^T to D + 2, and the density of no flux is that of a
  Gaussian times |z|^2.  Norms averaged over the batch have neither effect."""
  n, d = 8000, 4

  @jax.jit
  def run(z):
    at = GEOMETRIC(0.5)  # sigma = 1
    ends = []
    for over_batch in (False, True):
      step = langevin_corrector(oracles.Gaussian(0.0, 0.0), 0.1, over_batch).step
      body = lambda i, z, step=step: step(
          jax.vmap(lambda key: jax.random.fold_in(key, i))(split(n)), z, at, at)
      ends.append(jax.lax.fori_loop(0, 200, body, z))
    return jnp.stack(ends)

  got = np.var(run(np.random.default_rng(8).normal(size=(n, d))), axis=(1, 2))
  np.testing.assert_allclose(got, [(1.0 + 2.0 / d)**2, 1.0], rtol=0.05)  # steps of 2 %


@pytest.mark.long
def test_where_the_score_vanishes_a_langevin_corrector_stays():
  step = jax.jit(langevin_corrector(HALF).step)
  zero, (at_t, at_s) = np.zeros((2, 3)), jax.jit(lambda: (GEOMETRIC(0.6), GEOMETRIC(0.5)))()
  np.testing.assert_array_equal(step(split(2), zero, at_t, at_s), zero)


def stationary_variance(corrector, at_t, at_s):
  """Of an affine move z -> gain z + std noise: std^2 / (1 - gain^2)."""
  one, zero = np.ones((1, 1)), np.zeros((1, 1))
  gain, std = move(corrector, np.stack([one, zero]), np.stack([zero, one]), at_t, at_s)[:, 0, 0]
  return std**2 / (1.0 - gain**2)


@pytest.mark.first(2)
@pytest.mark.parametrize('curve', [vp, ve, flow, sub_vp])
def test_unadjusted_moves_keep_a_variance_too_large_by_a_known_share(curve):
  """2 / (2 - h / V) of the marginal's V: for an affine move, by solving v = (1 - h/V)^2 v + 2 h."""
  process = GaussianProcess(schedules.Linear(6.0, -4.0), curve)
  at_t, at_s = jax.device_get(jax.jit(lambda: (process(0.5), process(0.4)))())
  marginal = 0.25 * at_t.alpha**2 + at_t.sigma**2
  share = 0.5 * at_t.sigma**2 / marginal
  np.testing.assert_allclose(stationary_variance(ula(HALF, 0.5), at_t, at_s),
                             marginal * 2.0 / (2.0 - share), rtol=1e-9)
  # The annealed corrector of an infinitesimal step keeps the marginal itself.
  np.testing.assert_allclose(stationary_variance(annealed_corrector(HALF, 1e-4), at_t, at_s),
                             marginal, rtol=1e-6)


@jax.jit
def settle(z, moves):
  """Chains of MALA with a large step at a level of a mixture, from `z`."""
  weights, means, stds = jnp.array([0.7, 0.3]), jnp.array([[-0.5], [0.6]]), jnp.array([0.3, 0.1])
  mixture = oracles.Mixture(weights, means, stds)
  corrector = mala(mixture, mixture.log_prob, step_size=1.5)
  at = GaussianProcess(schedules.Linear(6.0, -4.0))(jnp.array(0.5))
  body = lambda i, z: corrector.step(
      jax.vmap(lambda key: jax.random.fold_in(key, i))(split(len(z))), z, at, at)
  return jax.lax.fori_loop(0, moves, body, z), at


@pytest.mark.long
def test_moves_with_a_metropolis_test_settle_at_the_marginal_itself():
  """Mean, variance and third moment of a mixture, at a step whose unadjusted form is far off."""
  n = 20_000
  start = np.random.default_rng(6).normal(size=(n, 1))
  z, at = settle(start, 60)
  alpha, sigma = float(at.alpha), float(at.sigma)
  means, variances = alpha * np.array([-0.5, 0.6]), alpha**2 * np.array([0.09, 0.01]) + sigma**2
  weights = np.array([0.7, 0.3])
  raw = np.array([means, means**2 + variances, means**3 + 3 * means * variances])
  powers = np.asarray(z) ** np.array([1, 2, 3])
  error = powers.std(axis=0) / n**0.5
  np.testing.assert_array_less(np.abs(powers.mean(axis=0) - raw @ weights), 4 * error)
  assert np.mean(np.asarray(settle(start, 1)[0]) == start) > 0.05  # some are rejected


def test_a_metropolis_test_without_a_density_is_refused():
  with pytest.raises(InputError, match='log_prob'):
    mala(HALF)


CORRECTORS = {'langevin': langevin_corrector, 'annealed': annealed_corrector, 'ula': ula,
              'mala': lambda denoise: mala(denoise, HALF.log_prob)}


@pytest.mark.parametrize('name', CORRECTORS)
def test_correctors_ask_as_often_as_they_declare(name):
  asked = []

  def denoise(z, level, cond=None):
    asked.append(1)
    return HALF(z, level)

  corrector = CORRECTORS[name](denoise)
  jax.eval_shape(lambda: corrector.step(split(1), jnp.ones((1, 1)), GEOMETRIC(0.5), GEOMETRIC(0.4)))
  assert len(asked) == corrector.evaluations


def test_examples_of_a_batch_may_be_at_levels_of_their_own():
  z, times = np.random.default_rng(7).normal(size=(3, 2, 2)), np.array([0.2, 0.5, 0.9])

  @jax.jit
  def run(keys, z, times):
    def at(keys, z, t):
      level = GEOMETRIC(t)
      return langevin_corrector(HALF).step(keys, z, level, level)
    alone = jax.vmap(lambda key, z, t: at(key[None], z[None], t)[0])
    return at(keys, z, times), alone(keys, z, times)

  np.testing.assert_allclose(*run(split(3), z, times), rtol=1e-12)


@pytest.mark.long
def test_float32_annealed_samples_are_near_float64():
  def run():
    sampler = annealed_langevin(oracles.Gaussian(0.7, 0.4), rectified_flow(), 3)
    z = jnp.linspace(-2.0, 2.0, 5)[:, None]
    noise = jnp.linspace(-1.0, 1.0, 5)[:, None]  # draws of the two precisions differ
    with mock.patch.object(random, 'normal', lambda keys, like: noise.astype(like.dtype)):
      return jax.jit(lambda: sample(sampler, split(5), z, jnp.linspace(1.0, 0.0, 51)))()

  with jax.enable_x64(False):
    single = run()
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, run(), atol=1e-5)
