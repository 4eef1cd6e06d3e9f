"""Weightings, against the losses of their papers written in those papers' own terms."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, weightings
from vdm_jax.objectives import weighted_diffusion
from vdm_jax.processes import GaussianProcess, diffuse, flow, vp
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
