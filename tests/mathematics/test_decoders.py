"""Levels and the continuous x: round trips, and p(data | z_0) against Bayes' rule."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from vdm_jax.decoders import Codebook, DiscretisedNormal, Pixels, normal
from vdm_jax.processes import GaussianProcess, flow
from vdm_jax.schedules import Linear
from vdm_jax.units import bits_per_dim, log_mean_exp

LEVELS = [2, 3, 17, 256, 65536]


@pytest.mark.first(4)
@pytest.mark.parametrize('levels', LEVELS)
def test_decoding_undoes_encoding_for_any_number_of_levels(levels):
  pixels, data = Pixels(levels), jnp.arange(levels).reshape(1, -1)
  x = pixels.encode(data)
  np.testing.assert_array_equal(pixels.decode(x), data)
  # Centres of equal bins that tile [-1, 1].
  edges = np.linspace(-1, 1, levels + 1)
  np.testing.assert_allclose(x[0], 0.5 * (edges[1:] + edges[:-1]), atol=1e-7)


def test_what_lies_beyond_the_bins_decodes_to_the_outermost_levels():
  np.testing.assert_array_equal(Pixels(17).decode(jnp.array([-1.5, 1.5])), [0, 16])


@functools.partial(jax.jit, static_argnums=0)
def all_levels(levels, z, level):
  """log p(k | z) for every k: [levels, B].  z: [B]."""
  shape = (levels, len(z))
  data, z = jnp.broadcast_to(jnp.arange(levels)[:, None], shape), jnp.broadcast_to(z, shape)
  return Pixels(levels).log_prob(data.reshape(-1, 1), z.reshape(-1, 1), level).reshape(shape)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('logsnr', [-5.0, 2.0, 13.3])
def test_the_decoder_is_bayes_rule_under_a_flat_prior_and_the_likeliest_level_is_decode(logsnr):
  level = jax.jit(GaussianProcess(Linear(logsnr, -20.0), flow))(jnp.zeros(()))
  alpha, sigma = float(level.alpha), float(level.sigma)
  x = np.linspace(-1.1, 1.1, 41)
  got = np.asarray(all_levels(17, jnp.asarray(alpha * x), level))
  centres = (2 * np.arange(17) - 16) / 17
  joint = stats.norm.logpdf(alpha * x, loc=alpha * centres[:, None], scale=sigma)
  np.testing.assert_allclose(got, joint - np.logaddexp.reduce(joint, axis=0), rtol=1e-9, atol=1e-9)
  np.testing.assert_allclose(np.exp(got).sum(0), 1.0, rtol=1e-12)
  np.testing.assert_array_equal(got.argmax(0), Pixels(17).decode(jnp.asarray(x)))


@pytest.mark.parametrize('levels', [17, 255, 256])
def test_the_probabilities_of_all_levels_sum_to_one_in_single_precision(levels):
  """At a level's edge, where two of them share it, whatever compilation does to a centre."""
  level = GaussianProcess(Linear(13.3 + 2.0 * np.log(levels / 256), -5.0))(jnp.zeros(()))
  edges = np.linspace(-1.0, 1.0, levels + 1)
  total = np.exp(np.asarray(all_levels(levels, level.alpha * edges, level), np.float64)).sum(0)
  np.testing.assert_allclose(total, 1.0, atol=5e-7)


def test_two_levels_are_a_logistic_regression_on_x_times_the_signal_to_noise_ratio():
  process = GaussianProcess(Linear(3.0, -3.0))
  level, x = process(jnp.zeros(())), jnp.linspace(-2.0, 2.0, 9)
  got = all_levels(2, level.alpha * x, level)[1]
  np.testing.assert_allclose(got, jax.nn.log_sigmoid(np.exp(3.0) * x), rtol=2e-5, atol=1e-6)


def test_dimensions_add_up_and_examples_do_not_mix():
  process, pixels = GaussianProcess(Linear(4.0, -3.0)), Pixels(5)
  rng = np.random.default_rng(0)
  data, z = rng.integers(0, 5, (3, 2, 2)), rng.normal(size=(3, 2, 2)).astype(np.float32)
  level = jax.jit(process)(jnp.array([0.0, 0.1, 0.2]))
  got = jax.jit(pixels.log_prob)(data, z, level)
  for i in range(3):
    alone = np.asarray(all_levels(5, z[i].ravel(), jax.tree.map(lambda u, i=i: u[i:i + 1], level)))
    expected = sum(alone[k, j] for j, k in enumerate(data[i].ravel()))
    np.testing.assert_allclose(got[i], expected, rtol=1e-5)


def test_float32_is_good_enough_at_the_smallest_noise():
  """At logsnr 13.3 and 256 levels, logits reach -1e6; those that matter are a few."""
  process = GaussianProcess(Linear())
  eps = jnp.linspace(-3.5, 3.5, 57)

  @jax.jit
  def bits():
    level = process(jnp.zeros(()))
    x = Pixels().encode(jnp.array([0, 1, 100, 255]))
    z = level.alpha * x + level.sigma * eps[:, None]
    data = jnp.broadcast_to(jnp.array([0, 1, 100, 255]), z.shape)
    return Pixels().log_prob(data.reshape(-1, 1), z.reshape(-1, 1), level)

  single = bits()
  with jax.enable_x64(True):
    double = bits()
  assert single.dtype == np.float32 and double.dtype == np.float64
  np.testing.assert_allclose(single, double, atol=3e-3)


def test_a_uniform_guess_costs_the_logarithm_of_the_number_of_levels():
  np.testing.assert_allclose(bits_per_dim(3072 * np.log(256), (32, 32, 3)), 8.0)
  np.testing.assert_allclose(bits_per_dim(64 * np.log(17), (8, 8, 1)), 4.087463, rtol=1e-6)


@functools.partial(jax.jit, static_argnums=0)
def probabilities(decoder, mean, std):
  """log p(k) for every k: [levels, B].  mean, std: [B]."""
  data = jnp.broadcast_to(jnp.arange(decoder.levels)[:, None], (decoder.levels, len(mean)))
  flat = lambda u: jnp.broadcast_to(u, data.shape).reshape(-1, 1)
  return decoder.log_prob(flat(data), flat(mean), flat(std)).reshape(data.shape)


MEANS = np.linspace(-1.5, 1.5, 13)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('outermost', [None, 1.0])
@pytest.mark.parametrize('levels', [2, 256])
def test_the_discretised_normal_is_a_probability_over_the_levels(levels, outermost):
  for std in (1e-3, 0.03, 10.0):
    got = probabilities(DiscretisedNormal(levels, outermost), jnp.asarray(MEANS), jnp.array(std))
    np.testing.assert_allclose(np.exp(got).sum(axis=0), 1.0, rtol=1e-9)


@pytest.mark.parametrize('outermost,first,width', [(None, -16 / 17, 2 / 17), (1.0, -1.0, 2 / 16)],
                         ids=['our coding', 'the coding of DDPM'])
@pytest.mark.parametrize('std', [3e-3, 0.05, 0.4, 30.0])
def test_the_discretised_normal_is_exact_in_its_tails_in_single_precision(outermost, first, width,
                                                                         std):
  """Down to exp(-1e5), where a difference of distribution functions is 0 and its logarithm -inf."""
  mean = np.float32(MEANS)
  got = probabilities(DiscretisedNormal(17, outermost), jnp.asarray(mean), jnp.array(std))
  edges = first + width * (np.arange(1, 17) - 0.5)
  u = (edges[:, None] - mean) / std  # 16 edges; the outermost bins are open
  below, above = u[:-1], u[1:]
  a, b = np.where(below > 0, -above, below), np.where(below > 0, -below, above)
  b, a = special.log_ndtr(b), special.log_ndtr(a)
  inner = b + np.log(-np.expm1(a - b))
  expected = np.concatenate([special.log_ndtr(u[:1]), inner, special.log_ndtr(-u[-1:])])
  assert std > 0.01 or expected.min() < -1e5
  # An edge is known to 1e-7 of its distance from the mean, which the square of it multiplies.
  np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.usefixtures('x64')
def test_the_gradient_of_the_discretised_normal_is_that_of_the_bins_mass_also_far_away():
  decoder, data = DiscretisedNormal(256), jnp.array([[0], [7], [200], [255]])
  mean, std = jnp.array([[0.9], [-0.94], [0.57], [-1.0]]), 0.02
  total = lambda mean, std: decoder.log_prob(data, mean, std).sum()
  d_mean, d_std = jax.jit(jax.grad(total, (0, 1)))(mean, jnp.full((4, 1), std))
  h = 1e-6
  each = jax.jit(lambda mean, std: decoder.log_prob(data, mean, std))
  np.testing.assert_allclose(d_mean[:, 0], (each(mean + h, std) - each(mean - h, std)) / (2 * h),
                             rtol=1e-5)
  np.testing.assert_allclose(d_std[:, 0], (each(mean, std + h) - each(mean, std - h)) / (2 * h),
                             rtol=1e-5)


def test_the_discretised_normal_adds_up_dimensions_and_takes_one_deviation_for_all():
  decoder, rng = DiscretisedNormal(5), np.random.default_rng(0)
  data, mean = jnp.asarray(rng.integers(0, 5, (3, 2, 2))), jnp.asarray(rng.normal(size=(3, 2, 2)))
  log_prob = jax.jit(decoder.log_prob)
  got = log_prob(data, mean, 0.3)
  each = log_prob(data.reshape(-1, 1), mean.reshape(-1, 1), jnp.full((12, 1), 0.3))
  np.testing.assert_allclose(got, each.reshape(3, 4).sum(axis=1), rtol=1e-5)


@pytest.mark.usefixtures('x64')
def test_the_decoder_of_continuous_data_is_the_normal_density_of_what_was_diffused():
  rng = np.random.default_rng(0)
  y, z = rng.normal(size=(3, 2, 2)), rng.normal(size=(3, 2, 2))
  level = jax.jit(GaussianProcess(Linear(2.0, -3.0), flow))(jnp.array([0.0, 0.1, 0.2]))
  got = jax.jit(normal)(y, z, level)
  alpha, sigma = (np.asarray(u)[:, None, None] for u in (level.alpha, level.sigma))
  expected = stats.norm.logpdf(y, z / alpha, sigma / alpha).sum(axis=(1, 2))
  np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_the_mean_of_weights_is_taken_where_their_exponentials_vanish_or_overflow():
  log_weights = jnp.array([[-2000.0, 900.0, -np.inf, -np.inf], [-2000.0, 890.0, 3.0, -np.inf]])
  np.testing.assert_allclose(jax.jit(log_mean_exp)(log_weights),
                             [-2000.0, 900.0 + np.log1p(np.exp(-10.0)) - np.log(2.0),
                              3.0 - np.log(2.0), -np.inf], rtol=1e-6)


@pytest.mark.first(1)
@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('entries', [1, 3, 64, 130])
def test_the_decoder_of_a_codebook_is_bayes_rule_under_equal_odds_of_its_entries(entries):
  rng = np.random.default_rng(entries)
  vectors, data = rng.standard_normal((entries, 3)), rng.integers(0, entries, (5, 2, 2))
  # A log-SNR of its own for every number.
  process = GaussianProcess(Linear(rng.uniform(0.0, 3.0, (1, 2, 2, 3)), -9.0))
  level = jax.jit(process)(jnp.zeros(()))
  z = rng.standard_normal((5, 2, 2, 3))
  book = Codebook(jnp.asarray(vectors))
  got = jax.jit(book.log_prob)(jnp.asarray(data), jnp.asarray(z), level)
  joint = stats.norm.logpdf(z[..., None, :], level.alpha[..., None, :] * vectors,
                            level.sigma[..., None, :]).sum(-1)
  log_p = joint - special.logsumexp(joint, axis=-1, keepdims=True)
  expected = np.take_along_axis(log_p, data[..., None], -1).sum((1, 2, 3))
  np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-9)
  np.testing.assert_array_equal(book.decode(book.encode(data)), data)


@pytest.mark.long
@pytest.mark.parametrize('logsnr', [2.0, 13.3])
def test_a_codebook_of_the_centres_of_bins_is_the_decoder_of_pixels(logsnr):
  level = GaussianProcess(Linear(logsnr, -5.0))(jnp.zeros(()))
  pixels, data = Pixels(100), jnp.arange(100)[:, None]
  book = Codebook(pixels.encode(jnp.arange(100))[:, None])
  z = level.alpha * pixels.encode(data) + level.sigma * np.random.default_rng(0).standard_normal(
      (100, 1)).astype(np.float32)
  np.testing.assert_allclose(book.log_prob(data, z[..., None], level),
                             pixels.log_prob(data, z, level), atol=1e-4)
  np.testing.assert_array_equal(book.decode(z[..., None] / level.alpha),
                                pixels.decode(z / level.alpha))


@pytest.mark.long
def test_the_slope_of_a_codebook_s_decoder_points_from_the_only_likely_entry_to_the_datum():
  level = GaussianProcess(Linear(13.3, -5.0))(jnp.zeros(()))
  book = Codebook(jnp.linspace(-3.0, 3.0, 70)[:, None])  # two blocks
  log_prob = lambda z: book.log_prob(jnp.array([[3]]), z, level).sum()
  slope = jax.grad(log_prob)(jnp.full((1, 1, 1), 9.0))  # nearest to the last entry, 3
  expected = level.alpha * (book.vectors[3, 0] - 3.0) / jnp.square(level.sigma)
  np.testing.assert_allclose(slope.sum(), expected, rtol=1e-5)
