"""Levels and the continuous x: round trips, and p(data | z_0) against Bayes' rule."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax.decoders import Pixels, bits_per_dim
from vdm_jax.processes import GaussianProcess, flow
from vdm_jax.schedules import Linear

LEVELS = [2, 3, 17, 256, 65536]


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
  level = GaussianProcess(Linear(logsnr, -20.0), flow)(jnp.zeros(()))
  alpha, sigma = float(level.alpha), float(level.sigma)
  x = np.linspace(-1.1, 1.1, 41)
  got = np.asarray(all_levels(17, jnp.asarray(alpha * x), level))
  centres = (2 * np.arange(17) - 16) / 17
  joint = stats.norm.logpdf(alpha * x, loc=alpha * centres[:, None], scale=sigma)
  # The centres are float32, as the data will be: 1e-7 of the distances between levels.
  np.testing.assert_allclose(got, joint - np.logaddexp.reduce(joint, axis=0), rtol=2e-5, atol=1e-3)
  np.testing.assert_allclose(np.exp(got).sum(0), 1.0, rtol=1e-12)
  np.testing.assert_array_equal(got.argmax(0), Pixels(17).decode(jnp.asarray(x)))


def test_two_levels_are_a_logistic_regression_on_x_times_the_signal_to_noise_ratio():
  process = GaussianProcess(Linear(3.0, -3.0))
  level, x = process(jnp.zeros(())), jnp.linspace(-2.0, 2.0, 9)
  got = all_levels(2, level.alpha * x, level)[1]
  np.testing.assert_allclose(got, jax.nn.log_sigmoid(np.exp(3.0) * x), rtol=2e-5, atol=1e-6)


def test_dimensions_add_up_and_examples_do_not_mix():
  process, pixels = GaussianProcess(Linear(4.0, -3.0)), Pixels(5)
  rng = np.random.default_rng(0)
  data, z = rng.integers(0, 5, (3, 2, 2)), rng.normal(size=(3, 2, 2)).astype(np.float32)
  level = process(jnp.array([0.0, 0.1, 0.2]))
  got = pixels.log_prob(jnp.asarray(data), jnp.asarray(z), level)
  for i in range(3):
    alone = np.asarray(all_levels(5, z[i].ravel(), process(jnp.array(0.1 * i))))
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
