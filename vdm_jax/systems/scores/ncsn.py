"""NCSN and NCSNv2 with any network: denoising score matching on a ladder of noise levels.

Song and Ermon (2019), eq. 6: the levels have equal ratios and are drawn equally often, with
lambda = sigma^2.  Song and Ermon (2020): techniques 1 and 2 set the number of levels, and the
network does not read the level (technique 3).  The bound is the bound of the chain of these levels,
whose first step begins at the data themselves.
"""
import math

import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from vdm_jax import data, inputs, random, schedules
from vdm_jax.decoders import DiscretisedNormal
from vdm_jax.objectives import score_matching, vlb
from vdm_jax.processes import diffuse, ve
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def default_config(**model) -> ml_collections.ConfigDict:
  """NCSN: the network is conditioned on the noise level."""
  return vdm.default_config(**{
      'sigma_max': 9.0,  # of x in [-1, 1]: about the largest distance of two images
      'sigma_min': 0.05,
      'level_conditional': True,  # whether the network is conditioned on the noise level
      'timesteps': 20,   # levels
  } | model)


def v2_levels(config: ml_collections.ConfigDict) -> int:
  """The number of levels between sigma_max and sigma_min by techniques 1 and 2 of NCSNv2."""
  m = config.model
  return len(schedules.ncsnv2_sigmas(m.sigma_max, m.sigma_min,
                                     math.prod(data.resolve(config.data).shape)))


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None) -> Experiment:
  """Denoising score matching on the ladder of `config.model`.

  net: the network.  Default: `networks.unet`.

  Raises InputError for fewer than two levels, or for a smallest level that is not between 0 and the
  largest.
  """
  m = config.model
  compose.require(config, 'timesteps', m.timesteps >= 2, 'a ladder has two levels of noise or more',
                  'give more')
  compose.require(config, 'sigma_min', 0.0 < m.sigma_min < m.sigma_max,
                  f'it must lie between 0 and config.model.sigma_max={m.sigma_max}',
                  'choose such a number')
  ladder = schedules.TableSchedule.from_sigmas(
      np.geomspace(m.sigma_max, m.sigma_min, m.timesteps))
  matched = score_matching.on_ladder(score_matching.denoising, m.timesteps)
  last = DiscretisedNormal(data.resolve(config.data).levels).log_prob

  def objective(denoise, process, x, t, keys, cond=None, *, data, decoder, context):
    level = process(vlb.step_number(t, m.timesteps) / m.timesteps)
    eps = random.normal(random.stream(keys, 'eps'), x)
    estimate = denoise(diffuse(x, eps, level), level, cond)
    once = lambda *_: estimate  # one evaluation for the loss and for the bound beside it
    loss, terms = matched(once, process, x, t, keys, eps=eps)
    chain = {'steps': m.timesteps, 'data': data, 'last': last}
    first = None if context.train else vlb.first_step(denoise, process, x, keys, cond, **chain)
    bound, of_bound = vlb.discrete(once, process, x, t, keys, decoder=decoder, first=first,
                                   eps=eps, **chain)
    return loss, {'vlb': bound, **of_bound, **terms}

  def with_level(z, level):  # its input as on `vp`: of about unit scale at every level
    return inputs.logsnr(z / jnp.hypot(1.0, level.expand(z).sigma), level)

  def without_level(z, level):  # sigma times the score is a function of z alone
    return z, jnp.zeros(len(z))

  net = (net or networks.unet(config)).clone(
      logsnr_max=-2.0 * math.log(m.sigma_min), logsnr_min=-2.0 * math.log(m.sigma_max),
      adds_z=m.level_conditional)
  return compose.experiment(config, net=net, schedule=ladder, curve=ve,
                            inputs=with_level if m.level_conditional else without_level,
                            objective=objective)
