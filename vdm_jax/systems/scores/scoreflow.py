"""ScoreFlow: likelihood weighting on the VP SDE, with importance-sampled times.

Song, Durkan, Murray and Ermon (2021): beta from 0.1 to 20, lambda = g^2 (theorem 1), and t with the
density g^2 / sigma^2 (section 5.1).  Likelihood weighting is the bound with weight 1, and these
times are uniform in log-SNR.  So only the range of log-SNR differs from `vdm`: it goes down to
-10.05 instead of -5.

The differences from the paper:

* by default the SDE starts where `vdm` does, not at 1e-5;
* the discrete decoder replaces dequantisation and their decoder at that time, so that the ledger's
  rows are comparable;
* the network estimates eps;
* there is no sub-VP SDE.
"""
import dataclasses
import math

import ml_collections
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.objectives import proposals
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def default_config(**model) -> ml_collections.ConfigDict:
  return vdm.default_config(**{
      't_min': 0.0,  # of the SDE's time; 0: where log-SNR is logsnr_max
      'logsnr_min': -10.05,
  } | model)


def vp_sde(config: ml_collections.ConfigDict) -> schedules.BetaLinear:
  """beta from 0.1 to 20, from t_min on, or from where sigma is the configured share of a level.

  SNR = 1 / expm1(int_0^u beta), so int_0^u beta = log(1 + 1 / SNR): a quadratic equation for u.
  Raises InputError: a time outside of [0, 1).
  """
  compose.require(config, 't_min', 0.0 <= config.model.t_min < 1.0,
                  'it is not a time of the SDE',
                  'give one in (0, 1), or 0 for the time of config.model.logsnr_max')
  sde = schedules.BetaLinear()
  integral = math.log1p(math.exp(-compose.end_points(config)[0]))
  slope = sde.beta_max - sde.beta_min
  u = (math.sqrt(sde.beta_min**2 + 2.0 * slope * integral) - sde.beta_min) / slope
  return dataclasses.replace(sde, t_min=config.model.t_min or u)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None) -> Experiment:
  """The bound at times uniform in log-SNR.

  Raises InputError if config.model.timesteps is not 0, and as `vp_sde` does.
  """
  compose.require_continuous(config)

  def objective(denoise, process, *args, data, decoder, context):
    return proposals.bound(denoise, process, *args, data=data, decoder=decoder, context=context,
                       propose=proposals.by_logsnr(process))

  return compose.experiment(config, net=net or networks.unet(config), objective=objective,
                            schedule=vp_sde(config))
