"""Distances between sets of samples, against those of the Gaussians they were drawn from."""
import jax
import numpy as np
import pytest
from scipy import special

from vdm_jax.errors import InputError
from vdm_jax.evaluation import blocked_kernel_distance, kernel_distance, sliced_wasserstein
from vdm_jax.evaluation.distances import (
  energy,
  jackknifed_sliced_wasserstein,
  mean,
  polynomial,
  ratio,
)

KEY = jax.random.key(0)


def column(*values):
  return np.array(values, np.float64)[:, None]


# ---------------------------------------------------- sliced Wasserstein


@pytest.mark.parametrize('a,b,square', [
    (column(0, 1), column(1, 0), 0),
    (column(0, 1), column(3, 2), 4),
    (column(0), column(-1, 1), 1),
    (column(0, 1), column(0, 0, 1, 1), 0),
    # Quantiles differ between 1/2 and 2/3 only.
    (column(0, 1), column(0, 0, 1), 1 / 6),
    (column(5, 0), column(0, 2, 7), 1 / 3 * 0 + 1 / 6 * 2**2 + 1 / 6 * 3**2 + 1 / 3 * 2**2),
])
def test_in_one_dimension_quantiles_are_coupled_whatever_the_sizes(a, b, square):
  for one, other in ((a, b), (b, a)):
    assert sliced_wasserstein(KEY, one, other) == pytest.approx(square**0.5, abs=1e-12)


def test_the_distance_of_a_shift_is_measured_in_float64_too(x64):
  """Of one dimension, where it is the shift itself."""
  np.testing.assert_allclose(sliced_wasserstein(KEY, column(0, 1), column(2, 3), 4), 2.0)


def test_a_shift_is_seen_by_the_cosine_with_each_direction():
  """Of unit directions in d dimensions the squared coordinates are 1/d on average."""
  a = np.random.default_rng(0).normal(size=(50, 4))
  shift = np.array([3.0, 0.0, 0.0, 4.0])
  n = 4000
  got = sliced_wasserstein(KEY, a, a + shift, n)**2
  # (shift . u)^2 = 25 Beta(1/2, 3/2), of mean 1/4 and variance 1/16.
  assert got == pytest.approx(25 / 4, abs=4 * 25 * (1 / 16 / n)**0.5)


def test_gaussians_are_at_the_distance_of_their_means_and_deviations():
  """Isotropic ones: |m - n|^2 / d + (s - r)^2, of independent draws of unequal sizes."""
  rng = np.random.default_rng(1)
  squares = []
  for i in range(24):
    a = np.array([2.0, 0.0, -1.0]) + rng.normal(size=(1500, 3))
    b = 1.8 * rng.normal(size=(1000, 3))
    squares.append(sliced_wasserstein(jax.random.key(i), a, b, 200)**2)
  error = np.std(squares, ddof=1) / len(squares)**0.5
  assert np.mean(squares) == pytest.approx(5 / 3 + 0.8**2, abs=4 * error)


def test_the_sliced_distance_of_one_distribution_from_itself_falls_with_the_number_of_samples():
  """As n^(-1/2) or so, to zero."""
  rng = np.random.default_rng(2)
  got = [sliced_wasserstein(KEY, *rng.normal(size=(2, n, 5)), 100) for n in (100, 10_000)]
  assert 0.0 < got[1] < 0.2 * got[0] < 0.1


def test_the_same_key_looks_in_the_same_directions():
  a, b = np.random.default_rng(0).normal(size=(2, 30, 8))
  assert sliced_wasserstein(KEY, a, b, 5) == sliced_wasserstein(KEY, a, b, 5)
  assert sliced_wasserstein(KEY, a, b, 5) != sliced_wasserstein(jax.random.key(1), a, b, 5)


@pytest.mark.long
def test_the_sliced_distance_knows_its_error():
  """Of many draws of Gaussians with unequal sizes: the spread, within a fifth."""
  rng = np.random.default_rng(3)
  draws = [(rng.normal(size=(200, 2)) + [1.0, 0.5], 1.3 * rng.normal(size=(300, 2)))
           for _ in range(120)]
  values, errors = np.array([jackknifed_sliced_wasserstein(KEY, a, b, 32) for a, b in draws]).T
  assert np.mean(errors**2)**0.5 == pytest.approx(np.std(values, ddof=1), rel=0.2)
  assert values[0] == sliced_wasserstein(KEY, *draws[0], 32)
  with pytest.raises(InputError, match='blocks=20: a set has 19 examples'):
    jackknifed_sliced_wasserstein(KEY, np.zeros((19, 2)), np.zeros((30, 2)))


# ----------------------------------------------------------- kernel distance


def mean_distance(shift, variance):
  """E|d|, d ~ N(shift, variance): the mean of a folded normal."""
  return ((2 * variance / np.pi)**0.5 * np.exp(-shift**2 / (2 * variance))
          + shift * special.erf(shift / (2 * variance)**0.5))


def energy_distance(shift, s, r):
  return (2 * mean_distance(shift, s**2 + r**2) - mean_distance(0, 2 * s**2)
          - mean_distance(0, 2 * r**2))


def moments(m, s):
  return np.array([m, m**2 + s**2, m**3 + 3 * m * s**2])


def polynomial_distance(shift, s, r):
  """(x y + 1)^3 is a sum of products of moments, with the coefficients 1, 3, 3, 1."""
  return np.sum([3, 3, 1] * (moments(shift, s) - moments(0, r))**2)


def draws(shift, s, r, repeats, sizes):
  rng = np.random.default_rng(3)
  for _ in range(repeats):
    yield shift + s * rng.normal(size=(sizes[0], 1)), r * rng.normal(size=(sizes[1], 1))


@pytest.mark.parametrize('kernel,exact', [(energy, energy_distance),
                                          (polynomial, polynomial_distance)])
@pytest.mark.parametrize('shift,s,r', [(0.5, 1.0, 1.0), (0.3, 0.7, 1.2)])
def test_the_kernel_distance_of_gaussians_is_unbiased_and_knows_its_error(
    kernel, exact, shift, s, r):
  """Of many draws: their mean, within four standard errors, and their spread, within a fifth."""
  got = [kernel_distance(a, b, kernel) for a, b in draws(shift, s, r, 400, (60, 90))]
  values, errors = np.array(got).T
  spread = np.std(values, ddof=1)
  assert np.mean(values) == pytest.approx(exact(shift, s, r), abs=4 * spread / 400**0.5)
  assert np.mean(errors**2)**0.5 == pytest.approx(spread, rel=0.2)


@pytest.mark.parametrize('kernel', [energy, polynomial])
def test_the_kernel_distance_of_one_distribution_from_itself_is_zero_on_average(kernel):
  """And its error is not below its spread: larger by the square root of two at most."""
  got = [kernel_distance(a, b, kernel) for a, b in draws(0, 1, 1, 600, (40, 50))]
  values, errors = np.array(got).T
  spread = np.std(values, ddof=1)
  assert abs(np.mean(values)) < 4 * spread / 600**0.5
  assert 0.9 * spread < np.mean(errors**2)**0.5 < 1.7 * spread
  assert np.mean(values < 0.0) > 0.3  # it may be negative, or it could not be unbiased


def test_the_energy_distance_of_points_by_hand():
  """2 E|a - b| - E|a - a'| - E|b - b'| with distinct points: 0, 2 and 3, 7."""
  got = kernel_distance(column(0, 2), column(3, 7), energy)
  assert got.value == pytest.approx(2 * (3 + 7 + 1 + 5) / 4 - 2 - 4)


@pytest.mark.parametrize('shift', [0.5, 0.0])
def test_the_kernel_distance_over_blocks_is_unbiased_and_knows_its_error(shift):
  """With blocks of unequal sizes; where the two agree the error may be too large by sqrt(2)."""
  got = [blocked_kernel_distance(a, b, polynomial, 25)
         for a, b in draws(shift, 1, 1, 400, (90, 60))]
  values, errors = np.array(got).T
  spread = np.std(values, ddof=1)
  assert np.mean(values) == pytest.approx(polynomial_distance(shift, 1, 1),
                                          abs=4 * spread / 400**0.5)
  assert 0.8 * spread < np.mean(errors**2)**0.5 < (1.2 if shift else 1.7) * spread


def test_of_one_block_it_is_the_kernel_distance():
  a, b = np.random.default_rng(0).normal(size=(2, 30, 4))
  assert blocked_kernel_distance(a, b) == kernel_distance(a, b, polynomial)


def test_a_ratio_of_sums_knows_its_error():
  """Of equal steps it is a mean.  Else its error is the spread of ratios in many repetitions."""
  rng = np.random.default_rng(0)
  a = rng.normal(3.0, 1.0, 20)
  np.testing.assert_allclose(ratio(a, np.full(20, 4.0)), mean(a / 4.0))
  found = []
  for _ in range(2000):
    steps = rng.integers(20, 200, 60)
    found.append(ratio(steps * rng.normal(5.0, 1.0, 60), steps))
  values, errors = np.array(found).T
  assert abs(values.mean() - 5.0) < 4.0 * values.std() / np.sqrt(2000)
  assert abs(errors.mean() / values.std() - 1.0) < 4.0 / np.sqrt(2 * 2000) + 0.02
