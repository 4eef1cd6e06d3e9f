"""A run of seconds for the tests of training: a perceptron on points in the plane."""
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.nn.blocks.layers import Dropout
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


class Net(nn.Module):
  """z + dense(dropout(tanh(dense(z, logsnr / 10)))): little enough to compile in a second."""
  features: int
  dropout: float

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    h = nn.Dense(self.features, name='dense_in')(jnp.concatenate([z, logsnr[:, None] / 10], -1))
    h = Dropout(self.dropout, name='dropout')(nn.tanh(h), keys)
    return z + nn.Dense(z.shape[-1], kernel_init=nn.initializers.zeros, name='dense_out')(h)


def get_config() -> ml_collections.ConfigDict:
  config = vdm.default_config(explode_at=-1)  # the step whose loss is infinite
  config.data.update(name='swirl', validation=50, batch_size=8)
  config.model.update(features=8, dropout=0.2, logsnr_max=8.0)
  config.optimizer.update(learning_rate=1e-2, warmup_steps=5, decay_steps=0)
  config.ema = {'fast': 0.9, 'slow': 0.99}
  config.train.update(steps=40, log_every=5, validate_every=10, checkpoint_every=10,
                      pictures_every=0, keep=2, validation_repeats=2)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  experiment = vdm.experiment(
      config, net=Net(m.features, m.dropout),
      schedule=schedules.LearnedLinear(m.logsnr_max, m.logsnr_min))
  if m.explode_at < 0:
    return experiment

  def loss(params, batch, context):
    losses, terms = experiment.loss(params, batch, context)
    return jnp.where(context.step == m.explode_at, jnp.inf, losses), terms

  return experiment._replace(loss=loss)
