"""A network whose sizes are known by hand: 2 x W and W x 2.  After the colon: W, 32,768 if none."""
import ml_collections
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


class Net(nn.Module):
  """One layer wide enough to be sharded."""
  width: int

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    h = nn.Dense(self.width, use_bias=False)(z)
    return z + nn.Dense(2, use_bias=False)(nn.tanh(h))


def get_config(width: str = '32768') -> ml_collections.ConfigDict:
  config = vdm.default_config(features=int(width))
  config.data.update(name='swirl', shape=(2,), levels=256, validation=8, batch_size=64)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vdm.experiment(config, net=Net(config.model.features),
                        schedule=schedules.Linear(8.0, -5.0))
