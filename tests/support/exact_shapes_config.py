"""An exact model of `shapes`, told the caption or nothing: the mean of x given z, by matrices."""
import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import data, schedules
from vdm_jax.data import shapes, tokenisers
from vdm_jax.systems import compose
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Estimate, Experiment


class Net(nn.Module):
  """A number to train; the exact estimate takes the network's place."""

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    return self.param('w', nn.initializers.zeros, ()) * z


def get_config() -> ml_collections.ConfigDict:
  config = vdm.default_config()
  config.data.update(name='shapes', tokeniser='words', batch_size=8, validation=8)
  config.train.update(steps=1, log_every=1, validate_every=1, checkpoint_every=1,
                      pictures_every=0)
  return config


def exact(field):
  """(z, level, tokens) -> the estimate; a text without tokens says nothing."""
  pictures = shapes.images().reshape(9216, -1) / 127.5 - 1.0
  tokens = tokenisers.of(field).encode(shapes.CAPTIONS)

  def denoise(z, level, told):
    flat, x = z.reshape(len(z), -1), jnp.asarray(pictures, z.dtype)
    wide = level.expand(flat)
    log = (wide.alpha * flat @ x.T - wide.alpha**2 * jnp.sum(x**2, axis=1) / 2) / wide.sigma**2
    fits = jnp.repeat(jnp.all(told[:, None] == tokens, axis=-1), 64, axis=1)
    log = jnp.where(fits | jnp.all(told == 0, axis=1)[:, None], log, -jnp.inf)
    mean = (jax.nn.softmax(log, axis=1) @ x).reshape(z.shape)
    wide = level.expand(z)
    return Estimate(x=mean, eps=(z - wide.alpha * mean) / wide.sigma)
  return denoise


def build(config: ml_collections.ConfigDict) -> Experiment:
  field = data.resolve(config.data)['caption']
  base = label_dropping.with_null(
      compose.experiment(config, net=Net(), schedule=schedules.Linear(6.0, -10.0),
                         condition='caption'), 'caption', tokenisers.nothing(field))
  model = base.model
  return base._replace(model=lambda params, keys=None: model(params, keys)._replace(
      denoise=exact(field)))
