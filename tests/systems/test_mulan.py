"""Learned adaptive noise: k-hot vectors by enumeration, line integrals by quadrature.

The Gaussian pair has a known posterior mean at every vector of levels, and a diffusion term that
is quadratic in (x, eps), so that eight points average it exactly.
"""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from tests.support import tiny_config
from vdm_jax import oracles, random, samplers
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.likelihood import evaluate_bound
from vdm_jax.nn.blocks.layers import Embedding
from vdm_jax.nn.small.mulan import Coefficients, LatentEncoder
from vdm_jax.objectives import vlb, weighted_diffusion
from vdm_jax.processes import GaussianProcess, flow, vp
from vdm_jax.samplers import dpm_solver, drawing
from vdm_jax.systems.variational import mulan
from vdm_jax.systems.variational.mulan import PolynomialSchedule
from vdm_jax.typing import Estimate

COVARIANCE = np.array([[0.5, 0.3], [0.3, 0.25]])
HIGH, LOW = 6.0, -4.0
HALF_LOG_RATIO = 0.5 * (  # 1/2 log det(1 + C e^6) / det(1 + C e^-4), nats
    np.linalg.slogdet(np.eye(2) + COVARIANCE * np.exp(HIGH))[1]
    - np.linalg.slogdet(np.eye(2) + COVARIANCE * np.exp(LOW))[1])


def gauss_legendre(n):
  nodes, weights = np.polynomial.legendre.leggauss(n)
  return 0.5 * (nodes + 1.0), 0.5 * weights


def nothing(data, z, level):
  """A decoder for tests of the other terms."""
  return jnp.zeros(z.shape[0])


def polynomial(*coefficients):
  """A schedule from HIGH to LOW for each pixel, the same in all examples: (a, b, c) of each."""
  a, b, c = np.transpose(np.asarray(coefficients, float))[:, None]
  return PolynomialSchedule(a, b, c, HIGH, LOW)


# -------------------------------------------------------------- schedules

CASES = [(0.0, 0.0, 1.0), (3.0, -2.0, 0.1), (0.0, 2.0, 1e-3), (-1.0, 0.3, 2.0)]


def test_every_schedule_ends_where_it_should_to_the_bit_and_has_the_square_as_its_slope(x64):
  t, weights = gauss_legendre(20)
  process = GaussianProcess(polynomial(*CASES))
  level = jax.jit(lambda t: process(t))(t)
  assert level.logsnr.shape == (20, 4)
  for i, abc in enumerate(CASES):
    square = np.polyval(abc, t)**2
    np.testing.assert_allclose(level.dlogsnr[:, i], (LOW - HIGH) * square / (weights @ square),
                               rtol=1e-10)
  with jax.enable_x64(False):
    draws = np.random.default_rng(0).normal(size=(3, 5, 100)).astype(np.float32)
    schedule = PolynomialSchedule(*draws, 13.3, -5.0)
    at = jax.jit(lambda t: schedule(jnp.full(5, t)))
    np.testing.assert_array_equal(at(0.0), np.full((5, 100), np.float32(13.3)))
    np.testing.assert_array_equal(at(1.0), np.full((5, 100), np.float32(-5.0)))


@pytest.mark.long
def test_times_that_are_not_one_for_each_example_are_refused():
  schedule = PolynomialSchedule(*jnp.ones((3, 4, 2)))
  assert schedule(0.5).shape == schedule(jnp.full(4, 0.5)).shape == (4, 2)
  with pytest.raises(ValueError, match='one for each of the 4 examples'):
    schedule(jnp.zeros(5))


# ------------------------------------------------------------ the line integral


def posterior_eps(z, alpha, sigma):
  """E[eps | z] of the pair at levels of their own: alpha, sigma [n, 2]."""
  marginal = alpha[:, :, None] * COVARIANCE * alpha[:, None] + jax.vmap(jnp.diag)(sigma**2)
  return sigma * jnp.linalg.solve(marginal, z[..., None])[..., 0]


def exact(z, level, cond=None):
  level = level.expand(z)
  alpha, sigma = (jnp.broadcast_to(u, z.shape) for u in (level.alpha, level.sigma))
  eps = posterior_eps(z, alpha, sigma)
  return Estimate((z - sigma * eps) / alpha, eps)


def told_the_mean_level(z, level, cond=None):
  """Exact where both pixels have the same level, which is all that it is told."""
  _, logsnr = mulan.by_mean_logsnr(z, level)
  alpha, sigma = (jnp.broadcast_to(u[:, None], z.shape) for u in vp(logsnr))
  return Estimate(z, posterior_eps(z, alpha, sigma))


def diffusion_term(denoise, process, n=200):
  """E of the diffusion term of the Gaussian pair, by quadrature in t and exactly in (x, eps)."""
  t, weights = gauss_legendre(n)
  points = 2.0 * np.concatenate([np.eye(4), -np.eye(4)])  # of unit covariance: x white, and eps
  white, eps = np.repeat(points[:, :2], n, 0), np.repeat(points[:, 2:], n, 0)
  x = white @ np.linalg.cholesky(COVARIANCE).T
  loss, _ = weighted_diffusion(denoise, process, jnp.asarray(x), jnp.tile(t, 8), None,
                               eps=jnp.asarray(eps))
  return np.tile(weights, 8) @ loss / 8


STRAIGHT = polynomial((0, 0, 1), (0, 0, 1))
FIRST_LATE = polynomial((2, 0, 0.3), (0, -1, 1.2))
FIRST_EARLY = polynomial((0, -1, 1.2), (2, 0, 0.3))
BENT_ALIKE = polynomial((2, -1, 0.6), (2, -1, 0.6))


@pytest.mark.long
def test_the_integral_is_that_of_a_gradient_field_for_the_exact_denoiser_and_no_other(x64):
  """All paths have the same ends.  The exact value is a mutual information's difference."""
  paths = STRAIGHT, BENT_ALIKE, FIRST_LATE, FIRST_EARLY
  values = jax.jit(lambda: [[diffusion_term(denoise, GaussianProcess(path)) for path in paths]
                            for denoise in (exact, told_the_mean_level)])
  always, by_path = np.array(values())
  np.testing.assert_allclose(always, HALF_LOG_RATIO, rtol=1e-9)
  # Told the mean, it is exact along the diagonal, wherever it turns; off it, always worse.
  np.testing.assert_allclose(by_path[:2], HALF_LOG_RATIO, rtol=1e-9)
  assert (by_path[2:] > HALF_LOG_RATIO + 0.05).all()
  assert abs(by_path[2] - by_path[3]) > 0.05


@pytest.mark.long
def test_one_schedule_for_all_pixels_is_a_scalar_one_and_its_interior_does_not_matter(x64):
  """1/2 log (1 + s^2 e^6) / (1 + s^2 e^-4), s = 1/2, for each of four pixels."""
  t, weights = gauss_legendre(200)
  sign = jnp.repeat(jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]), 200, 0)
  x, eps = (jnp.broadcast_to(u[:, None, None], (800, 2, 2)) for u in (0.5 * sign[:, 0], sign[:, 1]))

  @jax.jit
  def both(abc):
    of = lambda shape: GaussianProcess(PolynomialSchedule(
        *(jnp.full(shape, u) for u in abc), HIGH, LOW))
    return [vlb.continuous(oracles.Gaussian(0.0, 0.5), of(shape), x, jnp.tile(t, 4), None, data=x,
                           decoder=nothing, eps=eps, eps_0=eps) for shape in ((800,), x.shape)]

  for abc in CASES:
    (scalar, terms), (per_pixel, _) = both(jnp.array(abc))
    np.testing.assert_allclose(per_pixel, scalar, rtol=1e-12)
    expected = 2.0 * np.log((1 + 0.25 * np.exp(HIGH)) / (1 + 0.25 * np.exp(LOW)))
    np.testing.assert_allclose(np.tile(weights, 4) @ terms['diffusion'] / 4, expected, rtol=1e-9)


# ----------------------------------------------------------- k-hot vectors

LOGITS = np.array([[0.3, -1.2, 2.0, 0.0, -0.5], [0.0, 0.0, 0.0, 0.0, 0.0],
                   [-3.0, 4.0, 1.0, 1.0, 2.0]])
SUBSETS = np.array([[i in s for i in range(5)] for s in itertools.combinations(range(5), 2)], float)


def enumerated(logits):
  p = np.exp(SUBSETS @ logits)
  return p / p.sum()


def test_the_divergence_and_the_marginals_of_a_k_hot_vector_are_those_of_all_its_values(x64):
  got = jax.jit(lambda u: (mulan.kl_to_uniform(u, 2), mulan.marginals(u, 2),
                           mulan.log_normaliser(u, 2)))(LOGITS)
  for kl, mean, log_z, logits in zip(*got, LOGITS, strict=True):
    p = enumerated(logits)
    np.testing.assert_allclose(kl, np.sum(p * np.log(10 * p)), atol=1e-12)
    np.testing.assert_allclose(mean, p @ SUBSETS, rtol=1e-12)
    np.testing.assert_allclose(log_z, np.log(np.sum(np.exp(SUBSETS @ logits))), rtol=1e-12)


@pytest.mark.long
def test_a_certain_latent_costs_the_logarithm_of_their_number_in_float32():
  certain = np.where(np.arange(50) % 3 == 0, 40.0, -40.0)  # 17 of 50
  logits = jnp.array([certain, np.full(50, 7.0)])
  kl, pull_back = jax.vjp(jax.jit(lambda u: mulan.kl_to_uniform(u, 17)), logits)
  np.testing.assert_allclose(kl, [29.91856, 0.0], atol=1e-3)  # log C(50, 17)
  np.testing.assert_allclose(pull_back(jnp.ones(2))[0], 0.0, atol=1e-3)


def test_draws_are_k_hot_and_have_the_frequencies_of_their_distribution():
  n = 20_000
  keys = jax.random.split(jax.random.key(0), n)
  sample = jax.jit(lambda logits: mulan.draw(keys, jnp.broadcast_to(logits, (n, 5)), 2))
  for logits in LOGITS.astype(np.float32):
    drawn = np.asarray(sample(logits))
    counts = np.array([(drawn == s).all(axis=1).sum() for s in SUBSETS])
    assert counts.sum() == n
    assert stats.chisquare(counts, n * enumerated(logits)).pvalue > 1e-3


@pytest.mark.long
def test_the_gradient_passes_a_draw_as_that_of_the_marginals(x64):
  keys = jax.random.split(jax.random.key(1), 3)
  weights = jnp.array([1.0, -2.0, 0.5, 3.0, 0.0])
  def through(u):
    latent = mulan.draw_straight_through(keys, u, 2)
    return jnp.sum(latent @ weights), (latent, mulan.draw(keys, u, 2))
  slope, (latent, drawn) = jax.jit(jax.grad(through, has_aux=True))(LOGITS)
  np.testing.assert_allclose(latent, drawn, atol=1e-12)
  for got, logits in zip(slope, LOGITS, strict=True):
    p = enumerated(logits)
    mean = p @ SUBSETS  # d E[h] / d logits is the covariance of h
    np.testing.assert_allclose(got, ((SUBSETS - mean).T * p) @ (SUBSETS @ np.array(weights)),
                               atol=1e-12)


# ------------------------------------------------------------------ bound


def two_paths(latent):
  """The first entry of a latent chooses between two paths of the Gaussian pair."""
  first = latent[:, :1]
  late, early = (np.transpose([(2, 0, 0.3), (0, -1, 1.2)])[:, order] for order in ([0, 1], [1, 0]))
  abc = [first * u + (1.0 - first) * v for u, v in zip(late, early, strict=True)]
  return exact, GaussianProcess(PolynomialSchedule(*abc, HIGH, LOW), flow)


@pytest.mark.long
def test_the_bound_is_estimated_without_bias_in_continuous_time_and_with_steps(x64):
  """Within four standard errors, by the library's own draws of latents, times and noise."""
  n, logits = 20_000, jnp.array([0.8, 0.0, -0.3])
  key_x, key_t, key = jax.random.split(jax.random.key(2), 3)
  x = jax.random.normal(key_x, (n, 2)) @ np.linalg.cholesky(COVARIANCE).T
  t, keys = jax.random.uniform(key_t, (n,)), jax.random.split(key, n)
  (nats, terms), (_, chain) = jax.jit(lambda: [mulan.bound(
      two_paths, jnp.broadcast_to(logits, (n, 3)), 1, x, t, keys, steps=steps, data=x,
      decoder=nothing) for steps in (0, 4)])()

  p = np.exp(logits) / np.exp(logits).sum()
  np.testing.assert_allclose(terms['auxiliary'], np.sum(p * np.log(3 * p)), rtol=1e-9)
  np.testing.assert_allclose(nats, sum(terms.values()), rtol=1e-12)
  steps = 0.0
  for share, path in ((p[0], FIRST_LATE), (1 - p[0], FIRST_EARLY)):
    snr = np.exp(np.asarray(path(jnp.linspace(0.0, 1.0, 5))))
    variance = [np.diag(np.linalg.inv(np.linalg.inv(COVARIANCE) + np.diag(u))) for u in snr]
    steps += share * 0.5 * np.sum((snr[:-1] - snr[1:]) * variance[1:])
  for sample, mean in ((terms['diffusion'], HALF_LOG_RATIO), (chain['diffusion'], steps)):
    assert abs(np.mean(sample) - mean) < 4 * np.std(sample) / n**0.5


@pytest.mark.long
def test_a_schedule_that_knows_the_datum_is_no_bound_unless_the_latent_is_paid_for(x64):
  """A fair bit costs log 2.  Its latent sets the schedule, and the level gives it away."""
  pixels, n = Pixels(2), 2000
  data = jnp.arange(n)[:, None] % 2
  x = pixels.encode(data).astype(float)

  def given(latent):
    slope = 2.0 * latent[:, 1:] - 1.0  # one value later than the straight line, the other earlier
    schedule = PolynomialSchedule(jnp.zeros((n, 1)), slope, jnp.full((n, 1), 1.2), 9.0, -9.0)

    def reads_the_level(z, level, cond=None):
      straight = 9.0 - 18.0 * level.t
      guess = 0.5 * jnp.sign(level.logsnr[:, 0] - straight)[:, None]
      level = level.expand(z)
      return Estimate(guess, (z - level.alpha * guess) / level.sigma)

    return reads_the_level, GaussianProcess(schedule)

  logits = 30.0 * jnp.concatenate([-jnp.sign(x), jnp.sign(x)], axis=1)
  t = (jnp.arange(n) + 0.5) / n
  nats, terms = jax.jit(lambda: mulan.bound(
      given, logits, 1, x, t, jax.random.split(jax.random.key(3), n), data=data,
      decoder=pixels.log_prob))()
  np.testing.assert_allclose(terms['auxiliary'], np.log(2), rtol=1e-9)
  assert np.mean(nats - terms['auxiliary']) < 0.01  # far below what a bit costs
  assert np.log(2) <= np.mean(nats) < np.log(2) + 0.01


# ----------------------------------------------------------------- system


@pytest.mark.long
def test_a_network_is_told_a_one_hot_latent_as_it_is_told_a_label():
  embedding = Embedding(4, 3, 1.0, -1.0)
  params = embedding.init(jax.random.key(0), jnp.zeros(1))
  tell = jax.jit(lambda cond: embedding.apply(params, jnp.zeros(3), cond))
  np.testing.assert_allclose(tell(jnp.eye(3)), tell(jnp.arange(3)), rtol=1e-6)
  np.testing.assert_allclose(tell(jnp.zeros((3, 3))), tell(jnp.full(3, -1)), rtol=1e-6)


class Net(nn.Module):
  """`tiny_config.Net` that is told a latent."""
  dropout: float = 0.0

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    told = jnp.zeros((len(z), 4)) if cond is None else cond
    h = nn.Dense(8)(jnp.concatenate([z, logsnr[:, None] / 10, told], -1))
    return z + nn.Dense(z.shape[-1])(nn.tanh(h))


class Logits(nn.Module):

  @nn.compact
  def __call__(self, x, keys=None):
    return nn.Dense(4)(x)


@pytest.fixture(scope='module')
def swirl():
  """(config, experiment, parameters): points in the plane, with schedules that are not straight."""
  config = tiny_config.get_config()
  with config.unlocked():  # fields of this system's own
    config.model.update(latent=4, latent_hot=2)
  experiment = mulan.experiment(config, net=Net(), encoder=Logits(),
                                schedule=Coefficients((2,), features=8))
  params = jax.jit(experiment.init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  params['schedule'] = jax.tree.map(lambda u: u + 0.3 * rng.normal(size=u.shape).astype(u.dtype),
                                    params['schedule'])
  return config, experiment, params


@pytest.mark.long
def test_the_networks_start_as_a_latent_that_tells_nothing_and_straight_lines_whatever_it_tells():
  """And they leave it: the gradient reaches the layer whose zeros make the logits vanish."""
  shape = (4, 4, 1)
  encoder = LatentEncoder(6, features=4, blocks=0, groups=2, fourier=(1,))
  coefficients = Coefficients(shape, features=8)

  @jax.jit
  def start(key):
    x = jax.random.uniform(key, (3, *shape))
    params = encoder.init(key, x)
    logits, slope = jax.value_and_grad(lambda p: jnp.sum(encoder.apply(p, x)[0] * jnp.arange(6.0)))(
        params)
    latent = mulan.draw(jax.random.split(key, 3), jnp.zeros((3, 6)), 2)
    abc = coefficients.apply(coefficients.init(key, latent), latent)
    return logits, slope['params']['conv_out']['kernel'], abc

  logits, slope, abc = start(jax.random.key(0))
  assert logits == 0.0 and np.abs(slope).max() > 0.0
  t = jnp.array([0.1, 0.5, 0.9])
  straight = np.broadcast_to((9.0 - 14.0 * t)[:, None, None, None], (3, *shape))
  np.testing.assert_allclose(PolynomialSchedule(*abc, 9.0, -5.0)(t), straight, rtol=1e-5)


@pytest.mark.long
def test_the_ledger_s_pass_evaluates_the_model_s_own_bound(swirl):
  _, experiment, params = swirl
  split = experiment.data.split('validation')
  for steps in (0, 3):
    found = evaluate_bound(experiment.model, params, split, jax.random.key(0), steps=steps,
                           times=4, count=8, progress=False)
    assert set(found.terms) == {'reconstruction', 'latent', 'diffusion', 'auxiliary'}
    batch = split.get(np.arange(8))
    m = experiment.model(params)
    logits = Logits().apply({'params': params['encoder']}, m.encode(batch['image']))
    pairs = np.array(list(itertools.combinations(range(4), 2)))
    p = np.exp(np.asarray(logits)[:, pairs].sum(axis=2))
    p /= p.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(found.terms['auxiliary'][0], np.sum(p * np.log(6 * p), axis=1),
                               rtol=1e-3, atol=1e-5)
    assert found.logsnr.max() < 8.0 and found.logsnr.min() > -5.0


def images(swirl, sampler, start=0, stop=6, batch_size=8, steps=7):
  config, experiment, params = swirl
  parts = drawing.draw(experiment.model, params, sampler, times=np.linspace(1.0, 0.0, steps + 1),
                       start=start, stop=stop, seed=0, batch_size=batch_size, cond=lambda n: {})
  return np.concatenate([part.data for part in parts])


@pytest.mark.long
def test_image_i_of_a_seed_has_its_own_latent_whatever_is_drawn_beside_it(swirl):
  six = images(swirl, samplers.ancestral)
  assert six.shape == (6, 2) and len(np.unique(six, axis=0)) > 3
  np.testing.assert_array_equal(images(swirl, samplers.ancestral, 3, 6, batch_size=4), six[3:])


@pytest.mark.long
def test_a_sampler_that_plans_for_one_level_is_refused_also_where_its_shapes_would_fit(swirl):
  with pytest.raises(InputError, match='every pixel has its own'):
    images(swirl, dpm_solver.dpm_solver_multistep, batch_size=8, steps=7)  # 8 times, and 8 images


@pytest.mark.long
def test_ancestral_sampling_with_a_level_for_each_pixel_has_the_distribution_of_the_data(x64):
  """The covariance, within four standard errors and the bias of 200 steps."""
  n = 4000
  keys = jax.random.split(jax.random.key(5), n)
  latent = mulan.draw(keys, jnp.zeros((n, 3)), 1)
  denoise, process = two_paths(latent)
  process = GaussianProcess(process.schedule)
  z = random.normal(keys, jnp.zeros((n, 2)))
  z = jax.jit(lambda: samplers.sample(samplers.ancestral(denoise, process), keys, z,
                                      np.linspace(1.0, 0.0, 201)))()
  x = z / process(0.0).alpha
  got = np.cov(x.T)
  expected = COVARIANCE + np.exp(-HIGH) * np.eye(2)
  error = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / n)
  np.testing.assert_array_less(np.abs(got - expected), 4 * error + 0.01)


@pytest.mark.long
def test_what_this_system_cannot_do_is_said(swirl):
  config, experiment, params = swirl
  m = experiment.model(params)
  with pytest.raises(InputError, match=r'model\.latent\(keys\)'):
    m.denoise(jnp.zeros((2, 2)), None)
  for change, message in (({'latent_hot': 4}, 'latent_hot=4'),
                          ({'class_conditional': True}, 'class_conditional')):
    wrong = config.copy_and_resolve_references()
    wrong.model.update(change)
    with pytest.raises(InputError, match=message):
      mulan.experiment(wrong, net=Net(), encoder=Logits(), schedule=Coefficients((2,)))
