"""DEIS, against published coefficients, integrals by another quadrature, and exact flows."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, interpolate

from tests.support.sampling import (
  BEND,
  CURVED,
  LINEAR,
  ODD,
  UNEVEN,
  Z,
  mixture,
  program,
  rectified_flow,
  slopes,
  undefined_at_data,
)
from vdm_jax import oracles, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, from_alpha_sigma, sub_vp, ve, vp
from vdm_jax.samplers import ddim, encode
from vdm_jax.samplers.deis import deis
from vdm_jax.samplers.grids import warm_up

pytestmark = pytest.mark.usefixtures('x64')


@pytest.mark.long
def test_degree_zero_is_ddim():
  for variable, process in (('t', rectified_flow()), ('rho', CURVED), ('logsnr', CURVED)):
    np.testing.assert_array_equal(
        program(deis(ODD, process, degree=0, variable=variable))(Z, UNEVEN),
        program(ddim(ODD, process))(Z, UNEVEN))


@pytest.mark.parametrize('variable', ['t', 'rho'])
def test_with_sigma_as_time_at_alpha_1_it_is_the_method_of_adams_and_bashforth(variable):
  """Even steps, dz / d sigma = eps_hat: (55, -59, 37, -9) / 24, and the lower ones before."""
  process = from_alpha_sigma(jnp.ones_like, lambda t: 1.0 + t)
  got = jax.jit(deis(ODD, process, 3, variable).plan)(np.linspace(1.0, 0.0, 7)).predict
  known = np.array([[0.0, 0.0, 0.0], [-1 / 2, 0.0, 0.0], [-16 / 12, 5 / 12, 0.0]]
                   + 3 * [[-59 / 24, 37 / 24, -9 / 24]])
  np.testing.assert_allclose(got, known * -1 / 6, rtol=1e-12, atol=1e-15)


# A process, the same in NumPy as rho(t) and its derivative, and a grid: uneven steps over all 18
# units of logsnr, as long as anyone takes; steps that end close to where rho is infinite or 0.
def ratio(t):
  return np.exp(-0.5 * (LINEAR[0] + (LINEAR[1] - LINEAR[0]) * t))


def even(curve):
  slope = lambda t: -0.5 * (LINEAR[1] - LINEAR[0]) * ratio(t)
  return GaussianProcess(schedules.Linear(*LINEAR), curve), ratio, slope, UNEVEN


STEEP = (rectified_flow(), lambda t: t / (1.0 - t), lambda t: 1.0 / (1.0 - t)**2,
         np.array([1.0, 0.999, 0.9, 0.5, 0.1, 0.001, 0.0]))


@pytest.mark.first(1)
@pytest.mark.parametrize('variable,case', [
    ('t', even(vp)), ('t', STEEP), ('rho', even(ve)), ('logsnr', even(sub_vp))])
def test_the_coefficients_are_the_integrals_of_the_lagrange_polynomials(variable, case):
  process, rho, slope, times = case
  plan = jax.jit(lambda times: (deis(ODD, process, 3, variable).plan(times).predict,
                                process(times).alpha))
  got, alpha = map(np.asarray, plan(times))
  of_time = {'t': lambda t: t, 'rho': rho, 'logsnr': lambda t: -2.0 * np.log(rho(t))}[variable]
  for i in range(1, 6):
    nodes = of_time(times[max(i - 3, 0):i + 1][::-1])
    for j in range(1, len(nodes)):
      unit = interpolate.BarycentricInterpolator(nodes, np.eye(len(nodes))[j])
      exact, _ = integrate.quad(lambda t, unit=unit: unit(of_time(t)) * slope(t), times[i],
                                times[i + 1], epsabs=0.0, epsrel=1e-12, limit=200)
      np.testing.assert_allclose(got[i, j - 1], alpha[i + 1] * exact, rtol=1e-10)
    np.testing.assert_array_equal(got[i, len(nodes) - 1:], 0.0)


@pytest.mark.long
@pytest.mark.parametrize('degree,variable,process,atol', [
    (1, 't', BEND, 0.03), (2, 't', CURVED, 0.15), (3, 't', BEND, 0.12), (3, 'rho', CURVED, 0.08)])
def test_on_grids_with_a_warm_up_the_order_is_one_more_than_the_degree(degree, variable, process,
                                                                       atol):
  got = slopes(deis(mixture(), process, degree, variable), process, degree + 1, (160, 320, 640))
  np.testing.assert_allclose(got[1], degree + 1, atol=atol)
  assert got[0] > degree + 0.8


@pytest.mark.long
def test_with_a_warm_up_for_order_four_the_first_points_do_not_spoil_later_interpolation():
  """Which divides what they are wrong by by their distances."""
  gaussian = oracles.Gaussian(0.3, 0.7)
  got = slopes(deis(gaussian, BEND, 3), BEND, 4, (160, 320, 640), 'gaussian')
  np.testing.assert_allclose(got, 4.0, atol=0.05)


@pytest.mark.long
def test_without_a_warm_up_the_first_step_leaves_an_error_of_second_order():
  np.testing.assert_allclose(slopes(deis(mixture(), BEND, 3), BEND)[1], 2.0, atol=0.08)


@pytest.mark.long
@pytest.mark.parametrize('variable', ['t', 'rho', 'logsnr'])
def test_rectified_flow_converges_from_pure_noise_to_pure_data(variable):
  """From alpha = 0 to sigma = 0 the exact map is z -> m + s z."""
  run = program(deis(undefined_at_data, rectified_flow(), 2, variable))
  grids = [np.pad(np.linspace(1.0, 0.0, n + 1), (0, 128 - n)) for n in (64, 128)]
  error = [np.abs(run(Z, times) - (0.7 + 0.4 * Z)).max() for times in grids]
  assert error[1] < 2e-3
  assert error[0] / error[1] > 3.0


@pytest.mark.long
def test_run_upwards_it_encodes_data_as_noise():
  """From sigma = 0 to alpha = 0: the inverse of the exact map, z_1 = (x - m) / s."""
  x = 0.7 + 0.4 * Z
  got = program(deis(ODD, rectified_flow(), 2), encode)(x, np.linspace(0.0, 1.0, 129))
  np.testing.assert_allclose(got, Z, atol=2e-3)


@pytest.mark.long
def test_a_time_repeated_within_a_grid_begins_the_history_anew():
  run = program(deis(mixture(), BEND, 3))
  above, below = np.linspace(1.0, 0.4, 6), np.linspace(0.4, 0.0, 6)
  in_turn = run(run(Z, np.pad(above, (0, 6), 'edge')), np.pad(below, (0, 6)))
  np.testing.assert_allclose(run(Z, np.concatenate([above, below])), in_turn, rtol=1e-13)


@pytest.mark.long
@pytest.mark.parametrize('variable,process', [
    ('t', rectified_flow()), ('logsnr', GaussianProcess(schedules.Linear(*LINEAR)))])
def test_float32_stays_float32_and_near_float64(variable, process):
  def run():
    return program(deis(ODD, process, 3, variable))(jnp.asarray(Z), jnp.linspace(1.0, 0.0, 101))

  with jax.enable_x64(False):
    single = run()
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, run(), atol=1e-5)


@pytest.mark.long
def test_a_warm_up_adds_times_to_the_first_step_alone():
  """At 8^-4/3 and 8^-1/3 of it for order 4."""
  grid = np.linspace(1.0, 0.0, 9)
  for times in (grid, np.pad(grid, (0, 3))):
    got = warm_up(times, 4)
    np.testing.assert_allclose(got[:4], [1.0, 1.0 - 1 / 128, 1.0 - 1 / 16, 1.0 - 1 / 8], rtol=1e-12)
    np.testing.assert_array_equal(got[3:], times[1:])
    for order in (1, 2):
      np.testing.assert_array_equal(warm_up(times, order), times)


def test_what_cannot_be_meant_is_refused():
  with pytest.raises(InputError, match="variable='lambda'"):
    deis(ODD, BEND, variable='lambda')
  with pytest.raises(InputError, match='degree=-1'):
    deis(ODD, BEND, degree=-1)
