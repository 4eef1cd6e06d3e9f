"""An autoencoder of the digits and a diffusion of its latents, which compile in a second."""
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import recipes, schedules
from vdm_jax.systems.latent import autoencoder, latent
from vdm_jax.typing import Experiment

LAST = 'decoder', 'kernel'
STAGES = 'autoencoder', 'vq'  # of the first stage
ENDS = 10.0, -5.0


class Linear(nn.Module):
  """8x8 pixels, or side x side -> 2x2 latents of 2 channels, and back; `scale` times as large."""
  scale: float = 1.0
  side: int = 8

  def setup(self):
    self.encoder, self.decoder = nn.Dense(16), nn.Dense(self.side**2)

  def encode(self, x):
    mean, width = jnp.split(self.encoder(x.reshape(len(x), -1)), 2, axis=-1)
    return (self.scale * mean).reshape(-1, 2, 2, 2), (width - 2.0).reshape(-1, 2, 2, 2)

  def decode(self, y):
    return self.decoder(y.reshape(len(y), -1)).reshape(-1, self.side, self.side, 1)

  def __call__(self, x):
    return self.decode(self.encode(x)[0])


class Quantising(Linear):
  """The same with a codebook of 5 entries in place of a variance."""
  entries: int = 5

  def setup(self):
    super().setup()
    self.codebook = self.param('codebook', nn.initializers.normal(), (self.entries, 2))

  def encode(self, x):
    return super().encode(x)[0]

  def quantise(self, h):
    index = jnp.argmin(jnp.square(h[..., None, :] - self.codebook).sum(-1), axis=-1)
    return self.codebook[index], index

  def decode_quantised(self, q):
    return super().decode(q)

  def decode(self, h):
    return self.decode_quantised(self.quantise(h)[0])

  def __call__(self, x):
    return self.decode(self.encode(x))


class Judge(nn.Module):

  @nn.compact
  def __call__(self, x):
    return nn.Dense(1)(jnp.tanh(nn.Dense(4)(x.reshape(len(x), -1))))[:, None]


class Net(nn.Module):
  """z + dense(tanh(dense(z, logsnr / 10)))."""

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    h = jnp.concatenate([z.reshape(len(z), -1), logsnr[:, None] / 10], -1)
    h = nn.Dense(8)(jnp.tanh(nn.Dense(8)(h)))
    return z + h.reshape(z.shape)


def get_config(stage: str = 'latent') -> ml_collections.ConfigDict:
  first = autoencoder.default_config(stage=stage, kl=0.01, scaled=1.0)
  if stage == 'vq':
    first.model.kind = 'vq'
  config = first if stage in STAGES else latent.default_config(first.model, stage=stage)
  recipes.digits(config)
  config.data.batch_size = 8
  config.optimizer.update(learning_rate=1e-2, warmup_steps=0, decay_steps=0, weight_decay=0.0)
  config.train.update(steps=4, log_every=2, validate_every=2, checkpoint_every=2,
                      pictures_every=0, validation_repeats=1, splits=('validation',))
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  if config.model.stage in STAGES:
    return autoencoder.experiment(config, net=network(config.model), judge=Judge(),
                                  last_kernel=LAST)
  return latent.experiment(config, net=Net(), schedule=schedules.Linear(*ENDS),
                           autoencoder=network(config.autoencoder.model))


def network(settings) -> nn.Module:
  return (Quantising if settings.kind == 'vq' else Linear)(settings.scaled)
