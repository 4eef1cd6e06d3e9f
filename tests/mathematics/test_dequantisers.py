"""Noise inside the bins: its density against scipy's, its bounds against the truth.

The truth is a density p(y) whose probability of every bin is known: a mixture of Gaussians in one
dimension, with bins so wide that uniform noise wastes some of it.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.scipy.special import ndtr, ndtri
from scipy import integrate, special, stats

from vdm_jax import dequantisers, oracles, random, schedules, values
from vdm_jax.decoders import Pixels
from vdm_jax.nn.small.dequantiser import Couplings
from vdm_jax.processes import GaussianProcess, RectifiedFlow
from vdm_jax.systems.variational import dequantised, vdm
from vdm_jax.typing import Context
from vdm_jax.units import bits_per_dim, log_mean_exp


@functools.partial(jax.jit, static_argnums=0)
def keys_of(n, seed=0):
  return random.per_example(jax.random.key(seed), jnp.arange(n))


@jax.jit
def first_level(logsnr=13.3):
  return GaussianProcess(schedules.Linear(logsnr, -5.0))(jnp.zeros(()))


def centre(data, levels):
  return (2.0 * np.asarray(data, np.float64) + 1.0) / levels - 1.0


def standard_error(values):
  return np.std(np.asarray(values, np.float64), ddof=1) / np.sqrt(len(values))


def flow(shape, size=0.15):
  """A flow far from its start, as a function."""
  module, x = Couplings(features=4, couplings=2), jnp.zeros((1, *shape))
  rng = np.random.default_rng(1)
  shapes = jax.eval_shape(module.init, jax.random.key(0), x, x)['params']
  params = jax.tree.map(lambda u: np.float32(size * rng.normal(size=u.shape)), shapes)
  return values.Bound(params, module)


@functools.partial(jax.jit, static_argnums=0)
def draws_of_all(levels, data, first=0):
  """{name: (y, log q)}, example i with the key of number first + i."""
  level = first_level(13.3 + 2.0 * np.log(levels / 256))
  keys = random.per_example(jax.random.key(0), first + jnp.arange(len(data)))
  return {name: dequantise(data, keys) for name, dequantise in {
      'uniform': dequantisers.uniform(levels),
      'truncated normal': dequantisers.truncated_normal(levels, level),
      'variational': dequantisers.variational(flow(data.shape[1:]), levels)}.items()}


@pytest.mark.parametrize('levels', [pytest.param(2, marks=pytest.mark.long), 65536])
def test_noise_stays_strictly_inside_the_bin_of_its_datum_in_single_precision(levels):
  data = jnp.asarray(np.random.default_rng(0).integers(0, levels, (64, 8, 8, 1)))
  for name, (y, log_q) in draws_of_all(levels, data).items():
    assert y.dtype == log_q.dtype == np.float32 and log_q.shape == (64,), name
    assert np.abs(np.asarray(y, np.float64) - centre(data, levels)).max() < 1.0 / levels, name
    if levels <= 256:
      np.testing.assert_array_equal(Pixels(levels).decode(y), data, err_msg=name)


def test_a_draw_belongs_to_its_example_and_key_alone():
  data = jnp.asarray(np.random.default_rng(0).integers(0, 17, (4, 2, 2, 1)))
  shifted = draws_of_all(17, jnp.roll(data, -2, axis=0), 2)
  for name, (y, log_q) in draws_of_all(17, data, 0).items():
    np.testing.assert_allclose(y[2:], shifted[name][0][:2], atol=1e-6, err_msg=name)
    np.testing.assert_allclose(log_q[2:], shifted[name][1][:2], atol=1e-5, err_msg=name)


@pytest.mark.long
def test_every_density_has_mass_one_on_its_bins():
  """E_q[1 / q] is the volume of the bins, whatever q > 0 there is."""
  data = jnp.broadcast_to(jnp.array([0, 5, 16, 3]).reshape(2, 2, 1), (20_000, 2, 2, 1))
  for name, (_, log_q) in draws_of_all(17, data).items():
    share = np.exp(-np.asarray(log_q, np.float64) - 4 * np.log(2 / 17))
    assert abs(share.mean() - 1.0) <= 1e-6 + 4 * standard_error(share), (name, share.mean())
  assert standard_error(share) < 0.02


def test_uniform_noise_is_uniform():
  y, log_q = jax.jit(dequantisers.uniform(4))(jnp.full((4000, 2), 1), keys_of(4000))
  assert stats.kstest(np.asarray(y).ravel(), stats.uniform(-0.5, 0.5).cdf).pvalue > 1e-3
  np.testing.assert_allclose(log_q, 2 * np.log(2.0))


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('logsnr,levels', [
    (13.3, 256), *(pytest.param(*u, marks=pytest.mark.long) for u in ((13.3, 17), (3.0, 17))),
    (-5.0, 256)])
def test_truncated_noise_has_the_density_and_the_distribution_of_scipys(logsnr, levels):
  """Half-widths of 3, 45, 0.26 and 0.0003 standard deviations."""
  k, s = levels // 3, np.exp(-0.5 * logsnr)
  dequantise = jax.jit(dequantisers.truncated_normal(levels, first_level(logsnr)))
  y, log_q = (np.asarray(u) for u in dequantise(jnp.full((4000, 1), k), keys_of(4000)))
  tau = 1.0 / (levels * s)
  # The centres are float32, so the distances to them are taken from the one that was used.
  own = float(Pixels(levels).encode(jnp.array(k)))
  expected = stats.truncnorm(-tau, tau, loc=own, scale=s)
  np.testing.assert_allclose(log_q, expected.logpdf(y[:, 0]), rtol=1e-7, atol=1e-6)
  assert stats.kstest(y[:, 0], expected.cdf).pvalue > 1e-3


def test_the_entropy_of_truncated_noise_is_the_published_formula():
  """Zheng et al. (2023), with the constants of which test_golden is."""
  tau, z, dims = 3.018689, 0.9974613, 12
  s = 1.0 / (256 * tau)
  data = jnp.full((5000, dims), 100)
  dequantise = jax.jit(dequantisers.truncated_normal(256, first_level()))
  _, log_q = dequantise(data, keys_of(5000))
  entropy = (0.5 * dims * (1 + np.log(2 * np.pi * s**2)) + dims * np.log(z)
             - dims * tau * np.exp(-0.5 * tau**2) / (np.sqrt(2 * np.pi) * z))
  assert abs(-np.mean(log_q) - entropy) < 4 * standard_error(log_q) < 0.15


def test_a_flow_that_starts_is_uniform_noise():
  data = jnp.asarray(np.random.default_rng(0).integers(0, 17, (8, 4, 4, 3)))
  x = jnp.zeros((1, 4, 4, 3))
  module = Couplings(8, 2)

  @jax.jit
  def both():
    start = values.Bound(module.init(jax.random.key(0), x, x)['params'], module)
    return [dequantise(data, keys_of(8)) for dequantise in
            (dequantisers.variational(start, 17), dequantisers.uniform(17))]

  got, expected = both()
  np.testing.assert_allclose(got[0], expected[0], atol=2e-7)
  np.testing.assert_allclose(got[1], expected[1], rtol=1e-6)


@pytest.mark.long
def test_the_density_of_a_flow_is_the_numerical_change_of_variables():
  levels, data = 5, jnp.array([0, 2, 4, 1]).reshape(1, 2, 2, 1)
  transport, keys = flow((2, 2, 1)), keys_of(1)
  # The flow moved by a little noise: y as a function of it.
  moved = jax.jit(lambda d: dequantisers.variational(
      lambda eps, x: transport(eps + d.reshape(1, 2, 2, 1), x), levels)(data, keys)[0].ravel())
  # With the identity, y gives the noise itself away.
  u = dequantisers.uniform(levels)(data, keys)[0].ravel() - Pixels(levels).encode(data).ravel()
  eps = special.ndtri(0.5 * (1.0 + levels * np.asarray(u)))
  h = 3e-3  # y is float32: errors of 1e-5 relatively from rounding, and as much from h^2
  jacobian = np.stack([(moved(h * e) - moved(-h * e)) / (2 * h) for e in np.eye(4)], axis=1)
  expected = stats.norm.logpdf(eps).sum() - np.linalg.slogdet(jacobian)[1]
  _, log_q = jax.jit(dequantisers.variational(transport, levels))(data, keys)
  np.testing.assert_allclose(log_q[0], expected, atol=1e-3)
  assert abs(log_q[0] - 4 * np.log(levels / 2)) > 0.1  # and it is not the uniform density


# ------------------------------------------------ bounds on the probability of the discrete data

LEVELS = 4
WEIGHTS, MEANS, STDS = np.array([0.7, 0.3]), np.array([-0.05, 0.5]), np.array([0.12, 0.4])


def log_p(y):
  """log p(y) of [B, 1, 1, 1], by the library's oracle at no noise."""
  mixture = oracles.Mixture(jnp.asarray(WEIGHTS), jnp.asarray(MEANS)[:, None], jnp.asarray(STDS))
  return mixture.log_prob(y.reshape(-1, 1), RectifiedFlow()(jnp.zeros(())))


def cdf(y, xp=np):
  phi = special.ndtr if xp is np else ndtr
  return sum(w * phi((y - m) / s) for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True))


EDGES = np.linspace(-1.0, 1.0, LEVELS + 1)
TRUTH = -np.log(np.diff(cdf(EDGES)))  # -log P(k), nats


def every_level(n):
  """Each level n times: [LEVELS n, 1, 1, 1]."""
  return jnp.repeat(jnp.arange(LEVELS), n).reshape(-1, 1, 1, 1)


def gaps(dequantise, n, seed=0):
  """Draws of the bound above the truth, nats: [LEVELS, n]."""
  @jax.jit
  def nats(keys):
    y, log_q = dequantise(every_level(n), keys)
    return log_q - log_p(y)
  return np.asarray(nats(keys_of(LEVELS * n, seed))).reshape(LEVELS, n) - TRUTH[:, None]


def posterior_map(eps, x):
  """The flow onto p(y | bin): by the inverse of its distribution function, found by bisection."""
  def offset(eps):
    low, high = x - 1.0 / LEVELS, x + 1.0 / LEVELS
    a, b = cdf(low, jnp), cdf(high, jnp)
    want = a + ndtr(eps) * (b - a)
    def halve(_, ends):
      middle = 0.5 * (ends[0] + ends[1])
      below = cdf(middle, jnp) < want
      return jnp.where(below, middle, ends[0]), jnp.where(below, ends[1], middle)
    low, high = jax.lax.fori_loop(0, 60, halve, (low, high))
    return 0.5 * (low + high) - x, b - a
  y, mass = offset(eps)
  v = ndtri(0.5 * (1.0 + LEVELS * y))
  # dv / deps = N(eps) (b - a) / p(y) * (LEVELS / 2) / N(v)
  log_det = (0.5 * (v**2 - eps**2) + jnp.log(mass * LEVELS / 2)).ravel() - log_p(x + y)
  return v, log_det


@pytest.mark.usefixtures('x64')
def test_noise_from_the_posterior_leaves_no_gap_at_all():
  """Every single draw is the truth."""
  got = gaps(dequantisers.variational(posterior_map, LEVELS), 200)
  np.testing.assert_allclose(got, 0.0, atol=1e-4)


@pytest.mark.first(1)
@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('dequantise,logpdf', [
    (dequantisers.uniform(LEVELS), lambda y, c: np.log(LEVELS / 2)),
    (dequantisers.truncated_normal(LEVELS, first_level(13.3 + 2 * np.log(LEVELS / 256))),
     lambda y, c: stats.truncnorm(-3.018689, 3.018689, c, 1 / (LEVELS * 3.018689)).logpdf(y)),
], ids=['uniform', 'truncated normal'])
def test_any_other_noise_costs_its_divergence_from_the_posterior(dequantise, logpdf):
  n = 4000
  got = gaps(dequantise, n)
  for k in range(LEVELS):
    def integrand(y, k=k):
      log_posterior = np.log(sum(w * stats.norm.pdf(y, m, s) for w, m, s in
                                 zip(WEIGHTS, MEANS, STDS, strict=True))) + TRUTH[k]
      log_q = logpdf(y, centre(k, LEVELS))
      return np.exp(log_q) * (log_q - log_posterior)
    divergence = integrate.quad(integrand, EDGES[k], EDGES[k + 1])[0]
    assert divergence > 0.001
    assert abs(got[k].mean() - divergence) < 4 * standard_error(got[k])


@pytest.mark.long
@pytest.mark.usefixtures('x64')
def test_more_draws_come_closer_and_never_below_unless_log_k_is_forgotten():
  """E[-log mean of K weights] falls towards the truth as K grows (Burda et al. 2016)."""
  most, n = 32, 1500
  k = 1  # a level where the density is steep
  draws = gaps(dequantisers.uniform(LEVELS), n * most)[k].reshape(n, most).T  # [K, n]
  gap = {size: np.asarray(-log_mean_exp(-draws[:size])) for size in (1, 2, 4, 8, 16, most)}
  means = [u.mean() for u in gap.values()]
  for fewer, more in zip(list(gap)[:-1], list(gap)[1:], strict=True):
    saved = gap[fewer] - gap[more]
    assert saved.mean() > 2 * standard_error(saved), (fewer, more)
  assert means[0] > 0.1 and means[-1] > -4 * standard_error(gap[most])
  # To first order the gap is Var[w] / (2 K E[w]^2).
  weights = np.exp(-draws)
  assert abs(means[-1] / (weights.var() / (2 * most * weights.mean()**2)) - 1.0) < 0.25
  wrong = gap[most] - np.log(most)
  assert wrong.mean() < -1.0


@pytest.mark.long
@pytest.mark.usefixtures('x64')
def test_a_trained_flow_loses_less_than_a_third_of_what_uniform_noise_does():
  module, tx = Couplings(features=8, couplings=1), optax.adam(2e-2)
  x, data = jnp.zeros((1, 1, 1, 1)), every_level(64)

  def loss(params, keys):
    y, log_q = dequantisers.variational(values.Bound(params, module), LEVELS)(data, keys)
    return jnp.mean(log_q - log_p(y))

  @jax.jit
  def train(key):
    params = module.init(key, x, x)['params']

    def step(carry, key):
      params, opt = carry
      grads = jax.grad(loss)(params, random.per_example(key, jnp.arange(len(data))))
      updates, opt = tx.update(grads, opt)
      return (optax.apply_updates(params, updates), opt), None
    return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, 200))

  (trained, _), _ = train(jax.random.key(1))
  got = gaps(dequantisers.variational(values.Bound(trained, module), LEVELS), 4000, seed=7)
  uniform = gaps(dequantisers.uniform(LEVELS), 4000, seed=7)
  error = standard_error(got.mean(axis=0))
  assert -4 * error < got.mean() < uniform.mean() / 3, (got.mean(), uniform.mean(), error)


# ------------------------------------------------------------------------------------ the system


class LinearDenoiser(nn.Module):
  """eps_hat of data ~ N(0, std^2): what an oracle would answer, times a parameter that is 1."""
  std: float

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    logsnr = logsnr.reshape(-1, *[1] * (z.ndim - 1))
    variance = nn.sigmoid(logsnr) * self.std**2 + nn.sigmoid(-logsnr)
    return self.param('scale', nn.initializers.ones, ()) * nn.sigmoid(-logsnr)**0.5 * z / variance


def system(dequantiser, name='digits', high=6.0, std=0.5, **net):
  config = vdm.default_config()
  config.data.name = name
  return dequantised.experiment(config, net=LinearDenoiser(std, **net), dequantiser=dequantiser,
                                schedule=schedules.Linear(high, -6.0))


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('steps', [0, pytest.param(50, marks=pytest.mark.long)])
def test_the_bound_of_the_system_is_above_the_truth_by_the_divergences(steps):
  """Gaussian data and their denoiser: with logsnr from 6 to -6 the model is N(0, s^2 + 2 sigma^2).

  What a draw of y costs on average: log q + E[-log p(y | z_0)] + KL(q(z_0 | y) || p(z_0)).
  """
  std, r2, n = 0.5, np.exp(-6.0), 20_000  # r2 = (sigma_0 / alpha_0)^2
  levels, k = 256, np.array([40, 130])
  experiment = system(dequantisers.uniform(levels), 'swirl', std=std)
  data = jnp.broadcast_to(jnp.asarray(k), (n, 2))

  @jax.jit
  def draws(t):
    model = experiment.model(experiment.init(jax.random.key(0)))
    return model.bound({'image': data}, t, keys_of(n), steps)

  nats, terms = draws((jnp.arange(n) + 0.5) / n)
  np.testing.assert_allclose(nats, sum(terms.values()), rtol=1e-6)
  np.testing.assert_allclose(terms['dequantisation'], 2 * np.log(128.0))
  np.testing.assert_allclose(terms['reconstruction'], np.log(2 * np.pi * np.e * r2), rtol=1e-6)
  # In units of alpha_0: z_0 / alpha_0 ~ N(y, r2) given y, N(0, v) a priori.
  v, y2 = std**2 + r2, centre(k, levels)**2 + 1 / (3 * levels**2)
  divergence = 0.5 * np.sum(np.log(v / r2) + (r2 + y2) / v - 1.0)
  expected = 2 * np.log(128.0) + np.log(2 * np.pi * np.e * r2) + divergence
  tolerance = 4 * standard_error(nats)
  if not steps:
    assert abs(np.mean(nats) - expected) < tolerance + 1e-4 < 0.5
  edge = 1 / levels
  model = stats.norm(0, np.sqrt(std**2 + 2 * r2))
  truth = -np.log(model.cdf(centre(k, levels) + edge) - model.cdf(centre(k, levels) - edge)).sum()
  assert truth < expected and truth < np.mean(nats) + tolerance
  if steps:  # a chain of 50 steps costs more than continuous time
    assert np.mean(nats) > expected - tolerance


@pytest.mark.long
def test_the_system_starts_at_the_bound_of_uniform_noise_and_its_gradient_moves_the_flow():
  n = 32
  data = {'image': jnp.asarray(np.random.default_rng(0).integers(0, 17, (n, 8, 8, 1)))}
  context = Context((jnp.arange(n) + 0.5) / n, keys_of(n), jnp.zeros(()))
  learned, fixed = system(Couplings(4, 1)), system(dequantisers.uniform(17))
  mean = lambda experiment: lambda params: jnp.mean(experiment.loss(params, data, context)[0])
  learned_at = jax.jit(jax.value_and_grad(mean(learned)))

  @jax.jit
  def start():
    params = learned.init(jax.random.key(0))
    _, log_q = learned.model(params).dequantise(data['image'], context.keys)
    return params, mean(fixed)(params), log_q

  params, of_uniform, log_q = start()
  value, gradient = learned_at(params)
  np.testing.assert_allclose(value, of_uniform, rtol=1e-6)
  np.testing.assert_allclose(bits_per_dim(log_q, (8, 8, 1)), np.log2(17 / 2), rtol=1e-6)
  # Up the gradient of the flow's parameters, by finite differences.
  norm, h = optax.tree.norm(gradient['dequantiser']), 0.02
  moved = lambda h: float(learned_at({**params, 'dequantiser': jax.tree.map(
      lambda p, g: p + h * g / norm, params['dequantiser'], gradient['dequantiser'])})[0])
  assert norm > 0.01
  np.testing.assert_allclose((moved(h) - moved(-h)) / (2 * h), norm, rtol=1e-2)
