"""Anomaly detection: how well a score tells odd examples from usual ones."""
import numpy as np

from vdm_jax.errors import require
from vdm_jax.evaluation.distances import Estimated

__all__ = ['auroc']


def auroc(scores: np.ndarray, odd: np.ndarray) -> Estimated:
  """The probability that an odd example scores above a usual one, and its standard error.

  The area under the ROC curve, which is the statistic of Mann and Whitney; a tie counts one half.
  The error is by DeLong et al. (1988): from the shares of usual examples below each odd one, and of
  odd examples above each usual one.  It is NaN for one example of a kind.

  scores: [n]; odd: bool [n].  Raises InputError unless there are examples of both kinds.
  """
  scores, odd = np.asarray(scores, np.float64), np.asarray(odd, bool)
  require(bool(odd.any() and not odd.all()), 'odd', None, f'{odd.sum()} of {odd.size} examples are '
          'odd', 'give examples of both kinds')
  above = scores[odd][:, None] - scores[~odd]
  wins = np.where(above == 0.0, 0.5, above > 0.0)
  rows, columns = wins.mean(axis=1), wins.mean(axis=0)
  variance = lambda u: np.var(u, ddof=1) / len(u) if len(u) > 1 else np.nan
  return Estimated(float(wins.mean()), float(np.sqrt(variance(rows) + variance(columns))))
