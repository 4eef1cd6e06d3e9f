"""The Fréchet distance of two sets of features, each taken as a Gaussian.

On Inception's features it is the FID (Heusel et al. 2017).  It is biased upwards in proportion to
about 1 / n, and the factor depends on the model (Chong and Forsyth 2020).  So compare at equal
numbers of samples, or extrapolate to infinitely many.
"""
import numpy as np

from vdm_jax.errors import require
from vdm_jax.evaluation.features import Statistics, statistics

LEAST = 4  # samples for each dimension from which an extrapolation starts to mean something
POINTS = 15
BLOCKS = 20  # of the jackknife


def root(covariance: np.ndarray) -> np.ndarray:
  """R [D, r] with R R^T the covariance [D, D], of numerical rank r.

  Eigenvalues that are rounding errors are left out, since their roots would be about 1e8 times
  larger.
  """
  values, vectors = np.linalg.eigh(covariance)
  real = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
  return vectors[:, real] * np.sqrt(values[real])


def distance(a: Statistics, b: Statistics) -> float:
  """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)).

  Dowson and Landau (1982), Heusel et al. (2017).  With C = R R^T, the trace of the root is the sum
  of the singular values of R_a^T R_b, which is real for all ranks.
  """
  return _distance(a, b, root(b.covariance))


def _distance(a, b, root_b):
  cross = root(a.covariance).T @ root_b
  common = np.linalg.svd(cross, compute_uv=False).sum() if cross.size else 0.0
  apart = a.mean - b.mean
  squares = apart @ apart + np.trace(a.covariance) + np.trace(b.covariance)
  return max(float(squares - 2.0 * common), 0.0)  # which is below 0 by rounding alone


def extrapolated(features: np.ndarray, reference: Statistics) -> float | None:
  """The distance of infinitely many samples: the intercept of a line in 1 / n.

  FID_infinity of Chong and Forsyth (2020): a fit to the distances of random parts of the samples
  [N, D].  The parts have 15 sizes from N / 10 to N, but no fewer than 2 D samples, where the
  relation is linear.  The bias of a finite reference stays.  The result is None for fewer than 4 D
  samples.
  """
  count, dimensions = features.shape
  if count < LEAST * dimensions:
    return None
  sizes = np.linspace(max(count / 10, 2 * dimensions), count, POINTS).astype(int)
  rng = np.random.RandomState(0)
  root_b = root(reference.covariance)
  distances = [_distance(statistics(features[rng.permutation(count)[:n]]), reference, root_b)
               for n in sizes]
  return float(np.polyfit(count / sizes, distances, 1)[1])


def jackknifed(features: np.ndarray, reference: Statistics) -> tuple[float, float]:
  """The distance of features [N, D] without its bias in 1 / N, and its standard error.

  The jackknife of 20 blocks of consecutive samples: Quenouille (1956) for the bias, Tukey (1958)
  for the error.  With d the distance, d_b without block b, and m the mean of d_b, it is
  20 d - 19 m, and the square of its error is (1 - 1/20) sum_b (d_b - m)^2.  So distances of unlike
  numbers of samples can be compared.  The reference counts as exact.

  Raises InputError for fewer than 20 samples.
  """
  require(len(features) >= BLOCKS, 'samples', None, f'{len(features)} examples are too few for the '
          f'{BLOCKS} blocks of the jackknife', f'take at least {BLOCKS}, better thousands')
  root_b = root(reference.covariance)
  blocks = np.array_split(np.arange(len(features)), BLOCKS)
  without = [_distance(statistics(np.delete(features, block, axis=0)), reference, root_b)
             for block in blocks]
  whole = _distance(statistics(features), reference, root_b)
  error = np.sqrt((BLOCKS - 1) * np.var(without))
  return float(BLOCKS * whole - (BLOCKS - 1) * np.mean(without)), float(error)


def warning(dimensions: int, **counts: int) -> str:
  """A warning about a distance in this many dimensions; '' if there is none.

  counts: the size of each set, by its name.
  """
  few = [f'{n:,} {name}' for name, n in counts.items() if 0 < n < dimensions]
  if not few:
    return ''
  return (f'{" and ".join(few)} for {dimensions:,} dimensions: the covariance is singular and the '
          'Fréchet distance far too large; take more.')
