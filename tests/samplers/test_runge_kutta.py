"""Runge-Kutta methods on the probability flow: orders, both variables, the ends of a process."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.sampling import MIXTURE, grids, on_grids, quantile_map, rectified_flow
from vdm_jax import oracles, processes, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, flow, from_alpha_sigma, ve, vp
from vdm_jax.samplers import ddim, encode, sample
from vdm_jax.samplers.runge_kutta import (
    EULER,
    HEUN,
    MIDPOINT,
    RALSTON,
    RK3,
    RK4,
    Tableau,
    rho_rk,
    runge_kutta,
    second_order,
)
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

ORACLE = oracles.Gaussian(0.7, 0.4)
LINEAR = schedules.Linear(3.0, -2.5)


def mixture():
  weights, means, stds = map(jnp.array, MIXTURE)
  return oracles.Mixture(weights, means[:, None], stds)


def undefined_at_sigma_zero(z, level, cond=None):
  x, eps, _ = ORACLE(z, level)
  nothing = jnp.where(level.expand(z).sigma > 0.0, 0.0, jnp.nan)
  return Estimate(x + nothing, eps + nothing)


@pytest.mark.long
@pytest.mark.parametrize('make,tableau,order', [
    (runge_kutta, EULER, 1), (runge_kutta, MIDPOINT, 2), (runge_kutta, RALSTON, 2),
    (runge_kutta, RK3, 3), (runge_kutta, RK4, 4), (rho_rk, HEUN, 2), (rho_rk, RK3, 3)])
def test_the_order_of_convergence_on_a_mixture_is_that_of_the_tableau(make, tableau, order):
  process = GaussianProcess(LINEAR)
  z = np.linspace(-2.0, 2.0, 8)[:, None]
  exact = quantile_map(z, process(jnp.ones(())), process(jnp.zeros(())))
  got = on_grids(make(mixture(), process, tableau), jnp.asarray(z), [80, 160, 320, 640])
  error = np.sqrt(np.mean((got - exact)**2, axis=(1, 2)))
  np.testing.assert_allclose(np.log2(error[:-1] / error[1:]), order, atol=0.06)
  assert error[-1] < 4.0 * 100.0**-order


@pytest.mark.parametrize('tableau,order', [
    (EULER, 1), (HEUN, 2), (second_order(0.3), 2), (RALSTON, 2), (RK3, 3), (RK4, 4)])
def test_on_a_linear_flow_a_step_is_the_exponential_as_far_as_its_order(tableau, order):
  """Data at 0 and sigma = e^t on the line alpha = 1: dz/dt = z.

  An explicit method of as many stages as its order multiplies by sum_k h^k / k!, k <= order.
  """
  process = from_alpha_sigma(jnp.ones_like, jnp.exp)
  sampler = runge_kutta(oracles.Gaussian(0.0, 0.0), process, tableau)
  got = sampler.step(None, jnp.ones((1, 1)), jnp.array(0.9), jnp.array(0.2), None)
  terms = [1.0, -0.7, 0.7**2 / 2, -0.7**3 / 6, 0.7**4 / 24]
  np.testing.assert_allclose(got, [[sum(terms[:order + 1])]], rtol=1e-12)


@pytest.mark.long
def test_in_rho_the_steps_are_the_same_on_every_curve_and_clock():
  z = np.linspace(-1.5, 1.5, 4)[:, None]
  keys = jax.random.split(jax.random.key(0), 4)
  logsnr = jnp.linspace(-4.0, 6.0, 9)
  got = []
  linear, cosine = schedules.Linear(6.0, -4.0), schedules.Cosine(7.0, -6.0)
  for curve, schedule in [(vp, linear), (ve, cosine), (flow, cosine)]:
    process = GaussianProcess(schedule, curve)

    @jax.jit
    def run(process=process):
      times = processes.time_of(process, logsnr)
      start, end = process(times[0]), process(times[-1])
      first = jnp.hypot(start.alpha, start.sigma) * z
      return sample(rho_rk(ORACLE, process, RALSTON), keys, first, times) / end.alpha

    got.append(run())
  np.testing.assert_allclose(got, np.broadcast_to(got[0], (3, 4, 1)), rtol=1e-9)
  assert np.std(got[0]) > 0.1


def test_in_rho_one_step_is_exact_for_data_at_a_point_and_is_euler_for_one_stage():
  process = GaussianProcess(LINEAR, flow)
  keys = jax.random.split(jax.random.key(0), 5)
  z, times = jnp.linspace(-2.0, 2.0, 5)[:, None], jnp.array([0.9, 0.1])
  point = oracles.Gaussian(0.7, 0.0)
  exact = point.flow_map(z, process(times[0]), process(times[1]))
  got, one_stage, first_order = jax.jit(lambda: [sample(sampler, keys, z, times) for sampler in (
      rho_rk(point, process, RK3), rho_rk(ORACLE, process, EULER), ddim(ORACLE, process))])()
  np.testing.assert_allclose(got, exact, rtol=1e-9)
  np.testing.assert_allclose(one_stage, first_order, rtol=1e-12)


@pytest.mark.first(1)
@pytest.mark.parametrize('make,tableau', [
    (runge_kutta, HEUN), (runge_kutta, RK4), (rho_rk, MIDPOINT)])
def test_from_pure_noise_to_pure_data_the_order_is_two_and_sigma_zero_is_never_asked(make, tableau):
  """alpha = 0 at the start and sigma = 0 at the end, where the exact map is z -> m + s z.

  The last step is Euler's, and leaves an error of second order whatever the tableau is.
  """
  z = np.linspace(-2.0, 2.0, 5)[:, None]
  sampler = make(undefined_at_sigma_zero, rectified_flow(), tableau)
  got = on_grids(sampler, jnp.asarray(z), [64, 128, 256])
  error = np.abs(got - (0.7 + 0.4 * z)).max(axis=(1, 2))
  np.testing.assert_allclose(np.log2(error[:-1] / error[1:]), 2, atol=0.15)
  assert error[-1] < 1e-3


@pytest.mark.parametrize('make', [runge_kutta, rho_rk])
def test_run_upwards_it_inverts_itself_to_its_order(make):
  process = GaussianProcess(LINEAR, ve)
  x = jnp.asarray(np.linspace(-1.0, 2.0, 5)[:, None])
  sampler, keys = make(ORACLE, process, RK3), jax.random.split(jax.random.key(0), 5)
  run = jax.jit(lambda z, times: encode(sampler, keys, z, times))  # a traced grid has no direction
  up = run(x, jnp.linspace(0.0, 1.0, 81))
  exact = ORACLE.flow_map(x, process(jnp.zeros(())), process(jnp.ones(())))
  np.testing.assert_allclose(up, exact, rtol=1e-5)
  np.testing.assert_allclose(run(up, jnp.linspace(1.0, 0.0, 81)), x, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize('make,process', [
    (runge_kutta, GaussianProcess(LINEAR)), (rho_rk, rectified_flow())])
def test_a_padded_grid_gives_the_same(make, process):
  sampler = make(ORACLE, process, RK3)
  z = jnp.linspace(-2.0, 2.0, 5)[:, None]
  keys = jax.random.split(jax.random.key(0), 5)
  run = jax.jit(lambda times: sample(sampler, keys, z, times))
  plain = run(grids([6])[0])
  np.testing.assert_allclose(run(grids([6, 9])[0]), plain, rtol=1e-12)
  assert np.abs(plain - z).max() > 0.1


@pytest.mark.parametrize('make', [runge_kutta, rho_rk])
@pytest.mark.parametrize('tableau', [EULER, HEUN, RK4])
def test_it_declares_how_often_it_asks_the_denoiser(make, tableau):
  asked = []

  def denoise(z, level, cond=None):
    asked.append(1)
    return ORACLE(z, level)

  sampler = make(denoise, GaussianProcess(LINEAR), tableau)
  times, keys = jnp.array([0.5, 0.4]), jax.random.split(jax.random.key(0), 1)
  jax.eval_shape(lambda z: sample(sampler, keys, z, times), jnp.ones((1, 1)))
  assert len(asked) == sampler.evaluations  # the scan traces a step once


@pytest.mark.first(1)
@pytest.mark.parametrize('make', [runge_kutta, rho_rk])
def test_float32_stays_float32_and_near_float64(make):
  def run():
    sampler = make(ORACLE, GaussianProcess(LINEAR), RK3)
    keys = jax.random.split(jax.random.key(0), 5)
    z = jnp.linspace(-2.0, 2.0, 5)[:, None]
    return jax.jit(lambda: sample(sampler, keys, z, jnp.linspace(1.0, 0.0, 41)))()

  with jax.enable_x64(False):
    single = run()
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, run(), atol=1e-5)


@pytest.mark.parametrize('tableau,message', [
    (Tableau(((0.0,), (1.0, 0.0)), (0.5, 0.5), (0.0, 1.0)), 'S rows'),
    (Tableau(((), (1.0,)), (0.5, 0.6), (0.0, 1.0)), 'b that sums to 1'),
    (Tableau(((), (0.5,)), (0.5, 0.5), (0.0, 1.0)), 'rows of a that sum'),
    (second_order(1.5), 'outside of the step')])
def test_a_tableau_that_is_none_is_refused(tableau, message):
  for make in (runge_kutta, rho_rk):
    with pytest.raises(InputError, match=message):
      make(ORACLE, GaussianProcess(LINEAR), tableau)
