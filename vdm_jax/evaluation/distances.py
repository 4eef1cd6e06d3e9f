"""Distances between two distributions that are known by samples alone.

The distances take features [n, d] and [m, d]: coordinates, pixels, or a network's features of an
image.  They are computed in float64 on the host.  Two sets of one distribution are not at distance
0.  Their sliced Wasserstein distance is above 0, and falls with the size of the sets.  Their kernel
distance is 0 on average, so it is often below 0.  Compare sets of equal sizes, and measure the
floor: the distance of one part of the data from another.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from vdm_jax.errors import require

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]  # [n, d], [m, d] -> [n, m]


def sliced_wasserstein(key: jax.Array, a: np.ndarray, b: np.ndarray, projections: int = 512
                       ) -> float:
  """sqrt(mean over directions u of W_2^2 between a . u and b . u), u uniform on the sphere.

  Rabin et al. (2011).  In one dimension the optimal coupling joins equal quantiles; this is exact
  for any two sizes.  a: [n, d], b: [m, d].  The same key gives the same directions.
  """
  u = np.array(jax.random.normal(key, (a.shape[1], projections), np.float32), np.float64)
  u /= np.linalg.norm(u, axis=0)
  n, m = len(a), len(b)
  # The quantile functions are steps: where either jumps, in units of 1 / (n m).
  edges = np.union1d(np.arange(n + 1) * m, np.arange(m + 1) * n)
  left, width = edges[:-1], np.diff(edges) / (n * m)
  difference = np.sort(a @ u, axis=0)[left // m] - np.sort(b @ u, axis=0)[left // n]
  return float(np.sqrt(np.mean(width @ difference**2)))


def jackknifed_sliced_wasserstein(key: jax.Array, a: np.ndarray, b: np.ndarray,
                                  projections: int = 512, blocks: int = 20) -> 'Estimated':
  """`sliced_wasserstein`, and its standard error by the jackknife of blocks (Tukey 1958).

  Each of `blocks` parts of consecutive examples is left out of both sets in turn, so their order
  must be random.  With d_k the distances that are left and m their mean, the square of the error is
  (1 - 1/blocks) sum_k (d_k - m)^2.  The distance keeps its bias of few examples, which is not in
  the error.  If the two distributions agree, the distance is all bias.

  Raises InputError if a set has fewer examples than there are blocks.
  """
  for n in (len(a), len(b)):
    require(n >= blocks, 'blocks', blocks, f'a set has {n} examples', 'take more examples')
  parts = [np.array_split(np.arange(len(x)), blocks) for x in (a, b)]
  without = [sliced_wasserstein(key, np.delete(a, one, axis=0), np.delete(b, other, axis=0),
                                projections) for one, other in zip(*parts, strict=True)]
  return Estimated(sliced_wasserstein(key, a, b, projections),
                   float(np.sqrt((blocks - 1) * np.var(without))))


class Estimated(NamedTuple):
  """A number, and the standard error of its estimate."""
  value: float
  error: float

  def __str__(self) -> str:
    return f'{self.value:.3f} +- {self.error:.3f}'

  def __format__(self, spec: str) -> str:
    """Both numbers by one format: f'{found:.2f}' is '0.88 ± 0.03'."""
    return f'{self.value:{spec}} ± {self.error:{spec}}' if spec else str(self)


def mean(values: np.ndarray) -> Estimated:
  """The mean of values [n], and its standard error; the error of one value is infinite."""
  error = float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else np.inf
  return Estimated(float(np.mean(values)), error)


def ratio(a: np.ndarray, b: np.ndarray) -> Estimated:
  """sum a / sum b of values [n], such as bits and steps of pieces, and its standard error.

  The error is that of the mean of a - r b, divided by the mean of b (Cochran 1977, section 2.11).
  If all b are equal, it is the error of the mean of a / b.
  """
  value = float(np.sum(a) / np.sum(b))
  return Estimated(value, mean(a - value * b).error / float(np.mean(b)))


def share(hits: np.ndarray) -> Estimated:
  """The share of hits, bool [n], and its binomial standard error."""
  value = float(np.mean(hits))
  return Estimated(value, float(np.sqrt(value * (1.0 - value) / len(hits))))


def percent(hits: np.ndarray) -> str:
  """`share` in per cent, as text: '41 ± 6'."""
  value, error = share(hits)
  return f'{Estimated(100.0 * value, 100.0 * error):.0f}'


def energy(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """-|a_i - b_j|, the kernel of the energy distance, which tells any two distributions apart.

  Székely and Rizzo (2013); Sejdinovic et al. (2013) treat it as a kernel.
  """
  square = np.sum(a**2, axis=1)[:, None] + np.sum(b**2, axis=1) - 2.0 * a @ b.T
  return -np.sqrt(np.maximum(square, 0.0))


def polynomial(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """(a_i . b_j / d + 1)^3, which compares moments up to the third: Bińkowski et al. (2018)."""
  return (a @ b.T / a.shape[1] + 1.0)**3


def kernel_distance(a: np.ndarray, b: np.ndarray, kernel: Kernel = energy) -> Estimated:
  """MMD^2 = E k(a, a') + E k(b, b') - 2 E k(a, b), without bias, and its standard error.

  Gretton et al. (2012), eq. 3.  With `energy` it is the energy distance; with `polynomial` on
  Inception features it is the KID.  The variance is 4 Var(h_a) / n + 4 Var(h_b) / m, where h is the
  contribution of one example to the mean.  If the two distributions agree, the error is sqrt(2) too
  large.  a: [n, d], b: [m, d], at least two of each.
  """
  a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
  across = kernel(a, b)

  def others(x):  # the mean kernel of each with all others of its set
    inside = kernel(x, x)
    return (np.sum(inside, axis=1) - np.diag(inside)) / (len(x) - 1)

  h_a, h_b = others(a) - np.mean(across, axis=1), others(b) - np.mean(across, axis=0)
  error = np.sqrt(4.0 * np.var(h_a, ddof=1) / len(a) + 4.0 * np.var(h_b, ddof=1) / len(b))
  return Estimated(float(np.mean(h_a) + np.mean(h_b)), float(error))


def blocked_kernel_distance(a: np.ndarray, b: np.ndarray, kernel: Kernel = polynomial,
                            size: int = 1000) -> Estimated:
  """The mean of `kernel_distance` over disjoint blocks, about `size` examples of the smaller set.

  Bińkowski et al. (2018) draw their blocks with replacement.  Disjoint blocks are independent, so
  the squared errors add up.  Both sets are divided into equally many blocks, in their order, which
  must be random.  a: [n, d], b: [m, d], at least two of each.
  """
  count = max(1, min(len(a), len(b)) // size)
  parts = [kernel_distance(x, y, kernel) for x, y in
           zip(np.array_split(a, count), np.array_split(b, count), strict=True)]
  values, errors = np.array(parts).T
  return Estimated(float(np.mean(values)), float(np.sqrt(np.sum(errors**2)) / count))
