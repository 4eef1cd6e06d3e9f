"""Soft Truncation: every step leaves out the times before a random time.

Kim et al. (2022), section 4: `scoreflow`, but the smallest time tau of each step is random, with a
density proportional to 1 / tau.  In training, bits_per_dim counts only the remaining times.  In
validation, it is the whole bound, which is another quantity than the training loss.
"""
import ml_collections
from flax import linen as nn

from vdm_jax.objectives import proposals, soft_truncation
from vdm_jax.systems import compose, networks
from vdm_jax.systems.scores import scoreflow
from vdm_jax.typing import Experiment


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of ScoreFlow, and `truncation_power`, the power of 1 / tau."""
  return scoreflow.default_config(**{'truncation_power': 1.0} | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None) -> Experiment:
  """The bound of the remaining times.

  Raises InputError if config.model.timesteps is not 0, or for a negative power.
  """
  power = config.model.truncation_power
  compose.require_continuous(config)
  compose.require(config, 'truncation_power', power >= 0.0, 'it is negative',
                  'give 0 (uniform) or more')
  sde = scoreflow.vp_sde(config)
  prior = soft_truncation.Reciprocal(sde.t_min, power)

  def objective(denoise, process, *args, data, decoder, context):
    first = soft_truncation.truncation(prior, config.seed, context.step)
    return proposals.bound(denoise, process, *args, data=data, decoder=decoder, context=context,
                       propose=proposals.by_logsnr(process, first))

  return compose.experiment(config, net=net or networks.unet(config), objective=objective,
                            schedule=sde)
