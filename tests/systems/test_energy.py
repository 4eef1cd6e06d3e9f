"""Energies: fields without curl, and products by Markov chains, in closed forms."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import denoisers, oracles, random, schedules, targets
from vdm_jax.nn.small.mlp import MLP
from vdm_jax.objectives.score_matching import denoising
from vdm_jax.processes import GaussianProcess, diffuse, ve, vp
from vdm_jax.samplers.langevin import mala
from vdm_jax.systems.scores import energy
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Context
from vdm_jax.values import Bound

PROCESS = GaussianProcess(schedules.Linear(6.0, -4.0))


def split(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def gaussian(mean, precision):
  """1/2 (z - mean)^T precision (z - mean), at every level."""
  return lambda z, level, cond=None: 0.5 * jnp.einsum(
      'bi,ij,bj->b', z - mean, jnp.asarray(precision), z - mean)


# ------------------------------------------------------------ the denoiser


@pytest.mark.first(1)
@pytest.mark.parametrize('curve', [vp, ve])
def test_the_denoiser_of_minus_a_log_density_is_that_of_the_data(curve, x64):
  oracle = oracles.Mixture(jnp.array([0.3, 0.7]), jnp.array([[-0.6, 0.2], [0.5, 0.0]]),
                           jnp.array([0.2, 0.3]))
  of_energy = energy.denoiser(lambda z, level, cond: 7.0 - oracle.log_prob(z, level))
  z = jnp.array(np.random.default_rng(0).normal(size=(20, 2)))
  process = GaussianProcess(schedules.Linear(6.0, -4.0), curve)

  @jax.jit
  def both():
    level = process(jnp.linspace(0.0, 1.0, 20))
    log_densities = energy.log_prob(of_energy)(z, level), oracle.log_prob(z, level)
    return of_energy(z, level), oracle(z, level), log_densities

  got, expected, (ours, truth) = both()
  np.testing.assert_allclose(got.eps, expected.eps, rtol=1e-9, atol=1e-12)
  np.testing.assert_allclose(got.x, expected.x, rtol=1e-7, atol=1e-9)
  np.testing.assert_allclose(ours, truth - 7.0, rtol=1e-12)


@pytest.mark.long
def test_an_energy_has_a_symmetric_jacobian_and_a_free_network_has_not(x64):
  net = MLP(features=16, blocks=1)
  shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 3)), jnp.zeros(1))['params']
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda u: 0.5 * rng.normal(size=u.shape), shapes)
  free = denoisers.denoiser(Bound(params, net), targets.eps)

  @jax.jit
  def jacobians(z):
    level = PROCESS(0.4)
    field = lambda denoise: jax.vmap(jax.jacfwd(lambda z: denoise(z[None], level).eps[0]))(z)
    return field(energy.denoiser(energy.half_square(free))), field(free)

  curl = lambda j: np.max(np.abs(j - np.swapaxes(j, 1, 2))) / np.max(np.abs(j))
  bound, unbound = jacobians(rng.normal(size=(5, 3)))
  assert curl(bound) < 1e-6
  assert curl(unbound) > 0.1


@pytest.mark.long
def test_the_best_quadratic_energy_of_gaussian_data_is_minus_their_log_density(x64):
  """By the normal equations of denoising score matching, averaged exactly by eight points."""
  covariance, u = np.array([[0.5, 0.2], [0.2, 0.3]]), np.concatenate([np.eye(4), -np.eye(4)])
  x = jnp.array(2.0 * u[:, :2] @ np.linalg.cholesky(covariance).T)

  def loss(params):
    a, b, c = params
    model = energy.denoiser(gaussian(0.0, jnp.array([[a, b], [b, c]])))
    return jnp.mean(denoising(model, PROCESS, x, jnp.full(8, 0.3), None,
                              eps=jnp.array(2.0 * u[:, 2:]))[0])

  zero = jnp.zeros(3)
  a, b, c = jax.jit(lambda: jnp.linalg.solve(jax.hessian(loss)(zero), -jax.grad(loss)(zero)))()
  level = jax.jit(PROCESS)(0.3)
  spread = level.alpha**2 * covariance + level.sigma**2 * np.eye(2)
  np.testing.assert_allclose([[a, b], [b, c]], np.linalg.inv(spread), rtol=1e-8)


# ---------------------------------------------------------------- chains


@pytest.mark.long
def test_chains_draw_from_the_product_of_two_gaussians():
  """Precisions add, and precision-weighted means; 8,000 independent chains, each looked at once."""
  precisions = np.array([[[4.0, 1.0], [1.0, 2.0]], [[1.0, -0.5], [-0.5, 3.0]]])
  means = np.array([[0.5, -1.0], [-1.0, 0.5]])
  both = energy.product(*(energy.denoiser(gaussian(m, p))
                          for m, p in zip(means, precisions, strict=True)))
  n, moves = 8000, 60
  level = PROCESS(jnp.array(0.5))  # sigma^2 = 0.27: the step, in units of which it is told
  corrector = mala(both, energy.log_prob(both), step_size=0.8)

  @jax.jit
  def settle():
    body = lambda i, z: corrector.step(
        jax.vmap(jax.random.fold_in, (0, None))(split(n), i), z, level, level)
    return jax.lax.fori_loop(0, moves, body, jnp.zeros((n, 2)))

  precision = precisions.sum(axis=0)
  mean = np.linalg.solve(precision, np.einsum('kij,kj->i', precisions, means))
  z = np.asarray(settle(), np.float64)
  np.testing.assert_array_less(np.abs(z.mean(axis=0) - mean), 4 * z.std(axis=0) / n**0.5)
  square = np.einsum('bi,bj->bij', z - mean, z - mean)
  np.testing.assert_array_less(np.abs(square.mean(axis=0) - np.linalg.inv(precision)),
                               4 * square.std(axis=0) / n**0.5)


# -------------------------------------------------------------- the system


@pytest.mark.long
def test_an_untrained_energy_is_the_standard_normal():
  config = vdm.default_config()
  config.data.update(name='swirl', validation=50, batch_size=8)
  experiment = energy.experiment(config, net=MLP(features=8, blocks=1),
                                 schedule=schedules.Linear(8.0, -5.0))
  z = jnp.array(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)

  @jax.jit
  def estimates():
    model = experiment.model(experiment.init(jax.random.key(0)))
    level = model.process(jnp.linspace(0.0, 1.0, 6))
    return model.denoise(z, level), oracles.Gaussian(0.0, 1.0)(z, level)

  got, expected = estimates()
  np.testing.assert_allclose(got.eps, expected.eps, rtol=1e-5)
  np.testing.assert_allclose(got.extra['energy'], 0.5 * np.sum(z**2, axis=1), rtol=1e-5)

  @jax.jit
  def losses():
    """The system's, and the error of eps_hat = sigma z at its own noise."""
    images, keys, t = 20 * jnp.arange(12).reshape(6, 2), split(6), (jnp.arange(6) + 0.5) / 6
    params = experiment.init(jax.random.key(0))
    model = experiment.model(params)
    x, level = model.encode(images), model.process(t)
    eps = random.normal(random.stream(keys, 'eps'), x)
    error = eps - level.sigma[:, None] * diffuse(x, eps, level)
    return (experiment.loss(params, {'image': images}, Context(t, keys, jnp.int32(0)))[0],
            jnp.mean(jnp.square(error), axis=1) / jnp.log(2.0))

  np.testing.assert_allclose(*losses(), rtol=1e-4)
