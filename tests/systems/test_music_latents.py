"""The latent route of music: an autoencoder with odds of levels, and a chain of its latents."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.stats import norm

from vdm_jax import data, random
from vdm_jax.errors import InputError
from vdm_jax.nn.autoencoders.bars import BarAutoencoder
from vdm_jax.samplers import catalogue
from vdm_jax.samplers.drawing import draw
from vdm_jax.systems.applications import music, music_latents
from vdm_jax.systems.chains import ddpm
from vdm_jax.systems.latent import autoencoder, latent
from vdm_jax.typing import Context

SHAPE, LEVELS, STEPS = (8, 2, 1), 128, 4
SMALL = {'steps': STEPS, 'latent_channels': 6, 'features': 8, 'depth': 1}


class Exact(nn.Module):
  """y ~ N(x, variance), and the exact posterior of the levels under equal odds of all."""
  levels: int = LEVELS
  variance: float = 1e-6

  def setup(self):
    self.param('unused', nn.initializers.zeros_init(), (1,))

  def encode(self, x):
    mean = x.reshape(len(x), -1, 1, STEPS * x.shape[2])
    return mean, jnp.full_like(mean, math.log(self.variance))

  def logits(self, y):
    of_notes = y.reshape(len(y), -1, SHAPE[1], 1, 1)
    return -0.5 * jnp.square(of_notes - jnp.linspace(-1.0, 1.0, self.levels)) / self.variance

  def decode(self, y):
    return y.reshape(len(y), -1, SHAPE[1], 1)

  def __call__(self, x):
    return self.decode(self.encode(x)[0])


def own(config, levels=LEVELS):
  """`config` with voices of `SHAPE` as its data."""
  with config.unlocked():
    config.data.update(data.Spec('own', (
        data.fields.integers('pitches', SHAPE, levels),)).to_config())
  return config


def first(**model):
  return own(music_latents.autoencoder_config(**SMALL | model))


def second(**model):
  settings = music_latents.autoencoder_config(**SMALL).model
  return own(music_latents.default_config(settings, **{
      'features': 8, 'depth': 1, 'attention_heads': 2} | model))


def pitches(n, levels=LEVELS, seed=0):
  return np.random.default_rng(seed).integers(0, levels, (n, *SHAPE)).astype(np.uint8)


def context(n, train=False):
  return Context((jnp.arange(n) + 0.5) / n, random.per_example(random.key(1), jnp.arange(n)),
                 jnp.int32(0), train=train)


@pytest.mark.long
def test_the_bound_of_exact_odds_is_its_closed_form():
  """Two levels at -1 and 1: of y = x + s e the odds are 2 x y / s^2, and KL is of normals."""
  n, variance = 2000, 0.5
  net, config = Exact(2, variance), own(music_latents.autoencoder_config(kl=3.0), levels=2)
  experiment = autoencoder.of_levels(config, net)
  batch = {'pitches': pitches(n, levels=2)}
  losses, terms = jax.jit(lambda params: experiment.loss(params, batch, context(n)))(
      experiment.init(random.key(0)))
  nodes, weights = np.polynomial.hermite_e.hermegauss(60)
  odds = 2.0 * (1.0 + math.sqrt(variance) * nodes) / variance
  cost = np.sum(weights * np.log2(1.0 + np.exp(-odds))) / np.sum(weights)
  missed = norm.cdf(-1.0 / math.sqrt(variance))
  kl = 0.5 * (1.0 + variance - 1.0 - math.log(variance)) / math.log(2.0)
  error = lambda u: 4.0 * np.std(u) / math.sqrt(n)
  assert abs(np.mean(terms['reconstruction']) - cost) < error(terms['reconstruction']) < 0.02
  np.testing.assert_allclose(terms['latent'], kl, rtol=1e-5)
  np.testing.assert_allclose(losses, terms['reconstruction'] + 3.0 * kl, rtol=1e-5)
  assert abs(1.0 - np.mean(terms['accuracy']) - missed) < error(terms['accuracy']) < 0.02


def test_an_autoencoder_of_exact_odds_gives_every_note_back():
  x = data.fields.integers('pitches', SHAPE, LEVELS)
  net = Exact()
  of = autoencoder.of(net, autoencoder.init(net, x, random.key(0)), x,
                      autoencoder.latent_shape(net, x))
  batch = {'pitches': pitches(8)}
  keys = context(8).keys
  found, quality = jax.jit(lambda: (of.reconstruct(batch['pitches'], keys),
                                    of.quality(batch, keys)))()
  np.testing.assert_array_equal(found, batch['pitches'])
  assert found.shape == (8, *SHAPE) and (quality['accuracy'] == 1.0).all()
  assert not {'psnr', 'l1'} & quality.keys()


@functools.cache
def untrained():
  experiment = music_latents.experiment(second())
  return experiment, jax.jit(experiment.init)(random.key(0))


@pytest.mark.long
def test_before_training_notes_cost_seven_bits_given_their_latents_and_noise_is_missed_whole():
  """The decoder's odds of 128 levels are equal at first, and the network's estimate of eps is 0."""
  experiment, params = untrained()
  n = 400
  _, terms = jax.jit(lambda params: experiment.loss(params, {'pitches': pitches(n)}, context(n)))(
      params)
  np.testing.assert_allclose(terms['decoding'], 7.0, rtol=1e-5)
  error = np.std(terms['eps_error']) / math.sqrt(n)
  assert abs(np.mean(terms['eps_error']) - 1.0) < 4.0 * error < 0.1


def test_the_chain_is_the_published_one():
  """Betas in equal steps from 1e-6 to 0.01, whose log-SNR goes from 13.816 to -5.011."""
  schedule = ddpm.table(second(), 1.0)
  assert schedule.steps == 1000 and np.isposinf(schedule.logsnr[0])
  np.testing.assert_allclose(schedule.logsnr[[1, -1]], [13.816, -5.011], atol=1e-3)


@pytest.mark.long
def test_the_chain_draws_the_only_window_that_there_is():
  """The exact denoiser of one window: samples of the latents are decoded as its notes."""
  window, net, s = pitches(1, seed=3), Exact(), 0.7
  config = second()
  alphas = np.cumprod(1.0 - np.linspace(1e-6, 0.01, 1000))
  z0 = s * (2.0 * window.reshape(1, 2, 1, -1) / 127.0 - 1.0).astype(np.float32)

  class One(nn.Module):
    """eps of z = alpha z0 + sigma eps, at a step of the chain."""

    @nn.compact
    def __call__(self, z, step, cond=None, keys=None):
      self.param('unused', nn.initializers.zeros_init(), (1,))
      kept = jnp.interp(step, jnp.arange(1000.0), jnp.asarray(alphas, jnp.float32))
      kept = kept[:, None, None, None]
      return (z - jnp.sqrt(kept) * z0) / jnp.sqrt(1.0 - kept)

  experiment = latent.of(config, lambda inner: ddpm.experiment(inner, net=One()), autoencoder=net)
  params = experiment.init(random.key(0)) | {'scale': jnp.float32(s)}
  model = experiment.model(params)
  np.testing.assert_allclose(model.encode(jnp.asarray(window)), z0, atol=1e-6)
  method = catalogue.method('ddim', steps=10)
  found = np.concatenate([piece.data for piece in draw(
      experiment.model, params, method.make, times=method.times(model.process), start=0, stop=3,
      seed=0, batch_size=3, cond=lambda numbers: {})])
  np.testing.assert_array_equal(found, np.repeat(window, 3, axis=0))
  assert model.decode_tiled is None


MADE = {'first': lambda most: music_latents.autoencoder(first(transpose=most)),
        'second': lambda most: music_latents.experiment(second(transpose=most))}


@pytest.mark.long
@pytest.mark.parametrize('stage', MADE)
def test_the_loss_of_training_is_that_of_transposed_windows(stage):
  n, batch = 6, {'pitches': pitches(6)}
  moving, still = MADE[stage](5), MADE[stage](0)
  moved = {'pitches': music.transposed(jnp.asarray(batch['pitches']), context(n).keys, 5, LEVELS)}
  params = jax.tree.map(
      lambda u: u + 0.1 * jax.random.normal(random.key(2), u.shape), still.init(random.key(0)))
  both = jax.jit(lambda params, moved: (moving.loss(params, batch, context(n, train=True))[0],
                                        still.loss(params, moved, context(n, train=True))[0]))
  found, expected = both(params, moved)
  np.testing.assert_allclose(found, expected, rtol=1e-5)
  assert (np.abs(expected - both(params, batch)[1]) > 1e-3).any()


@pytest.mark.parametrize('stage', MADE)
def test_validation_transposes_nothing(stage, monkeypatch):
  calls = []
  monkeypatch.setattr(music, 'transposed', lambda pitches, *_: calls.append(1) or pitches)
  experiment = MADE[stage](5)
  params = jax.eval_shape(experiment.init, random.key(0))
  for train in (False, True):
    jax.eval_shape(lambda params: experiment.loss(
        params, {'pitches': pitches(2)}, context(2, train)), params)  # noqa: B023
    assert len(calls) == int(train)


@pytest.mark.long
def test_each_bar_is_encoded_and_decoded_alone():
  net = BarAutoencoder(LEVELS, 2, STEPS, 6, 8, 1)
  x = 2.0 * pitches(2) / 127.0 - 1.0
  params = jax.tree.map(lambda u: u + 0.3 * jax.random.normal(random.key(1), u.shape),
                        net.init(random.key(0), x))
  other = x.copy()
  other[:, STEPS:] = x[::-1, STEPS:]
  (mean, width), (mean2, _) = (net.apply(params, u, method='encode') for u in (x, other))
  assert mean.shape == width.shape == (2, 2, 1, 6)
  np.testing.assert_allclose(mean[:, 0], mean2[:, 0], atol=1e-6)
  assert np.abs(mean[:, 1] - mean2[:, 1]).max() > 1e-3
  odds, odds2 = (net.apply(params, u, method='logits') for u in (mean, mean2))
  assert odds.shape == (2, *SHAPE, LEVELS)
  np.testing.assert_allclose(odds[:, :STEPS], odds2[:, :STEPS], atol=1e-5)
  assert np.abs(odds[:, STEPS:] - odds2[:, STEPS:]).max() > 1e-3


@pytest.mark.parametrize('build, says', [
    (lambda: music_latents.autoencoder(first(steps=3)), 'steps=3: a window of 8 steps'),
    (lambda: music_latents.autoencoder(first(steps=0)), 'steps=0: it must be at least 1'),
    (lambda: music_latents.autoencoder(first(kl=0.0)), 'config.model.kl=0.0'),
    (lambda: music_latents.autoencoder(first(transpose=-1)), 'config.model.transpose=-1'),
    (lambda: music_latents.experiment(second(transpose=-1)), 'config.model.transpose=-1'),
    (lambda: music_latents.experiment(second(clip=True)), 'config.model.clip=True'),
    (lambda: music_latents.experiment(encoded(second(transpose=2))), 'config.model.transpose=2'),
    (lambda: music_latents.autoencoder(of_reals(first())), 'voices are integers'),
    (lambda: music_latents.experiment(of_reals(second())), 'voices are integers')])
def test_settings_that_do_not_fit_are_refused_in_a_line(build, says):
  with pytest.raises(InputError, match=says) as error:
    build()
  assert '\n' not in str(error.value)


def encoded(config):
  config.data.latents = 'folder'
  return config


def of_reals(config):
  with config.unlocked():
    config.data.update(data.Spec('own', (data.fields.reals('x', SHAPE),)).to_config())
  return config
