"""The judges themselves, against numerical integration and Tweedie's formula."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, schedules
from vdm_jax.processes import GaussianProcess, diffuse, flow, from_alpha_sigma, ve, vp

pytestmark = pytest.mark.usefixtures('x64')

WEIGHTS, MEANS, STDS = [0.2, 0.5, 0.3], [-1.0, 0.4, 1.5], [0.3, 0.1, 0.6]


def gaussian(shape=(1,)):
  del shape  # any
  return oracles.Gaussian(0.7, 0.4)


def mixture(shape=(1,)):
  scale = jnp.linspace(1.0, 2.0, int(np.prod(shape))).reshape(shape)
  return oracles.Mixture(jnp.array(WEIGHTS), jnp.multiply.outer(jnp.array(MEANS), scale),
                         jnp.array(STDS))


def empirical(shape=(1,)):
  return oracles.Empirical(jax.random.normal(jax.random.key(0), (5, *shape)))


def density(mean, std):
  return lambda x: np.exp(-0.5 * ((x - mean) / std)**2) / (std * np.sqrt(2 * np.pi))


def rectified_flow(t):
  return from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)(t)


@pytest.mark.first(1)
@pytest.mark.parametrize('oracle,prior', [
    (gaussian, density(0.7, 0.4)),
    (mixture, lambda x: sum(w * density(m, s)(x)
                            for w, m, s in zip(WEIGHTS, MEANS, STDS, strict=True))),
], ids=['gaussian', 'mixture'])
@pytest.mark.parametrize('curve', [vp, ve])
def test_density_and_posterior_means_are_the_integrals_over_x(oracle, prior, curve):
  level = GaussianProcess(schedules.Linear(4.0, -3.0), curve)(jnp.linspace(0.0, 1.0, 5))
  z = jnp.linspace(-1.5, 2.5, 5)[:, None]
  x = np.linspace(-6.0, 8.0, 20_001)
  alpha, sigma = np.asarray(level.alpha)[:, None], np.asarray(level.sigma)[:, None]
  joint = prior(x) * density(alpha * x, sigma)(np.asarray(z))
  evidence = np.trapezoid(joint, x)
  got = oracle()(z, level)
  np.testing.assert_allclose(oracle().log_prob(z, level), np.log(evidence), rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(got.x[:, 0], np.trapezoid(joint * x, x) / evidence, rtol=1e-9)
  eps = (np.asarray(z) - alpha * x) / sigma
  np.testing.assert_allclose(got.eps[:, 0], np.trapezoid(joint * eps, x) / evidence, rtol=1e-8)


@pytest.mark.first(1)
@pytest.mark.parametrize('oracle', [gaussian, mixture, empirical])
def test_the_score_is_the_gradient_of_the_density(oracle):
  """Tweedie: E[eps | z] = -sigma grad log q(z), E[x | z] = (z + sigma^2 grad log q(z)) / alpha."""
  made = oracle((2, 2))
  level = GaussianProcess(schedules.Linear(3.0, -3.0), flow)(jnp.linspace(0.0, 1.0, 6))
  z = 0.7 * jax.random.normal(jax.random.key(1), (6, 2, 2))
  score = jax.jit(jax.grad(lambda z: jnp.sum(made.log_prob(z, level))))(z)
  got, wide = made(z, level), level.expand(z)
  np.testing.assert_allclose(got.eps, -wide.sigma * score, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(got.x, (z + wide.sigma**2 * score) / wide.alpha, rtol=1e-9, atol=1e-10)
  np.testing.assert_allclose(diffuse(got.x, got.eps, level), z, rtol=1e-9, atol=1e-12)


@pytest.mark.long
def test_an_empirical_measure_is_a_mixture_of_points():
  points = empirical((2,))
  same = oracles.Mixture(jnp.full(5, 0.2), points.data, jnp.zeros(5))
  level = GaussianProcess(schedules.Linear(5.0, -3.0))(jnp.linspace(0.0, 1.0, 4))
  z = jax.random.normal(jax.random.key(2), (4, 2))
  got, expected = points(z, level), same(z, level)
  np.testing.assert_allclose(got.x, expected.x, rtol=1e-9)
  np.testing.assert_allclose(got.eps, expected.eps, rtol=1e-9)
  np.testing.assert_allclose(points.log_prob(z, level), same.log_prob(z, level), rtol=1e-9)


@pytest.mark.first(1)
@pytest.mark.parametrize('oracle,mean', [(gaussian, 0.7), (mixture, np.dot(WEIGHTS, MEANS)),
                                         (empirical, None)])
def test_without_signal_the_estimate_is_the_mean_of_the_data_and_all_is_noise(oracle, mean):
  made = oracle()
  mean = made.data.mean() if mean is None else mean
  z = jnp.array([[-0.3], [1.1]])
  got = made(z, rectified_flow(jnp.ones(2)))
  np.testing.assert_allclose(got.x, mean, rtol=1e-12)
  np.testing.assert_allclose(got.eps, z, rtol=1e-12)


@pytest.mark.parametrize('oracle', [gaussian, mixture])
def test_without_noise_the_estimate_is_z_and_no_noise_is_known(oracle):
  z = jnp.array([[-0.3], [1.1]])
  got = oracle()(z, rectified_flow(jnp.zeros(2)))
  np.testing.assert_allclose(got.x, z, rtol=1e-12)
  np.testing.assert_allclose(got.eps, 0.0, atol=1e-12)


@pytest.mark.long
def test_the_flow_map_of_a_gaussian_follows_its_probability_flow():
  """Its time derivative is dalpha x_hat + dsigma eps_hat at the point it has reached."""
  process = GaussianProcess(schedules.Cosine(5.0, -5.0), ve)
  oracle, z = gaussian(), jnp.array([[-1.0], [0.2], [4.0]])
  start, s = process(jnp.ones(())), jnp.array(0.35)
  at_s = process(s)
  path = lambda s: oracle.flow_map(z, start, process(s))
  reached, moving = jax.jvp(path, (s,), (jnp.ones(()),))
  estimate = oracle(reached, at_s)
  np.testing.assert_allclose(moving, at_s.dalpha * estimate.x + at_s.dsigma * estimate.eps,
                             rtol=1e-8)
  np.testing.assert_allclose(path(jnp.ones(())), z, rtol=1e-12)
