"""Learned variances of the reverse steps, on a chain between finite ends.

Nichol and Dhariwal (2021) take the cosine schedule in T steps and a network with a head for the
variance.  L_hybrid or the bound L_vlb trains the network.  Their chain begins at the data
themselves, as in `chains.ddpm`.  This chain begins at the log-SNR of the other variational systems,
and has their decoder.
"""
import functools

import ml_collections
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.objectives import iddpm, vlb
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment, Objective


def default_config(**model) -> ml_collections.ConfigDict:
  return vdm.default_config(**{'timesteps': 1000} | model)


def hybrid(config: ml_collections.ConfigDict, *, net: nn.Module | None = None) -> Experiment:
  """L_simple + 0.001 L_vlb, in which L_vlb trains the variances alone: section 3.1, eq. 16.

  net: a network with one head besides its estimate.  Default: `networks.unet`.

  Raises InputError if config.model.timesteps is 0.
  """
  return _experiment(config, net, functools.partial(iddpm.hybrid, steps=config.model.timesteps))


def bound(config: ml_collections.ConfigDict, *, net: nn.Module | None = None) -> Experiment:
  """L_vlb alone, which trains all parameters.  Arguments and errors are as in `hybrid`."""
  return _experiment(config, net, compose.as_bound(functools.partial(
      vlb.discrete, steps=config.model.timesteps, variance=vlb.learned)))


def _experiment(config: ml_collections.ConfigDict, net: nn.Module | None, objective: Objective
                ) -> Experiment:
  compose.require(config, 'timesteps', config.model.timesteps >= 1,
                  'learned variances belong to a chain of steps', 'give its number of steps')
  return compose.experiment(
      config, net=net or networks.unet(config).clone(heads=1), heads=('variance',),
      objective=objective, schedule=schedules.Cosine(*compose.end_points(config)))
