"""Variational diffusion models (Kingma, Salimans, Poole and Ho 2021).

A U-Net estimates the noise on the `vp` curve, and a schedule is learned with it.  `decoders.Pixels`
decodes the discrete data.  The loss is the variational bound, in continuous time or with
T = `config.model.timesteps` steps.
"""
import ml_collections
from flax import linen as nn

from vdm_jax import schedules, targets
from vdm_jax.systems import compose, networks
from vdm_jax.typing import Experiment, Schedule, Target


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of a VDM; the network is the official code's for CIFAR-10."""
  return compose.default_config(**{
      'features': 128,
      'blocks': 32,
      'attention_everywhere': False,
      'groups': 32,
      'dropout': 0.1,
      'fourier': (-1, 0),    # octaves: sines of z with periods of 2 levels and of 1
      'class_conditional': False,
      'scan': True,          # the blocks as loops: a program that does not grow with the depth
      **networks.how_computed(),
      'logsnr_max': 13.3,    # of the schedule at first, for 256 levels; see `compose.end_points`
      'logsnr_min': -5.0,
      'timesteps': 0,        # T of the bound that is trained; 0: continuous time
  } | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               schedule: nn.Module | Schedule | None = None, target: Target = targets.eps
               ) -> Experiment:
  """The bound of `config` with this network and this schedule.

  net: by default `networks.unet`.  schedule: by default linear in log-SNR, with learned end points.

  Raises InputError as `compose.experiment` does.
  """
  if schedule is None:
    schedule = schedules.LearnedLinear(*compose.end_points(config))
  return compose.experiment(config, net=net or networks.unet(config), schedule=schedule,
                            target=target)
