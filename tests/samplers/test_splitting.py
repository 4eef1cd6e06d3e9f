"""Splitting methods against the exact flow of a posterior, which is the guided flow.

For x ~ N(m, s^2) and a measurement y = x + noise both p(x | z_t) and p(x | y) are Gaussian, so the
guided ODE is linear, and its exact map is that of the unguided ODE for p(x | y).
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, flow, from_alpha_sigma, sub_vp, ve, vp
from vdm_jax.samplers import ddim, heun, sample
from vdm_jax.samplers.grids import stable_diffusion
from vdm_jax.samplers.splitting import plms, splitting
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

MEAN, STD, Y, NOISE = 0.3, 0.8, 1.2, 0.5
PRIOR = oracles.Gaussian(MEAN, STD)
_PRECISION = 1 / STD**2 + 1 / NOISE**2
POSTERIOR = oracles.Gaussian((MEAN / STD**2 + Y / NOISE**2) / _PRECISION, _PRECISION**-0.5)
PROCESS = GaussianProcess(schedules.Linear(4.0, -3.0))


def rectified_flow():
  return from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)


def measurement(z, level, scale=1.0):
  """grad_z log p(y | z_t): y is x_hat(z), of slope dx_hat / dz, plus noise and Var(x | z_t)."""
  level = level.expand(z)
  total = level.alpha**2 * STD**2 + level.sigma**2
  slope = level.alpha * STD**2 / total
  residual = Y - (MEAN + slope * (z - level.alpha * MEAN))
  return scale * slope * residual / (NOISE**2 + level.sigma**2 * STD**2 / total)


def grids(lengths, start=1.0, last=0.0):
  """Uniform grids of these numbers of steps, all as long as the longest."""
  longest = max(lengths)
  return jnp.stack([jnp.pad(jnp.linspace(start, last, n + 1), (0, longest - n),
                            constant_values=last) for n in lengths])


def on_grids(sampler, z, times):
  keys = jax.random.split(jax.random.key(0), len(z))
  return jax.jit(jax.vmap(lambda times: sample(sampler, keys, z, times)))(times)


def slopes(sampler, process, oracle, lengths=(20, 40, 80, 160)):
  """Orders between successive numbers of steps, and the last error; z are of the prior's law."""
  z = jnp.linspace(-1.5, 1.5, 4)[:, None]
  times = grids(lengths)
  exact = oracle.flow_map(z, process(times[0, 0]), process(times[0, -1]))
  error = np.abs(on_grids(sampler, z, times) - exact).max(axis=(1, 2))
  return np.log2(error[:-1] / error[1:]), error[-1]


SECOND = {'diffusion': heun, 'guide': 'heun'}


@pytest.mark.long
@pytest.mark.parametrize('curve', [vp, ve, flow, sub_vp])
def test_strang_splitting_is_of_order_two_on_every_curve_if_its_parts_are(curve):
  process = GaussianProcess(PROCESS.schedule, curve)
  orders, error = slopes(splitting(PRIOR, process, measurement, **SECOND), process, POSTERIOR)
  np.testing.assert_allclose(orders[-2:], 2.0, atol=0.1)
  assert error < 1e-3


@pytest.mark.long
@pytest.mark.parametrize('options', [
    {'scheme': 'lie-trotter'}, {'scheme': 'lie-trotter', **SECOND},
    # Euler's halves are of order 1, and so is a memory across what guidance did in between.
    {'scheme': 'strang'}, {'guide': 'heun'}, {'diffusion': heun}
], ids=['lie', 'lie with heun', 'strang', 'strang, heun guide', 'strang, heun flow'])
def test_lie_trotter_and_what_is_published_of_strang_are_of_order_one(options):
  orders, error = slopes(splitting(PRIOR, PROCESS, measurement, **options), PROCESS, POSTERIOR,
                         (80, 160, 320))
  np.testing.assert_allclose(orders, 1.0, atol=0.15)
  assert error < 0.02


@pytest.mark.long
@pytest.mark.parametrize('options', [{'scheme': 'lie-trotter'}, {}, SECOND],
                         ids=['lie-trotter', 'strang', 'second'])
def test_guidance_reaches_from_pure_noise_to_pure_data(options):
  """Of order 1; at sigma = 0, and by Strang's at alpha = 0, a gradient that is NaN is not used."""
  process = rectified_flow()
  inside = lambda level: (level.sigma > 0.0) & ((level.alpha > 0.0) | ('scheme' in options))
  gradient = lambda z, level: jnp.where(inside(level), measurement(z, level), jnp.nan)
  orders, error = slopes(splitting(PRIOR, process, gradient, **options), process, POSTERIOR,
                         (80, 160, 320))
  np.testing.assert_allclose(orders, 1.0, atol=0.25)
  assert error < 0.02


@pytest.mark.long
@pytest.mark.parametrize('scheme', ['lie-trotter', 'strang'])
def test_where_the_parts_commute_splitting_is_the_product_of_both(scheme):
  """Two linear flows of one dimension, so neither order nor interleaving of the two matters."""
  centred = oracles.Gaussian(0.0, 0.6)
  nothing = lambda z, level, cond=None: Estimate(z / level.alpha, jnp.zeros_like(z))
  pull = lambda z, level: -0.7 * z / (level.alpha * level.sigma)
  times = grids([7, 12], last=0.1)
  run = lambda denoise, gradient: on_grids(
      splitting(denoise, PROCESS, gradient, scheme, diffusion=ddim), jnp.ones((1, 1)), times)
  both, diffused = run(centred, pull), run(centred, lambda z, level: 0.0 * z)
  pulled = run(nothing, pull)
  scale = PROCESS(times[:, -1]).alpha / PROCESS(times[:, 0]).alpha  # in all of them, once too often
  np.testing.assert_allclose(both[:, 0, 0], (diffused * pulled)[:, 0, 0] / scale, rtol=1e-10)
  assert (np.abs(both - diffused) > 0.05).all()
  np.testing.assert_allclose(diffused, on_grids(ddim(centred, PROCESS), jnp.ones((1, 1)), times),
                             rtol=1e-10)


@pytest.mark.long
def test_under_strong_guidance_the_multistep_method_diverges_and_splitting_does_not():
  """The guidance alone contracts, and its steps are outside of what Adams-Bashforth bears."""
  process = GaussianProcess(PROCESS.schedule, ve)
  # The score of a measurement of z itself: linear, and stiff where sigma is not small.
  gradient = lambda z, level, scale: scale * (Y - z) / (NOISE**2 + level.sigma**2)

  def guided(scale):
    def denoise(z, level, cond=None):
      x, eps, _ = PRIOR(z, level)
      slope = level.sigma * gradient(z, level, scale)
      return Estimate(x + level.sigma * slope / level.alpha, eps - slope)
    return denoise

  z = jnp.linspace(-3.0, 3.0, 4)[:, None]
  times = grids([15])
  for scale, diverges in [(1.0, False), (10.0, True)]:
    whole = np.abs(on_grids(plms(guided(scale), process), z, times) - Y).max()
    split = np.abs(on_grids(splitting(PRIOR, process, functools.partial(gradient, scale=scale)),
                            z, times) - Y).max()
    assert (whole > 100.0) == diverges
    assert split < 1.5


# ------------------------------------------------------------------- PLMS


@pytest.mark.long
def test_plms_integrates_a_polynomial_of_its_degree_once_it_has_its_memory():
  """Adams-Bashforth of order k is exact for degree k - 1 on equal steps of sigma / alpha."""
  process = from_alpha_sigma(jnp.ones_like, lambda t: 0.1 + 1.9 * t)
  times = jnp.linspace(1.0, 0.0, 9)
  rho = process(times).sigma
  keys = jax.random.split(jax.random.key(0), 1)
  for order in (1, 2, 3, 4):
    noise = lambda z, level: jnp.full_like(z, level.sigma)**(order - 1)              # noqa: B023
    denoise = lambda z, level: Estimate(z - level.sigma * noise(z, level), noise(z, level))  # noqa: B023
    _, path = sample(plms(denoise, process, order), keys, jnp.ones((1, 1)), times,
                     trace=lambda state: state.z[0, 0])
    known = (rho[1:]**order - rho[:-1]**order) / order
    np.testing.assert_allclose(np.diff(path)[order - 1:], known[order - 1:], rtol=1e-10)
    # The first step is the trapezoid rule, exact for degree 1.
    assert (abs(path[1] - path[0] - known[0]) > 1e-3) == (order > 2)


@pytest.mark.long
def test_plms_of_order_one_is_ddim():
  z = jnp.linspace(-2.0, 2.0, 3)[:, None]
  for process in (PROCESS, rectified_flow()):
    np.testing.assert_allclose(on_grids(plms(PRIOR, process, 1), z, grids([6])),
                               on_grids(ddim(PRIOR, process), z, grids([6])), rtol=1e-12)


@pytest.mark.first(1)
@pytest.mark.parametrize('curve,order', [(vp, 2), (vp, 4), (ve, 4), (sub_vp, 4)])
def test_plms_is_of_order_two_on_unequal_steps(curve, order):
  process = GaussianProcess(PROCESS.schedule, curve)
  orders, error = slopes(plms(PRIOR, process, order), process, PRIOR, (80, 160, 320))
  np.testing.assert_allclose(orders, 2.0, atol=0.1)
  assert error < 1e-3


@pytest.mark.first(1)
@pytest.mark.parametrize('order', [4, 2])
def test_on_equal_steps_plms_has_the_order_that_its_first_step_allows(order):
  """The improved Euler method errs by h^3 in one step; with DDIM's step, by h^2, it would be 2."""
  process = from_alpha_sigma(jnp.ones_like, lambda t: 0.5 + t)
  orders, error = slopes(plms(PRIOR, process, order), process, PRIOR, (160, 320, 640))
  np.testing.assert_allclose(orders, min(order, 3), atol=0.1)
  assert error < 1e-3


def published_plms(e, a, n, z):
  """z of the public sampler of Stable Diffusion, with n steps of a chain with alpha_i^2 = a.

  Written from CompVis/latent-diffusion, c2cf23f, in float64.  e: (z, alpha^2) -> eps_hat.
  """
  steps = np.arange(0, len(a), len(a) // n) + 1
  towards = [a[0], *a[steps[:-1]]]
  memory = []
  for i in range(len(steps))[::-1]:
    at_t, at_s = a[steps[i]], towards[i]
    step = lambda e: (np.sqrt(at_s) * (z - np.sqrt(1 - at_t) * e) / np.sqrt(at_t)    # noqa: B023
                      + np.sqrt(1 - at_s) * e)                                       # noqa: B023
    now = e(z, at_t)
    last = [now, *memory]
    if not memory:
      z = step((now + e(step(now), a[steps[i - 1]])) / 2)
    else:
      factors = {2: (3, -1), 3: (23, -16, 5), 4: (55, -59, 37, -9)}[len(last)]
      z = step(sum(f * u for f, u in zip(factors, last, strict=True)) / sum(factors))
    memory = last[:3]
  return z


@pytest.mark.parametrize('n', [5, 50])
def test_plms_takes_the_steps_of_the_public_sampler_of_stable_diffusion(n):
  a = np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000)**2)
  process = GaussianProcess(schedules.TableSchedule.from_alphas(a))

  def of_gaussian(z, a):
    return np.sqrt(1 - a) * (z - np.sqrt(a) * MEAN) / (a * STD**2 + 1 - a)

  z = np.linspace(-1.5, 1.5, 4)[:, None]
  keys, times = jax.random.split(jax.random.key(0), 4), stable_diffusion(n)
  got = jax.jit(lambda z: sample(plms(PRIOR, process), keys, z, times))(z)
  np.testing.assert_allclose(got, published_plms(of_gaussian, a, n, z), rtol=1e-9)


@pytest.mark.parametrize('start,steps,calls', [(1.0, 6, 7), (0.9, 6, 7), (1.0, 1, 1), (0.9, 1, 1)])
def test_plms_asks_the_denoiser_once_more_than_it_takes_steps(start, steps, calls):
  """Counted while it runs, from alpha = 0 too; one step that ends at the data has no other end."""
  asked = []

  def denoise(z, level, cond=None):
    jax.debug.callback(lambda: asked.append(1))
    return PRIOR(z, level)

  sampler = plms(denoise, rectified_flow())
  keys = jax.random.split(jax.random.key(0), 2)
  jax.block_until_ready(jax.jit(lambda z: sample(
      sampler, keys, z, np.pad(np.linspace(start, 0.0, steps + 1), (2, 0), 'edge')))(
          jnp.ones((2, 1))))
  jax.effects_barrier()
  padding = 2  # a step of length zero asks as well, and its result is not used
  assert len(asked) == calls + padding
  assert steps == 1 or calls == steps * sampler.evaluations + sampler.extra_evaluations


@pytest.mark.long
def test_plms_converges_from_pure_noise_to_pure_data():
  """Where rho is infinite it begins anew; the steps after are the most unequal there are."""
  for order in (2, 4):
    orders, error = slopes(plms(PRIOR, rectified_flow(), order), rectified_flow(), PRIOR,
                           (80, 160, 320))
    assert (orders > 1.5).all() and error < 1e-4


@pytest.mark.long
@pytest.mark.parametrize('make,count', [
    (plms, 2), (lambda *a: splitting(*a, measurement), 2),
    (lambda *a: splitting(*a, measurement, 'lie-trotter', diffusion=heun), 2)])
def test_evaluations_are_declared_grids_padded_and_float32_kept(make, count):
  asked = []

  def denoise(z, level, cond=None):
    asked.append(1)
    return PRIOR(z, level)

  z = jnp.linspace(-2.0, 2.0, 3)[:, None]
  keys = jax.random.split(jax.random.key(0), 3)
  sampler = make(denoise, rectified_flow())
  run = lambda: jax.jit(lambda z, times: sample(sampler, keys, z, times))
  plain = run()(z, grids([5])[0])
  assert len(asked) == sampler.evaluations + sampler.extra_evaluations == count
  padded = run()(z, grids([5, 8])[0])
  np.testing.assert_allclose(padded, plain, rtol=1e-12)
  with jax.enable_x64(False):
    single = run()(z.astype(jnp.float32), grids([5])[0].astype(jnp.float32))
    assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, plain, atol=1e-5)


def test_an_unknown_choice_is_refused():
  for options, said in [({'scheme': 'strange'}, "scheme='strange'"), ({'guide': 'rk4'}, 'guide')]:
    with pytest.raises(InputError, match=said):
      splitting(PRIOR, PROCESS, measurement, **options)
  with pytest.raises(InputError, match='order=5: '):
    plms(PRIOR, PROCESS, 5)
