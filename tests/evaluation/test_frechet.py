"""The Fréchet distance of Gaussians: closed forms, ranks, and the bias of finite samples."""
import numpy as np
import pytest
from scipy import linalg

from vdm_jax.errors import InputError
from vdm_jax.evaluation import features, frechet
from vdm_jax.evaluation.features import Statistics, statistics


def gaussian(mean, covariance):
  return Statistics(10_000, np.asarray(mean, np.float64), np.asarray(covariance, np.float64))


def rotation(dimensions, seed=0):
  return np.linalg.qr(np.random.default_rng(seed).normal(size=(dimensions, dimensions)))[0]


def wishart(dimensions, seed):
  x = np.random.default_rng(seed).normal(size=(3 * dimensions, dimensions))
  return x.T @ x / len(x)


def test_a_shift_adds_its_square():
  c = wishart(6, 0)
  assert frechet.distance(gaussian([0.0] * 6, c), gaussian([1.0, 2.0, 0, 0, 0, -2.0], c)
                          ) == pytest.approx(9.0, rel=1e-12)
  assert frechet.distance(gaussian([0.0] * 6, c), gaussian([0.0] * 6, c)
                          ) == pytest.approx(0.0, abs=1e-12)


def test_gaussians_with_the_same_axes_differ_by_their_deviations():
  q, s, r = rotation(5), np.array([1, 2, 3, 4, 5.0]), np.array([2, 2, 0.5, 1, 0])
  a, b = (gaussian(np.zeros(5), q @ np.diag(u**2) @ q.T) for u in (s, r))
  assert frechet.distance(a, b) == pytest.approx(np.sum((s - r)**2), rel=1e-12)


@pytest.mark.parametrize('angle', [0.0, 0.4, 1.5])
def test_a_rotation_in_the_plane(angle):
  """Of 2 x 2 matrices tr M^(1/2) = sqrt(tr M + 2 sqrt(det M)): Cayley and Hamilton."""
  turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
  c = np.diag([4.0, 0.25])
  known = 2 * 4.25 - 2 * np.sqrt(np.trace(c @ turn @ c @ turn.T) + 2 * 4.0 * 0.25)
  got = frechet.distance(gaussian([0, 0], c), gaussian([0, 0], turn @ c @ turn.T))
  assert got == pytest.approx(known, abs=1e-12)


@pytest.mark.parametrize('dimensions', [2, 50])
def test_of_lines_only_the_angle_between_them_counts(dimensions):
  """Covariances u u^T and v v^T: |u|^2 + |v|^2 - 2 |u . v|, without an epsilon."""
  u, v = np.random.default_rng(1).normal(size=(2, dimensions))
  zero = np.zeros(dimensions)
  got = frechet.distance(gaussian(zero, np.outer(u, u)), gaussian(zero, np.outer(v, v)))
  assert got == pytest.approx(u @ u + v @ v - 2 * abs(u @ v), rel=1e-12)


def test_points_have_no_covariance_and_only_their_distance_counts():
  zero = np.zeros((3, 3))
  assert frechet.distance(gaussian([0, 0, 0], zero), gaussian([1, 2, 2], zero)) == 9.0
  assert frechet.distance(gaussian([0, 0, 0], zero), gaussian([1, 2, 2], np.eye(3))
                          ) == pytest.approx(12.0, rel=1e-12)


def test_the_arithmetic_is_that_of_a_matrix_root():
  a, b = gaussian(np.arange(20), wishart(20, 1)), gaussian(np.zeros(20), 2 * wishart(20, 2))
  root = linalg.sqrtm(a.covariance @ b.covariance)
  known = (np.sum(np.arange(20)**2) + np.trace(a.covariance + b.covariance)
           - 2 * np.trace(root).real)
  assert frechet.distance(a, b) == pytest.approx(known, rel=1e-10)
  assert frechet.distance(b, a) == pytest.approx(known, rel=1e-10)


def test_fewer_samples_than_dimensions_give_a_real_number_and_a_warning():
  """Against N(0, I) tr C^(1/2) is known from the n x n matrix of inner products."""
  x = np.random.default_rng(3).normal(size=(10, 200)).astype(np.float32)
  found = statistics(x)
  centred = (x - x.mean(axis=0, dtype=np.float64)) / 3.0  # of 10 - 1
  deviations = np.sqrt(np.linalg.eigvalsh(centred @ centred.T)[1:])  # the first is 0
  mean = x.mean(axis=0, dtype=np.float64)
  known = mean @ mean + np.sum(deviations**2) + 200 - 2 * np.sum(deviations)
  assert frechet.distance(found, gaussian(np.zeros(200), np.eye(200))
                          ) == pytest.approx(known, rel=1e-10)
  assert frechet.distance(found, found) == pytest.approx(0.0, abs=1e-10)
  text = frechet.warning(200, samples=10, reference=200)
  assert '10 samples for 200 dimensions' in text and 'reference' not in text
  assert frechet.warning(200, samples=200, reference=0) == ''  # 0: not known


# ------------------------------------------------------------ finite samples

D, N, REPEATS = 4, 400, 60


@pytest.fixture(scope='module')
def drawn():
  """Distances of samples of N(0, I) from N(0, I) itself: as they are, extrapolated."""
  rng, truth = np.random.default_rng(4), gaussian(np.zeros(D), np.eye(D))
  sets = rng.normal(size=(REPEATS, N, D))
  return np.array([(frechet.distance(statistics(x), truth), frechet.extrapolated(x, truth))
                   for x in sets]).T


def test_the_bias_of_finite_samples_is_known_to_first_order(drawn):
  """E |mean|^2 = D / N, and 1/4 E |C - 1|^2 = D (D + 1) / (4 (N - 1)) of the covariance."""
  biased, _ = drawn
  error = np.std(biased, ddof=1) / REPEATS**0.5
  assert np.mean(biased) == pytest.approx(D / N + D * (D + 1) / (4 * (N - 1)), abs=4 * error)
  assert np.mean(biased) > 10 * error


def test_the_extrapolation_to_infinitely_many_has_no_bias(drawn):
  biased, extrapolated = drawn
  error = np.std(extrapolated, ddof=1) / REPEATS**0.5
  assert abs(np.mean(extrapolated)) < 4 * error
  assert 4 * error < np.mean(biased)  # or the line above would say nothing


def test_a_distance_that_is_there_stays_when_extrapolated():
  x = np.random.default_rng(5).normal(size=(4000, 2)) * [2.0, 1.0] + [1.0, 0.0]
  truth = gaussian([0, 0], np.eye(2))
  # |m|^2 + (s - 1)^2, of standard errors 2 s / sqrt(n) and 2 (s - 1) s / sqrt(2 n), for s = 2.
  error = (4**2 + 8)**0.5 / 4000**0.5
  assert frechet.extrapolated(x, truth) == pytest.approx(2.0, abs=4 * error)


def test_too_few_samples_are_not_extrapolated():
  x = np.random.default_rng(0).normal(size=(39, 10))
  assert frechet.extrapolated(x, gaussian(np.zeros(10), np.eye(10))) is None


@pytest.mark.parametrize('shift', [0.0, 1.0])
def test_the_jackknife_takes_the_bias_away_and_knows_the_error(shift):
  """Of N(shift, 1) in each dimension, from N(0, I), the distance is D shift^2."""
  rng, truth = np.random.default_rng(6), gaussian(np.zeros(D), np.eye(D))
  values, errors = np.array([frechet.jackknifed(x + shift, truth)
                             for x in rng.normal(size=(REPEATS, N, D))]).T
  spread = np.std(values, ddof=1)
  assert np.mean(values) == pytest.approx(D * shift**2, abs=4 * spread / REPEATS**0.5)
  bias = D / N + D * (D + 1) / (4 * (N - 1))
  if shift:  # |mean|^2 has the standard deviation 2 shift sqrt(D / N), and little is beside it
    assert np.mean(errors) == pytest.approx(2 * shift * (D / N)**0.5, rel=0.1)
    assert spread == pytest.approx(np.mean(errors), rel=4 * (2 * REPEATS)**-0.5)
  else:
    assert 4 * spread / REPEATS**0.5 < bias  # or the first line would say nothing


def test_fewer_samples_than_the_jackknife_has_blocks_are_refused():
  x, truth = np.random.default_rng(7).normal(size=(20, 2)), gaussian(np.zeros(2), np.eye(2))
  with pytest.raises(InputError, match='^samples: 19 examples are too few for the 20 blocks of the '
                     'jackknife; take at least 20, better thousands.$'):
    frechet.jackknifed(x[:19], truth)
  assert frechet.jackknifed(x, truth)[1] > 0.0


# --------------------------------------------------------------- statistics


def test_statistics_are_those_of_numpy_and_merge():
  x = np.random.default_rng(6).normal(size=(50, 3)).astype(np.float32) + 100
  whole = statistics(x)
  parts = [statistics(x[i:j]) for i, j in ((0, 1), (1, 30), (30, 50))]
  merged = features.merge(features.merge(*parts[:2]), parts[2])
  for found in (whole, merged):
    assert found.count == 50
    np.testing.assert_allclose(found.mean, x.astype(np.float64).mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, np.cov(x.astype(np.float64), rowvar=False),
                               rtol=1e-10, atol=1e-12)


def test_a_summary_has_the_moments_of_all_and_the_features_of_some():
  x = np.random.default_rng(7).normal(size=(23, 3)).astype(np.float32)
  found = features.summarise((x[i:i + 5] for i in range(0, 23, 5)), 23, keep=9)
  np.testing.assert_allclose(found.statistics.covariance, statistics(x).covariance, rtol=1e-10)
  assert found.features.dtype == np.float32 and len(np.unique(found.features, axis=0)) == 9
  assert set(map(tuple, found.features)) < set(map(tuple, x))
  np.testing.assert_array_equal(found.features, x[features.some(23, 9)])
  again = features.summarise((x[i:i + 4] for i in range(0, 23, 4)), 23, keep=9)
  np.testing.assert_array_equal(again.statistics.covariance, found.statistics.covariance)
  every = features.summarise([x], 23, keep=100).features
  np.testing.assert_array_equal(np.sort(every, axis=0), np.sort(x, axis=0))
