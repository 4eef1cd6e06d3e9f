"""Flows of the noisy spiral: straight paths, couplings that straighten them, and reflow.

  python scripts/train.py --config=configs/plane/flows.py --workdir=runs/plane_ot
  python scripts/make_pairs.py --workdir=runs/plane_ot --out=./runs/plane_pairs --count=50000
  python scripts/train.py --config=configs/plane/flows.py:reflow --workdir=runs/plane_reflow \
    --init_from=runs/plane_ot

After the colon stands the system:

  ot, polynomial, vp, cosine   flow matching on that path, Lipman et al. (2023); `ot` is the first
                               rectified flow of Liu et al. (2023)
  minibatch_ot                 noise and data, paired within 64 points: Tong et al. (2023)
  curvature                    a learned coupling: Lee, Kim and Ye (2023)
  reflow                       rectified flow on pairs of the first flow (--config.data.name)
  distilled                    one step, learned from the same pairs; it samples, and has no
                               likelihood
  between                      a stochastic interpolant from eight normals, not from noise, to the
                               spiral: Albergo et al. (2023)
  mean_flow                    one step, learned without a teacher: Geng et al. (2025)

Hardware, time and what it reaches: see configs/plane/README.md; the entropy of the data is 5.49
bits/dim.
"""
import jax.numpy as jnp
import ml_collections

from vdm_jax import interpolants, random, recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems import networks
from vdm_jax.systems.flows import (
    curvature,
    flow_matching,
    mean_flow,
    minibatch_ot,
    rectified_flow,
)
from vdm_jax.systems.flows import interpolants as between
from vdm_jax.typing import Experiment

PAIRS = './runs/plane_pairs'
OWN = {
    **{path: {'path': path} for path in flow_matching.PATHS},
    # For images beta is 20, and their KL has far more dimensions.  With 20, points hardly couple.
    'curvature': {'beta': 2.0},
    # The adaptive weight suits images.  In two dimensions the error of one example is far from its
    # mean, so this weight moves the minimum.
    'mean_flow': {'same': 0.5, 'power': 0.0},
}
SYSTEMS = {
    **dict.fromkeys(flow_matching.PATHS, flow_matching), 'minibatch_ot': minibatch_ot,
    'curvature': curvature, 'reflow': rectified_flow, 'distilled': rectified_flow,
    'between': between, 'mean_flow': mean_flow,
}


def get_config(system: str = 'ot') -> ml_collections.ConfigDict:
  require_choice('config', system, SYSTEMS)
  own = OWN.get(system, {})
  config = recipes.plane(SYSTEMS[system].default_config(
      features=96, blocks=3, dropout=0.0, system=system, logsnr_max=10.0, **own))
  config.data.batch_size = 256
  if system in ('reflow', 'distilled'):
    rectified_flow.of_pairs(config, PAIRS)
  return config


def eight_normals(keys, like):
  """Draws points of the data set `eight_gaussians`, as real numbers: [B, 2]."""
  angle = jnp.pi / 4 * jnp.floor(8 * random.uniform(random.stream(keys, 'angle'), like))
  centre = 4.0 * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
  return 14 / 128 * (centre + 0.5 * random.normal(random.stream(keys, 'normal'), like))


def build(config: ml_collections.ConfigDict) -> Experiment:
  system, net = config.model.system, networks.mlp(config)
  require_choice('config.model.system', system, SYSTEMS)
  if system == 'curvature':
    return curvature.experiment(config, net=net, encoder=net.clone(features=64, blocks=2))
  if system == 'between':
    made = interpolants.interpolant(interpolants.linear, interpolants.quadratic)
    return between.experiment(config, net=net, base=eight_normals, interpolant=made)
  if system in ('reflow', 'distilled'):
    return getattr(rectified_flow, system)(config, net=net)
  return SYSTEMS[system].experiment(config, net=net)
