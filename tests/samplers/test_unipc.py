"""UniPC, against the methods that it contains, integrals by another quadrature, and exact flows."""
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
from vdm_jax import schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, from_alpha_sigma, sub_vp, vp
from vdm_jax.samplers import ddim, encode
from vdm_jax.samplers.deis import deis
from vdm_jax.samplers.unipc import unipc

pytestmark = pytest.mark.usefixtures('x64')


@pytest.mark.parametrize('variant,of', [('bh1', 'x'), ('bh2', 'eps')])
def test_the_predictor_of_first_order_is_ddim(variant, of):
  got = program(unipc(ODD, rectified_flow(), 1, variant, of, corrector=False))(Z, UNEVEN)
  np.testing.assert_array_equal(got, program(ddim(ODD, rectified_flow()))(Z, UNEVEN))


@pytest.mark.long
def test_the_predictor_of_second_order_with_data_and_bh2_is_dpm_solver_pp_2m():
  """Lu et al. (2022, DPM-Solver++), algorithm 2, step by step."""
  denoise = mixture()
  level = jax.jit(CURVED)(UNEVEN)
  alpha, sigma = np.asarray(level.alpha), np.asarray(level.sigma)
  h = np.diff(np.log(alpha / sigma))
  ask = jax.jit(lambda z, t: denoise(z, CURVED(t)).x)
  z, before = Z, None
  for i, step in enumerate(h):
    x = np.asarray(ask(z, UNEVEN[i]))
    d = x
    if i > 0:
      r = h[i - 1] / step
      d = (1.0 + 1.0 / (2.0 * r)) * x - before / (2.0 * r)
    z = sigma[i + 1] / sigma[i] * z - alpha[i + 1] * (np.exp(-step) - 1.0) * d
    before = x
  got = program(unipc(denoise, CURVED, 2, corrector=False, lower_order_below=0))(Z, UNEVEN)
  np.testing.assert_allclose(got, z, rtol=1e-10)


@pytest.mark.long
def test_the_predictor_of_third_order_with_noise_is_deis_in_log_rho_but_for_its_second_step():
  """Both are exact for the same polynomials; UniP-2 has 1/2 in place of an integral."""
  predictor = unipc(ODD, CURVED, 3, of='eps', corrector=False, lower_order_below=0)
  got = jax.jit(predictor.plan)(UNEVEN).predict
  expected = jax.jit(deis(ODD, CURVED, 2, 'logsnr').plan)(UNEVEN).predict
  np.testing.assert_allclose(got[2:], expected[2:], rtol=1e-11)
  np.testing.assert_allclose(got[1], expected[1], rtol=0.3)
  assert np.abs(got[1, 0] / expected[1, 0] - 1.0) > 1e-3


@pytest.mark.first(1)
@pytest.mark.parametrize('of,curve', [('x', sub_vp), ('eps', vp)])
def test_the_coefficients_are_the_integrals_of_the_lagrange_polynomials(of, curve):
  """Uneven steps over 18 units of logsnr, through the estimates before and the one after."""
  (high, low), p, sign = LINEAR, 3, 1.0 if of == 'x' else -1.0
  process = GaussianProcess(schedules.Linear(high, low), curve)
  sampler = unipc(ODD, process, p, of=of, lower_order_below=0)
  plan, level = jax.jit(lambda times: (sampler.plan(times), process(times)))(UNEVEN)
  half = 0.5 * (high + (low - high) * UNEVEN)
  part = np.asarray(level.sigma if of == 'x' else level.alpha)

  def exact(i, nodes, j):
    """Of sigma_s d(alpha / sigma) or alpha_s d(sigma / alpha), in half the logsnr."""
    unit = interpolate.BarycentricInterpolator(nodes, np.eye(len(nodes))[j])
    return sign * part[i + 1] * integrate.quad(lambda v: unit(v) * np.exp(sign * v), half[i],
                                               half[i + 1], epsabs=0.0, epsrel=1e-12, limit=200)[0]

  for i in range(1, len(half) - 1):
    before = half[max(i - p + 1, 0):i + 1][::-1]
    if len(before) == p:
      for j in range(1, p):
        np.testing.assert_allclose(plan.predict[i, j - 1], exact(i, before, j), rtol=1e-10)
    if i + 1 < len(half) - 1:  # the last point is not corrected
      after = np.append(half[i + 1], before)
      np.testing.assert_allclose(plan.arrive[i + 1], exact(i, after, 0), rtol=1e-10)
      for j in range(1, len(before)):
        np.testing.assert_allclose(plan.correct[i + 1, j - 1], exact(i, after, j + 1), rtol=1e-10)
  np.testing.assert_array_equal(plan.corrects, np.arange(6) > 0)


def test_the_corrector_of_short_steps_is_the_method_of_adams_and_moulton():
  """Even steps of logsnr, so short that exponentials are flat: (5, 8, -1) / 12 of h."""
  short = 1e-6
  process = from_alpha_sigma(jnp.ones_like, lambda t: jnp.exp(short * t))
  plan = jax.jit(unipc(ODD, process, 2, of='eps').plan)(np.linspace(1.0, 0.0, 5))
  h = -short / 4  # of sigma / alpha
  np.testing.assert_allclose(plan.arrive[1:] / h, [1 / 2, 5 / 12, 5 / 12], rtol=1e-5)
  np.testing.assert_allclose(plan.correct[2:, 0] / h, [-1 / 12, -1 / 12], rtol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize('order,variant,of,corrector,warm,atol', [
    (2, 'bh1', 'x', False, 0, 0.03), (3, 'bh2', 'x', False, 3, 0.05),
    (1, 'bh1', 'x', True, 0, 0.03), (2, 'bh2', 'eps', True, 0, 0.05),
    (3, 'bh1', 'eps', True, 4, 0.2),
    (1, 'bh2', 'eps', True, 0, 0.03),
    (2, 'bh1', 'x', True, 0, 0.05)])
def test_the_order_is_p_and_with_the_corrector_p_plus_1(order, variant, of, corrector, warm, atol):
  sampler = unipc(mixture(), BEND, order, variant, of, corrector, lower_order_below=0)
  got = slopes(sampler, BEND, warm, (160, 320, 640))
  np.testing.assert_allclose(got[1], order + corrector, atol=atol)
  assert got[0] > order + corrector - 0.2


@pytest.mark.long
def test_lower_orders_at_the_end_leave_an_error_of_second_order():
  sampler = unipc(mixture(), BEND, 3, lower_order_below=1000)
  np.testing.assert_allclose(slopes(sampler, BEND)[1], 2.0, atol=0.05)


@pytest.mark.first(1)
@pytest.mark.parametrize('variant,of', [('bh1', 'x'), ('bh2', 'eps')])
def test_rectified_flow_converges_from_pure_noise_to_pure_data(variant, of):
  """From alpha = 0 to sigma = 0 the exact map is z -> m + s z."""
  run = program(unipc(undefined_at_data, rectified_flow(), 3, variant, of))
  grids = [np.pad(np.linspace(1.0, 0.0, n + 1), (0, 128 - n)) for n in (64, 128)]
  error = [np.abs(run(Z, times) - (0.7 + 0.4 * Z)).max() for times in grids]
  assert error[1] < 2e-3
  assert error[0] / error[1] > 3.0


@pytest.mark.first(1)
@pytest.mark.parametrize('of', ['x', 'eps'])
def test_run_upwards_it_encodes_data_as_noise(of):
  """From sigma = 0 to alpha = 0: the inverse of the exact map, z_1 = (x - m) / s."""
  x = 0.7 + 0.4 * Z
  got = program(unipc(ODD, rectified_flow(), 2, of=of), encode)(x, np.linspace(0.0, 1.0, 129))
  np.testing.assert_allclose(got, Z, atol=2e-3)


def test_a_time_repeated_within_a_grid_begins_the_history_anew():
  run = program(unipc(mixture(), BEND, 3, lower_order_below=0))
  above, below = np.linspace(1.0, 0.4, 6), np.linspace(0.4, 0.0, 6)
  in_turn = run(run(Z, np.pad(above, (0, 6), 'edge')), np.pad(below, (0, 6)))
  np.testing.assert_allclose(run(Z, np.concatenate([above, below])), in_turn, rtol=1e-13)


@pytest.mark.long
@pytest.mark.parametrize('of,process', [
    ('eps', rectified_flow()), ('x', GaussianProcess(schedules.Linear(*LINEAR)))])
def test_float32_stays_float32_and_near_float64(of, process):
  def run():
    return program(unipc(ODD, process, 3, of=of))(jnp.asarray(Z), jnp.linspace(1.0, 0.0, 101))

  with jax.enable_x64(False):
    single = run()
  assert single.dtype == jnp.float32
  np.testing.assert_allclose(single, run(), atol=1e-5)


def test_what_cannot_be_meant_is_refused():
  for options, message in [({'variant': 'bh3'}, "variant='bh3'"), ({'of': 'v'}, "of='v'"),
                           ({'order': 0}, 'order=0')]:
    with pytest.raises(InputError, match=message):
      unipc(ODD, BEND, **options)
