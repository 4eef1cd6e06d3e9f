"""i-DODE: velocities as targets and importance-sampled times, on two curves.

Zheng, Lu, Chen and Zhu (2023), with a fixed schedule that is linear in log-SNR; see
`objectives.idode`.  Their second-order term is for fine-tuning.
"""
import ml_collections
from flax import linen as nn

from vdm_jax import processes, schedules
from vdm_jax.objectives import idode, proposals
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Curve, Experiment, Target


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of a VDM, and `second_order`, the weight of the second-order term.

  The weight is 0.1 in the public code.
  """
  return vdm.default_config(**{'second_order': 0.0} | model)


def vp(config: ml_collections.ConfigDict, *, net: nn.Module | None = None) -> Experiment:
  """v = (eps - sigma z) / alpha, on alpha^2 + sigma^2 = 1.

  Raises InputError if config.model.timesteps is not 0.
  """
  return _experiment(config, net, processes.vp, idode.vp_target, idode.vp_mass)


def sp(config: ml_collections.ConfigDict, *, net: nn.Module | None = None) -> Experiment:
  """(eps - x) / sqrt(2), on the straight paths alpha + sigma = 1.

  Raises InputError if config.model.timesteps is not 0.
  """
  return _experiment(config, net, processes.flow, idode.sp_target, idode.sp_mass)


def _experiment(config: ml_collections.ConfigDict, net: nn.Module | None, curve: Curve,
                target: Target, mass: proposals.Mass) -> Experiment:
  compose.require_continuous(config)
  second = config.model.second_order

  def objective(denoise, process, *args, data, decoder, context):
    # Validation takes uniform times, as for the other systems.
    propose = proposals.by_mass(process, mass) if context.train else proposals.uniform
    return idode.objective(denoise, process, *args, propose=propose, data=data, decoder=decoder,
                           second=second)

  return compose.experiment(config, net=net or networks.unet(config), target=target, curve=curve,
                            objective=objective,
                            schedule=schedules.Linear(*compose.end_points(config)))
