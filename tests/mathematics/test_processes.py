"""Processes: curves, the SDE, Bayes' rule, and levels where alpha or sigma vanish."""
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import oracles, processes, schedules, targets, values
from vdm_jax.errors import InputError
from vdm_jax.processes import (
  GaussianProcess,
  RectifiedFlow,
  SubVP,
  Truncated,
  flow,
  from_alpha_sigma,
  sub_vp,
  ve,
  vp,
)
from vdm_jax.samplers import ddim, deis, dpm_solver, edm, runge_kutta, sample, unipc
from vdm_jax.typing import Level

pytestmark = pytest.mark.usefixtures('x64')

CURVES = [vp, ve, flow, sub_vp]
# Samplers, and how near they come in 64 steps from alpha = 0, where methods in logsnr begin with a
# step of first order, to sigma = 0.
ENDS = {'ddim': (ddim, 0.03), 'heun': (runge_kutta.heun, 1e-3), 'edm': (edm.edm, 1e-3),
        'rho_rk': (partial(runge_kutta.rho_rk, tableau=runge_kutta.RK3), 2e-3),
        'dpm_solver': (partial(dpm_solver.dpm_solver, order=3), 2e-3),
        'dpm_solver_fast': (dpm_solver.dpm_solver_fast, 1e-3),
        'dpm_solver_multistep': (dpm_solver.dpm_solver_multistep, 4e-3),
        'deis': (deis.deis, 2e-4), 'unipc': (unipc.unipc, 2e-3)}
UNITS = {vp: lambda a, s: a**2 + s**2, ve: lambda a, s: a, flow: lambda a, s: a + s,
         sub_vp: lambda a, s: a**2 + s}
evaluate = jax.jit(lambda process, t: process(t))


def bent():
  module = schedules.PinnedMonotone(features=8, logsnr_max=6.0, logsnr_min=-4.0)
  return values.Bound(module.init(jax.random.key(0), jnp.zeros(1))['params'], module)


def all_schedules():
  return [schedules.Linear(6.0, -4.0), schedules.Cosine(6.0, -4.0),
          schedules.BetaLinear(t_min=0.02), schedules.GeometricSigma(0.05, 5.0),
          schedules.KarrasSigma(0.05, 5.0, 3.0), schedules.Sigmoid(0.5, 2.0, 6.0, -4.0),
          schedules.Shifted(schedules.Laplace(0.0, 2.0, 5.0, -5.0), 1.0), bent()]


@pytest.mark.parametrize('curve', CURVES)
def test_a_curve_has_the_logsnr_it_was_asked_for_in_its_own_units(curve):
  logsnr = jnp.linspace(-30.0, 30.0, 61)
  alpha, sigma = curve(logsnr)
  np.testing.assert_allclose(2 * (np.log(alpha) - np.log(sigma)), logsnr, atol=1e-10)
  np.testing.assert_allclose(UNITS[curve](alpha, sigma), 1.0, rtol=1e-12)


@pytest.mark.parametrize('curve', CURVES)
def test_float32_loses_nothing_at_the_ends_of_a_curve(curve):
  """1 - sigmoid(13.3) is wrong by 3e-3 in float32; sigmoid(-13.3) is not."""
  logsnr = np.array([-20.0, -13.3, -5.0, 5.0, 13.3, 20.0], np.float32)
  exact = curve(jnp.asarray(logsnr, jnp.float64))
  with jax.enable_x64(False):
    single = curve(jnp.asarray(logsnr))
    naive = 1.0 - jax.nn.sigmoid(jnp.float32(13.3))
  assert single[0].dtype == single[1].dtype == jnp.float32
  np.testing.assert_allclose(single, exact, rtol=1e-6)
  assert abs(float(naive) * (1 + np.exp(13.3)) - 1) > 1e-3


def runge_kutta(slope, y, h):
  """Integrates y' = slope(i, y) over the nodes 0, 2, 4, ...; odd i are the midpoints."""
  for i in range(0, slope.n - 2, 2):
    k1 = slope(i, y)
    k2 = slope(i + 1, y + 0.5 * h * k1)
    k3 = slope(i + 1, y + 0.5 * h * k2)
    k4 = slope(i + 2, y + h * k3)
    y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
  return y


@pytest.mark.long
def test_the_sde_transports_the_marginal_of_every_schedule_on_every_curve():
  """mean' = f mean and var' = 2 f var + g^2 lead from the marginal at t = 0 to that at t = 1."""
  mean, var, n = 0.7, 0.3, 401
  family = [GaussianProcess(schedule, curve) for schedule in all_schedules() for curve in CURVES]
  family += [from_alpha_sigma(lambda t: jnp.cos(1.4 * t), lambda t: 0.1 + jnp.sin(1.4 * t)),
             SubVP(), Truncated.between(SubVP(), 5.0, -3.0),
             Truncated.between(RectifiedFlow(0.05), 9.0, -4.0)]

  @jax.jit
  def evaluate(t):
    levels = [process(t) for process in family]
    f, g = zip(*map(processes.sde, levels), strict=True)
    ends = [(level.alpha[i] * mean, level.alpha[i]**2 * var + level.sigma[i]**2)
            for level in levels for i in (0, -1)]
    return jnp.stack(f), jnp.stack(g), jnp.array(ends)

  t = jnp.linspace(0.0, 1.0, 2 * n - 1)
  f, g, ends = map(np.asarray, evaluate(t))
  first, last = ends[::2].T, ends[1::2].T

  def slope(i, y):
    return np.stack([f[:, i] * y[0], 2 * f[:, i] * y[1] + g[:, i]**2])
  slope.n = len(t)
  np.testing.assert_allclose(runge_kutta(slope, first, 1 / (n - 1)), last, rtol=2e-6)


def test_the_sub_vp_process_is_the_published_sde():
  """f = -beta / 2, g^2 = beta (1 - exp(-2 int beta)); its variance is below that of the VP SDE."""
  t = jnp.linspace(0.0, 1.0, 33)
  beta, integral = 0.1 + 19.9 * t, 0.1 * t + 19.9 * t**2 / 2
  level = evaluate(SubVP(), t)
  f, g = processes.sde(level)
  np.testing.assert_allclose(f, -beta / 2, rtol=1e-9)
  np.testing.assert_allclose(g**2, beta * (1 - np.exp(-2 * integral)), rtol=1e-9, atol=1e-12)
  other = evaluate(GaussianProcess(schedules.BetaLinear(t_min=0.0)), t)
  np.testing.assert_allclose(level.alpha, other.alpha, rtol=1e-9)
  np.testing.assert_allclose(level.sigma, other.sigma**2, rtol=1e-9, atol=1e-15)
  np.testing.assert_allclose(UNITS[sub_vp](level.alpha, level.sigma), 1.0, rtol=1e-12)
  assert level.logsnr[0] == np.inf
  np.testing.assert_allclose(level.logsnr[-1], -10.05, atol=1e-3)


def test_the_ve_sde_of_geometric_sigmas_only_adds_noise():
  t = jnp.linspace(0.0, 1.0, 9)
  level = evaluate(GaussianProcess(schedules.GeometricSigma(0.01, 50.0), ve), t)
  f, g = processes.sde(level)
  np.testing.assert_array_equal(f, 0.0)
  # sigma sqrt(2 log(sigma_max / sigma_min)): Song et al. (2021), appendix C.
  np.testing.assert_allclose(g, 0.01 * 5000**np.asarray(t) * np.sqrt(2 * np.log(5000)), rtol=1e-6)


def test_flow_matching_moves_a_datum_along_a_straight_line_in_unit_time():
  x, eps, t = 0.8, -1.3, jnp.linspace(0.0, 1.0, 5)
  for sigma_min in (0.0, 0.1):
    level = evaluate(RectifiedFlow(sigma_min), t)
    z = level.alpha * x + level.sigma * eps
    ends = x + sigma_min * eps, eps  # of the conditional flow of Lipman et al. (2023)
    np.testing.assert_allclose(z, ends[0] + (ends[1] - ends[0]) * t, rtol=1e-12)
    np.testing.assert_allclose(level.dalpha * x + level.dsigma * eps, ends[1] - ends[0], rtol=1e-12)
    np.testing.assert_allclose(level.sigma[0], sigma_min, atol=1e-15)


@pytest.mark.parametrize('curve', CURVES)
def test_a_schedule_with_infinite_ends_has_levels_there(curve):
  """w = sigma / alpha = t / (1 - t): alpha and sigma are smooth in w, and in 1 / w."""
  schedule = schedules.Sigmoid(0.0, 2.0, np.inf, -np.inf)
  level = evaluate(GaussianProcess(schedule, curve), jnp.array([0.0, 0.5, 1.0]))
  np.testing.assert_array_equal(level.logsnr[jnp.array([0, 2])], [np.inf, -np.inf])
  np.testing.assert_array_equal(level.dlogsnr[jnp.array([0, 2])], [-np.inf, -np.inf])
  # At w = 0, dw/dt = 1: alpha and sigma by their series in w, and in 1 / w at the other end.
  first = {vp: (0, 1), ve: (0, 1), flow: (-1, 1), sub_vp: (-0.5, 1)}[curve]
  last = {vp: (-1, 0), flow: (-1, 1), sub_vp: (-1, 0), ve: None}[curve]
  np.testing.assert_array_equal([level.alpha[0], level.sigma[0]], [1, 0])
  np.testing.assert_allclose([level.dalpha[0], level.dsigma[0]], first, atol=1e-5)
  if curve is ve:  # no level of it is without signal
    assert level.sigma[2] == np.inf
  else:
    np.testing.assert_array_equal([level.alpha[2], level.sigma[2]], [0, 1])
    np.testing.assert_allclose([level.dalpha[2], level.dsigma[2]], last, atol=1e-5)
  f, g = processes.sde(level)
  np.testing.assert_array_equal([np.isfinite(f[0]), g[0]], [True, 0.0])


def test_levels_at_infinite_ends_take_any_shape_of_time_and_of_schedule():
  process = GaussianProcess(schedules.Sigmoid(0.0, 2.0, np.inf, -np.inf), flow)
  wide = GaussianProcess(lambda t: process.schedule(t)[:, None] + jnp.array([0.0, 1.0]), flow)
  t = jnp.array([1.0, 0.5, 0.0])
  level, each, broad = jax.jit(lambda: (process(t), [process(u) for u in t], wide(t)))()
  for field in Level._fields:
    np.testing.assert_allclose([getattr(one, field) for one in each], getattr(level, field),
                               rtol=1e-12, atol=1e-12)
    if field != 't':
      np.testing.assert_allclose(getattr(broad, field)[:, 0], getattr(level, field), rtol=1e-12,
                                 atol=1e-12)
  np.testing.assert_allclose(broad.dsigma[:, 1], [np.exp(0.5), 4 * np.exp(-0.5) / (
      1 + np.exp(-0.5))**2, np.exp(-0.5)], rtol=1e-5)


@pytest.mark.long
def test_a_truncated_process_visits_the_same_levels_from_one_logsnr_to_another():
  t = jnp.linspace(0.0, 1.0, 9)
  module = schedules.LearnedLinear(6.0, -6.0)
  learned = values.Bound(module.init(jax.random.key(0), t)['params'], module)
  family = [GaussianProcess(schedules.Cosine(9.0, -9.0), sub_vp), RectifiedFlow(),
            GaussianProcess(learned), GaussianProcess(schedules.TableSchedule.from_betas(
                schedules.zero_terminal_snr(schedules.linear_betas())))]

  @jax.jit
  def levels():
    inner = [Truncated.between(process, 4.0, -3.0) for process in family]
    here = [process(t) for process in inner]
    there = [process(one.first + (one.last - one.first) * t)
             for process, one in zip(family, inner, strict=True)]
    h = 1e-5
    ahead = [process(t + h) for process in inner], [process(t - h) for process in inner]
    return here, there, ahead

  here, there, (ahead, behind) = levels()
  for at, inner, more, less in zip(here, there, ahead, behind, strict=True):
    np.testing.assert_allclose(at.logsnr[jnp.array([0, -1])], [4.0, -3.0], atol=1e-9)
    for field in ('logsnr', 'alpha', 'sigma'):
      np.testing.assert_allclose(getattr(at, field), getattr(inner, field), rtol=1e-9)
    # The derivatives are in its own time.  (1e-5 apart: the table is in one step of a thousand.)
    for field, d in (('logsnr', 'dlogsnr'), ('alpha', 'dalpha'), ('sigma', 'dsigma')):
      slope = (getattr(more, field) - getattr(less, field)) / 2e-5
      np.testing.assert_allclose(getattr(at, d), slope, rtol=2e-2 if at is here[3] else 1e-6)


def test_a_limit_beyond_an_end_leaves_that_end():
  for whole in (RectifiedFlow(), from_alpha_sigma(lambda t: 1.0 - t, lambda t: 80.0 * t)):
    process = Truncated.between(whole, 2.0, -np.inf)
    np.testing.assert_allclose(process(jnp.zeros(())).logsnr, 2.0, atol=1e-9)
    assert process(jnp.ones(())).alpha == 0.0
  process = Truncated.between(RectifiedFlow(), np.inf, 2.0)
  assert process(jnp.zeros(())).sigma == 0.0
  inside = Truncated.between(GaussianProcess(schedules.Linear(5.0, -4.0)), 50.0, -50.0)
  np.testing.assert_array_equal([inside.first, inside.last], [0.0, 1.0])


@pytest.mark.parametrize('limits', [(-1.0, 3.0), (2.0, 2.0), (np.nan, 0.0)])
def test_a_truncated_process_from_the_smaller_logsnr_to_the_larger_is_refused(limits):
  with pytest.raises(InputError, match=f'logsnr_max = {limits[0]}, logsnr_min = {limits[1]}'):
    Truncated.between(RectifiedFlow(), *limits)


def test_processes_are_values_that_cross_jit():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def sigma(process, t):
    return process(t).sigma

  for sigma_min in (0.1, 0.2):
    np.testing.assert_allclose(sigma(RectifiedFlow(sigma_min), 0.5), 0.5 + sigma_min / 2)


def pairs():
  """(at_t, at_s) of every curve, some t > s."""
  t, s = jnp.array([1.0, 0.9, 0.5, 0.3]), jnp.array([0.0, 0.8, 0.2, 0.29])
  for curve in CURVES:
    process = GaussianProcess(schedules.Linear(5.0, -4.0), curve)
    yield process(t), process(s)
  process = from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)  # alpha = 0 and sigma = 0 among them
  yield process(t), process(s)


def test_the_posterior_is_bayes_rule_for_two_gaussians():
  """q(z_s | z_t, x) from the precisions of q(z_s | x) and of q(z_t | z_s) as a function of z_s."""
  x, z = jnp.array([0.3, -1.2, 0.8, 0.1]), jnp.array([-0.5, 0.4, 1.7, 0.9])
  for at_t, at_s in pairs():
    mean, std = processes.posterior(z[:, None], x[:, None], at_t, at_s)
    a_t, a_s = np.asarray(at_t.alpha), np.asarray(at_s.alpha)
    v_t, v_s = np.asarray(at_t.sigma)**2, np.asarray(at_s.sigma)**2
    with np.errstate(divide='ignore', invalid='ignore'):
      step = a_t / a_s
      noise = v_t - step**2 * v_s
      precision = 1 / v_s + step**2 / noise
      expected = (a_s * x / v_s + step * z / noise) / precision
    known = v_s == 0  # q(z_s | x) is a point
    np.testing.assert_allclose(mean[:, 0], np.where(known, a_s * x, expected), rtol=1e-9)
    np.testing.assert_allclose(std[:, 0]**2, np.where(known, 0.0, 1 / precision), rtol=1e-9,
                               atol=1e-30)


def test_the_posterior_leads_from_the_marginal_at_t_to_the_marginal_at_s():
  x = jnp.full((4, 1), 0.6)
  for at_t, at_s in pairs():
    at_mean = at_t.alpha[:, None] * x
    mean, std = processes.posterior(at_mean, x, at_t, at_s)
    gain = processes.posterior(at_mean + 1.0, x, at_t, at_s)[0] - mean
    np.testing.assert_allclose(mean, at_s.alpha[:, None] * x, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(gain**2 * at_t.sigma[:, None]**2 + std**2, at_s.sigma[:, None]**2,
                               rtol=1e-9, atol=1e-15)


def test_the_share_of_fresh_noise_is_zero_where_times_agree_and_one_where_a_signal_begins():
  process = from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)
  t, s = jnp.array([0.0, 0.4, 1.0, 1.0, 0.4]), jnp.array([0.0, 0.4, 1.0, 0.4, 0.0])
  np.testing.assert_array_equal(processes.tau(process(t), process(s)), [0.0, 0.0, 0.0, 1.0, 1.0])


@pytest.mark.parametrize('curve', CURVES)
def test_the_prior_term_is_the_integral_of_the_divergence_on_every_curve(curve):
  process = GaussianProcess(schedules.Linear(4.0, -1.5), curve)
  level, std = process(jnp.ones(())), float(processes.prior_std(process))
  for x in (-0.9, 0.0, 2.0):
    q = stats.norm(float(level.alpha) * x, float(level.sigma))
    z = np.linspace(q.ppf(1e-14), q.isf(1e-14), 4001)
    expected = np.trapezoid(q.pdf(z) * (q.logpdf(z) - stats.norm(0, std).logpdf(z)), z)
    got = processes.prior_kl(jnp.full((1, 1), x), level)
    np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_without_signal_the_prior_term_vanishes():
  level = from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)(jnp.ones(1))
  np.testing.assert_array_equal(processes.prior_kl(jnp.full((1, 2), 3.0), level), 0.0)


def test_prior_draws_have_the_spread_of_unit_variance_data_at_the_end():
  n = 20_000
  process = GaussianProcess(schedules.Linear(4.0, 0.5), sub_vp)
  z = processes.sample_prior(process, jax.random.split(jax.random.key(0), n), jnp.zeros((n, 2)))
  level = process(jnp.ones(()))
  variance = float(level.alpha)**2 + float(level.sigma)**2
  np.testing.assert_allclose(np.mean(z), 0.0, atol=4 * (variance / (2 * n))**0.5)
  np.testing.assert_allclose(np.mean(z**2), variance, rtol=4 / n**0.5)  # (2 / (2 n))^1/2 relative


def test_two_functions_of_time_make_the_same_process_as_schedule_and_curve():
  schedule = schedules.Cosine(6.0, -4.0)
  a, b = np.arctan(np.exp(-3.0)), np.arctan(np.exp(2.0))
  angle = lambda t: a + (b - a) * t
  t = jnp.linspace(0.0, 1.0, 9)
  one = GaussianProcess(schedule, vp)(t)
  two = from_alpha_sigma(lambda t: jnp.cos(angle(t)), lambda t: jnp.sin(angle(t)))(t)
  for field in Level._fields:
    np.testing.assert_allclose(getattr(one, field), getattr(two, field), rtol=1e-6, atol=1e-9,
                               err_msg=field)


def test_levels_are_finite_in_all_but_logsnr_where_alpha_or_sigma_vanish():
  level = from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)(jnp.array([0.0, 1.0]))
  np.testing.assert_array_equal(level.logsnr, [np.inf, -np.inf])
  np.testing.assert_array_equal(level.alpha, [1.0, 0.0])
  np.testing.assert_array_equal(level.sigma, [0.0, 1.0])
  np.testing.assert_array_equal(level.dalpha, [-1.0, -1.0])
  np.testing.assert_array_equal(level.dsigma, [1.0, 1.0])
  np.testing.assert_array_equal(level.dlogsnr, [-np.inf, -np.inf])
  f, g = processes.sde(level)
  assert f[0] == -1.0 and g[0] == 0.0


def test_a_sigma_that_vanishes_with_its_slope_has_a_level():
  level = from_alpha_sigma(jnp.ones_like, lambda t: 80.0 * t**3)(jnp.zeros(1))
  np.testing.assert_array_equal([level.logsnr, level.dlogsnr], [[np.inf], [-np.inf]])
  np.testing.assert_array_equal([level.sigma, level.dsigma], 0.0)


def quarter_turn():
  return from_alpha_sigma(lambda t: jnp.cos(0.5 * jnp.pi * t), lambda t: jnp.sin(0.5 * jnp.pi * t))


@pytest.mark.parametrize('double', [True, False])
def test_rounding_does_not_spoil_a_process_that_ends_without_signal(double):
  """The cosine of pi / 2 is 6e-17 in float64, and below 0 in float32."""
  with jax.enable_x64(double):
    level = quarter_turn()(jnp.ones(1))
    assert (jnp.cos(jnp.asarray(0.5 * jnp.pi)) > 0.0) == double
  assert level.logsnr == -np.inf and level.dlogsnr == -np.inf and level.alpha == 0.0
  np.testing.assert_allclose([level.sigma, level.dalpha], [[1.0], [-0.5 * np.pi]], rtol=1e-6)


def test_a_small_sigma_near_data_and_a_small_alpha_before_the_end_are_kept():
  t = np.array([1e-9, 1.0 - 1e-9])
  level = quarter_turn()(t)
  np.testing.assert_allclose(level.sigma[0], 0.5e-9 * np.pi, rtol=1e-12)
  np.testing.assert_allclose(level.alpha[1], 0.5e-9 * np.pi, rtol=1e-6)
  cubic = from_alpha_sigma(jnp.ones_like, lambda t: 80.0 * t**3)(t)
  np.testing.assert_allclose(cubic.sigma[0], 80e-27, rtol=1e-12)


@pytest.mark.first(4)
@pytest.mark.parametrize('name', ENDS)
def test_samplers_go_from_a_cosine_of_no_signal_to_clean_data(name):
  """Along the exact flow of N(m, s^2), (z - alpha m) / sqrt(alpha^2 s^2 + sigma^2) constant.

  The network predicts v, which is finite at both ends.
  """
  data, process = oracles.Gaussian(0.3, 0.5), quarter_turn()

  def denoise(z, level, cond=None):
    estimate, wide = data(z, level), level.expand(z)
    a, b = targets.v(wide)
    return targets.solve(targets.v, a * estimate.x + b * estimate.eps, z, level)

  make, atol = ENDS[name]
  z = np.linspace(-2.0, 2.0, 5)[:, None]
  run = lambda: sample(make(denoise, process), jax.random.split(jax.random.key(0), 5), z,
                       np.linspace(1.0, 0.0, 65))
  np.testing.assert_allclose(jax.jit(run)(), 0.3 + 0.5 * z, atol=atol)


def test_diffusion_adds_noise_at_the_level_of_each_example_or_each_pixel():
  x, eps = jnp.ones((2, 3)), jnp.array([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]])
  zeros = jnp.zeros(2)
  level = Level(zeros, zeros, jnp.array([1.0, 0.5]), jnp.array([0.0, 2.0]), zeros, zeros, zeros)
  np.testing.assert_array_equal(processes.diffuse(x, eps, level), [[1, 1, 1], [-1.5, 0.5, 2.5]])
  per_pixel = level._replace(alpha=jnp.array([[1.0, 0.5, 0.0]] * 2), sigma=jnp.ones((2, 3)))
  np.testing.assert_array_equal(processes.diffuse(x, eps, per_pixel),
                                [[2.0, 2.5, 3.0], [0.0, 0.5, 1.0]])


@pytest.mark.first(4)
@pytest.mark.parametrize('curve', [*CURVES, processes.Scaled(vp, 256 / 255),
                                   processes.Scaled(ve, 0.5)])
def test_float32_slopes_of_every_curve_are_right_to_3e_6_from_one_end_to_the_other(curve):
  logsnr = np.linspace(-20.0, 20.0, 81, dtype=np.float32)
  exact = jax.jit(lambda u: jax.jvp(curve, (u,), (jnp.ones_like(u),)))(logsnr.astype(np.float64))[1]
  with jax.enable_x64(False):
    single = jax.jit(processes.slopes(curve))(logsnr)
    level = GaussianProcess(lambda t: 40.0 * t - 20.0, curve)(jnp.asarray((logsnr + 20.0) / 40.0))
  assert single[0].dtype == level.dalpha.dtype == jnp.float32
  # In float64 autodiff itself loses 2e-8 of alpha's slope at logsnr 20.
  np.testing.assert_allclose(single, exact, rtol=3e-6)
  np.testing.assert_allclose([level.dalpha, level.dsigma], 40.0 * np.array(exact), rtol=1e-5)


def test_a_curve_of_a_users_own_has_its_slopes_by_differentiation():
  own = lambda logsnr: vp(logsnr)
  t = jnp.linspace(0.0, 1.0, 9)
  for a, b in zip(GaussianProcess(schedules.Linear(6.0, -4.0), own)(t),
                  GaussianProcess(schedules.Linear(6.0, -4.0))(t), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-12)


def every_process():
  module = schedules.KnotSchedule(knots=4)
  knots = values.Bound(module.init(jax.random.key(0), jnp.zeros(1))['params'], module)
  family = [*all_schedules(), knots, schedules.TableSchedule(np.array([9.0, 2.0, -1.0]))]
  return [*map(GaussianProcess, family), RectifiedFlow(), SubVP(),
          Truncated(RectifiedFlow(), 0.1, 0.9),
          from_alpha_sigma(lambda t: jnp.cos(1.4 * t), lambda t: jnp.sin(1.4 * t)),
          GaussianProcess(schedules.Linear(), processes.Scaled(ve, 2.0)),
          Truncated.between(GaussianProcess(schedules.Linear(9.0, -7.0)), 8.0, -6.0)]


@pytest.mark.long
def test_integer_times_are_the_times_they_say():
  for process in every_process():
    for times in (np.array([0, 1]), jnp.array([1, 0]), 0, 1):
      for got, expected in zip(process(times), process(np.asarray(times, float)), strict=True):
        assert jnp.issubdtype(got.dtype, jnp.floating)
        np.testing.assert_array_equal(got, expected)
    schedule = getattr(process, 'schedule', None)
    if schedule is not None:
      np.testing.assert_array_equal(schedule(np.array([0, 1])), schedule(np.array([0.0, 1.0])))
  np.testing.assert_allclose(processes.time_of(RectifiedFlow(), 0), 0.5, atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize('precision', [jnp.float32, jnp.float64])
def test_a_process_takes_times_and_parameters_of_either_precision(precision):
  for process in every_process():
    process = jax.tree.map(lambda u: jnp.asarray(u, precision), process) if isinstance(
        process, GaussianProcess) else process
    for times in (np.array([0.0, 0.3, 1.0], np.float32), np.array([0.0, 0.3, 1.0])):
      for got, expected in zip(process(times), process(times.astype(np.float64)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_a_process_may_be_compiled_by_itself():
  """As any function: `jax.jit(process)` asks whether it has met the same one before."""
  tables = [np.array([9.0, 2.0, -1.0]), np.array([9.0, 3.0, -1.0])]
  family = [*every_process(), *(GaussianProcess(schedules.TableSchedule(u)) for u in tables)]
  for process in family:
    for got, expected in zip(jax.jit(process)(0.25), process(0.25), strict=True):
      np.testing.assert_allclose(got, expected, rtol=1e-9)
    assert process == process and hash(process) == hash(process)
  assert schedules.Linear(6.0, -4.0) == schedules.Linear(6.0, -4.0) != schedules.Linear(6.0, -5.0)
  assert hash(schedules.Linear(6.0, -4.0)) == hash(schedules.Linear(6.0, -4.0))
  assert schedules.TableSchedule(tables[0]) != schedules.TableSchedule(tables[0].copy())
