"""Sliced score matching on the noisy spiral: no denoising target, one product with the Jacobian.

  python scripts/train.py --config=configs/ssm_swirl.py --workdir=runs/ssm_swirl
  python scripts/sample.py --workdir=runs/ssm_swirl --sampler=ancestral --out=ssm_swirl.png

Song, Garg, Shi and Ermon (2020), the variance-reduced form, of q(z_t) at all levels with lambda =
sigma^2 as in NCSN: the noise is in the data, and the network is not told which it was.  The loss
has another constant than denoising score matching, and may be negative; the bound is reported.
Hardware, time and what it reaches: see configs/README.md.
ebm_swirl.py has the same levels, with a denoising target.
"""
import ebm_swirl
import ml_collections

from vdm_jax import schedules
from vdm_jax.likelihood.bounds import one_draw
from vdm_jax.objectives import score_matching
from vdm_jax.systems import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  return ebm_swirl.get_config()


def build(config: ml_collections.ConfigDict) -> Experiment:
  vdm.require_continuous(config)
  sliced = score_matching.at_level(score_matching.sliced)

  def objective(model, batch, context):
    loss, terms = sliced(model.denoise, model.process, model.encode(batch['image']), context.t,
                         context.keys, model.cond(batch))
    bound, of_bound = one_draw(model, batch, context.t, context.keys, 0)
    return loss, {'bits_per_dim': bound, **of_bound, **terms}

  return vdm.experiment(config, net=ebm_swirl.network(config), objective=objective,
                        schedule=schedules.Linear(*vdm.end_points(config)))
