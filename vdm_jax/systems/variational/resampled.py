"""IDDPM's resampled times: their density is proportional to the root mean square of recent losses.

Nichol and Dhariwal (2021), section 3.3, here for the bound of continuous time.  Time is cut into
equal bins, and the training state keeps the latest losses of each bin.
"""
import ml_collections
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.objectives import proposals
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.train import step
from vdm_jax.typing import Experiment, Schedule


def default_config(**model) -> ml_collections.ConfigDict:
  return vdm.default_config(**{'time_bins': 32, 'losses_kept': 10} | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               schedule: Schedule | None = None) -> Experiment:
  """The bound at resampled times; schedule: by default linear between fixed end points.

  Raises InputError if config.model.timesteps is not 0, or for fewer than one bin or one kept loss.
  """
  m = config.model
  compose.require_continuous(config)
  for name in ('time_bins', 'losses_kept'):
    compose.require(config, name, m[name] >= 1, 'it must be at least 1')

  def objective(*args, data, decoder, context):
    return proposals.bound(*args, data=data, decoder=decoder, context=context,
                       propose=context.aux.proposal())

  base = compose.experiment(config, net=net or networks.unet(config), objective=objective,
                            schedule=schedule or schedules.Linear(*compose.end_points(config)))
  return base._replace(
      aux=proposals.LossHistory.empty(m.time_bins, m.losses_kept),
      update=step.make_step(base.loss, base.tx, base.ema, remember=proposals.remember))
