"""Flows of the digits: the first rectified flow, reflow, one step, and couplings.

  python scripts/train.py --config=configs/digits/flows.py --workdir=runs/digits_flow
  python scripts/evaluate.py --workdir=runs/digits_flow --estimates=ode/uniform --importance=5
  python scripts/make_pairs.py --workdir=runs/digits_flow --sampler=heun --steps=20 --count=5000 \
    --out=./runs/digits_pairs
  python scripts/train.py --config=configs/digits/flows.py:reflow --workdir=runs/digits_reflow \
    --init_from=runs/digits_flow

After the colon stands the system: ot, polynomial, vp, cosine, minibatch_ot, curvature, reflow,
distilled; see configs/plane/flows.py.  The network is VDM's, 220,097 parameters.
Hardware, time and what it reaches: see configs/digits/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems.flows import curvature, flow_matching, minibatch_ot, rectified_flow
from vdm_jax.typing import Experiment

PAIRS = './runs/digits_pairs'
SYSTEMS = {
    **dict.fromkeys(flow_matching.PATHS, flow_matching), 'minibatch_ot': minibatch_ot,
    'curvature': curvature, 'reflow': rectified_flow, 'distilled': rectified_flow,
}
ENCODER = {'encoder_features': 16, 'encoder_blocks': 1, 'encoder_groups': 4}
STEPS = {'curvature': 1200, 'reflow': 1000, 'distilled': 1000}


def get_config(system: str = 'ot') -> ml_collections.ConfigDict:
  require_choice('config', system, SYSTEMS)
  fields = {'path': system} if system in flow_matching.PATHS else {}
  fields |= ENCODER if system == 'curvature' else {}
  config = recipes.digits(SYSTEMS[system].default_config(
      features=32, blocks=2, groups=8, system=system, **fields), steps=STEPS.get(system, 1400))
  if system in ('reflow', 'distilled'):
    rectified_flow.of_pairs(config, PAIRS)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  system = config.model.system
  require_choice('config.model.system', system, SYSTEMS)
  if system in ('reflow', 'distilled'):
    return getattr(rectified_flow, system)(config)
  return SYSTEMS[system].experiment(config)
