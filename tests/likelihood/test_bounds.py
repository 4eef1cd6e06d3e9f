"""The exact pass over a split, judged by data whose posterior mean is known.

The models here are oracles, so every term of the bound has a closed form or a quadrature, image by
image; what is left to measure are the draws, and they are held to their own standard errors.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from tests.support.images import Split
from vdm_jax import oracles, schedules
from vdm_jax.decoders import Pixels
from vdm_jax.ledger import rows
from vdm_jax.likelihood import evaluate_bound
from vdm_jax.likelihood.density import by_image
from vdm_jax.machine import devices
from vdm_jax.processes import GaussianProcess
from vdm_jax.typing import Model

HIGH, LOW = 3.0, -2.0  # log-SNR at t = 0 and 1 of most tests here: every term matters
STD = 0.5


def oracle_model(denoise, shape, levels=0, high=HIGH, low=LOW):
  """params -> Model; with levels = 0 the data are continuous and the decoder is left out."""
  pixels = Pixels(levels)
  identity = lambda x: x
  model = Model(denoise=denoise, process=GaussianProcess(schedules.Linear(high, low)),
                decoder=pixels.log_prob if levels else lambda data, z, level: jnp.zeros(len(z)),
                encode=pixels.encode if levels else identity,
                decode=pixels.decode if levels else identity,
                cond=lambda batch: None, shape=shape)
  return lambda params: model


GAUSSIAN = oracle_model(oracles.Gaussian(0.0, STD), (1,))


def evaluate(model, images, seed=0, **options):
  options = {'times': 8, 'batch_size': 4096, 'progress': False} | options
  return evaluate_bound(model, {}, Split(images), jax.random.key(seed), **options)


def gaussian_images(n, seed=0, shape=(1,)):
  return STD * np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def error_of_eps(x, logsnr):
  """E |eps - eps_hat|^2 for one x, where x ~ N(0, STD^2) is believed: x is not averaged over."""
  alpha2, sigma2 = 1 / (1 + np.exp(-logsnr)), 1 / (1 + np.exp(logsnr))
  # The estimate of eps is sigma z / variance, with z = alpha x + sigma eps.
  variance = alpha2 * STD**2 + sigma2
  return (alpha2 * STD**2 / variance)**2 + sigma2 * alpha2 * x**2 / variance**2


def diffusion_of(x):
  return integrate.quad(lambda logsnr: 0.5 * error_of_eps(x, logsnr), LOW, HIGH)[0]


COPIES = 800


def copies(values, dtype=np.float32):
  """COPIES images of each single value: as many independent repetitions, in one batch."""
  return np.repeat(np.array(values, dtype), COPIES)[:, None]


def scores_of(draws, expected):
  """(standard scores of the means of draws [n, COPIES], their standard errors)."""
  error = draws.std(axis=1, ddof=1) / draws.shape[1]**0.5
  return (draws.mean(axis=1) - expected) / error, error


def assert_standard_normal(scores):
  """Their mean and their variance are those of independent standard scores."""
  n = scores.size
  assert abs(scores.mean()) * n**0.5 < 4
  low, high = stats.chi2.ppf([1e-4, 1 - 1e-4], n)
  assert low < np.sum(scores**2) < high


# ------------------------------------------------------------- the terms


def test_the_diffusion_term_of_each_image_is_the_integral_of_its_own_error():
  values = np.linspace(-1.0, 1.0, 9)
  got = evaluate(GAUSSIAN, copies(values), times=16).terms['diffusion'].reshape(9, COPIES)
  scores, error = scores_of(got, [diffusion_of(x) for x in values])
  assert_standard_normal(scores)
  assert np.all(error < 0.03 * got.mean(axis=1))  # so that the scores could tell


def test_the_latent_term_of_each_image_is_the_divergence_of_two_gaussians():
  images = np.random.default_rng(0).uniform(-1, 1, (7, 2, 3, 1)).astype(np.float32)
  got = evaluate(oracle_model(oracles.Gaussian(), (2, 3, 1)), images, times=2).terms['latent'][0]
  alpha2, sigma2 = 1 / (1 + np.exp(-LOW)), 1 / (1 + np.exp(LOW))
  divergence = 0.5 * (sigma2 + alpha2 * images.astype(float)**2 - 1 - np.log(sigma2))
  np.testing.assert_allclose(got, divergence.sum(axis=(1, 2, 3)), rtol=2e-5)


def reconstruction_of(levels, level, logsnr):
  """-E log p(level | z_0) of one pixel, by quadrature over the noise.  Nats."""
  centres = (2 * np.arange(levels) + 1 - levels) / levels
  noise = np.exp(-0.5 * logsnr)  # in units of x
  def at(eps):
    joint = stats.norm.logpdf(centres[level] + noise * eps, loc=centres, scale=noise)
    return stats.norm.pdf(eps) * (np.logaddexp.reduce(joint) - joint[level])
  return integrate.quad(at, -8, 8, limit=200)[0]


def test_the_reconstruction_term_of_each_image_is_its_quadrature():
  model = oracle_model(oracles.Gaussian(), (1,), levels=5)
  got = evaluate(model, copies(range(5), np.uint8)).terms['reconstruction'].reshape(5, COPIES)
  scores, error = scores_of(got, [reconstruction_of(5, k, HIGH) for k in range(5)])
  assert_standard_normal(scores)
  assert np.all(error < 0.03 * got.mean(axis=1))


@pytest.mark.first(1)
@pytest.mark.parametrize('steps', [1, 1000])
def test_a_chain_of_any_number_of_steps_has_the_sum_of_its_divergences(steps):
  values = np.array([-0.2, 0.3, 1.0])
  samples = evaluate(GAUSSIAN, copies(values), steps=steps, times=16)
  grid = np.linspace(HIGH, LOW, steps + 1)
  ratio = np.expm1(HIGH - grid[1])
  scores, error = scores_of(samples.terms['diffusion'].reshape(3, COPIES),
                            [np.sum(0.5 * ratio * error_of_eps(x, grid[1:])) for x in values])
  assert_standard_normal(scores)


# ------------------------------------------------- a known distribution


COUNTS = np.array([[6, 1, 0, 1], [2, 5, 1, 0], [0, 1, 4, 2], [1, 0, 2, 6]])  # of 32, two pixels
PAIRS = np.repeat(np.argwhere(COUNTS), COUNTS[COUNTS > 0], axis=0).astype(np.uint8)


def bound_of_pairs(high, low):
  """(mean, standard error) of the bound in nats: every pair once, with the optimal denoiser."""
  centres = np.asarray(Pixels(4).encode(jnp.asarray(PAIRS)))
  model = oracle_model(oracles.Empirical(jnp.asarray(centres)), (2,), 4, high, low)
  total = evaluate(model, PAIRS, times=256, repeats=64, batch_size=1 << 13).total.mean(axis=1)
  return total.mean(), total.std(ddof=1) / 8


def entropy_of_pairs():
  p = COUNTS[COUNTS > 0] / COUNTS.sum()
  return -np.sum(p * np.log(p))


def gaps_of_pairs(high, low):
  """(KL(q(z_1) || p(z_1)), E KL(q(x | z_0) || p(x | z_0))) in nats, on a grid of the plane."""
  levels = (2 * np.arange(4) - 3) / 4
  axis = np.linspace(-6, 6, 401)
  cell = (axis[1] - axis[0])**2

  def densities(logsnr):
    """q(z | x), [4, 4, Z, Z]."""
    alpha, sigma = (1 + np.exp(-logsnr))**-0.5, (1 + np.exp(logsnr))**-0.5
    one = stats.norm.pdf(axis, loc=alpha * levels[:, None], scale=sigma)
    return one[:, None, :, None] * one[None, :, None, :]

  p = (COUNTS / COUNTS.sum())[:, :, None, None]
  last = np.sum(p * densities(low), axis=(0, 1))
  normal = stats.norm.pdf(axis)[:, None] * stats.norm.pdf(axis)
  latent = np.sum(last * np.log(last / normal)) * cell
  first = densities(high)
  joint, marginal = p * first, np.sum(p * first, axis=(0, 1))
  tiny = 1e-300
  truth = joint / (marginal + tiny)
  flat = first / (first.sum(axis=(0, 1)) + tiny)
  decoder = np.sum(joint * (np.log(truth + tiny) - np.log(flat + tiny))) * cell
  return latent, decoder


@pytest.mark.long
def test_the_bound_on_a_known_distribution_is_its_entropy_where_the_ends_are_wide():
  bound, error = bound_of_pairs(6.0, -6.0)
  entropy = entropy_of_pairs()
  assert entropy - 4 * error < bound < entropy + 1e-3 + 4 * error
  assert error < 0.01 * entropy


@pytest.mark.long
def test_what_narrow_ends_cost_is_the_two_divergences_at_them():
  bound, error = bound_of_pairs(2.0, -1.0)
  latent, decoder = gaps_of_pairs(2.0, -1.0)
  assert min(latent, decoder) > 8 * error  # so that either would be missed
  assert abs(bound - entropy_of_pairs() - latent - decoder) < 4 * error


# -------------------------------------------------------- an exact pass


def same_samples(one, other, rtol=1e-5):
  for name in one.terms:
    np.testing.assert_allclose(one.terms[name], other.terms[name], rtol=rtol, atol=1e-6)
  np.testing.assert_allclose(one.logsnr, other.logsnr, atol=1e-5)
  np.testing.assert_allclose(one.diffusion, other.diffusion, rtol=rtol, atol=1e-6)


def thirteen():
  return np.random.default_rng(0).integers(0, 32, (13, 2, 2, 1)).astype(np.uint8)


QUANTISED = oracle_model(oracles.Gaussian(0.0, STD), (2, 2, 1), levels=32)


@pytest.mark.long
def test_every_image_counts_once_in_every_repetition_whatever_the_batch():
  """13 images in batches of 4 and 8 on 4 devices; the latent term tells images apart."""
  images = thirteen()
  reference = evaluate(QUANTISED, images, times=8, repeats=2)
  assert reference.total.shape == (2, 13)
  alpha2, sigma2 = 1 / (1 + np.exp(-LOW)), 1 / (1 + np.exp(LOW))
  x = (2 * images.astype(float) - 31) / 32
  divergence = 0.5 * (sigma2 + alpha2 * x**2 - 1 - np.log(sigma2)).sum(axis=(1, 2, 3))
  assert len(np.unique(divergence.round(4))) == 13
  np.testing.assert_allclose(reference.terms['latent'], np.stack([divergence] * 2), rtol=2e-5)
  for batch_size in (1, 40):
    same_samples(evaluate(QUANTISED, images, times=8, repeats=2, batch_size=batch_size), reference)


def test_one_device_and_four_give_the_same_numbers(monkeypatch):
  four = evaluate(QUANTISED, thirteen(), batch_size=64)
  one_device = jax.devices()[:1]
  monkeypatch.setattr(devices.jax, 'devices', lambda: one_device)
  monkeypatch.setattr(devices.jax, 'device_count', lambda: 1)
  same_samples(evaluate(QUANTISED, thirteen(), batch_size=64), four)


@pytest.mark.long
def test_the_first_images_alone_get_the_numbers_they_get_among_all():
  images = thirteen()
  all_of_them = evaluate(QUANTISED, images)
  some = evaluate(QUANTISED, images, count=6)
  assert some.total.shape == (1, 6)
  np.testing.assert_allclose(some.total, all_of_them.total[:, :6], rtol=1e-5)
  assert evaluate(QUANTISED, images, count=99).total.shape == (1, 13)


@pytest.mark.long
def test_repetitions_and_seeds_are_other_draws_and_more_repetitions_keep_the_first():
  images = thirteen()
  two, three = (evaluate(QUANTISED, images, repeats=r) for r in (2, 3))
  np.testing.assert_allclose(three.total[:2], two.total, rtol=1e-5)
  other = evaluate(QUANTISED, images, seed=1)
  draws = np.concatenate([three.terms['diffusion'], other.terms['diffusion']])
  assert all(len(np.unique(column)) == 4 for column in draws.T)


def test_the_times_of_an_image_are_evenly_spread_from_an_offset_of_its_own():
  samples = evaluate(GAUSSIAN, gaussian_images(300), times=8, repeats=2)
  t = (HIGH - samples.logsnr.astype(float)) / (HIGH - LOW)
  assert t.min() > -1e-6 and t.max() < 1 + 1e-6
  offsets = np.mod(t * 8, 1)
  # One point in each eighth, all at the same place in it.
  np.testing.assert_array_equal(np.sort(np.floor(np.mod(t + 1e-6, 1) * 8), axis=-1),
                                np.broadcast_to(np.arange(8), t.shape))
  circle = np.exp(2j * np.pi * offsets)
  np.testing.assert_allclose(circle, circle[..., :1] * np.ones(8), atol=1e-4)
  # The offsets are uniform, and not shared by images or repetitions.
  offsets = offsets[..., 0]
  assert stats.kstest(offsets.ravel(), 'uniform').pvalue > 1e-3
  assert abs(np.corrcoef(offsets)[0, 1]) < 4 / 300**0.5
  assert abs(np.corrcoef(offsets[0, 1:], offsets[0, :-1])[0, 1]) < 4 / 300**0.5


# ------------------------------------------------------ standard errors


def rows_of(samples, groups, axis):
  """A row of the ledger for each of `groups` consecutive parts along repetitions or images."""
  return [rows.row({}, {'total': part / np.log(2)}, np.ones_like(part))
          for part in np.split(samples.total, groups, axis)]


def latent_of(x):
  alpha2, sigma2 = 1 / (1 + np.exp(-LOW)), 1 / (1 + np.exp(LOW))
  return 0.5 * (sigma2 + alpha2 * x**2 - 1 - np.log(sigma2))


@pytest.mark.long
def test_the_error_over_draws_is_what_repeated_evaluations_of_the_same_images_show():
  """Also where a ledger has no more than two repetitions of a few images."""
  images = gaussian_images(20)
  truth = np.mean([diffusion_of(float(x)) + latent_of(float(x)) for x in images[:, 0]])
  samples = evaluate(GAUSSIAN, images, times=16, repeats=400)
  for groups in (200, 40):
    scores = np.array([(row['bits_per_dim'] - truth / np.log(2)) / row['standard_error_draws']
                       for row in rows_of(samples, groups, axis=0)])
    assert stats.kstest(scores, 'norm').pvalue > 1e-3
    # The error is itself known to some 20 % or better: one over whole repetitions alone would
    # make the scores of two of them Cauchy variables, of which one in ten is beyond 6.
    assert np.abs(scores).max() < 5


def test_the_error_over_images_is_what_other_sets_of_images_show():
  data = lambda x: stats.norm.pdf(x, scale=STD) * (diffusion_of(x) + latent_of(x))
  truth = integrate.quad(data, -4, 4)[0]
  rows = rows_of(evaluate(GAUSSIAN, gaussian_images(4000), times=4), 100, axis=1)
  assert all(row['standard_error_draws'] is None for row in rows)  # of one repetition
  scores = [(row['bits_per_dim'] - truth / np.log(2)) / row['standard_error'] for row in rows]
  # 40 images that are not Gaussian: their scores are nearly those of Student.
  assert stats.kstest(scores, stats.t(39).cdf).pvalue > 1e-3


@pytest.mark.long
def test_four_times_the_repetitions_halve_the_error_over_draws():
  samples = evaluate(GAUSSIAN, gaussian_images(20), times=4, repeats=480)
  variance = lambda groups: np.mean([row['standard_error_draws']**2
                                     for row in rows_of(samples, groups, axis=0)])
  # Both have some 20 x 480 degrees of freedom, so that the ratio is known to a few percent.
  assert 0.9 < 4 * variance(12) / variance(48) < 1.1


@pytest.mark.long
def test_spreading_the_times_of_an_image_beats_as_many_independent_draws():
  """With K times spread from one offset, a function f of t leaves (f(0) - f(1))^2 / (12 K^2).

  That is the jump of f continued periodically, the leading term of Euler and Maclaurin.
  """
  d, k = 64, 16
  images = np.full((1500, d), STD, np.float32)
  model = oracle_model(oracles.Gaussian(0.0, STD), (d,))
  got = [evaluate(model, images, times=times).terms['diffusion'].var() for times in (1, k)]
  logsnr = np.linspace(LOW, HIGH, 2001)
  alpha2, sigma2 = 1 / (1 + np.exp(-logsnr)), 1 / (1 + np.exp(logsnr))
  variance = alpha2 * STD**2 + sigma2
  # eps - eps_hat = a eps - b in each dimension, for this x.
  a, b = alpha2 * STD**2 / variance, (sigma2 * alpha2)**0.5 * STD / variance
  scale = 0.5 * (HIGH - LOW)
  mean, of_eps = d * scale * (a**2 + b**2), d * scale**2 * np.mean(2 * a**4 + 4 * a**2 * b**2)
  jump = (mean[-1] - mean[0])**2 / 12
  np.testing.assert_allclose(got, [of_eps + mean.var(), of_eps / k + jump / k**2], rtol=0.15)
  assert got[1] < got[0] / k / 5


def test_the_bits_by_noise_level_are_those_of_the_optimal_denoiser():
  """Half the error of eps at each log-SNR; the data x = +-STD average it exactly."""
  samples = evaluate(GAUSSIAN, copies([STD, -STD]), times=32)
  edges = np.linspace(LOW, HIGH, 11)
  each = by_image(samples, edges)
  primitive = 0.5 * np.log(1 + STD**2 * np.exp(edges))
  expected = np.diff(primitive) / np.diff(edges)
  scores, _ = scores_of(np.transpose(each), expected)
  assert_standard_normal(scores)
  np.testing.assert_allclose(np.sum(each.mean(axis=0) * np.diff(edges)),
                             samples.terms['diffusion'].mean(),
                             rtol=1e-5)
