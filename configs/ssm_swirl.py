"""Sliced score matching on the noisy spiral: no denoising target, one product with the Jacobian.

  python scripts/train.py --config=configs/ssm_swirl.py --workdir=runs/ssm_swirl
  python scripts/sample.py --workdir=runs/ssm_swirl --sampler=ancestral --out=ssm_swirl.png

After the colon `implicit` for the exact trace, one product for each of the two coordinates
(Hyvarinen 2005); without it Song, Garg, Shi and Ermon (2020), the variance-reduced form.
Both of q(z_t) at all levels with lambda = sigma^2 as in NCSN: the noise is in the data, and the
network is not told which it was.  The loss has another constant than denoising score matching, and
may be negative; the bound is reported.
Hardware, time and what it reaches: see configs/README.md.
ebm_swirl.py has the same levels, with a denoising target.
"""
import ebm_swirl
import ml_collections

from vdm_jax import schedules
from vdm_jax.errors import InputError
from vdm_jax.likelihood.bounds import one_draw
from vdm_jax.objectives import score_matching
from vdm_jax.systems import vdm
from vdm_jax.typing import Experiment

MATCHING = {'sliced': score_matching.sliced, 'implicit': score_matching.implicit}


def get_config(matching: str = 'sliced') -> ml_collections.ConfigDict:
  if matching not in MATCHING:
    raise InputError(f'--config=configs/ssm_swirl.py:{matching}: choose sliced or implicit.')
  config = ebm_swirl.get_config()
  config.model.matching = matching
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  vdm.require_continuous(config)
  vdm.require(config, 'matching', config.model.matching in MATCHING, 'choose sliced or implicit')
  matched = score_matching.at_level(MATCHING[config.model.matching])

  def objective(model, batch, context):
    loss, terms = matched(model.denoise, model.process, model.encode(batch['image']), context.t,
                          context.keys, model.cond(batch))
    bound, of_bound = one_draw(model, batch, context.t, context.keys, 0)
    return loss, {'bits_per_dim': bound, **of_bound, **terms}

  return vdm.experiment(config, net=ebm_swirl.network(config), objective=objective,
                        schedule=schedules.Linear(*vdm.end_points(config)))
