"""The density of the bound over log-SNR: its area, its errors, and where it cannot be."""
import numpy as np
import pytest
from scipy import stats

from vdm_jax.likelihood import gaussian
from vdm_jax.likelihood.bounds import BoundSamples
from vdm_jax.likelihood.density import check, density

SHAPE = (3,)
BITS = 3 * np.log(2)  # nats of one bit in each dimension
LOW, HIGH = -5.0, 8.0


def samples(error, images=200, times=64, seed=0, reconstruction=0.0):
  """Draws of 1/2 E|eps - eps_hat|^2 = error(logsnr) nats, a chi-square number each, t uniform."""
  rng = np.random.default_rng(seed)
  t = np.mod(rng.uniform(size=(1, images, 1)) + np.arange(times) / times, 1.0)
  logsnr = HIGH + (LOW - HIGH) * t
  draws = (HIGH - LOW) * error(logsnr) * rng.chisquare(4, logsnr.shape) / 4
  return BoundSamples({'reconstruction': np.full((1, images), reconstruction),
                       'latent': np.zeros((1, images)), 'diffusion': draws.mean(axis=2)},
                      logsnr, draws, 0)


def ones(logsnr):
  return np.exp(-0.5 * (logsnr - 2)**2) * BITS


def test_the_area_is_the_diffusion_term_and_the_running_sum_goes_from_the_data_to_the_total():
  of = samples(ones, reconstruction=0.25 * BITS)
  of.terms.update(dequantisation=np.full((1, 200), -0.75 * BITS),  # terms of some models
                  auxiliary=np.full((1, 200), 0.1 * BITS), latent=np.full((1, 200), 0.05 * BITS))
  found = density(of, SHAPE)
  diffusion = of.terms['diffusion'].mean() / BITS
  assert np.sum(found.mean * np.diff(found.edges)) == pytest.approx(diffusion, rel=1e-6)
  assert found.running[-1] == pytest.approx(-0.4)               # at the data
  assert found.running[0] == pytest.approx(of.total.mean() / BITS, rel=1e-6)
  assert np.all(np.diff(found.running) <= 0) and found.running_error[-1] < 1e-12
  # The error of the whole is that of the term, image by image.
  expected = np.std(of.terms['diffusion'][0], ddof=1) / BITS / 200**0.5
  assert found.running_error[0] == pytest.approx(expected, rel=1e-6)


def test_the_density_is_the_error_of_the_denoiser_at_each_level_within_its_own_error():
  scores = []
  for seed in range(20):
    found = density(samples(ones, seed=seed), SHAPE)
    # Means over the intervals, by the distribution function of the bump.
    area = (2 * np.pi)**0.5 * np.diff(stats.norm.cdf(found.edges - 2)) / np.diff(found.edges)
    inside = area > 0.1
    scores.append(((found.mean - area) / found.error)[inside])
  scores = np.concatenate(scores)
  assert abs(scores.mean()) * scores.size**0.5 < 4
  assert np.mean(scores**2) == pytest.approx(1.0, abs=0.25)


def limit(moments):
  """What the best linear denoiser has, in nats."""
  return lambda logsnr: 0.5 * np.asarray(moments.eps_error(logsnr.ravel())).reshape(logsnr.shape)


MOMENTS = gaussian.Moments(np.zeros(3), np.array([0.5, 0.1, 0.02]), None)


def test_a_linear_denoiser_is_on_its_limit_and_a_better_one_below():
  on, below = (density(samples(lambda u, f=f: f * limit(MOMENTS)(u)), SHAPE, MOMENTS)
               for f in (1.0, 0.7))
  np.testing.assert_allclose(on.mean, on.gaussian, atol=5 * on.error.max())
  assert check(on)['passed'] and check(below)['passed']
  assert not on.above.any() and not below.above.any()


@pytest.mark.parametrize('factor,low,high', [(1.0, 0.0, 2e-3), (1.8, 0.9, 1.0)])
def test_crossings_are_called_as_rarely_as_said_and_not_missed_where_intervals_are_wide(
    factor, low, high):
  """Few draws, and so intervals of 1.6 in log-SNR, over which the error grows fivefold."""
  moments = gaussian.Moments(np.zeros(3), np.array([0.05, 0.01, 0.002]), None)  # exp all the way
  scores, called = [], []
  for seed in range(40):
    found = density(samples(lambda u: factor * limit(moments)(u), images=24, seed=seed), SHAPE,
                    moments)
    assert len(found.mean) == 8
    scores.append((found.mean - factor * found.gaussian) / found.error)
    called.append(found.above)
  scores = np.array(scores)
  # Student's t of 23 degrees of freedom has the variance 23 / 21.
  assert np.all(np.abs(scores.mean(axis=0)) < 4 * (23 / 21 / 40)**0.5)
  assert low <= np.mean(called) <= high


def test_a_crossing_is_found_where_it_is_and_said_to_be():
  worse = lambda u: limit(MOMENTS)(u) * np.where((u > 1) & (u < 3), 1.5, 0.8)
  found = density(samples(worse, images=500), SHAPE, MOMENTS)
  centre = 0.5 * (found.edges[1:] + found.edges[:-1])
  assert found.above.any() and np.all(np.abs(centre[found.above] - 2) < 1.2)
  failed = check(found)
  assert not failed['passed'] and not failed['serious'] and failed['difference'] > 0
  low, high = (float(word.rstrip(':')) for word in failed['meaning'].split() if word[0].isdigit())
  assert 0.5 < low < high < 3.5


def test_of_one_image_nothing_is_called_a_crossing():
  found = density(samples(lambda u: 100 * limit(MOMENTS)(u), images=1), SHAPE, MOMENTS)
  assert not found.above.any() and np.all(found.error == 0)
