"""Precision, recall, density and coverage of sets whose neighbours are known."""
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from vdm_jax.errors import InputError
from vdm_jax.evaluation import density_coverage, manifold, precision_recall


def column(*values):
  return np.array(values, np.float64)[:, None]


def test_points_on_a_line_by_hand():
  data, samples = column(*range(10)), column(0.5, 100, 101)
  # Balls of the data reach 1 far; those of the samples 99.5, 1 and 1.
  assert precision_recall(data, samples, k=1) == pytest.approx((1 / 3, 1.0))
  # 0.5 is in the balls of 0 and of 1.
  assert density_coverage(data, samples, k=1) == pytest.approx((2 / 3, 2 / 10))


def test_copies_of_the_data_are_precise_recalled_and_covering():
  data = np.random.default_rng(0).integers(0, 1000, (60, 5))
  assert precision_recall(data, data[::-1]) == (1.0, 1.0)
  # In the ball of each datum are itself and its k neighbours.
  assert density_coverage(data, data[::-1], k=5) == pytest.approx((6 / 5, 1.0))


def test_sets_far_from_each_other_have_nothing_in_common():
  data = np.random.default_rng(1).normal(size=(40, 3))
  assert precision_recall(data, data + 100) == (0.0, 0.0)
  assert density_coverage(data, data + 100) == (0.0, 0.0)


def test_a_mode_that_is_left_out_costs_recall_and_coverage_only():
  near = np.random.default_rng(2).integers(0, 100, (30, 4))
  data = np.concatenate([near, near + 10_000])
  assert precision_recall(data, near) == (1.0, 0.5)
  found = density_coverage(data, near)
  assert found.coverage == 0.5 and found.density == pytest.approx(6 / 5)


def test_samples_besides_the_data_cost_precision_only():
  data = np.random.default_rng(3).integers(0, 100, (30, 4))
  samples = np.concatenate([data, data + 10_000])
  assert precision_recall(data, samples) == (0.5, 1.0)
  assert density_coverage(data, samples) == pytest.approx((0.5 * 6 / 5, 1.0))


@pytest.mark.parametrize('block', [7, 1024])
def test_blocks_of_distances_give_what_a_search_for_neighbours_gives(block, monkeypatch):
  monkeypatch.setattr(manifold, 'BLOCK', block)
  rng = np.random.default_rng(4)
  data, samples, k = rng.normal(size=(50, 3)), 1.3 * rng.normal(size=(33, 3)) + 0.4, 3

  def radii(x):
    search = NearestNeighbors(n_neighbors=k + 1, algorithm='brute').fit(x)
    return search.kneighbors(x)[0][:, k]

  apart = np.linalg.norm(data[:, None] - samples, axis=-1)
  in_data, in_samples = apart <= radii(data)[:, None], apart <= radii(samples)
  assert precision_recall(data, samples, k) == pytest.approx(
      (in_data.any(axis=0).mean(), in_samples.any(axis=1).mean()))
  assert density_coverage(data, samples, k) == pytest.approx(
      (in_data.sum() / (k * 33), in_data.any(axis=1).mean()))
  assert 0.2 < precision_recall(data, samples, k).precision < 1.0


@pytest.mark.parametrize('n,m', [(40, 40), (30, 60)])
def test_of_one_distribution_density_is_one_and_coverage_known(n, m):
  """Naeem et al. (2020): 1 - (n-1)...(n-k) / ((n+m-1)...(n+m-k)), whatever the distribution."""
  rng, k, repeats = np.random.default_rng(5), 5, 200
  found = np.array([density_coverage(rng.normal(size=(n, 2)), rng.normal(size=(m, 2)), k)
                    for _ in range(repeats)])
  i = np.arange(1, k + 1)
  known = (1.0, 1.0 - np.prod((n - i) / (n + m - i)))
  error = found.std(axis=0, ddof=1) / repeats**0.5
  assert np.all(np.abs(found.mean(axis=0) - known) < 4 * error)


@pytest.mark.parametrize('of', [precision_recall, density_coverage])
def test_more_neighbours_than_there_are_is_refused(of):
  with pytest.raises(InputError, match='k=4: k must be below the number of features, 4'):
    of(np.eye(4), np.eye(4), k=4)
