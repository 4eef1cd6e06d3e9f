"""Scores of forecasts against recordings of public code, and against closed forms."""
import math

import numpy as np
import pytest
from scipy.special import ndtri

from tests.support.recordings import shared
from vdm_jax.errors import InputError
from vdm_jax.evaluation import forecasts


def test_scores_equal_gluonts_numbers():
  data = shared('forecast_scores')
  found = forecasts.scores(data['target'], data['samples'])
  ours = {'mean_wQuantileLoss': found.crps.value, 'm_sum_mean_wQuantileLoss': found.crps_sum.value,
          'ND': found.nd, 'NRMSE': found.nrmse,
          **{f'{name}_mean_wQuantileLoss': one.value for name, one in found.series.items()}}
  for name, value in ours.items():
    np.testing.assert_allclose(value, data[f'gluonts/{name}'], rtol=1e-12, err_msg=name)
  np.testing.assert_allclose(forecasts.LEVELS, data['quantiles'], rtol=1e-12)


def test_crps_and_energy_score_equal_those_of_public_packages():
  data = shared('forecast_scores')
  target, samples = data['target'], data['samples']
  np.testing.assert_allclose(forecasts.crps(target, samples), data['crps_ensemble'], atol=1e-12)
  np.testing.assert_allclose(forecasts.crps(target.sum(-1), samples.sum(-1)),
                             data['crps_ensemble_sum'], atol=1e-12)
  np.testing.assert_allclose(forecasts.energy_score(target, samples).ravel(), data['energy_score'],
                             atol=1e-12)
  np.testing.assert_allclose(
      forecasts.crps_of_normal(target, data['gauss/mean'], data['gauss/std']),
      data['crps_gaussian'], atol=1e-12)


@pytest.mark.parametrize('std,expected', [(0.5, 0.609967), (1.0, 0.564190), (2.0, 0.655745)])
def test_the_mean_crps_of_a_normal_forecast_is_its_closed_form(std, expected):
  """sqrt(2 (1 + s^2) / pi) - s / sqrt(pi), for N(0, s^2) where the truth is N(0, 1)."""
  y, weights = np.polynomial.hermite_e.hermegauss(200)
  mean = weights @ forecasts.crps_of_normal(y, 0.0, std) / weights.sum()
  np.testing.assert_allclose(mean, expected, atol=1e-4)


def test_perfect_forecasts_of_an_ar1_have_the_crps_of_its_closed_form():
  """phi = 0.8, sigma = 1: std / sqrt(pi), times 1 + 1 / S for S samples."""
  rng, n, count, horizon = np.random.default_rng(0), 4000, 20, 24
  def paths(shape):
    x, out = np.zeros(shape), []
    for _ in range(horizon):
      x = 0.8 * x + rng.standard_normal(shape)
      out.append(x)
    return np.stack(out, axis=-1)
  found = forecasts.crps(paths((n,)), paths((n, count)))
  for step, std, ideal in ((1, 1.0, 0.56419), (2, 1.280625, 0.722515), (4, 1.520442, 0.857818),
                           (8, 1.643043, 0.926988), (24, 1.666648, 0.940305)):
    each = found[:, step - 1]
    expected = ideal * (1.0 + 1.0 / count)
    np.testing.assert_allclose(ideal, std / math.sqrt(math.pi), atol=2e-6)
    assert abs(each.mean() - expected) < 4.0 * each.std() / math.sqrt(n), step


def test_the_quantile_loss_of_a_perfect_normal_forecast_is_more_than_its_crps():
  """The mean over 19 levels is 1.04826 times the integral over all levels."""
  grid = ndtri((np.arange(4001) + 0.5) / 4001)
  target, samples = grid[:, None], np.broadcast_to(grid[None, :, None], (4001, 4001, 1))
  loss = forecasts.weighted_quantile_loss(target, samples) * np.abs(target).mean()
  np.testing.assert_allclose(loss / (1.0 / math.sqrt(math.pi)), 1.04826, rtol=1e-3)


def test_samples_of_the_truth_cover_what_order_statistics_say():
  rng = np.random.default_rng(1)
  target, samples = rng.standard_normal((4000, 1, 1)), rng.standard_normal((4000, 100, 1, 1))
  for central, expected in ((0.5, 49 / 101), (0.9, 89 / 101)):
    found = forecasts.coverage(target, samples, central)
    assert abs(found.value - expected) < 4.0 * found.error


def test_weights_make_series_of_different_units_count_alike():
  rng = np.random.default_rng(2)
  target, samples = 1.0 + rng.random((3, 4, 2)), 1.0 + rng.random((3, 9, 4, 2))
  units = np.array([1.0, 1e4])
  one, other = (forecasts.scores(*pair) for pair in (
      (target, samples), (target * units, samples * units)))
  again = forecasts.scores(target * units, samples * units, weights=1.0 / units)
  np.testing.assert_allclose([again.crps.value, again.crps_sum.value],
                             [one.crps.value, one.crps_sum.value], rtol=1e-12)
  assert abs(other.crps.value - one.crps.value) > 1e-4


@pytest.mark.parametrize('target,samples,problem', [
    (np.ones((2, 3, 1)), np.ones((2, 5, 4, 1)), 'the targets are'),
    (np.full((2, 3, 1), np.nan), np.ones((2, 5, 3, 1)), 'not finite'),
    (np.zeros((2, 3, 1)), np.ones((2, 5, 3, 1)), 'all targets are 0'),
])
def test_arrays_that_cannot_be_scored_are_refused(target, samples, problem):
  with pytest.raises(InputError, match=problem):
    forecasts.scores(target, samples)
