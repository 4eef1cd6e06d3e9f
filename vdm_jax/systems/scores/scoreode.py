"""ScoreODE: the derivatives of the score, matched by fine-tuning of a trained VDM.

Lu et al. (2022).  The loss is the bound with two further terms.  One term is `second_order` times
the errors of the score's Jacobian and of its trace.  The other term is `third_order` times the
error of the gradient of the trace.  Both weights are 1 in the public code for images.
"""
import functools

import ml_collections
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.objectives import score_ode
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def default_config(**model) -> ml_collections.ConfigDict:
  return vdm.default_config(**{
      'second_order': 1.0, 'third_order': 0.0,
      'attention': 'xla',  # the derivatives are forward ones
  } | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None) -> Experiment:
  """The bound and the errors of the derivatives.

  Raises InputError if config.model.timesteps is not 0.
  """
  compose.require_continuous(config)
  m = config.model
  base = compose.experiment(
      config, net=net or networks.unet(config),
      objective=functools.partial(score_ode.objective, second=m.second_order, third=m.third_order),
      schedule=schedules.Linear(*compose.end_points(config)))
  return base._replace(
      needs_start='ScoreODE fine-tunes a trained VDM of the same network and data')
