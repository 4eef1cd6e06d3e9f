"""Recovery likelihood: the law of z_s given z_t, its chain, and its gradient, in closed forms."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import configs
from vdm_jax import oracles, schedules
from vdm_jax.errors import InputError
from vdm_jax.objectives.recovery import recovery
from vdm_jax.processes import GaussianProcess, ve, vp
from vdm_jax.samplers import recovery as chains
from vdm_jax.samplers.sampling import sample
from vdm_jax.systems.scores import energy
from vdm_jax.typing import Context

LEVELS = 8
MEAN, STD = jnp.array([0.6, -0.3]), jnp.array([0.4, 1.2])
DATA = oracles.Gaussian(MEAN, STD)
TRUTH = energy.denoiser(lambda z, level, cond=None: -DATA.log_prob(z, level))


def process_on(curve):
  return GaussianProcess(schedules.Linear(4.0, -4.0), curve)


def split(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


def given(z_t, at_t, at_s):
  """Mean and variance of z_s given z_t for these Gaussian data, by Bayes in float64."""
  f = lambda u: np.asarray(u, np.float64)
  ratio = f(at_t.alpha) / f(at_s.alpha)
  noise = f(at_t.sigma)**2 - ratio**2 * f(at_s.sigma)**2
  prior = f(at_s.alpha)**2 * f(STD)**2 + f(at_s.sigma)**2
  variance = 1.0 / (1.0 / prior + ratio**2 / noise)
  return variance * (f(at_s.alpha) * f(MEAN) / prior + ratio * f(z_t) / noise), variance


@pytest.mark.long
@pytest.mark.parametrize('curve', [vp, ve])
def test_the_conditional_law_of_gaussian_data_is_the_gaussian_of_bayes(curve, x64):
  process, rng = process_on(curve), np.random.default_rng(0)
  z_t, z = jnp.array(rng.normal(size=(2, 6, 2)))

  @jax.jit
  def both():
    at_t, at_s = process(jnp.linspace(0.3, 1.0, 6)), process(jnp.linspace(0.2, 0.6, 6))
    unit = chains.natural(at_t, at_s)
    eps = chains.conditional(TRUTH, z_t, at_t, at_s)(z, unit).eps
    log_prob = chains.log_conditional(energy.log_prob(TRUTH), z_t, at_t, at_s)
    density = log_prob(z, unit) - log_prob(z + 0.5, unit)
    wide = jax.tree.map(lambda u: u[:, None], (at_t, at_s))
    return -eps / unit.sigma[:, None], density, wide, unit

  score, density, (at_t, at_s), unit = both()
  mean, variance = given(z_t, at_t, at_s)
  np.testing.assert_allclose(score, (mean - z) / variance, rtol=1e-8, atol=1e-10)
  np.testing.assert_allclose(
      density, np.sum(((z + 0.5 - mean)**2 - (z - mean)**2) / (2 * variance), axis=1), rtol=1e-8)
  # The unit of a move: no direction of the law is narrower.
  assert np.all(np.square(unit.sigma)[:, None] < variance)


@pytest.mark.parametrize('metropolis', [pytest.param(True, marks=pytest.mark.long), False])
def test_the_chain_draws_from_the_conditional_law_and_without_a_test_its_variance_is_known(
    metropolis):
  """Of a Gaussian each move is affine: v <- (1 - h / v*)^2 v + 2 h, so v* / (1 - h / (2 v*))."""
  n, step_size, process = 4000, 0.5, process_on(vp)
  z_t = jnp.array([0.9, -1.1])
  at_t, at_s = process(jnp.array(0.55)), process(jnp.array(0.4))
  z = np.asarray(jax.jit(lambda: chains.chain(
      TRUTH, split(n), jnp.broadcast_to(z_t, (n, 2)), at_t, at_s, moves=40, step_size=step_size,
      log_prob=energy.log_prob(TRUTH) if metropolis else None))(), np.float64)
  mean, variance = given(z_t, at_t, at_s)
  if not metropolis:
    h = step_size * float(at_s.sigma)**2 * (1.0 - float(np.exp(at_t.logsnr - at_s.logsnr)))
    variance = variance / (1.0 - h / (2.0 * variance))
  np.testing.assert_array_less(np.abs(z.mean(axis=0) - mean), 4 * z.std(axis=0) / n**0.5)
  square = (z - mean)**2
  np.testing.assert_array_less(np.abs(square.mean(axis=0) - variance),
                               4 * square.std(axis=0) / n**0.5)


def gradients(n, moves=60):
  """d loss / d (mean, log std) of each of n examples of the data, and of 0.7 of the std [n, 2, 2].

  The energies are the Gaussians of these parameters, whose chains have a Metropolis test.
  """
  process = process_on(vp)

  def denoiser(params):
    of = oracles.Gaussian(params[0], jnp.exp(params[1]))
    return energy.denoiser(lambda z, level, cond=None: -of.log_prob(z, level))

  def loss(params, x, t, key):
    frozen = denoiser(jax.lax.stop_gradient(params))
    draw = lambda keys, z_t, at_t, at_s: chains.chain(
        frozen, keys, z_t, at_t, at_s, moves=moves, step_size=0.5,
        log_prob=energy.log_prob(frozen))
    return recovery(denoiser(params), process, x[None], t[None], key[None], draw=draw,
                    levels=LEVELS)[0][0]

  @jax.jit
  def both():
    keys = split(n, seed=3)
    x = MEAN + STD * jax.random.normal(jax.random.key(1), (n, 2))
    of = jax.vmap(jax.grad(loss), (None, 0, 0, 0))
    t = (jnp.arange(n) + 0.5) / n
    return tuple(of(jnp.stack([MEAN, jnp.log(scale * STD)]), x, t, keys) for scale in (1.0, 0.7))

  return [np.asarray(u, np.float64) for u in both()]


@pytest.mark.long
def test_at_the_truth_the_mean_gradient_is_zero_and_beside_it_points_back():
  """E grad = 0 at the law of the data; at too small a std, the loss falls with a larger one."""
  truth, narrow = gradients(4000)
  error = lambda u: u.std(axis=0) / len(u)**0.5
  np.testing.assert_array_less(np.abs(truth.mean(axis=0)), 4 * error(truth))
  assert np.all(narrow.mean(axis=0)[1] < -4 * error(narrow)[1])


@pytest.mark.long
def test_the_recovery_sampler_draws_gaussian_data():
  """From the prior to sigma_0, with Metropolis tests: moments of alpha x + sigma eps."""
  n, process = 4000, process_on(vp)
  sampler = chains.recovery(TRUTH, process, moves=15, step_size=0.5,
                            log_prob=energy.log_prob(TRUTH))
  run = jax.jit(lambda: (sample(sampler, split(n), jax.random.normal(jax.random.key(5), (n, 2)),
                                np.linspace(1.0, 0.0, LEVELS + 1)), process(0.0)))
  z, level = run()
  z = np.asarray(z, np.float64)
  mean = float(level.alpha) * np.asarray(MEAN)
  variance = float(level.alpha)**2 * np.asarray(STD)**2 + float(level.sigma)**2
  # Beside it by the start, which is N(0, 1): alpha_1^2 is 0.018.
  np.testing.assert_array_less(np.abs(z.mean(axis=0) - mean), 4 * (variance / n)**0.5 + 0.01)
  np.testing.assert_array_less(np.abs(z.var(axis=0) / variance - 1.0), 4 * (2 / n)**0.5 + 0.02)
  assert sampler.evaluations == 30


@pytest.mark.parametrize('arguments,says', [
    ({'moves': 0}, 'moves=0'), ({'step_size': 2.0}, 'step_size=2.0'),
    ({'step_size': float('nan')}, 'step_size=nan')])
def test_a_chain_that_cannot_draw_is_refused(arguments, says):
  with pytest.raises(InputError, match=says):
    chains.recovery(TRUTH, process_on(vp), **arguments)


@pytest.mark.parametrize('field,value', [('moves', 0), ('step_size', 0.0), ('levels', 1),
                                         ('timesteps', 4)])
def test_a_config_that_cannot_train_is_refused_by_the_name_of_its_field(field, value):
  module, config = configs.read('plane/recovery')
  config.model[field] = value
  with pytest.raises(InputError, match=f'config.model.{field}={value}'):
    module.build(config)


def test_no_gradient_goes_through_the_draw():
  """E = a |z|^2 / 2 and a draw that depends on a: d loss / d a = |z_s|^2 / 2 - |z_s^-|^2 / 2."""
  process, x, t = process_on(vp), jnp.array([[0.3, -0.2], [1.0, 0.4]]), jnp.array([0.2, 0.7])

  @jax.jit
  def slope_and_parts(a):
    def loss(a):
      denoise = energy.denoiser(lambda z, level, cond=None: 0.5 * a * jnp.sum(z**2, axis=1))
      draw = lambda keys, z_t, at_t, at_s: jnp.sin(a * z_t)
      nats, parts = recovery(denoise, process, x, t, split(2), draw=draw, levels=LEVELS)
      return jnp.sum(nats), parts
    return jax.grad(loss, has_aux=True)(a)

  slope, parts = slope_and_parts(2.0)
  expected = np.sum(parts['positive'] - parts['negative']) / 2.0  # each energy is linear in a
  np.testing.assert_allclose(slope, expected, rtol=1e-5)


@pytest.mark.long
def test_the_chain_is_run_forwards_alone_and_validation_is_the_bound():
  module, config = configs.read('plane/recovery')
  config.model.update(features=8, blocks=1, moves=2)
  experiment = module.build(config)
  params = jax.eval_shape(experiment.init, jax.random.key(0))
  batch = {'image': jnp.arange(12).reshape(6, 2) * 20}
  context = Context((jnp.arange(6) + 0.5) / 6, split(6), jnp.int32(0))

  def loops(train, of=lambda loss: loss):
    def loss(params):
      losses, terms = experiment.loss(params, batch, context._replace(train=train))
      assert (losses is terms['bits_per_dim']) != train
      return jnp.mean(losses)
    text = str(jax.make_jaxpr(of(loss))(params))
    return text.count(' scan[') + text.count(' while[')

  assert loops(False) == 0
  assert loops(True) == loops(True, jax.grad) == 1  # a transposed chain would be a second loop
