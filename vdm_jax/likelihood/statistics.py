"""The errors of means over images, and how rare a failure by chance may be."""
import math

import numpy as np
from scipy import stats

__all__ = ['RARE', 'ROUNDING', 'standard_errors']

# The tail probability of four standard deviations, on one side.
RARE = float(stats.norm.sf(4.0))
# Of float32 in bits/dim, without which nothing exact would pass.
ROUNDING = 5e-5


def standard_errors(values: np.ndarray) -> tuple[float | None, float | None]:
  """(over images, over repetitions of the draws) of the mean of `values` [R, N]; None where R or N
  is 1.

  The first is how far another test set of this size would move the result.  The second is
  how far other noise would; stratified times are not independent draws, so it is taken from whole
  repetitions, image by image: the draws of two images are independent, so that
  two repetitions suffice.  They are kept apart: the first includes the second.
  """
  r, n = values.shape
  over_images = float(np.std(values.mean(axis=0), ddof=1)) / math.sqrt(n) if n > 1 else None
  over_draws = math.sqrt(np.sum(np.var(values, axis=0, ddof=1)) / r) / n if r > 1 else None
  return over_images, over_draws
