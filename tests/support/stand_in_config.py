"""Stand-ins for the runs of the docs: a chain or a VDM of the digits, with a network of one number.

After the colon stands `ddpm` or `vdm`.
"""
import ml_collections
from flax import linen as nn

from vdm_jax import recipes, schedules
from vdm_jax.systems.chains import ddpm
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment

SYSTEMS = {'ddpm': ddpm, 'vdm': vdm}


class Net(nn.Module):
  """z scaled: the least that trains."""

  @nn.compact
  def __call__(self, z, time, cond=None, keys=None):
    return self.param('scale', nn.initializers.constant(0.2), ()) * z


def get_config(which: str) -> ml_collections.ConfigDict:
  config = recipes.digits(SYSTEMS[which].default_config(which=which), steps=2)
  config.data.update(validation=8, batch_size=4)
  config.optimizer.update(warmup_steps=0, decay_steps=0)
  config.train.update(log_every=1, validate_every=1, checkpoint_every=2, splits=('validation',),
                      validation_repeats=1)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  if config.model.which == 'ddpm':
    return ddpm.experiment(config, net=Net())
  return vdm.experiment(config, net=Net(), schedule=schedules.LearnedLinear(6.0, -4.0))
