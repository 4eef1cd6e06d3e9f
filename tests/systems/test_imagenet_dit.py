"""The recipe of DiT on ImageNet, with a tiny DiT and a tiny autoencoder: from data to samples."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import configs
from vdm_jax import random, runs
from vdm_jax.guidance import Guidance
from vdm_jax.published.dit import SIZES
from vdm_jax.runs import workdir
from vdm_jax.samplers import catalogue
from vdm_jax.systems.latent import autoencoder
from vdm_jax.train import step
from vdm_jax.train.checkpoint import Checkpoints

FOUND = {'name': './images.npz', 'shape': (16, 16, 3), 'levels': 256, 'classes': 10,
         'image_size': 0, 'validation': 8}
STAGE = {'features': 8, 'multipliers': (1, 1), 'blocks': 1, 'groups': 4,
         'middle_attention': False}


def tiny(**model):
  """The config of S/2 with 16 features and a block, for images of 16x16 and latents of 8x8."""
  _, config = configs.read('imagenet/dit:DiT-S/2')
  config.model.update(features=16, blocks=1, attention_heads=2, remat='none', **model)
  config.data.update(FOUND, batch_size=8)
  config.train.update(steps=2, log_every=1, validate_every=2, checkpoint_every=2, pictures_every=0)
  return config


def first_stage(place):
  """A run of an autoencoder with random weights, as an import writes one."""
  _, config = configs.read('published/autoencoder')
  config.model.update(STAGE)
  config.data.update(FOUND)
  code = workdir.source(configs.file('published/autoencoder'))
  experiment = code.module().build(config)
  workdir.prepare(place, config, code)
  checkpoints = Checkpoints(place)
  params = jax.jit(experiment.init)(random.key(3))
  checkpoints.save(step.init(params, experiment.tx, experiment.ema, experiment.aux))
  checkpoints.close()


@pytest.mark.long
def test_a_tiny_dit_of_the_published_recipe_trains_and_draws_images_of_a_label(
    tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  rng = np.random.default_rng(0)
  np.savez('images.npz', image=rng.integers(0, 256, (60, 16, 16, 3), dtype=np.uint8),
           label=np.arange(60) % 10)
  first_stage(tmp_path / 'first')
  means = runs.train(tiny(autoencoder='first'), configs.file('imagenet/dit'), tmp_path / 'run')
  # The average of rate 0.9999 is still the first network, which estimates no noise: E|eps|^2 = 1.
  assert abs(means['eps_error'] - 1.0) < 4 * (2 / (8 * 8 * 8 * 4))**0.5
  trained = workdir.load_trained(tmp_path / 'run')
  np.testing.assert_allclose(trained.params['scale'], 0.18215)
  model = trained.experiment.model(trained.params)
  assert model.shape == (8, 8, 4) and model.steps == 1000
  z = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
  net = autoencoder.network(trained.config.autoencoder.model, 3)
  found = net.apply({'params': trained.params['autoencoder']['net']}, z / 0.18215, method='decode')
  levels = jnp.round(jnp.clip(127.5 * found + 127.5, 0, 255))  # of numbers in [-1, 1]
  assert np.abs(np.asarray(model.decode(z), int) - levels).max() <= 1
  runs.sample(tmp_path / 'run', tmp_path / 'drawn.npz', count=2, label=3,
              method=catalogue.method('ancestral_learned', 4), guided=Guidance(0.5))
  with np.load(tmp_path / 'drawn.npz') as drawn:
    images = drawn['images'] if 'images' in drawn else drawn[drawn.files[0]]
  assert images.shape == (2, 16, 16, 3) and images.dtype == np.uint8
  assert images[0].tobytes() != images[1].tobytes()


def test_the_recipe_has_every_size_of_the_paper():
  assert len(SIZES) == 12
  for size, net in SIZES.items():
    _, config = configs.read(f'imagenet/dit:{size}')
    m = config.model
    assert (m.patch, m.features, m.blocks, m.attention_heads) == (
        net.patch, net.features, net.depth, net.attention_heads)
    rates = config.optimizer
    assert (rates.learning_rate, rates.weight_decay, rates.warmup_steps, rates.clip_norm) == (
        1e-4, 0.0, 0, 0.0)
    assert (config.data.batch_size, dict(config.ema), m.scale, m.label_dropping) == (
        256, {'ema': 0.9999}, 0.18215, 0.1)
