"""Score distillation against closed forms: fixed points, the noise of a draw, over-saturation."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax import guidance, oracles, processes, random, scenes, schedules
from vdm_jax.objectives import sds

pytestmark = pytest.mark.usefixtures('x64')

PROCESS = processes.GaussianProcess(schedules.BetaLinear(0.1, 20.0))
# Of N(m, 1/4) at logsnr 4, 0, -4: w = 1, theta - m = 1; and the sd of one draw of eps_hat - eps.
GRADIENTS, DEVIATIONS = (0.504388, 0.8, 0.134718), (0.931738, 0.2, 0.004558)
ONE = lambda level: jnp.ones_like(level.logsnr)


def at(logsnr):
  """A process of one level, on which a time has no influence."""
  return processes.GaussianProcess(lambda t: logsnr + 0.0 * t)


def drift(denoise, process, theta, times=1, **options):
  """E of the gradient at each theta [n], by quadrature over eps and t."""
  eps, of_eps = np.polynomial.hermite_e.hermegauss(60)
  t, of_t = np.polynomial.legendre.leggauss(times)
  weights = np.outer(of_t / of_t.sum(), of_eps / of_eps.sum()).ravel()
  t, eps = np.repeat(0.5 * (t + 1.0), 60), np.tile(eps, times)[:, None]

  def total(theta):
    x = jnp.full_like(eps, theta)
    return weights @ sds.objective(denoise, process, x, t, None, eps=eps, **options)[0]
  return jax.jit(jax.vmap(jax.grad(total)))(jnp.asarray(theta, float))


@pytest.mark.parametrize('mean', [0.0, 3.0])
def test_the_gradient_for_gaussian_data_is_known_and_vanishes_at_the_mean(mean):
  for logsnr, slope in zip((4.0, 0.0, -4.0), GRADIENTS, strict=True):
    got = drift(oracles.Gaussian(mean, 0.5), at(logsnr), [mean - 1.0, mean, mean + 2.0], weight=ONE)
    np.testing.assert_allclose(got, [-slope, 0.0, 2.0 * slope], atol=2e-6)


def test_the_weight_is_the_variance_on_vp_unless_another_is_given():
  level = processes.GaussianProcess(schedules.Linear(6.0, -6.0))(jnp.linspace(0.0, 1.0, 5))
  np.testing.assert_allclose(sds.variance(level), level.sigma**2, rtol=1e-12)
  x, t, keys = jnp.ones((2, 3)), jnp.full(2, 0.3), jax.random.split(jax.random.key(0), 2)
  weighted, plain = jax.jit(lambda: [sds.objective(
      oracles.Gaussian(), at(0.0), x, t, keys, **options) for options in ({}, {'weight': ONE})])()
  np.testing.assert_allclose(plain[0], 2.0 * weighted[0], rtol=1e-12)
  np.testing.assert_allclose(weighted[1]['diffusion'], 0.5 * plain[1]['eps_error'], rtol=1e-12)


@pytest.mark.parametrize('case', range(3))
def test_one_draw_has_the_known_deviation(case):
  n, process = 20_000, at((4.0, 0.0, -4.0)[case])
  draw = jax.jit(jax.grad(lambda x: jnp.sum(sds.objective(
      oracles.Gaussian(0.0, 0.5), process, x, jnp.full(n, 0.5),
      jax.random.split(jax.random.key(0), n), weight=ONE)[0])))(jnp.ones((n, 1)))
  assert abs(draw.std() - DEVIATIONS[case]) < 4.0 * DEVIATIONS[case] / np.sqrt(2 * n)
  assert abs(draw.mean() - GRADIENTS[case]) < 4.0 * DEVIATIONS[case] / np.sqrt(n)


def test_a_mixture_has_one_fixed_point_which_is_neither_its_mean_nor_its_mode():
  """.8 N(-2, .3^2) + .2 N(2, .3^2): the mean is -1.2, and the mode -2."""
  data = oracles.Mixture(np.array([0.8, 0.2]), np.array([[-2.0], [2.0]]), np.array([0.3, 0.3]))
  theta = np.linspace(-4.0, 4.0, 401)
  got = np.asarray(drift(data, PROCESS, theta, times=100))
  [change] = np.nonzero(np.diff(np.sign(got)))[0]
  assert got[change] < 0.0 < got[change + 1]  # steps against the gradient come here
  fixed = theta[change] - got[change] * 0.02 / (got[change + 1] - got[change])
  np.testing.assert_allclose(fixed, -1.620, atol=5e-4)


def test_guidance_moves_the_fixed_point_away_from_the_data():
  """N(1, 1/4) told, N(0, 1) untold, at logsnr 0: over-saturation, whose limit is 8/3."""
  for w, fixed in ((0.0, 1.0), (1.0, 1.454545), (7.5, 2.229508), (100.0, 2.623377), (1e7, 8 / 3)):
    guided = guidance.classifier_free(oracles.Gaussian(1.0, 0.5), oracles.Gaussian(0.0, 1.0), w)
    below, here, above = drift(guided, at(0.0), [fixed - 1.0, fixed, fixed + 1.0])
    np.testing.assert_allclose(here / above, 0.0, atol=1e-6)
    assert below < 0.0 < above


@jax.custom_vjp
def opaque(z):
  return z


opaque.defvjp(lambda z: (z, None), lambda _, g: (jnp.full_like(g, jnp.nan),))


@pytest.mark.long
def test_the_jacobian_of_the_network_is_not_in_the_gradient_and_that_of_the_picture_is():
  data, keys = oracles.Gaussian(0.3, 0.5), jax.random.split(jax.random.key(1), 6)
  matrix, t = jax.random.normal(jax.random.key(2), (6, 4, 2)), jnp.linspace(0.1, 0.9, 6)
  theta = jnp.array([0.5, -1.0])
  render = lambda theta: jnp.tanh(matrix @ theta)
  by = lambda denoise: jax.jit(lambda theta: sds.gradient(denoise, PROCESS, render, theta, t, keys))
  untouched, terms = by(data)(theta)
  # A network without derivatives serves as well.
  without, _ = by(lambda z, level, cond: data(opaque(z), level))(theta)
  np.testing.assert_allclose(without, untouched, rtol=1e-12)
  # The chain rule by hand, through the picture alone.
  level = PROCESS(0.02 + 0.96 * t)
  x, eps = render(theta), random.normal(random.stream(keys, 'eps'), jnp.zeros((6, 4)))
  wide = level.expand(x)
  residual = wide.sigma**2 * (data(wide.alpha * x + wide.sigma * eps, level).eps - eps)
  want = jnp.mean(jnp.einsum('bi,bij->bj', residual * (1.0 - x**2), matrix), axis=0)
  np.testing.assert_allclose(untouched, want, rtol=1e-9)
  # The denoising loss, which has the Jacobian, has another gradient.
  z = lambda theta: wide.alpha * render(theta) + wide.sigma * eps
  loss = lambda theta: jnp.mean(jnp.sum(
      wide.sigma**2 * (data(z(theta), level).eps - eps)**2, axis=1) / 2.0)
  assert np.abs(jax.jit(jax.grad(loss))(theta) / untouched - 1.0).min() > 0.1
  assert terms['diffusion'].shape == (6,)


def test_a_draw_depends_on_its_own_key_alone():
  x, t = jnp.ones((3, 2)), jnp.array([0.2, 0.5, 0.9])
  keys = jax.random.split(jax.random.key(0), 3)
  value = jax.jit(lambda *batch: sds.objective(oracles.Gaussian(), PROCESS, *batch)[0])
  many, one = value(x, t, keys), value(x[1:2], t[1:2], keys[1:2])
  np.testing.assert_allclose(many[1], one[0], rtol=1e-12)


@pytest.mark.parametrize('kind', [scenes.image, pytest.param(scenes.mlp, marks=pytest.mark.long)])
def test_a_picture_goes_to_the_fixed_point(kind):
  """Noise in pairs, eps and -eps, has the mean gradient of Gaussian data: no chance is left."""
  target = np.random.default_rng(0).uniform(-0.8, 0.8, (4, 4, 1))
  data, scene = oracles.Gaussian(target, 0.2), kind((4, 4, 1))
  tx = optax.adam(0.01)

  @jax.jit
  def optimised():
    theta = scene.init(jax.random.key(0))

    def step(k, carry):
      theta, state = carry
      keys = jax.random.split(jax.random.fold_in(jax.random.key(1), k), 2)
      eps = jax.random.normal(keys[0], (4, 4, 1))
      gradient, _ = sds.gradient(data, PROCESS, lambda theta: scene.render(theta, jnp.zeros(2)),
                                 theta, jnp.repeat(jax.random.uniform(keys[1], (1,)), 2), keys,
                                 eps=jnp.stack([eps, -eps]))
      updates, state = tx.update(gradient, state)
      return optax.apply_updates(theta, updates), state
    return jax.lax.fori_loop(0, 600, step, (theta, tx.init(theta)))[0]
  got = scene.render(optimised(), jnp.zeros(1))[0]
  np.testing.assert_allclose(got, target, atol=0.02)
