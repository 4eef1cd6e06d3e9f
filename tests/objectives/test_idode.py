"""i-DODE: its targets and times against the published closed forms; what its second order wants."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from tests.support.correlated import COVARIANCE, at_rest, hermite, linear, signs
from vdm_jax import denoisers, oracles, schedules, targets
from vdm_jax.objectives import idode, proposals
from vdm_jax.processes import GaussianProcess, diffuse, flow, vp

pytestmark = pytest.mark.usefixtures('x64')

LOW, HIGH = -13.3, 5.0  # gamma_0 and gamma_1
CONTINUOUS = 5.956014634  # the bound's diffusion term for N(0, 1/4), in nats
VP = GaussianProcess(schedules.Linear(13.3, -5.0), vp)
SP = GaussianProcess(schedules.Linear(13.3, -5.0), flow)
VELOCITIES = pytest.mark.parametrize(
    'process,target,mass', [(VP, idode.vp_target, idode.vp_mass),
                            (SP, idode.sp_target, idode.sp_mass)], ids=['vp', 'sp'])


def nothing(data, z, level):
  return jnp.zeros(len(z))


def published(curve, x, eps, gamma):
  """z, the target F and its scale k in eps = c z + k F, as functions of gamma: Zheng et al."""
  if curve is vp:
    sigma = np.sqrt(1 / (1 + np.exp(-gamma)))
    alpha = np.sqrt(1 / (1 + np.exp(gamma)))
    z = alpha * x + sigma * eps
    return z, (eps - sigma * z) / alpha, alpha
  sigma = 1 / (1 + np.exp(-gamma / 2))
  alpha = 1 - sigma
  z = alpha * x + sigma * eps
  return z, (eps - z) / (alpha * np.sqrt(2)), alpha * np.sqrt(2)


@pytest.mark.long
@VELOCITIES
def test_the_targets_are_the_published_ones_and_of_the_scale_of_the_data(process, target, mass):
  rng = np.random.default_rng(0)
  x, eps = rng.normal(size=(2, 7, 3))
  gamma = np.linspace(-10.0, HIGH, 7)[:, None]
  z, wanted, _ = published(process.curve, x, eps, gamma)
  level = process(jnp.asarray((gamma[:, 0] - LOW) / (HIGH - LOW)))
  a, b = target(level.expand(z))
  np.testing.assert_allclose(a * x + b * eps, wanted, rtol=1e-9, atol=1e-9)
  np.testing.assert_allclose(a**2 + b**2, 1.0, rtol=1e-12)
  estimate = targets.solve(target, jnp.asarray(wanted), jnp.asarray(z), level)
  np.testing.assert_allclose(estimate.eps, eps, rtol=1e-8, atol=1e-8)
  np.testing.assert_allclose(estimate.x, x, rtol=1e-8, atol=1e-8)


def test_the_times_on_the_vp_curve_are_the_published_inverse():
  u = jnp.linspace(0.0, 1.0, 11)[1:-1]
  t, weight = jax.jit(proposals.by_mass(VP, idode.vp_mass))(u)
  total = np.log((1 + np.exp(-LOW)) / (1 + np.exp(-HIGH)))
  gamma = np.log(1 / (np.exp(-total * u) * (1 + np.exp(-LOW)) - 1))
  np.testing.assert_allclose(LOW + (HIGH - LOW) * t, gamma, rtol=1e-9)
  # 1/2 (gamma_1 - gamma_0) alpha^2 weight is the constant Z / 2 in front of |F - F_hat|^2.
  np.testing.assert_allclose((HIGH - LOW) * weight / (1 + np.exp(gamma)), total, rtol=1e-9)


def test_the_times_on_the_straight_curve_have_the_density_of_alpha_squared():
  density = lambda gamma: 2.0 / (1.0 + np.exp(gamma / 2))**2
  total, _ = integrate.quad(density, LOW, HIGH, epsabs=1e-12)
  u = np.array([0.05, 0.5, 0.95, 0.999])
  t, weight = jax.jit(proposals.by_mass(SP, idode.sp_mass))(jnp.asarray(u))
  gamma = LOW + (HIGH - LOW) * np.asarray(t)
  shares = [integrate.quad(density, LOW, g, epsabs=1e-12)[0] / total for g in gamma]
  np.testing.assert_allclose(shares, u, rtol=1e-9)
  np.testing.assert_allclose((HIGH - LOW) * weight * density(gamma), total, rtol=1e-9)


@pytest.mark.long
@VELOCITIES
def test_the_velocity_loss_is_the_diffusion_term_of_the_bound(process, target, mass):
  """By quadrature over u, with x = +-std and eps = +-1: whatever the schedule, and the target."""
  nodes, weights = np.polynomial.legendre.leggauss(300)
  u, weights = jnp.tile(jnp.asarray(0.5 * (nodes + 1.0)), 2), np.tile(0.5 * weights, 2) / 2
  eps = jnp.ones((len(u), 1))
  x = 0.5 * jnp.where(jnp.arange(len(u)) < len(nodes), 1.0, -1.0)[:, None]
  oracle = oracles.Gaussian(0.0, 0.5)

  def net(z, logsnr, cond=None):
    level = process((13.3 - logsnr) / 18.3)
    a, b = target(level.expand(z))
    estimate = oracle(z, level)
    return a * estimate.x + b * estimate.eps

  @jax.jit
  def diffusion(schedule):
    at = GaussianProcess(schedule, process.curve)
    _, terms = idode.objective(
        denoisers.denoiser(net, target), at, x, u, None, propose=proposals.by_mass(at, mass),
        data=x, decoder=nothing, eps=eps, eps_0=eps)
    return terms

  for schedule in schedules.Linear(13.3, -5.0), schedules.Cosine(13.3, -5.0):
    terms = diffusion(schedule)
    np.testing.assert_allclose(weights @ terms['diffusion'], CONTINUOUS, rtol=1e-7)
    np.testing.assert_allclose(terms['vlb'], terms['diffusion'] + terms['latent'], rtol=1e-12)


@pytest.mark.long
def test_the_velocity_loss_is_unbiased_by_the_library_s_own_draws_with_less_variance():
  n = 8_000
  key_u, key_x, key = jax.random.split(jax.random.key(0), 3)
  x, u = 0.5 * jax.random.normal(key_x, (n, 4)), jax.random.uniform(key_u, (n,))
  keys = jax.random.split(key, n)

  @jax.jit
  def draws():
    args = oracles.Gaussian(0.0, 0.5), VP, x, u, keys
    given = {'data': x, 'decoder': nothing}
    return [idode.objective(*args, **given, propose=propose)[1]['diffusion']
            for propose in (proposals.by_mass(VP, idode.vp_mass), proposals.uniform)]

  ours, plain = draws()
  for values in ours, plain:
    assert abs(values.mean() - 4 * CONTINUOUS) < 4 * values.std() / np.sqrt(n)
  assert ours.var() < 0.7 * plain.var()


@pytest.mark.first(1)
@VELOCITIES
def test_the_second_order_term_is_the_published_one(process, target, mass):
  """0.1 Z/2 (sigma div F - alpha (D - |F - F_hat|^2))^2 / D, and its like on the other curve."""
  mix = jnp.array([[0.7, 0.2, -0.3], [0.1, 0.4, 0.5], [-0.2, 0.3, 0.6]])
  net = lambda z, logsnr, cond=None: jnp.sin(z @ mix.T) + 0.1 * logsnr[:, None] * z**2
  x, eps = jnp.array([[0.5, -0.2, 0.9]]), jnp.array([[0.3, 1.1, -0.7]])
  u, keys, probe = jnp.array([0.6]), jax.random.split(jax.random.key(0), 1), np.array([1., -1., 1.])
  propose = proposals.by_mass(process, mass)

  @jax.jit
  def values():
    t, _ = propose(u)
    logsnr = process(t).logsnr
    nats, terms = idode.objective(
        denoisers.denoiser(net, target), process, x, u, keys, propose=propose, data=x,
        decoder=nothing, second=0.1, probes=lambda keys, like: jnp.asarray(probe)[None, None],
        eps=eps, eps_0=eps)
    z = diffuse(x, eps, process(t))
    return -logsnr, net(z, logsnr)[0], jax.jacobian(lambda z: net(z[None], logsnr)[0])(z[0]), (
        nats, terms)

  gamma, output, jacobian, (nats, terms) = values()
  gamma = float(gamma[0])
  _, wanted, _ = published(process.curve, np.asarray(x), np.asarray(eps), gamma)
  error = np.sum((wanted[0] - output)**2)
  divergence = probe @ jacobian @ probe
  if process.curve is vp:
    half = 0.5 * np.log((1 + np.exp(-LOW)) / (1 + np.exp(-HIGH)))
    sigma, alpha = np.sqrt(1 / (1 + np.exp(-gamma))), np.sqrt(1 / (1 + np.exp(gamma)))
    residual = sigma * divergence - alpha * (3 - error)
  else:
    half, _ = integrate.quad(lambda g: 1 / (1 + np.exp(g / 2))**2, LOW, HIGH, epsabs=1e-12)
    sigma = 1 / (1 + np.exp(-gamma / 2))
    residual = sigma * divergence - 3 / np.sqrt(2) + np.sqrt(2) * (1 - sigma) * error
  np.testing.assert_allclose(terms['diffusion'], [half * error], rtol=1e-8)
  np.testing.assert_allclose(terms['second_order'], [0.1 * half * residual**2 / 3], rtol=1e-8)
  np.testing.assert_allclose(nats, terms['vlb'] + terms['second_order'], rtol=1e-12)


@pytest.mark.long
def test_one_random_probe_draws_the_off_diagonals_of_the_true_jacobian_to_zero():
  """At the truth the gradient is that of the probe's variance, sum over i < j of (J_ij + J_ji)^2.

  For correlated Gaussian data, in the mean over data, noise and all signs.  With the exact trace
  there is none.
  """
  nodes, weights = hermite(5, 4)
  x, eps = nodes[:, :2] @ jnp.linalg.cholesky(jnp.asarray(COVARIANCE)).T, nodes[:, 2:]
  t = jnp.full(len(x), 0.6)
  keys = jax.random.split(jax.random.key(0), len(x))

  def mean(A, v):
    _, terms = idode.objective(
        linear(COVARIANCE, at_rest(A=A)), VP, x, t, keys, propose=proposals.uniform, data=x,
        decoder=nothing, second=1.0, eps=eps, eps_0=eps,
        probes=lambda keys, like: jnp.broadcast_to(v[:, None], (len(v), *like.shape)))
    return weights @ terms['second_order']

  gradient = jax.jit(jax.vmap(jax.grad(mean), in_axes=(None, 0)))
  drawn = gradient(jnp.zeros((2, 2)), jnp.asarray(signs(2))[:, None]).mean(axis=0)
  exact = gradient(jnp.zeros((2, 2)), np.sqrt(2.0) * jnp.eye(2)[None])[0]
  gamma = LOW + (HIGH - LOW) * 0.6
  sigma_2 = 1 / (1 + np.exp(-gamma))
  off = sigma_2 * np.linalg.inv((1 - sigma_2) * COVARIANCE + sigma_2 * np.eye(2))[0, 1]
  # d/dA_ij of (J_01 + J_10)^2 / 2, J = sigma^2 S^-1 + sigma A, and the bound's 1/2 dgamma/dt.
  pulled = 0.5 * (HIGH - LOW) * 2.0 * (2.0 * off) * np.sqrt(sigma_2) / 2.0
  np.testing.assert_allclose(exact, 0.0, atol=1e-9)
  np.testing.assert_allclose(drawn, pulled * np.array([[0.0, 1.0], [1.0, 0.0]]), atol=1e-9)
  assert abs(pulled) > 1.0
