"""ScoreFlow on the digits: likelihood weighting on the VP SDE, with importance-sampled times.

  python scripts/train.py --config=configs/digits_scoreflow.py --workdir=runs/digits_scoreflow

Song, Durkan, Murray and Ermon (2021): beta from 0.1 to 20, lambda = g^2, and t with the density
g^2 / sigma^2.  Likelihood weighting is the bound with weight 1, and these times are uniform in
log-SNR, so what is new against digits_small.py is the range of it: down to -10.05 instead of -5.
Not theirs: the SDE starts where digits_small.py does, not at 1e-5; the discrete decoder takes the
place of dequantisation and of their decoder at that time, so that the ledger's rows compare; the
network, which estimates eps; no sub-VP SDE.
Hardware and time: 2 CPU cores, two and a half minutes.
To reach: see the table of objectives in README.md.
"""
import dataclasses
import math

import digits_small
import ml_collections

from vdm_jax import schedules
from vdm_jax.objectives import times
from vdm_jax.systems import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = digits_small.get_config()
  config.model.t_min = 0.0  # of the SDE's time; 0: where log-SNR is that of digits_small.py
  config.model.logsnr_min = -10.05
  return config


def vp_sde(config: ml_collections.ConfigDict) -> schedules.BetaLinear:
  """beta from 0.1 to 20, from t_min on, or from where sigma is the configured share of a level.

  SNR = 1 / expm1(int_0^u beta), so int_0^u beta = log(1 + 1 / SNR): a quadratic equation for u.
  """
  vdm.require(config, 't_min', 0.0 <= config.model.t_min < 1.0,
              'a time of the SDE, in (0, 1), or 0 for that of --config.model.logsnr_max')
  sde = schedules.BetaLinear()
  integral = math.log1p(math.exp(-vdm.end_points(config)[0]))
  slope = sde.beta_max - sde.beta_min
  u = (math.sqrt(sde.beta_min**2 + 2.0 * slope * integral) - sde.beta_min) / slope
  return dataclasses.replace(sde, t_min=config.model.t_min or u)


def build(config: ml_collections.ConfigDict) -> Experiment:
  vdm.require_continuous(config)

  def objective(model, batch, context):
    return times.bound(model, batch, context, times.by_logsnr(model.process))

  return vdm.experiment(config, net=vdm.unet(config), objective=objective,
                        schedule=vp_sde(config))
