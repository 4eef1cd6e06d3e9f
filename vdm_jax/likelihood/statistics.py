"""The standard errors of means over images, and the probability that a check fails by chance."""
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

  The first error is how far another test set of this size would move the result.  The second error
  is how far other noise would move it.  Stratified times are not independent draws, so the second
  error comes from whole repetitions of each image.  The draws of two images are independent, so two
  repetitions suffice.  The two errors are kept apart, since the first includes the second.
  """
  r, n = values.shape
  over_images = float(np.std(values.mean(axis=0), ddof=1)) / math.sqrt(n) if n > 1 else None
  over_draws = math.sqrt(np.sum(np.var(values, axis=0, ddof=1)) / r) / n if r > 1 else None
  return over_images, over_draws
