"""Weightings, against the losses of their papers written in those papers' own terms."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import oracles, predictions, weightings
from vdm_jax.objectives import edm, times, weighted_diffusion
from vdm_jax.processes import GaussianProcess, diffuse, flow, sub_vp, ve, vp
from vdm_jax.schedules import Cosine, Linear
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')


def crude(z, level, cond=None):
  """A denoiser that is wrong by much: x_hat = tanh(z)."""
  level, x = level.expand(z), jnp.tanh(z)
  return Estimate(x, (z - level.alpha * x) / level.sigma)


def evaluate(weight, process, n=6):
  """(loss [n], level, x, eps, estimate) at n times for a random x of three dimensions."""
  t = jnp.linspace(0.05, 0.95, n)
  x, eps = jax.random.normal(jax.random.key(0), (2, n, 3))
  loss, _ = weighted_diffusion(crude, process, x, t, None, weight=weight, eps=eps)
  level = process(t)
  return loss, level, x, eps, crude(diffuse(x, eps, level), level)


PROCESSES = [GaussianProcess(Linear(6.0, -4.0), vp), GaussianProcess(Cosine(6.0, -4.0), flow)]


@pytest.mark.parametrize('process', PROCESSES, ids=['linear vp', 'cosine flow'])
def test_simple_is_the_plain_squared_error_of_eps(process):
  loss, _, _, eps, estimate = evaluate(weightings.simple, process)
  np.testing.assert_allclose(loss, np.sum((eps - estimate.eps)**2, axis=1), rtol=1e-10)


@pytest.mark.parametrize('process', PROCESSES, ids=['linear vp', 'cosine flow'])
def test_min_snr_is_a_squared_error_of_x_with_the_ratio_clipped(process):
  """Hang et al. (2023): min(SNR, 5) |x - x_hat|^2; some of the times lie on either side of 5."""
  loss, level, x, _, estimate = evaluate(weightings.min_snr(5.0), process)
  snr = np.asarray((level.alpha / level.sigma)**2)
  assert snr.min() < 5.0 < snr.max()
  np.testing.assert_allclose(loss, np.minimum(snr, 5.0) * np.sum((x - estimate.x)**2, axis=1),
                             rtol=1e-9)


def test_the_bound_weighs_the_squared_error_of_x_by_the_loss_of_signal_to_noise_ratio():
  """Kingma et al. (2021), eq. 16: -1/2 SNR'(t) |x - x_hat|^2, SNR' by finite differences."""
  process, h = PROCESSES[1], 1e-5
  loss, level, x, _, estimate = evaluate(weightings.vlb, process)
  snr = lambda t: np.exp(np.asarray(process(t).logsnr))
  slope = (snr(level.t + h) - snr(level.t - h)) / (2 * h)
  np.testing.assert_allclose(loss, -0.5 * slope * np.sum((x - estimate.x)**2, axis=1), rtol=1e-6)


def test_sigmoid_is_the_variance_of_the_noise_of_vp_shifted_by_its_bias():
  logsnr = jnp.linspace(-20.0, 20.0, 9)
  level = PROCESSES[0](jnp.zeros(9))._replace(logsnr=logsnr)
  np.testing.assert_allclose(weightings.sigmoid(0.0)(level), vp(logsnr)[1]**2, rtol=1e-9)
  np.testing.assert_allclose(weightings.sigmoid(-2.0)(level), vp(logsnr + 2.0)[1]**2, rtol=1e-9)


@pytest.mark.parametrize('data_std', [0.5, 2.0])
def test_edm_is_the_loss_of_karras_et_al_for_their_optimal_denoiser(data_std):
  """E over ln s ~ N(-1.2, 1.2^2) of (s^2 + 0.25) / (0.5 s)^2 |D - x|^2 = 1 for data of std 0.5.

  D - x has variance data_std^2 s^2 / (data_std^2 + s^2); for another data_std by Gauss-Hermite.
  """
  nodes, weights = np.polynomial.hermite_e.hermegauss(60)
  s = np.exp(-1.2 + 1.2 * nodes)
  error = data_std**2 * s**2 / (data_std**2 + s**2)
  expected = np.sum(weights * (s**2 + 0.25) / (0.5 * s)**2 * error) / np.sqrt(2 * np.pi)
  if data_std == 0.5:
    np.testing.assert_allclose(expected, 1.0)
  # Both errors are linear in x and eps, so the four points (+-std, +-1) average them exactly.
  n = 2000
  t = jnp.tile((jnp.arange(n) + 0.5) / n, 4)
  x = jnp.repeat(jnp.array([data_std, data_std, -data_std, -data_std]), n)[:, None]
  eps = jnp.repeat(jnp.array([1.0, -1.0, 1.0, -1.0]), n)[:, None]
  process = GaussianProcess(Linear(20.0, -16.0), flow)
  loss, _ = weighted_diffusion(oracles.Gaussian(0.0, data_std), process, x, t, None,
                               weight=weightings.edm(), eps=eps)
  np.testing.assert_allclose(jnp.mean(loss), expected, rtol=1e-6)


# ------------------------------------- one error, told in terms of any target


CURVES = [vp, ve, flow, sub_vp]


def squared(target, level, x, eps, estimate):
  """|y - y_hat|^2 [n] of a target."""
  a, b = target(level.expand(x))
  return np.sum((a * (x - estimate.x) + b * (eps - estimate.eps))**2, axis=1)


@pytest.mark.parametrize('curve', CURVES)
def test_the_error_of_eps_is_that_of_x_times_snr_on_every_curve_and_of_v_times_snr_plus_one_on_vp(
    curve):
  _, level, x, eps, estimate = evaluate(weightings.vlb, GaussianProcess(Cosine(6.0, -4.0), curve))
  snr = np.asarray((level.alpha / level.sigma)**2)
  of_x = squared(predictions.x, level, x, eps, estimate)
  np.testing.assert_allclose(squared(predictions.eps, level, x, eps, estimate), snr * of_x,
                             rtol=1e-9)
  of_v = squared(predictions.v, level, x, eps, estimate)
  if curve is vp:
    np.testing.assert_allclose(of_v, (snr + 1.0) * of_x, rtol=1e-9)
  else:
    assert np.abs(of_v / ((snr + 1.0) * of_x) - 1.0).max() > 0.1


@pytest.mark.parametrize('curve', CURVES)
@pytest.mark.parametrize('target', [predictions.x, predictions.eps, predictions.v,
                                    predictions.score, predictions.flow, predictions.edm()],
                         ids=['x', 'eps', 'v', 'score', 'flow', 'edm'])
def test_the_bound_in_terms_of_any_target_is_the_bound(target, curve):
  """1/2 (-dlogsnr/dt) sigma^2 alpha^2 / det^2 |y - y_hat|^2 / alpha^2, det = alpha b - sigma a.

  As y - y_hat = (a - b alpha / sigma) (x - x_hat) = -det / sigma (x - x_hat).
  """
  loss, level, x, eps, estimate = evaluate(weightings.vlb,
                                           GaussianProcess(Cosine(6.0, -4.0), curve))
  a, b = target(level)
  share = (level.alpha / (level.alpha * b - level.sigma * a))**2
  np.testing.assert_allclose(
      loss, -0.5 * level.dlogsnr * share * squared(target, level, x, eps, estimate), rtol=1e-9)


@pytest.mark.parametrize('curve', CURVES)
def test_the_three_weightings_of_salimans_and_ho_are_those_of_the_error_of_x(curve):
  """max of both errors is at each level the one or the other: some of the times on either side."""
  process = GaussianProcess(Linear(6.0, -4.0), curve)
  of = lambda weight: evaluate(weight, process)
  loss, level, x, eps, estimate = of(weightings.truncated_snr)
  of_x, of_eps = (squared(u, level, x, eps, estimate) for u in (predictions.x, predictions.eps))
  assert (of_x > of_eps).any() and (of_eps > of_x).any()
  np.testing.assert_allclose(loss, np.maximum(of_x, of_eps), rtol=1e-9)
  np.testing.assert_allclose(of(weightings.snr_plus_one)[0], of_x + of_eps, rtol=1e-9)
  np.testing.assert_allclose(of(weightings.simple)[0], of_eps, rtol=1e-9)
  if curve is vp:
    np.testing.assert_allclose(of(weightings.snr_plus_one)[0],
                               squared(predictions.v, level, x, eps, estimate), rtol=1e-9)


def test_p2_divides_the_error_of_eps_by_a_power_of_k_plus_snr():
  """With k = gamma = 1 on vp the loss is sigma^2 |eps - eps_hat|^2 = alpha^2 |x - x_hat|^2."""
  process = PROCESSES[0]
  loss, level, x, eps, estimate = evaluate(weightings.p2(), process)
  np.testing.assert_allclose(
      loss, level.alpha**2 * np.sum((x - estimate.x)**2, axis=1), rtol=1e-9)
  half, *_ = evaluate(weightings.p2(0.5, 1.0), process)
  plain, *_ = evaluate(weightings.simple, process)
  np.testing.assert_allclose(half, np.sqrt(loss * plain), rtol=1e-9)
  # At high noise it is L_simple over k^gamma.
  quiet = process(jnp.array(0.5))._replace(logsnr=jnp.array(-40.0))
  np.testing.assert_allclose(weightings.p2(2.0, 3.0)(quiet), weightings.simple(quiet) / 9.0,
                             rtol=1e-9)


# ------------------------------------------------- edm, and its own times


def test_log_normal_times_are_those_of_sigma_over_alpha():
  """Even u give the quantiles of ln s ~ N(-1.2, 1.2^2): erf inverted by scipy."""
  process = GaussianProcess(Cosine(20.0, -16.0), flow)
  u = jnp.linspace(0.01, 0.99, 9)
  level = jax.jit(lambda: process(times.by_mass(process, times.log_normal())(u)[0]))()
  np.testing.assert_allclose(np.log(level.sigma / level.alpha), stats.norm(-1.2, 1.2).ppf(u),
                             atol=1e-4)


@pytest.mark.parametrize('mean,std,sigma_data', [(-1.2, 1.2, 0.5), (-0.4, 0.9, 0.7)])
def test_edm_at_its_own_noise_levels_is_the_plain_squared_error_of_f(mean, std, sigma_data):
  """lambda c_out^2 = 1; times the probability of the levels that the process has."""
  process = GaussianProcess(Linear(6.0, -4.0), flow)
  n = 7
  x, eps = jax.random.normal(jax.random.key(0), (2, n, 3))
  u = (jnp.arange(n) + 0.5) / n
  loss, t = jax.jit(lambda: (
      edm.objective(crude, process, x, u, None, mean=mean, std=std, sigma_data=sigma_data,
                    eps=eps)[0], times.by_mass(process, times.log_normal(mean, std))(u)[0]))()
  share = np.diff(stats.norm(-2.0 * mean, 2.0 * std).cdf([-4.0, 6.0]))[0]
  level = process(t)
  error = squared(predictions.edm(sigma_data), level, x, eps,
                  crude(diffuse(x, eps, level), level))
  np.testing.assert_allclose(loss, share * error, rtol=1e-9)


def test_edm_at_its_own_noise_levels_is_its_weighting_at_uniform_times_in_expectation():
  """And the bound that it reports is the bound: both integrals from the same errors."""
  process, std, n = GaussianProcess(Cosine(6.0, -4.0), vp), 0.5, 2000
  u = jnp.tile((jnp.arange(n) + 0.5) / n, 4)
  x = jnp.repeat(jnp.array([std, std, -std, -std]), n)[:, None]
  eps = jnp.repeat(jnp.array([1.0, -1.0, 1.0, -1.0]), n)[:, None]

  @jax.jit
  def means():
    wrong = oracles.Gaussian(0.1, 0.8)
    even = lambda weight: weighted_diffusion(wrong, process, x, u, None, weight=weight, eps=eps)[0]
    drawn, terms = edm.objective(wrong, process, x, u, None, eps=eps)
    return (jnp.mean(drawn), jnp.mean(even(weightings.edm())),
            jnp.mean(terms['diffusion']), jnp.mean(even(weightings.vlb)))

  drawn, even, bound, expected = means()
  np.testing.assert_allclose(drawn, even, rtol=1e-5)
  np.testing.assert_allclose(bound, expected, rtol=1e-5)
