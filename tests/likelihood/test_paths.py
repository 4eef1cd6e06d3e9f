"""The importance-weighted bound over whole paths, against chains whose probabilities are known.

A chain of few steps on one pixel is integrated on a grid; and the reverse kernels of Gaussian
data are Gaussian, so that with their own variance every path has the same weight.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import oracles, schedules
from vdm_jax.decoders import DiscretisedNormal, Pixels
from vdm_jax.errors import InputError
from vdm_jax.likelihood.bounds import analytic_variance
from vdm_jax.likelihood.paths import importance_weighted, log_weights
from vdm_jax.objectives import vlb
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers.analytic import Variances
from vdm_jax.typing import Model

STD = 0.5


def model_of(denoise, process, decoder, pixels=None):
  identity = lambda x: x
  return Model(denoise=denoise, process=process, decoder=decoder,
               encode=pixels.encode if pixels else identity,
               decode=pixels.decode if pixels else identity, cond=lambda batch: None, shape=(1,))


def exact_decoder(data, z, level):
  """log q(x | z_0) of the Gaussian data: with it nothing is lost at t = 0."""
  level = level.expand(z)
  mean = oracles.Gaussian(0.0, STD)(z, level).x
  variance = STD**2 * level.sigma**2 / (level.alpha**2 * STD**2 + level.sigma**2)
  return jnp.sum(-0.5 * ((data - mean)**2 / variance + jnp.log(2 * jnp.pi * variance)), axis=-1)


def gaussian(high=13.3, low=-5.0):
  return model_of(oracles.Gaussian(0.0, STD), GaussianProcess(schedules.Linear(high, low)),
                  exact_decoder)


def keys(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def true_variances(high, low, steps):
  """Var(v | z_t) of the Gaussian, from Var(x | z_t) = sigmoid(-logsnr) Var(v | z_t)."""
  logsnr = np.linspace(low, high, steps + 1)
  of_x = 1.0 / (1.0 / STD**2 + np.exp(logsnr))
  return Variances(jnp.asarray(logsnr), jnp.asarray(of_x * (1.0 + np.exp(logsnr))), 0.0)


def test_a_single_path_has_the_bound_of_the_chain_in_expectation():
  """The golden value of the diffusion term, and the entropy, of N(0, 1/4).  x = +-std is enough.

  All other terms are together the entropy, the gap 6.3e-6 at t = 1, and what continuous time needs.
  """
  steps, diffusion, continuous, n = 10, 15.727564, 5.956014634, 20_000
  images = STD * np.where(np.arange(n) % 2, 1.0, -1.0).astype(np.float32)[:, None]
  found = jax.jit(lambda x, keys: importance_weighted(1, steps)(gaussian(), {'image': x}, keys))(
      images, keys(n))
  expected = 0.5 * np.log(2 * np.pi * np.e * STD**2) + 6.3204e-6 + diffusion - continuous
  got = np.asarray(found['nats'], float)
  assert abs(got.mean() - expected) < 4 * got.std() / n**0.5
  assert got.std() / n**0.5 < 0.01 * expected  # so that the mean could tell
  np.testing.assert_array_equal(found['evaluations'], steps)
  # The two may be compiled apart, so that a sum of some 30 float32 terms rounds twice.
  np.testing.assert_allclose(found['single'], found['nats'], rtol=1e-5, atol=2e-4)


@pytest.mark.long
def test_with_the_best_variance_every_path_of_gaussian_data_has_the_weight_of_its_density():
  """p(z_s | z_t) is then the data's own, and one path is exact, up to q(z_1) against p(z_1)."""
  high, low, steps = 6.0, -12.0, 7
  x = np.linspace(-1.0, 1.0, 9).repeat(20)[:, None]
  with jax.enable_x64(True):
    variance = analytic_variance(true_variances(high, low, steps))
    log_w = jax.jit(lambda x, keys: log_weights(gaussian(high, low), {'image': x}, keys, steps,
                                                variance))(x, keys(len(x)))
  np.testing.assert_allclose(log_w, stats.norm.logpdf(x[:, 0], scale=STD), atol=1e-4)
  small = jax.jit(lambda x, keys: log_weights(gaussian(high, low), {'image': x}, keys, steps))(
      x.astype(np.float32), keys(len(x)))
  assert np.std(small) > 1.0  # the same chain with another variance is no such thing


# ---------------------------------------------- one pixel, integrated on a grid

LEVELS = 4
CENTRES = (2 * np.arange(LEVELS) + 1) / LEVELS - 1


def chain_on_a_grid(kept, to_data):
  """-log p(level), [4], of the chain with fixed-small variance of `kept` = alpha bar at 0, .. T.

  The denoiser is that of the four levels.  In the notation of Ho et al. (2020), with sums over z.
  to_data: kept[0] = 1, and the last step is the discretised normal with the variance of the one
  before; else the decoder of Kingma et al. (2021), eq. 8.
  """
  z, h = np.linspace(-6, 6, 1001, retstep=True)
  density, tilde = stats.norm.pdf(z), None
  for i in range(len(kept) - 1, 0, -1):
    beta = 1 - kept[i] / kept[i - 1]
    near = np.exp(-0.5 * (z[:, None] - kept[i]**0.5 * CENTRES)**2 / (1 - kept[i]))
    x_hat = near @ CENTRES / near.sum(axis=1)
    if i == 1 and to_data:
      edges = np.concatenate([[-np.inf], CENTRES[:-1] + 1 / LEVELS, [np.inf]])
      share = np.diff(stats.norm.cdf(edges, x_hat[:, None], tilde**0.5), axis=1)
      return -np.log(h * density @ share)
    tilde = beta * (1 - kept[i - 1]) / (1 - kept[i])
    mean = (kept[i - 1]**0.5 * beta * x_hat
            + (1 - beta)**0.5 * (1 - kept[i - 1]) * z) / (1 - kept[i])
    density = h * density @ stats.norm.pdf(z, mean[:, None], tilde**0.5)
  near = np.exp(-0.5 * (z[:, None] - kept[0]**0.5 * CENTRES)**2 / (1 - kept[0]))
  return -np.log(h * density @ (near / near.sum(axis=1, keepdims=True)))


def chain(kept, to_data):
  pixels = Pixels(LEVELS)
  centres = jnp.asarray(CENTRES, jnp.float32)[:, None]
  schedule = (schedules.TableSchedule.from_alphas(kept[1:]) if to_data
              else schedules.TableSchedule.from_alphas(kept, clean=False))
  return model_of(oracles.Empirical(centres), GaussianProcess(schedule), pixels.log_prob, pixels)


@pytest.mark.parametrize('kept,last', [
    ((0.9, 0.6, 0.2, 0.02), None),
    pytest.param((1.0, 0.97, 0.6, 0.05), DiscretisedNormal(LEVELS).log_prob,
                 marks=pytest.mark.long),
])
def test_more_paths_come_down_to_the_exact_probability_of_the_data(kept, last):
  """The mean weight is that probability; its logarithm is above it by less with every path."""
  each = 4000
  truth = chain_on_a_grid(kept, last is not None)
  np.testing.assert_allclose(np.exp(-truth).sum(), 1.0, rtol=1e-6)  # or it were no probability
  images = np.repeat(np.arange(LEVELS), each)[:, None].astype(np.uint8)

  images = np.tile(images, (16, 1))
  log_w = jax.jit(lambda images, keys: log_weights(
      chain(kept, last is not None), {'image': images}, keys, 3, last=last))(
          images, keys(len(images)))
  log_w = np.asarray(log_w, float).reshape(16, LEVELS, each)
  weight = np.exp(log_w).mean(axis=0)
  error = weight.std(axis=1, ddof=1) / each**0.5
  np.testing.assert_array_less(np.abs(weight.mean(axis=1) - np.exp(-truth)), 4 * error)
  gaps = []
  for paths in (1, 4, 16):
    estimate = -np.log(np.exp(log_w[:paths]).mean(axis=0))
    gaps.append(estimate.mean(axis=1) - truth)
    error = estimate.std(axis=1, ddof=1) / each**0.5
    np.testing.assert_array_less(-4 * error, gaps[-1])
  gaps = np.array(gaps).mean(axis=1)
  assert gaps[0] > 2 * gaps[1] > 4 * gaps[2] > 0


def test_paths_weighted_together_have_the_probability_of_the_data_as_their_mean_weight():
  """Without -log K it would be K times that."""
  each, kept = 2000, (0.9, 0.6, 0.2, 0.02)
  images = np.repeat(np.arange(LEVELS), each)[:, None].astype(np.uint8)
  found = jax.jit(lambda images, keys: importance_weighted(4, 3)(
      chain(kept, False), {'image': images}, keys))(images, keys(len(images)))
  weight = np.exp(-np.asarray(found['nats'], float)).reshape(LEVELS, each)
  error = weight.std(axis=1, ddof=1) / each**0.5
  truth = np.exp(-chain_on_a_grid(kept, False))
  np.testing.assert_array_less(np.abs(weight.mean(axis=1) - truth), 4 * error)
  np.testing.assert_array_less(error, 0.05 * truth)


def images_and_keys():
  images = np.random.default_rng(0).integers(0, LEVELS, (6, 3, 2)).astype(np.uint8)
  return images, keys(6, seed=1)


def estimate(images, keys, paths=6, at_once=None):
  pixels = Pixels(LEVELS)
  process = GaussianProcess(schedules.Linear(3.0, -2.0))
  model = model_of(oracles.Gaussian(0.0, STD), process, pixels.log_prob, pixels)
  run = importance_weighted(paths, 5, vlb.fixed_large, at_once=at_once)
  return jax.jit(lambda image, keys: run(model, {'image': image}, keys))(images, keys)


@pytest.mark.long
def test_an_image_has_its_own_paths_however_many_go_together():
  images, each = images_and_keys()
  whole = estimate(images, each)
  some = estimate(images[2:4], each[2:4], at_once=2)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b[2:4], rtol=1e-5), some, whole)
  np.testing.assert_array_equal(whole['evaluations'], 30)
  assert len(np.unique(whole['nats'])) == 6


def test_the_bound_of_many_paths_is_between_the_best_and_the_mean_of_theirs_image_by_image():
  images, each = images_and_keys()
  found = estimate(images, each)
  assert np.all(found['nats'] < found['single']) and np.all(found['nats'] > found['best'])


def test_what_paths_cannot_do_is_said():
  with pytest.raises(InputError, match='at_once=4: it does not divide the number of paths, 6'):
    importance_weighted(6, 10, at_once=4)
  own = gaussian()._replace(bound=lambda *args: None)
  with pytest.raises(InputError, match='importance-weighted paths: this model has a bound of its'):
    importance_weighted(2, 3)(own, {'image': np.zeros((1, 1))}, keys(1))
