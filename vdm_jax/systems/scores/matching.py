"""Score matching without a denoising target: sliced, and with the exact trace.

Song, Garg, Shi and Ermon (2020), the variance-reduced form, and Hyvarinen (2005).  Both match the
score of q(z_t) at all levels, with lambda = sigma^2 as in NCSN.  The data have noise, but the loss
does not use this noise.  The loss differs from denoising score matching by a constant, and may be
negative.  The bound is reported too.
"""
import ml_collections
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.objectives import score_matching, vlb
from vdm_jax.systems import compose
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment

MATCHING = {'sliced': score_matching.sliced, 'implicit': score_matching.implicit}


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of a VDM, and `matching`: 'sliced', or 'implicit', which takes D products."""
  return vdm.default_config(**{'matching': 'sliced'} | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module) -> Experiment:
  """Score matching of q(z_t) at all levels.

  Raises InputError for an unknown `matching`, or if config.model.timesteps is not 0.
  """
  compose.require_continuous(config)
  compose.require(config, 'matching', config.model.matching in MATCHING,
                  'there is no such choice', 'choose sliced or implicit')
  matched = score_matching.at_level(MATCHING[config.model.matching])

  def objective(denoise, process, x, t, keys, cond=None, *, data, decoder):
    loss, terms = matched(denoise, process, x, t, keys, cond)
    bound, of_bound = vlb.continuous(denoise, process, x, t, keys, cond, data=data, decoder=decoder)
    return loss, {'vlb': bound, **of_bound, **terms}

  return compose.experiment(config, net=net, objective=objective,
                            schedule=schedules.Linear(*compose.end_points(config)))
