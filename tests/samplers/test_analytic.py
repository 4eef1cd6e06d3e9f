"""The best reverse variance, where the data's own reverse kernel is known: Gaussian data.

A kernel that is exact leaves the spread of z_t and the likelihood as they are, whatever the steps.
"""
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, processes, random, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, flow, from_alpha_sigma, sub_vp, ve, vp
from vdm_jax.samplers import ancestral, sample
from vdm_jax.samplers.analytic import (
    Variances,
    analytic_dpm,
    estimate_variances,
    npr_ddpm,
    optimal_trajectory,
    pool,
    sn_ddpm,
)

pytestmark = pytest.mark.usefixtures('x64')

OFFICIAL = GaussianProcess(schedules.Linear(13.3, -5.0))
HALF = oracles.Gaussian(0.0, 0.5)
LONGEST = 100


def rectified_flow():
  return from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)


def grid(steps, length=LONGEST, last=0.0):
  return jnp.pad(jnp.linspace(1.0, last, steps + 1), (0, length - steps), constant_values=last)


def variance_of_x(level, std):
  """Var(x | z_t) for x ~ N(., std^2)."""
  return std**2 * level.sigma**2 / (std**2 * level.alpha**2 + level.sigma**2)


def exact(process, times, std=0.5):
  """`Variances` of Gaussian data at these times, by Bayes' rule; 1 in the limit sigma = 0."""
  @jax.jit
  def at(times):
    level = process(times)
    noise = jax.nn.sigmoid(-level.logsnr)
    return level.logsnr, jnp.where(noise > 0.0, variance_of_x(level, std) / noise, 1.0)

  logsnr, of_v = at(np.unique(times)[::-1])
  return Variances(logsnr, of_v, jnp.zeros_like(of_v))


def kernels(sampler, times, shape=(1,)):
  """(gain, std) of the affine kernel of every step: [N, ...] each.  For data of mean 0.

  times: [N + 1], or of several grids [G, N + 1].
  """
  def at(times, z, noise):
    z = jnp.full((1, *shape), z)
    keys = jax.random.split(jax.random.key(0), 1)
    with mock.patch.object(random, 'normal', lambda keys, like: jnp.full_like(like, noise)):
      step = lambda t, s, now: sampler.step(keys, z, t, s, now)
      return jax.vmap(step)(times[:-1], times[1:], sampler.plan(times))[:, 0]

  both = lambda times: (at(times, 1.0, 0.0), at(times, 0.0, 1.0))
  gain, std = jax.jit(both if times.ndim == 1 else jax.vmap(both))(times)
  return np.asarray(gain), np.asarray(std)


def reverse_std(process, times, std):
  """Deviation of q(z_s | z_t) for x ~ N(., std^2), from the joint law of the Markov chain."""
  level = jax.tree.map(np.asarray, jax.jit(process)(times))
  at_t, at_s = jax.tree.map(lambda u: u[:-1], level), jax.tree.map(lambda u: u[1:], level)
  var_t, var_s = ((std * l.alpha)**2 + l.sigma**2 for l in (at_t, at_s))
  covariance = at_t.alpha / at_s.alpha * var_s
  return np.sqrt(var_s - covariance**2 / var_t)


@pytest.mark.long
def test_the_bound_of_gaussian_data_is_exact_for_any_number_of_steps_even_one():
  lengths = (1, 2, 10, LONGEST)
  times = jnp.stack([grid(steps) for steps in lengths])
  gain, std = kernels(analytic_dpm(HALF, OFFICIAL, exact(OFFICIAL, times)), times)
  gain, std = gain[..., 0], std[..., 0]
  at_t, at_s = OFFICIAL(times[:, :-1]), OFFICIAL(times[:, 1:])
  one = jnp.ones(at_t.t.shape)
  of_z, narrow = processes.posterior(one, 0.0 * one, at_t, at_s)
  of_x, _ = processes.posterior(0.0 * one, one, at_t, at_s)
  # E (mean of q - mean of p)^2 over x ~ N(0, 1/4) and eps.
  apart = (0.5 * ((of_z - gain) * at_t.alpha + of_x))**2 + ((of_z - gain) * at_t.sigma)**2
  for i, steps in enumerate(lengths):
    p, q = std[i, :steps]**2, narrow[i, :steps]**2
    kl = 0.5 * (np.log(p / q) - 1.0 + (q + apart[i, :steps]) / p)
    np.testing.assert_allclose(np.sum(kl), 5.956014634, atol=1e-8)


@pytest.mark.long
@pytest.mark.parametrize('curve,eta', [(vp, 0.6), (ve, 1.0), (flow, 0.0), (sub_vp, 1.0)])
def test_the_spread_of_gaussian_data_is_kept_on_every_curve_and_at_every_eta(curve, eta):
  process = GaussianProcess(schedules.Linear(6.0, -4.0), curve)
  times = grid(5, 8)
  level = jax.tree.map(np.asarray, jax.jit(process)(times))
  marginal = (0.5 * level.alpha)**2 + level.sigma**2
  gain, std = kernels(analytic_dpm(HALF, process, exact(process, times), eta), times)
  np.testing.assert_allclose(gain[:5, 0]**2 * marginal[:5] + std[:5, 0]**2, marginal[1:6],
                             rtol=1e-12)
  if eta == 1.0:  # q is a Markov chain, and the reverse of its joint law known
    np.testing.assert_allclose(std[:5, 0], reverse_std(process, times[:6], 0.5), rtol=1e-10)


@pytest.mark.long
def test_one_step_and_many_draw_gaussian_data_of_the_right_spread():
  n = 20_000
  keys = jax.random.split(jax.random.key(0), n)
  z = jax.random.normal(jax.random.key(1), (n, 1))
  times = jnp.stack([grid(1, 6), grid(6, 6)])
  sampler = analytic_dpm(HALF, OFFICIAL, exact(OFFICIAL, times))
  got = jax.jit(jax.vmap(lambda times: sample(sampler, keys, z, times)))(times)
  np.testing.assert_allclose(np.std(got, axis=(1, 2)), 0.5, rtol=4 / (2 * n)**0.5)
  np.testing.assert_allclose(np.mean(got, axis=(1, 2)), 0.0, atol=4 * 0.5 / n**0.5)


@pytest.mark.long
def test_rectified_flow_keeps_the_spread_from_pure_noise_and_adds_nothing_to_pure_data():
  process, times = rectified_flow(), grid(4, 6)
  for eta in (0.0, 1.0):
    gain, std = kernels(analytic_dpm(HALF, process, exact(process, times), eta), times)
    variance = 1.0
    for i in range(3):
      variance = gain[i, 0]**2 * variance + std[i, 0]**2
      level = process(times[i + 1])
      np.testing.assert_allclose(variance, (0.5 * level.alpha)**2 + level.sigma**2, rtol=1e-12)
    assert std[3, 0] == 0.0
    # There z_0 is E[x | z_t], whose variance is what Var(x | z_t) leaves of 1/4.
    np.testing.assert_allclose(gain[3, 0]**2 * variance, 0.25 - variance_of_x(level, 0.5),
                               rtol=1e-12)


@pytest.mark.long
def test_the_estimate_agrees_with_bayes_within_its_own_standard_error():
  """Two unlike dimensions, at levels from alpha = 0 to sigma = 0."""
  n, std = 4000, jnp.array([0.3, 1.4])
  process, times = rectified_flow(), jnp.linspace(0.0, 1.0, 21)
  key = jax.random.key(0)
  x = 0.5 + std * jax.random.normal(key, (n, 2))
  got = jax.jit(lambda: estimate_variances(oracles.Gaussian(0.5, std), process, x, times,
                                           jax.random.split(key, n)))()
  level = process(times[::-1])
  np.testing.assert_allclose(got.logsnr, level.logsnr, rtol=1e-12)
  known = jnp.mean(jax.vmap(lambda s: variance_of_x(level, s))(std), axis=0)
  inside = np.asarray(level.sigma) > 0.0
  scale = jax.nn.sigmoid(-level.logsnr)
  off = (got.variance[inside] - known[inside] / scale[inside]) / got.standard_error[inside]
  assert 0.3 < np.sqrt(np.mean(off**2)) < 2.0 and np.abs(off).max() < 4.0
  assert got.standard_error.max() < 0.05
  # Back as Var(x | z_t), also between the levels; at alpha = 0 it is the variance of the data.
  np.testing.assert_allclose(got.of_x(level.logsnr), known, atol=0.1)
  np.testing.assert_allclose(got.of_x(level.logsnr)[::20], [np.mean(std**2), 0.0], atol=0.1)
  between = process(jnp.array([0.33, 0.52, 0.77]))
  known = jnp.mean(jax.vmap(lambda s: variance_of_x(between, s))(std), axis=0)
  np.testing.assert_allclose(got.of_x(between.logsnr), known, rtol=0.05)


@pytest.mark.long
def test_estimates_of_two_halves_pool_to_that_of_the_whole():
  x = 0.5 * jax.random.normal(jax.random.key(0), (200, 3))
  keys = jax.random.split(jax.random.key(1), 200)
  at = jax.jit(lambda x, keys: estimate_variances(HALF, OFFICIAL, x, jnp.array([0.8, 0.3]), keys))
  pooled = pool([at(x[:100], keys[:100]), at(x[100:], keys[100:])])
  whole = at(x, keys)
  np.testing.assert_allclose(pooled.logsnr, whole.logsnr)
  np.testing.assert_allclose(pooled.variance, whole.variance, rtol=1e-12)
  np.testing.assert_allclose(pooled.standard_error, whole.standard_error, rtol=0.05)


def test_where_sigma_vanishes_a_denoiser_is_not_used_and_x_is_known():
  data = jnp.array([[-0.5], [0.5]])
  got = estimate_variances(oracles.Empirical(data), rectified_flow(), data, jnp.array([0.5, 0.0]),
                           jax.random.split(jax.random.key(0), 2))
  assert np.isfinite(got.variance).all()
  np.testing.assert_array_equal(got.of_x(jnp.array([jnp.inf])), [0.0])


@pytest.mark.long
def test_a_wrong_estimate_is_kept_within_what_the_variance_can_be():
  """Theorem 2: between that of q(z_s | z_t, x) and what data in [-1, 1] or noise allow."""
  times = grid(6, 6)
  at_t = OFFICIAL(times[:-1])
  spread = lambda sampler: kernels(sampler, times)[1][:, 0]
  table = lambda value: exact(OFFICIAL, times)._replace(variance=jnp.full(7, value))
  least = spread(ancestral(HALF, OFFICIAL))
  np.testing.assert_allclose(spread(analytic_dpm(HALF, OFFICIAL, table(-3.0))), least, rtol=1e-12)
  # The x of largest variance in [-1, 1] is +-1, in the step's units of q's mean.
  one = jnp.ones((6, 1))
  of_x = processes.posterior(0.0 * one, one, at_t, OFFICIAL(times[1:]))[0][:, 0]
  for data_range, most in [((-1.0, 1.0), np.minimum(1.0, np.exp(-at_t.logsnr))),
                           (None, np.exp(-at_t.logsnr))]:
    got = spread(analytic_dpm(HALF, OFFICIAL, table(1e9), data_range=data_range))
    np.testing.assert_allclose(got**2, least**2 + of_x**2 * most, rtol=1e-12)


@pytest.mark.long
def test_the_last_noise_drawn_can_be_bounded_and_no_other_is():
  for process, last in [(OFFICIAL, 4), (rectified_flow(), 3)]:
    times = grid(5, 8)
    table = exact(process, times)
    free = kernels(analytic_dpm(HALF, process, table), times)[1][:5, 0]
    held = kernels(analytic_dpm(HALF, process, table, last_std=1e-4), times)[1][:5, 0]
    assert free[last] > 1e-3
    np.testing.assert_allclose(held, np.where(np.arange(5) == last, 1e-4, free), rtol=1e-12)


WIDE = np.array([0.2, 0.7, 1.5])


def with_heads(std, bias=0.0):
  """Gaussian denoiser whose noise is off by `bias`, and what heads fitted to the data would say."""
  oracle = oracles.Gaussian(0.0, std)

  def denoise(z, level, cond=None):
    true = oracle(z, level)
    level = level.expand(z)
    off = bias * level.sigma / level.alpha if bias else 0.0
    of_eps = level.alpha**2 * std**2 / (level.alpha**2 * std**2 + level.sigma**2)
    extra = {'eps_sq': of_eps + true.eps**2, 'residual_sq': of_eps + bias**2}
    return true._replace(x=true.x - off, eps=true.eps + bias, extra=extra)

  return denoise


@pytest.mark.long
@pytest.mark.parametrize('make', [sn_ddpm, npr_ddpm])
def test_the_heads_give_every_dimension_its_own_variance(make):
  for process in (OFFICIAL, GaussianProcess(schedules.Cosine(5.0, -5.0), flow)):
    times = grid(4, 4)
    _, got = kernels(make(with_heads(WIDE), process), times, (3,))
    known = np.stack([reverse_std(process, times, s) for s in WIDE], axis=1)
    np.testing.assert_allclose(got, known, rtol=1e-9)


@pytest.mark.long
def test_a_biased_mean_is_paid_for_by_the_residual_and_gets_the_wrong_sign_from_the_square():
  """At z = 0: Var(eps) + b^2 from NPR, which is E(eps - eps_hat)^2, and Var(eps) - b^2 from SN."""
  bias, times = 0.3, jnp.array([0.7, 0.6, 0.45])
  at_t, at_s = OFFICIAL(times[:-1]), OFFICIAL(times[1:])
  keys = jax.random.split(jax.random.key(0), 1)

  def std(make):
    draw = lambda noise: jax.vmap(lambda t, s: step(noise, make, t, s))(times[:-1], times[1:])
    return (draw(1.0) - draw(0.0))[:, 0]

  def step(noise, make, t, s):
    with mock.patch.object(random, 'normal', lambda keys, like: jnp.full_like(like, noise)):
      return make(with_heads(WIDE, bias), OFFICIAL).step(keys, jnp.zeros((1, 3)), t, s, None)

  known = np.stack([reverse_std(OFFICIAL, times, s) for s in WIDE], axis=1)**2
  of_x = processes.posterior(jnp.zeros((2, 1)), jnp.ones((2, 1)), at_t, at_s)[0]
  paid = (of_x * bias * (at_t.sigma / at_t.alpha)[:, None])**2
  np.testing.assert_allclose(std(npr_ddpm)**2, known + paid, rtol=1e-9)
  narrow = processes.posterior(jnp.zeros((2, 1)), jnp.ones((2, 1)), at_t, at_s)[1]**2
  np.testing.assert_allclose(std(sn_ddpm)**2, np.maximum(known - paid, narrow), rtol=1e-9)
  assert (known - paid > narrow).any() and (paid > 1e-3 * known).all()


@pytest.mark.long
def test_heads_leave_the_step_from_pure_noise_and_to_pure_data_finite():
  """At alpha = 0 the noise says nothing of x, so that its variance is the range's, or left out."""
  process, times = rectified_flow(), grid(2, 2)
  level = process(times[1])
  for make in (sn_ddpm, npr_ddpm):
    for data_range, of_x in [(None, 0.0), ((-2.0, 2.0), 4.0)]:
      _, got = kernels(make(with_heads(WIDE), process, data_range=data_range), times, (3,))
      known = np.sqrt(level.sigma**2 + level.alpha**2 * of_x)
      np.testing.assert_allclose(got, [[known] * 3, [0.0] * 3], rtol=1e-12)


NINE = np.linspace(1.0, 0.0, 9)
EDGES = list(itertools.combinations(range(9), 2))


def costs(process, of_v):
  """{step: log(best variance / ancestral variance)} of steps between `NINE` times, for each table.

  of_v: [K, 9], the variances of a table at these times.
  """
  keys = jax.random.split(jax.random.key(0), 1)

  def std(sampler, pair):
    with mock.patch.object(random, 'normal', lambda keys, like: jnp.ones_like(like)):
      now = jax.tree.map(lambda u: u[0], sampler.plan(pair))
      return sampler.step(keys, jnp.zeros((1, 1)), *pair, now)[0, 0]

  @jax.jit
  @jax.vmap
  def both(of_v):
    table = exact(process, NINE)._replace(variance=of_v)
    samplers = analytic_dpm(HALF, process, table), ancestral(HALF, process)
    best, least = (jax.vmap(lambda pair: std(sampler, pair))(NINE[np.array(EDGES)])  # noqa: B023
                   for sampler in samplers)
    return 2.0 * jnp.log(best / least)

  return [dict(zip(EDGES, row, strict=True)) for row in np.asarray(both(of_v))]


def brute_force(cost, steps):
  """The best of all trajectories, and how far the worst is from it."""
  paths = [(0, *path, 8) for path in itertools.combinations(range(1, 8), steps - 1)]
  total = [sum(cost[edge] for edge in itertools.pairwise(path)) for path in paths]
  return NINE[list(paths[int(np.argmin(total))])], np.ptp(total)


def trajectories(process, of_v, steps):
  """Of each of the tables, as of `costs`."""
  base = exact(process, NINE)
  of = lambda row: optimal_trajectory(base._replace(variance=row), process, NINE, steps)
  return jax.jit(jax.vmap(of))(of_v)


@pytest.mark.long
def test_the_optimal_trajectory_is_the_best_of_all_of_them():
  of_v = np.random.default_rng(0).uniform(0.05, 1.0, (6, 9))
  all_costs = costs(OFFICIAL, of_v)
  chosen = set()
  for steps in (1, 3, 6, 8):
    got = trajectories(OFFICIAL, of_v, steps)
    for path, cost in zip(got, all_costs, strict=True):
      known, apart = brute_force(cost, steps)
      assert apart > 1e-3 or steps in (1, 8)
      np.testing.assert_array_equal(path, known)
      chosen.add(tuple(known))
  assert len(chosen) > 8


@pytest.mark.long
def test_the_optimal_trajectory_reaches_from_pure_noise_to_pure_data():
  """The ends are the limit of finite ones, of which all trajectories have the same part."""
  inside = lambda t: 1e-6 + (1.0 - 2e-6) * t
  near = from_alpha_sigma(lambda t: 1.0 - inside(t), inside)
  of_v = np.random.default_rng(1).uniform(0.1, 1.0, (3, 9))
  got = trajectories(rectified_flow(), of_v, 4)
  known = [brute_force(cost, 4)[0] for cost in costs(near, of_v)]
  np.testing.assert_array_equal(got, known)


def test_a_trajectory_of_more_steps_than_there_are_is_refused():
  times = np.linspace(1.0, 0.0, 4)
  with pytest.raises(InputError, match='steps=4: .*fewer steps'):
    optimal_trajectory(exact(OFFICIAL, times), OFFICIAL, times, 4)
  with pytest.raises(InputError, match='decrease'):
    optimal_trajectory(exact(OFFICIAL, times), OFFICIAL, times[::-1], 2)


@pytest.mark.first(1)
@pytest.mark.parametrize('make', [
    lambda denoise: analytic_dpm(denoise, OFFICIAL, exact(OFFICIAL, jnp.linspace(1.0, 0.0, 9))),
    lambda denoise: sn_ddpm(denoise, OFFICIAL), lambda denoise: npr_ddpm(denoise, OFFICIAL)])
def test_one_evaluation_a_step_and_float32_stays_float32(make):
  with jax.enable_x64(False):
    asked = []
    oracle = with_heads(jnp.float32(0.5))

    def denoise(z, level, cond=None):
      asked.append(1)
      return oracle(z, level)

    sampler, z = make(denoise), jnp.ones((2, 1))
    keys = jax.random.split(jax.random.key(0), 2)
    out = jax.jit(lambda: sample(sampler, keys, z, jnp.linspace(1.0, 0.0, 9)))()
  assert len(asked) == sampler.evaluations and out.dtype == jnp.float32
  assert np.abs(out).max() < 3.0
