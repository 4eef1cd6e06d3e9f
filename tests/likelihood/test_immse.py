"""The Gaussian of the data's moments, the I-MMSE estimate against it, and the closed end terms."""
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from tests.support.images import Split
from vdm_jax import oracles, schedules
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.likelihood import closed_forms, gaussian, immse
from vdm_jax.likelihood.bounds import at_times
from vdm_jax.processes import GaussianProcess, flow, vp
from vdm_jax.typing import Model

HIGH, LOW = 6.0, -4.0
MEAN = np.array([0.2, -0.1, 0.4])
COVARIANCE = np.array([[0.3, 0.1, 0.0], [0.1, 0.2, -0.05], [0.0, -0.05, 0.1]])
SIGNS = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 3), -1).reshape(8, 3)  # mean 0, covariance 1


def moments(mean=MEAN, covariance=COVARIANCE):
  values, vectors = np.linalg.eigh(covariance)
  return gaussian.Moments(*map(jnp.asarray, (mean, values, vectors)))


def model_of(denoise, shape, high=HIGH, low=LOW, curve=vp, levels=0):
  """With levels = 0 the data are continuous and the decoder is left out."""
  pixels, identity = Pixels(levels), lambda x: x
  return Model(denoise=denoise, process=GaussianProcess(schedules.Linear(high, low), curve),
               decoder=pixels.log_prob if levels else lambda data, z, level: jnp.zeros(len(z)),
               encode=pixels.encode if levels else identity, decode=pixels.decode,
               cond=lambda batch: None, shape=shape)


def keys(n):
  return jax.random.split(jax.random.key(0), n)


def run(estimator, model, images):
  """Float64 results of `estimator` on images."""
  found = jax.jit(lambda x, keys: estimator(model, {'image': x}, keys))(images, keys(len(images)))
  return {name: np.asarray(u, float) for name, u in found.items()}


# ------------------------------------------------------------ the Gaussian


def test_the_moments_of_a_split_are_those_of_all_its_encoded_images(monkeypatch):
  images = np.random.default_rng(0).integers(0, 9, (50, 2, 3, 1)).astype(np.uint8)
  pixels, x = Pixels(9), (2.0 * images.reshape(50, 6) + 1) / 9 - 1
  found = gaussian.fit(Split(images), pixels.encode, 9, batch_size=16)
  np.testing.assert_allclose(found.mean, x.mean(axis=0), atol=1e-7)
  restored = found.eigenvectors * found.eigenvalues @ found.eigenvectors.T
  np.testing.assert_allclose(restored, np.cov(x.T, bias=True), atol=1e-7)
  first = gaussian.fit(Split(images), pixels.encode, 9, limit=20, batch_size=16)
  np.testing.assert_allclose(first.mean, x[:20].mean(axis=0), atol=1e-7)
  monkeypatch.setattr(gaussian, 'FULL', 5)
  diagonal = gaussian.fit(Split(images), pixels.encode, 9, batch_size=16)
  assert diagonal.eigenvectors is None
  np.testing.assert_allclose(diagonal.eigenvalues, x.var(axis=0), atol=1e-7)
  # What the pixels say of each other is lost, and the error it bounds is larger.
  assert float(diagonal.eps_error(2.0)) > float(found.eps_error(2.0))


@pytest.mark.parametrize('full', [4096, 1])
def test_a_pixel_that_never_varied_counts_six_nats_for_each_level_squared(x64, monkeypatch, full):
  """Of variance 0 it has that of uniform noise in its bin, c^2 / 2 over it without other noise."""
  monkeypatch.setattr(gaussian, 'FULL', full)
  images = np.array([[7, 0], [7, 40], [7, 90]], np.uint8)
  found = gaussian.fit(Split(images), Pixels(100).encode, 100)
  np.testing.assert_allclose(min(found.eigenvalues),
                             stats.uniform(-1 / 100, 2 / 100).var(), rtol=1e-9)
  x = Pixels(100).encode(np.array([[7, 40], [8, 40], [17, 40]]))
  nats = found.divergence(x, 40.0)
  np.testing.assert_allclose(nats[1:] - nats[0], [6.0, 600.0], rtol=1e-5)


@pytest.mark.parametrize('curve', [vp, flow])
def test_it_is_the_oracle_of_its_covariance(x64, curve):
  """Conditional mean, marginal density and divergence, with matrices."""
  level = GaussianProcess(schedules.Linear(HIGH, LOW), curve)(jnp.array([0.1, 0.6]))
  z, x = np.random.default_rng(1).normal(size=(2, 2, 3))
  found, log_prob, divergence = jax.jit(lambda: (
      moments()(z, level), moments().log_prob(z, level),
      moments().divergence(x, level.logsnr)))()
  for i in range(2):
    a, s = float(level.alpha[i]), float(level.sigma[i])
    variance = a * a * COVARIANCE + s * s * np.eye(3)
    x_hat = MEAN + a * COVARIANCE @ np.linalg.solve(variance, z[i] - a * MEAN)
    np.testing.assert_allclose(found.x[i], x_hat, rtol=1e-9)
    np.testing.assert_allclose(found.eps[i], (z[i] - a * x_hat) / s, rtol=1e-7)
    np.testing.assert_allclose(log_prob[i], stats.multivariate_normal.logpdf(z[i], a * MEAN,
                                                                             variance), rtol=1e-9)
    gap, inverse = a * (x[i] - MEAN), np.linalg.inv(variance)
    expected = 0.5 * (np.trace(inverse) * s * s + gap @ inverse @ gap - 3
                      + np.log(np.linalg.det(variance) / s**6))
    np.testing.assert_allclose(divergence[i], expected, rtol=1e-9)


def test_its_errors_are_those_of_its_estimates(x64):
  """For one x half of it is the slope of the divergence; on average it has a closed form.

  They are quadratic in eps and in x, so that signs average them.
  """
  data = MEAN + SIGNS @ np.linalg.cholesky(COVARIANCE).T  # with just these moments

  @jax.jit
  def errors():
    level = GaussianProcess(schedules.Linear(HIGH, LOW))(jnp.array(0.4))
    z = level.alpha * data[:, None] + level.sigma * SIGNS
    wrong = SIGNS - moments()(z.reshape(64, 3), level).eps.reshape(8, 8, 3)
    _, slope = jax.jvp(lambda logsnr: moments().divergence(jnp.asarray(data), logsnr),
                       (level.logsnr,), (jnp.ones(()),))
    return jnp.square(wrong).sum(axis=-1), slope, moments().eps_error(level.logsnr)

  error, slope, of_all = errors()
  np.testing.assert_allclose(2.0 * slope, error.mean(axis=1), rtol=1e-9)
  np.testing.assert_allclose(of_all, error.mean(), rtol=1e-9)


def test_its_error_between_two_levels_is_the_mean_of_those_there(x64):
  low, high = np.array([-20.0, -1.0, 3.0, 3.0]), np.array([-15.0, 1.5, 3.001, 60.0])
  with_a_zero = gaussian.Moments(jnp.zeros(3), jnp.array([0.0, 0.2, 5.0]), None)
  got = with_a_zero.eps_error_between(low, high)
  at = lambda u: float(np.sum(np.exp(u) * np.array([0.0, 0.2, 5.0])
                              / (1 + np.exp(u) * np.array([0.0, 0.2, 5.0]))))
  expected = [integrate.quad(at, a, b, limit=200)[0] / (b - a)
              for a, b in zip(low, high, strict=True)]
  np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_its_error_bounds_that_of_the_optimal_denoiser_and_meets_it_in_the_noise(x64):
  """Two points, +-1/2: E|eps - eps_hat|^2 = snr (1/4 - E x_hat^2) by quadrature over z."""
  logsnr = np.linspace(-6.0, 6.0, 13)
  def optimal(logsnr):
    snr = np.exp(logsnr)
    # Of the noise 1 and the signal +-sqrt(snr) / 2 the estimate is tanh(sqrt(snr) z / 2) / 2.
    at = lambda eps: stats.norm.pdf(eps) * np.tanh(0.5 * snr**0.5 * (0.5 * snr**0.5 + eps))**2
    return snr * 0.25 * (1 - integrate.quad(at, -10, 10)[0])
  mmse = np.array([optimal(u) for u in logsnr])
  bound = gaussian.Moments(jnp.zeros(1), jnp.array([0.25]), None).eps_error(jnp.asarray(logsnr))
  assert np.all(mmse < bound)
  np.testing.assert_allclose(mmse[0], bound[0], rtol=1e-3)
  assert mmse[-1] < 0.01 * bound[-1]


# ------------------------------------------------------------------ I-MMSE


def test_the_information_in_an_error_gives_the_density_of_a_gaussian(x64):
  """-log p(x) = d/2 log 2 pi e - 1/2 int (d / (1 + g) - E|x - x_hat(sqrt(g) x + eps)|^2) dg.

  Kong, Brekelmans and Ver Steeg (2023), for one x; the estimates are the library's.
  """
  x = np.array([0.5, 0.3, 0.1])
  def integrand(logsnr):
    snr = jnp.exp(logsnr)
    alpha, sigma = vp(logsnr)
    level = GaussianProcess(lambda t: logsnr + 0.0 * t)(jnp.array(0.5))
    error = jnp.sum(jnp.square(moments()(alpha * x + sigma * SIGNS, level).x - x), axis=-1)
    return snr * (3 / (1 + snr) - jnp.mean(error))
  logsnr, h = np.linspace(-30.0, 40.0, 2001, retstep=True)
  integral = h * np.sum(jax.jit(lambda u: jax.lax.map(integrand, u))(logsnr))
  expected = -stats.multivariate_normal.logpdf(x, MEAN, COVARIANCE)
  np.testing.assert_allclose(1.5 * np.log(2 * np.pi * np.e) - 0.5 * integral, expected, rtol=1e-7)


def test_of_a_gaussian_against_itself_nothing_is_drawn():
  """The integral vanishes for every draw; what is left is the divergence q(z_0 | x) from p_0,
  and the gap at t = 1."""
  x = np.random.default_rng(2).normal(size=(5, 3)).astype(np.float32) * 0.5
  own = moments()
  found = run(immse.estimator(own, 4), model_of(own, (3,)), x)
  np.testing.assert_array_equal(found['difference'], 0.0)
  np.testing.assert_array_equal(found['evaluations'], 4)

  def divergence(x, logsnr, mean, covariance):
    """KL(q(z_t | x) || N(alpha mean, alpha^2 covariance + sigma^2)) in matrices."""
    a2, s2 = 1 / (1 + np.exp(-logsnr)), 1 / (1 + np.exp(logsnr))
    variance = a2 * covariance + s2 * np.eye(3)
    inverse, gap = np.linalg.inv(variance), x - mean
    return 0.5 * (np.trace(inverse) * s2 + a2 * gap @ inverse @ gap - 3
                  + np.log(np.linalg.det(variance) / s2**3))

  expected = [divergence(u, HIGH, MEAN, COVARIANCE) - divergence(u, LOW, MEAN, COVARIANCE)
              + divergence(u, LOW, np.zeros(3), np.eye(3)) for u in x.astype(float)]
  np.testing.assert_allclose(found['nats'], expected, rtol=2e-6)


MIXTURE = oracles.Mixture(np.array([0.4, 0.6], np.float32), np.array([[-0.6], [0.3]], np.float32),
                          np.array([0.25, 0.2], np.float32))
OF_MIXTURE = gaussian.Moments(  # its mean and variance
    np.array([-0.06]), np.array([0.4 * (0.36 + 0.0625) + 0.6 * (0.09 + 0.04) - 0.06**2]), None)


def nats_of_mixture(x):
  """KL(q(z_0 | x) || p_0) + the gap at t = 1, from the densities: no error of any denoiser."""
  def divergence(logsnr, weights, means, variances):
    a, s2 = (1 + np.exp(-logsnr))**-0.5, 1 / (1 + np.exp(logsnr))
    z, h = np.linspace(a * x - 9 * s2**0.5, a * x + 9 * s2**0.5, 2001, retstep=True)
    q = stats.norm.pdf(z, a * x, s2**0.5)
    p = sum(w * stats.norm.pdf(z, a * m, (a * a * v + s2)**0.5)
            for w, m, v in zip(weights, means, variances, strict=True))
    return h * np.sum(q * np.log(q / p))
  own = [0.4, 0.6], [-0.6, 0.3], [0.0625, 0.04]
  return divergence(HIGH, *own) - divergence(LOW, *own) + divergence(LOW, [1.0], [0.0], [1.0])


def test_of_a_mixture_it_has_the_expectation_of_the_bound_and_less_variance():
  """Both against the divergence of the densities, from the same draws."""
  copies, values = 3000, np.array([-0.7, 0.0, 0.4])
  images = np.repeat(values, copies)[:, None].astype(np.float32)
  model = model_of(MIXTURE, (1,))
  expected = np.array([nats_of_mixture(x) for x in values])
  variances = []
  for estimator in (at_times(0, 4), immse.estimator(OF_MIXTURE, 4)):
    got = run(estimator, model, images)['nats'].reshape(3, copies)
    error = got.std(axis=1, ddof=1) / copies**0.5
    np.testing.assert_array_less(np.abs(got.mean(axis=1) - expected), 4 * error)
    variances.append(got.var(axis=1).mean())
  assert variances[1] < 0.5 * variances[0]


def test_a_model_with_a_bound_of_its_own_is_refused():
  model = model_of(MIXTURE, (1,))._replace(bound=lambda *args: None)
  with pytest.raises(InputError, match='I-MMSE: this model has a bound of its own'):
    immse.estimator(OF_MIXTURE, 2)(model, {'image': np.zeros((1, 1))}, keys(1))


# --------------------------------------------------------- closed end terms


def test_the_closed_end_terms_of_cifar10_are_the_known_ones():
  counts = np.loadtxt(Path(__file__).parents[1] / 'data' / 'cifar10_test_levels.txt').ravel()
  share, bit = counts / counts.sum(), np.log(2.0)
  known = {13.3: 0.010390, 8.0: 3.251857}
  got = [closed_forms.reconstruction(256, high)[0] @ share / bit for high in known]
  np.testing.assert_allclose(got, list(known.values()), atol=6e-7)
  x = ((2 * np.arange(256) + 1) / 256 - 1)[:, None]
  for low, expected in ((-5.0, 0.0012360), (-4.0, 0.0033961), (-6.0, 0.0004528)):
    np.testing.assert_allclose(closed_forms.latent(x, low) @ share / bit, expected, atol=6e-8)


def test_the_measured_end_terms_of_each_image_are_the_closed_ones():
  """The reconstruction within its error; the latent term is not drawn."""
  copies, levels = 1000, 5
  images = np.array([[0, 0, 1], [4, 2, 2]], np.uint8)
  model = model_of(oracles.Gaussian(0.0, 0.5), (3,), 3.0, -2.0, levels=levels)
  found = run(at_times(0, 2), model, np.repeat(images, copies, axis=0))
  table, variance = closed_forms.reconstruction(levels, 3.0)
  closed = closed_forms.end_terms(images, table, -2.0)
  got = found['reconstruction'].reshape(2, copies)
  error = got.std(axis=1, ddof=1) / copies**0.5
  np.testing.assert_allclose(2 * copies * error**2, variance[images].sum(axis=1), rtol=0.25)
  np.testing.assert_array_less(np.abs(got.mean(axis=1) - closed['reconstruction']), 4 * error)
  np.testing.assert_array_less(8 * error, np.ptp(closed['reconstruction']) + 0 * error)
  np.testing.assert_allclose(found['latent'].reshape(2, copies)[:, 0], closed['latent'], rtol=1e-5)
