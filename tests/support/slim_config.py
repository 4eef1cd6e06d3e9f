"""A teacher and its slim student on the digits, of networks that compile in a second."""
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import recipes
from vdm_jax.systems.chains import ddpm
from vdm_jax.systems.distilled import slim
from vdm_jax.typing import Experiment


class Tiny(nn.Module):
  """scale tanh(V W z)."""
  scale: float = 1.0
  hidden: int = 64

  @nn.compact
  def __call__(self, z, time, cond=None, keys=None):
    h = nn.Dense(self.hidden, name='dense_in')(z.reshape(len(z), -1))
    h = nn.Dense(64, kernel_init=nn.initializers.normal(0.1), name='dense_out')(h)
    return self.scale * jnp.tanh(h + time[:, None] / 1000).reshape(z.shape)


def get_config(system: str = 'slim') -> ml_collections.ConfigDict:
  config = recipes.digits(slim.default_config(system=system, hidden=16))
  config.data.batch_size = 8
  config.optimizer.warmup_steps = 0
  config.train.update(steps=2, log_every=1, validate_every=1, checkpoint_every=1,
                      validation_repeats=1, splits=('validation',))
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  teacher = Tiny(0.5, config.model.hidden)
  if config.model.system == 'teacher':
    return ddpm.experiment(config, net=teacher)
  return slim.experiment(config, net=Tiny(hidden=8), teacher=teacher)
