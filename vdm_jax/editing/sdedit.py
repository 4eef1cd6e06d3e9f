"""SDEdit: noise is added to a guide, such as a stroke painting, and removed by a sampler.

Meng et al. (2022), algorithm 1.  The less noise, the more of the guide is kept.  With the guide g,
data N(mu, s^2) and kappa = sigma / alpha at the first time, many small steps give

  a flow    mean mu + (g - mu) s / sqrt(s^2 + kappa^2)
  an SDE    mean mu + (g - mu) s^2 / (s^2 + kappa^2)

so an SDE is more realistic, and a flow more faithful.  To keep known pixels of the guide, give
`samplers.inpainting.replacement` as the sampler.
"""
import numpy as np

from vdm_jax.samplers.around import around
from vdm_jax.typing import Array, Process, Sampler


def edit(sampler: Sampler, process: Process, keys: Array, guide: Array, times: Array | np.ndarray
         ) -> Array:
  """z at the last time, from alpha g + sigma noise at the first: [B, ...].

  guide: g in the units of x, [B, ...].  times: a grid that goes down from any time, for example
  from 0.5.  keys: [B].  Raises InputError as `sample` does.
  """
  return around(sampler, process, keys, guide, times)
