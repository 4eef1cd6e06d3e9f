"""Models that are told a part of the image: their samples have this part.

Nichol et al. (2021), section 3.3.  The data have two fields beside x: `known`, integers like x, and
`mask`, which is 1 where they are known and 0 where they are not.
"""
from vdm_jax import guidance
from vdm_jax.typing import Experiment

KNOWN, MASK = 'known', 'mask'


def experiment(base: Experiment) -> Experiment:
  """`base` with a model whose estimates are exact in the known part; the loss is not changed.

  The condition of its network is a dict with `known` and `mask`, see `compose.experiment`.
  Guidance of two such estimates keeps the known part.
  """
  def model(params, keys=None):
    m = base.model(params, keys)
    part = lambda cond: (m.encode(cond[KNOWN]), cond[MASK].astype(float))
    return m._replace(denoise=guidance.known(m.denoise, part))
  return base._replace(model=model)
