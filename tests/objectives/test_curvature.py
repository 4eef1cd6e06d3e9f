"""A learned coupling of data and noise: public code, and the closed forms of Gaussians."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import random, schedules
from vdm_jax.objectives import curvature
from vdm_jax.processes import GaussianProcess, RectifiedFlow, diffuse
from vdm_jax.samplers import encode, euler, heun, sample, straightness
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

LINES = RectifiedFlow()


def keys(n):
  return random.per_example(random.key(0), jnp.arange(n))


def by_velocity(u):
  """The denoiser of a velocity u(z, t) on straight lines, t: [B]."""
  def denoise(z, level, cond=None):
    velocity, level = u(z, level.t), level.expand(z)
    return Estimate(z - level.sigma * velocity, z + level.alpha * velocity)
  return denoise


@pytest.mark.long
def test_the_loss_and_all_its_gradients_are_those_of_the_public_code():
  """sangyun884/fast-ode: a linear encoder and a linear velocity; its time is ours."""
  saved = recordings.shared('fast_ode')
  params = {name: jnp.asarray(saved[f'param/{name}']) for name in ('We', 'be', 'Wv', 'uv', 'bv')}
  x, noise, t = (jnp.asarray(saved[name]) for name in ('x', 'noise', 't_used'))
  d, beta = x.shape[1], float(saved['beta'])

  def losses(params):
    encode = lambda x: jnp.split(x @ params['We'].T + params['be'], 2, axis=-1)
    u = lambda z, t: z @ params['Wv'].T + t[:, None] * params['uv'] + params['bv']
    loss, terms = curvature.objective(by_velocity(u), LINES, x, t, keys(len(x)), encode=encode,
                                      beta=beta, noise=noise)
    return loss.mean() / d, {name: u.mean() / d for name, u in terms.items()}

  (loss, terms), grads = jax.value_and_grad(losses, has_aux=True)(params)
  np.testing.assert_allclose(loss, saved['loss'], rtol=1e-9)
  np.testing.assert_allclose(terms['velocity_error'], saved['loss_fm'], rtol=1e-9)
  np.testing.assert_allclose(terms['divergence'], saved['loss_prior'], rtol=1e-9)
  for name, grad in grads.items():
    np.testing.assert_allclose(grad, saved[f'grad/{name}'], rtol=1e-7, atol=1e-10)


@pytest.mark.long
@pytest.mark.parametrize('n', [4, 128, 1, 16])
def test_the_curvature_of_euler_s_trajectories_is_that_of_the_public_code(n):
  saved = recordings.shared('fast_ode')
  oracle, z = recordings.exact(saved, 'mix'), jnp.asarray(saved['sample/z_1'])
  times = np.linspace(1.0, 0.0, n + 1)
  bent, x = straightness.straightness(oracle, LINES, keys(len(z)), z, times)
  np.testing.assert_allclose(x, saved[f'sample/euler/n{n}'], atol=1e-10)
  np.testing.assert_allclose(bent.mean() / z.shape[1], saved[f'sample/euler/n{n}/straightness'],
                             atol=1e-10)
  if n == 128:
    back = encode(euler.euler(oracle, LINES), keys(len(z)), x, times[::-1])
    np.testing.assert_allclose(back, saved['sample/forward_of_euler128'], atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize('n', [15, 5, 121])
def test_heun_s_trajectories_and_their_curvature_are_those_of_the_public_code(n):
  """It counts evaluations: n = 5 is three steps, of which the last is one of Euler, as here."""
  saved = recordings.shared('fast_ode')
  oracle, z = recordings.exact(saved, 'mix'), jnp.asarray(saved['sample/z_1'])
  times = np.linspace(1.0, 0.0, (n + 1) // 2 + 1)
  bent, x = straightness.straightness(oracle, LINES, keys(len(z)), z, times, sampler=heun)
  np.testing.assert_allclose(x, saved[f'sample/heun/n{n}'], atol=1e-10)
  np.testing.assert_allclose(bent.mean() / z.shape[1], saved[f'sample/heun/n{n}/straightness'],
                             atol=1e-10)


@pytest.mark.long
def test_its_path_of_ddpm_and_its_divergences_are_those_of_the_public_code():
  """A prior of covariance diag(36, 1), as in its plane, is N(0, 1) in units of its deviations.

  The public code adds log 36 in both dimensions, so its divergence is not 0 where q is the prior.
  """
  saved = recordings.shared('fast_ode')
  x, eps, t = (jnp.asarray(saved[name]) for name in ('vp/x', 'vp/z', 't'))
  level = GaussianProcess(schedules.BetaLinear(t_min=0.0))(t)
  near = {'rtol': 1e-6, 'atol': 1e-7}
  np.testing.assert_allclose(diffuse(x, eps, level), saved['vp/z_t'], **near)
  wide = level.expand(x)
  np.testing.assert_allclose(wide.dalpha * x + wide.dsigma * eps, saved['vp/target'], **near)
  mean, log_variance = (jnp.asarray(saved[f'kl2/{name}']) for name in ('mu', 'logvar'))
  for name, prior, excess in (('standard', np.ones(2), 0.0),
                              ('wide', np.array([36.0, 1.0]), 0.5 * np.log(36.0))):
    divergence = lambda mean, log_variance, prior=prior: curvature.divergence(
        mean / np.sqrt(prior), log_variance - np.log(prior))
    np.testing.assert_allclose((divergence(mean, log_variance).mean() + excess) / 2,
                               saved[f'kl2/{name}'], rtol=1e-12)
    np.testing.assert_allclose(divergence(np.zeros((1, 2)), np.log(prior)[None]), 0.0, atol=1e-15)


S = 0.5  # of the data


def coupled(gain, std):
  """For x ~ N(0, S^2), eps = gain x + std noise: E[x | z_t] and E[eps | z_t] at t, per z_t."""
  total = gain**2 * S**2 + std**2                 # Var eps
  both = gain * S**2                              # Cov(x, eps)
  def parts(a, sigma):
    variance = a**2 * S**2 + sigma**2 * total + 2 * a * sigma * both
    return (a * S**2 + sigma * both) / variance, (a * both + sigma * total) / variance
  return parts


def denoiser(gain, std):
  def denoise(z, level, cond=None):
    level = level.expand(z)
    of_x, of_eps = coupled(gain, std)(level.alpha, level.sigma)
    return Estimate(of_x * z, of_eps * z)
  return denoise


def whole(gain, log_variance, beta):
  """The objective at its best velocity, over times and the four points of x and noise: exact."""
  nodes, weights = np.polynomial.legendre.leggauss(60)
  t = jnp.repeat(jnp.asarray(0.5 * (1 + nodes)), 4)
  x = S * jnp.tile(jnp.array([1.0, 1.0, -1.0, -1.0]), 60)[:, None]
  noise = jnp.tile(jnp.array([1.0, -1.0, 1.0, -1.0]), 60)[:, None]
  encode = lambda x: (gain * x, jnp.full_like(x, log_variance))
  loss, terms = curvature.objective(denoiser(gain, jnp.exp(0.5 * log_variance)), LINES, x, t,
                                    keys(240), encode=encode, beta=beta, noise=noise)
  mean = lambda u: jnp.asarray(0.5 * weights) @ u.reshape(60, 4).mean(1)
  return mean(loss), jax.tree.map(mean, terms)


@pytest.mark.long
@pytest.mark.parametrize('beta,gain,std,loss,kl,marginal', [
    (20.0, 0.0499676, 0.9805579, 0.7576392, 0.0006926, 0.98088),
    (1.0, 0.7666110, 0.6946922, 0.3704796, 0.1790466, 0.79342)])
def test_the_optimum_for_gaussian_data_is_that_of_the_closed_form(beta, gain, std, loss, kl,
                                                                  marginal):
  """Where the gradient through input and target vanishes.  The marginal of eps is not N(0, 1)."""
  at = gain, 2.0 * np.log(std), beta
  of = jax.jit(jax.value_and_grad(whole, argnums=(0, 1), has_aux=True), static_argnums=2)
  (_, terms), grads = of(*at)
  np.testing.assert_allclose(terms['velocity_error'], loss, atol=1e-6)
  np.testing.assert_allclose(terms['divergence'], kl, atol=1e-6)
  np.testing.assert_allclose(grads, 0.0, atol=1e-5)
  assert abs(of_the_noise_end(gain, 2.0 * np.log(std)).std() - marginal) < 1e-5


def of_the_noise_end(gain, log_variance):
  """z_1 = eps as the network sees it in training, of the four points that have their moments."""
  seen = []
  def network(z, level, cond=None):
    seen.append(z)
    return Estimate(z, z)
  x = S * jnp.array([1.0, 1.0, -1.0, -1.0])[:, None]
  noise = jnp.array([1.0, -1.0, 1.0, -1.0])[:, None]
  curvature.objective(network, LINES, x, jnp.ones(4), keys(4), noise=noise,
                      encode=lambda x: (gain * x, jnp.full_like(x, log_variance)))
  return seen[0]


@pytest.mark.long
def test_the_encoder_s_own_draws_have_the_marginal_of_the_closed_form_and_not_the_prior():
  """Where samples start, at N(0, 1), no training was: at beta = 1 eps has a deviation of .79342."""
  n, gain, std = 20_000, 0.7666110, 0.6946922
  seen = []
  def network(z, level, cond=None):
    seen.append(np.asarray(z))
    return Estimate(z, z)
  x = S * random.normal(random.stream(keys(n), 'x'), jnp.zeros((n, 1)))
  curvature.objective(network, LINES, x, jnp.ones(n), keys(n), beta=1.0, encode=lambda x: (
      gain * x, jnp.full_like(x, 2.0 * np.log(std))))
  assert abs(seen[0].std() - 0.79342) < 4 * 0.79342 / (2 * n)**0.5


@pytest.mark.long
def test_a_coupling_of_correlation_r_has_the_loss_and_straightness_of_the_closed_form():
  """loss = s sqrt(1 - r^2) arccos r, and the KL is -1/2 log(1 - r^2).

  S = E|x - eps|^2 - loss - E|x' - eps|^2 with x' = s eps, so S = 2 s (1 - r) - loss.
  """
  for r in (0.0, 0.25, 0.5, 0.75, 0.9, 0.99):
    gain, std = r / S, np.sqrt(1.0 - r**2)
    loss, kl = S * std * np.arccos(r), -np.log(std)
    straight = 2.0 * S * (1.0 - r) - loss
    value, terms = whole(gain, 2.0 * np.log(std), 0.0)
    np.testing.assert_allclose(value, loss, rtol=1e-6)
    # The mean over x of KL(N(gain x, std^2) || N(0, 1)): its four points have x^2 = S^2.
    np.testing.assert_allclose(terms['divergence'], kl, rtol=1e-6, atol=1e-12)
    bent, _ = straightness.straightness(denoiser(gain, std), LINES, keys(1), jnp.ones((1, 1)),
                                        np.linspace(1.0, 0.0, 4001))
    np.testing.assert_allclose(bent, straight, rtol=2e-3, atol=1e-6)


@pytest.mark.long
@pytest.mark.parametrize('variance,prior,means,loss', [
    (3.0, 36.0, (8.0, -8.0), 64.27826), (0.1, 1.0, (8.0,), 0.49673)])
def test_far_clusters_have_the_published_example_s_loss(variance, prior, means, loss):
  """x = (+-8, 8) with covariance diag(3, .1), prior diag(36, 1): the independent coupling.

  At the exact velocity, by quadrature over t, x of the first cluster (the other is its mirror
  image) and noise.
  """
  def best(z, t):  # E[eps - x | z_t]
    alpha, z = (1.0 - t)[:, None], z[:, :1]
    total = alpha**2 * variance + (1.0 - alpha)**2 * prior
    off = z - alpha * jnp.array(means)                     # [B, clusters]
    share = jax.nn.softmax(-0.5 * off**2 / total, axis=1)
    pull = ((1.0 - alpha) * prior - alpha * variance) / total
    return (share * (pull * off - jnp.array(means))).sum(1, keepdims=True)

  times, of_times = np.polynomial.legendre.leggauss(40)
  nodes, of_nodes = np.polynomial.hermite_e.hermegauss(48)
  of_nodes = of_nodes / of_nodes.sum()
  t, u, noise = (jnp.asarray(a.ravel()) for a in np.meshgrid(
      0.5 * (1.0 + times), nodes, nodes, indexing='ij'))
  weights = np.einsum('i,j,k->ijk', 0.5 * of_times, of_nodes, of_nodes).ravel()
  encode = lambda x: (jnp.zeros_like(x), jnp.full_like(x, np.log(prior)))
  _, terms = curvature.objective(by_velocity(best), LINES, means[0] + variance**0.5 * u[:, None], t,
                                 None, encode=encode, beta=0.0, noise=noise[:, None])
  np.testing.assert_allclose(weights @ terms['velocity_error'], loss, atol=1e-4)


def test_euler_is_exact_in_one_step_of_a_coupling_without_noise():
  line = sample(euler.euler(denoiser(1.0 / S, 0.0), LINES), keys(1), jnp.ones((1, 1)),
                np.array([1.0, 0.0]))
  np.testing.assert_allclose(line, S, rtol=1e-12)
