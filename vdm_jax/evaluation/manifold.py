"""Separate fidelity and diversity: which samples are near the data, and which data near samples.

The support of a set is estimated by balls around its members.  Each ball reaches to the k-th
nearest other member.  All four numbers depend on the sizes of the sets, so compare sets of equal
sizes.  Features are [n, D].  The distances [n, m] are computed in blocks, and never kept whole in
memory.
"""
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from vdm_jax.errors import InputError

BLOCK = 1024  # rows of a distance matrix at a time


class PrecisionRecall(NamedTuple):
  """Precision and recall of Kynkäänniemi et al. (2019), both in [0, 1]."""
  precision: float  # share of the samples in a ball of the data
  recall: float     # share of the data in a ball of the samples


class DensityCoverage(NamedTuple):
  """Naeem et al. (2020)."""
  density: float    # balls of the data that a sample is in, on average, over k: may exceed 1
  coverage: float   # share of the balls of the data with a sample in them


def _squares(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
  """|a_i - b_j|^2, some rows [rows, m] at a time."""
  norms = np.sum(b * b, axis=1)
  for start in range(0, len(a), BLOCK):
    rows = slice(start, start + BLOCK)
    part = a[rows]
    square = np.sum(part * part, axis=1)[:, None] + norms - 2.0 * part @ b.T
    yield rows, np.maximum(square, 0.0)


def _radii(x: np.ndarray, k: int) -> np.ndarray:
  """The squared distance of each member to its k-th nearest other member: [n]."""
  if not 0 < k < len(x):
    raise InputError('k', k, f'k must be below the number of features, {len(x)}',
                     'choose a smaller k, of 1 or more')
  out = np.empty(len(x))
  for rows, square in _squares(x, x):
    i = np.arange(len(square))
    square[i, rows.start + i] = -1.0  # itself comes first, whatever the rounding
    out[rows] = np.partition(square, k, axis=1)[:, k]
  return out


def precision_recall(data: np.ndarray, samples: np.ndarray, k: int = 3) -> PrecisionRecall:
  """Improved precision and recall: Kynkäänniemi et al. (2019).

  A point is in the support of a set if it is no farther from some member than that member's k-th
  nearest neighbour.  data: [n, D]; samples: [m, D].  Raises InputError unless 0 < k < n and m.
  """
  data, samples = np.asarray(data, np.float64), np.asarray(samples, np.float64)
  of_data, of_samples = _radii(data, k), _radii(samples, k)
  recalled, precise = 0, np.zeros(len(samples), bool)
  for rows, square in _squares(data, samples):
    recalled += np.sum(np.any(square <= of_samples, axis=1))
    precise |= np.any(square <= of_data[rows, None], axis=0)
  return PrecisionRecall(float(np.mean(precise)), float(recalled / len(data)))


def density_coverage(data: np.ndarray, samples: np.ndarray, k: int = 5) -> DensityCoverage:
  """Density and coverage: Naeem et al. (2020).

  Density is 1 / (k m) times the sum over samples of the number of data's balls that contain the
  sample.  It is 1 on average if the two distributions agree.  Coverage is then 1 - 2^-k, for many
  data and equally many samples. data: [n, D]; samples: [m, D].  Raises InputError unless 0 < k < n.
  """
  data, samples = np.asarray(data, np.float64), np.asarray(samples, np.float64)
  radii = _radii(data, k)
  pairs = covered = 0
  for rows, square in _squares(data, samples):
    inside = square <= radii[rows, None]
    pairs += np.sum(inside)
    covered += np.sum(np.any(inside, axis=1))
  return DensityCoverage(float(pairs / (k * len(samples))), float(covered / len(data)))
