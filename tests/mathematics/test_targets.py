"""Targets, the one solve that serves them all, and networks moved to other processes."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import denoisers, oracles, schedules, targets, values
from vdm_jax.processes import GaussianProcess, diffuse, flow, from_alpha_sigma, sub_vp, ve, vp
from vdm_jax.typing import Level

pytestmark = pytest.mark.usefixtures('x64')

CURVES = [vp, ve, flow, sub_vp]
TARGETS = {'x': targets.x, 'eps': targets.eps, 'v': targets.v,
           'score': targets.score, 'flow': targets.flow, 'edm': targets.edm(),
           'velocity': targets.velocity(GaussianProcess(schedules.Cosine(7.0, -7.0)))}


def all_schedules():
  learned = schedules.PinnedMonotone(features=8, logsnr_max=6.0, logsnr_min=-6.0)
  params = learned.init(jax.random.key(0), jnp.zeros(1))['params']
  return [schedules.Linear(6.0, -6.0), schedules.Cosine(6.0, -6.0), schedules.BetaLinear(),
          schedules.GeometricSigma(0.05, 20.0), values.Bound(params, learned)]


def draws(n, seed=1):
  return jax.random.normal(jax.random.key(seed), (2, n, 3))


def there_and_back(target, x, eps, level):
  """What is left of x and eps after predicting y = a x + b eps and solving."""
  a, b = target(level.expand(x))
  return targets.solve(target, a * x + b * eps, diffuse(x, eps, level), level)


@pytest.mark.long
def test_solving_gives_back_x_and_eps_for_every_target_schedule_and_curve():
  t = jnp.linspace(0.02, 0.98, 7)
  x, eps = draws(7 * len(all_schedules()))

  @jax.jit
  def estimates():
    out = {}
    for curve in CURVES:
      parts = [GaussianProcess(schedule, curve)(t) for schedule in all_schedules()]
      level = Level(*map(jnp.concatenate, zip(*parts, strict=True)))
      for name, target in TARGETS.items():
        out[curve.__name__, name] = there_and_back(target, x, eps, level)[:2]
    return out

  for case, (got_x, got_eps) in estimates().items():
    np.testing.assert_allclose(got_x, x, atol=1e-8, err_msg=case)
    np.testing.assert_allclose(got_eps, eps, atol=1e-8, err_msg=case)


def float32_errors(target, logsnr):
  """Largest error of (x, eps) when all is float32, on the curve vp."""
  with jax.enable_x64(False):
    x, eps = draws(2000)
    alpha, sigma = vp(jnp.float32(logsnr))
    zero = jnp.zeros(())
    level = Level(zero, jnp.float32(logsnr), alpha, sigma, zero, zero, zero)
    got = there_and_back(target, x, eps, level)
    return np.sqrt(np.mean((got.x - x)**2)), np.sqrt(np.mean((got.eps - eps)**2))


@pytest.mark.parametrize('logsnr', [-20.0, -13.3, -5.0, 0.0, 5.0, 13.3, 20.0])
@pytest.mark.parametrize('name', ['v', 'edm'])
def test_v_and_edm_are_solved_to_float32_rounding_everywhere(name, logsnr):
  assert max(float32_errors(TARGETS[name], logsnr)) < 5e-7


def test_float32_loses_what_the_module_says_it_loses():
  """Rounding z by 6e-8 costs 1 / sigma of it in eps, and 1 / alpha of it in x."""
  for logsnr, size in (13.3, 9e-5), (20.0, 3e-3):
    x_error, eps_error = float32_errors(targets.x, logsnr)
    assert x_error < 1e-7 and size / 10 < eps_error < size
    x_error, eps_error = float32_errors(targets.eps, -logsnr)
    assert eps_error < 1e-7 and size / 10 < x_error < size


def test_targets_are_what_their_papers_call_them():
  """Each from a definition of its own: a gradient, a time derivative, a preconditioning."""
  process = GaussianProcess(schedules.Cosine(5.0, -5.0), sub_vp)
  t = jnp.linspace(0.1, 0.9, 5)
  x, eps = draws(5)[..., 0]

  @jax.jit
  def formed():
    level = process(t)
    log_q = lambda z: jnp.sum(-0.5 * ((z - level.alpha * x) / level.sigma)**2)
    out = {'level': level, 'gradient': jax.grad(log_q)(diffuse(x, eps, level)), 'derivative':
           jax.jvp(lambda t: diffuse(x, eps, process(t)), (t,), (jnp.ones(5),))[1]}
    for name, target in {**TARGETS, 'velocity': targets.velocity(process)}.items():
      a, b = target(level)
      out[name] = a * x + b * eps
    return out
  y = formed()
  level = y['level']
  np.testing.assert_allclose(y['v'], level.alpha * eps - level.sigma * x)
  np.testing.assert_allclose(y['flow'], eps - x)
  np.testing.assert_allclose(y['score'], y['gradient'], rtol=1e-9)
  np.testing.assert_allclose(y['velocity'], y['derivative'], rtol=1e-9)
  # Karras et al. (2022), table 1: D(y; s) = c_skip y + c_out F of y = x + s n is x.
  s, data = np.asarray(level.sigma / level.alpha), 0.5
  skip, out = data**2 / (s**2 + data**2), s * data / np.sqrt(s**2 + data**2)
  np.testing.assert_allclose(skip * (x + s * eps) + out * y['edm'], x, rtol=1e-9)


def test_edm_and_v_are_solved_where_alpha_or_sigma_vanish():
  process = from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)
  x, eps = draws(3)
  level = process(jnp.array([0.0, 0.5, 1.0]))
  for target in (targets.v, targets.flow, targets.edm()):
    got = there_and_back(target, x, eps, level)
    np.testing.assert_allclose(got.x, x, atol=1e-12)
    np.testing.assert_allclose(got.eps, eps, atol=1e-12)


def test_a_denoiser_shows_its_network_z_and_the_logsnr_of_each_example():
  process = GaussianProcess(schedules.Linear(5.0, -5.0), flow)
  x, eps = draws(4)
  seen = {}

  def network(z, logsnr, cond):
    seen.update(logsnr=logsnr, cond=cond)
    return x  # a network that always knows x

  level = process(jnp.array(0.3))
  z = diffuse(x, eps, level)
  got = denoisers.denoiser(network, targets.x)(z, level, 'label')
  np.testing.assert_allclose(seen['logsnr'], jnp.full(4, 2.0))
  assert seen['cond'] == 'label'
  np.testing.assert_allclose(got.eps, eps, rtol=1e-9)


def test_inputs_give_a_network_its_own_view():
  """EDM's c_in, with which a network of unit-variance data sees unit variance."""
  process = GaussianProcess(schedules.GeometricSigma(0.1, 10.0), ve)
  level = process(jnp.array([0.2, 0.8]))
  inputs = lambda z, level: (z / jnp.sqrt(1.0 + level.expand(z).sigma**2), jnp.log(level.sigma) / 4)
  network = lambda z, noise, cond: z * jnp.exp(4 * noise)[:, None]
  got = denoisers.denoiser(network, targets.eps, inputs)(jnp.ones((2, 1)), level)
  sigma = np.asarray(level.sigma)
  np.testing.assert_allclose(got.eps[:, 0], sigma / np.sqrt(1 + sigma**2), rtol=1e-9)


@pytest.mark.long
def test_a_network_trained_on_one_curve_serves_every_other_process():
  """The denoiser of vp, moved, is the closed form of the other process, also at its ends."""
  oracle = oracles.Gaussian(0.7, 0.4)
  moved = denoisers.on_curve(oracle, vp)
  t = jnp.linspace(0.0, 1.0, 7)
  z = jnp.linspace(-3.0, 3.0, 7)[:, None]
  for process in (*(GaussianProcess(schedules.Linear(5.0, -5.0), curve) for curve in CURVES),
                  from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)):
    level = process(t)
    got, expected = moved(z, level), oracle(z, level)
    np.testing.assert_allclose(got.x, expected.x, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got.eps, expected.eps, rtol=1e-9, atol=1e-12)


@pytest.mark.long
def test_a_velocity_network_serves_a_schedule_it_was_not_trained_on():
  """The velocity of Cosine on vp, known in closed form from logsnr alone, sampled under Linear."""
  mean, std = 0.7, 0.4
  a, b = np.arctan(np.exp(-4.0)), np.arctan(np.exp(4.0))

  def network(z, logsnr, cond):
    # z has mean alpha m and variance alpha^2 s^2 + sigma^2, with alpha = cos(angle): differentiate.
    angle = jnp.arctan(jnp.exp(-0.5 * logsnr))[:, None]
    alpha, sigma = jnp.cos(angle), jnp.sin(angle)
    dalpha, dsigma = -sigma * (b - a), alpha * (b - a)
    variance = alpha**2 * std**2 + sigma**2
    dvariance = 2 * (alpha * dalpha * std**2 + sigma * dsigma)
    return dalpha * mean + 0.5 * dvariance / variance * (z - alpha * mean)

  trained_on = GaussianProcess(schedules.Cosine(8.0, -8.0))
  denoise = denoisers.denoiser(network, targets.velocity(trained_on))
  z = jnp.linspace(-2.0, 2.0, 9)[:, None]
  for process in (trained_on, GaussianProcess(schedules.Linear(8.0, -8.0))):
    level = process(jnp.linspace(0.0, 1.0, 9))
    got, expected = denoise(z, level), oracles.Gaussian(mean, std)(z, level)
    np.testing.assert_allclose(got.x, expected.x, rtol=1e-6)
    np.testing.assert_allclose(got.eps, expected.eps, rtol=1e-6)
  assert stats.pearsonr(got.x[:, 0], z[:, 0])[0] > 0.5  # and not constants
