"""A chain of DDPM, trained with scheduled sampling: partly at z that the model itself sampled.

Deng, Kojima and Rush (2023).  `objectives.scheduled_sampling` says what the method does, and what
it costs if the condition does not determine the data.
"""
import ml_collections
from flax import linen as nn

from vdm_jax.objectives import scheduled_sampling
from vdm_jax.systems import compose
from vdm_jax.systems.chains import ddpm
from vdm_jax.typing import Experiment


def default_config(**model) -> ml_collections.ConfigDict:
  return ddpm.unet_config(**{
      'rollout': 1,           # m, the steps that the network makes itself
      'probability': 0.8,     # of a z of its own making, at the end of the rise
      'rise_steps': 100_000,  # of training, over which the probability rises from 0
  } | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               **options) -> Experiment:
  """`chains.ddpm` with the loss of scheduled sampling; validation measures the bound.

  net, options: the network, and the other keywords of `ddpm.experiment`.

  Raises InputError for a rollout of no steps or of as many steps as the chain, for a wrong
  probability, and for learned variances.
  """
  m = config.model
  compose.require(config, 'rollout', 1 <= m.rollout < m.timesteps,
                  f'it must be less than the {m.timesteps} steps of the chain, and at least 1',
                  'give 1, for example')
  compose.require(config, 'probability', 0.0 <= m.probability <= 1.0, 'it is not a probability',
                  'give a number from 0 to 1, such as 0.8')
  compose.require(config, 'rise_steps', m.rise_steps >= 1, 'it must be at least 1')
  compose.require(config, 'variances', not m.variances, 'this loss does not train variances',
                  'set it to False')

  def trained(*args, steps, context):
    return scheduled_sampling.simple(
        *args, steps=steps, rollout=m.rollout,
        probability=scheduled_sampling.rising(context.step, m.rise_steps, m.probability))

  return ddpm.experiment(config, net=net, trained=trained, **options)
