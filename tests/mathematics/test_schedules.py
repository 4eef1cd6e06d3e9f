"""Schedules: end points, monotonicity, published definitions, and how they cross jit."""
import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import oracles, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, RectifiedFlow, SubVP, flow, sde, ve, vp
from vdm_jax.samplers import ddim, sample
from vdm_jax.schedules import TableSchedule
from vdm_jax.values import Bound

pytestmark = pytest.mark.usefixtures('x64')

FIXED = [schedules.Linear(), schedules.Cosine(), schedules.Laplace(), schedules.Sigmoid(),
         schedules.Polynomial(), schedules.Polynomial(3.0),
         schedules.BetaLinear(), schedules.GeometricSigma(), schedules.KarrasSigma(),
         schedules.shifted_cosine(256), TableSchedule(np.array([5.0, 2.0, 1.9, -4.0]))]
LEARNED = [schedules.LearnedLinear(), schedules.Monotone(features=32),
           schedules.PinnedMonotone(features=32), schedules.KnotSchedule(knots=8)]
name = lambda s: type(s).__name__
evaluate = jax.jit(lambda f, t: f(t))  # of a schedule or a process: one compilation, not one an op


def times(n=101):
  return jnp.linspace(0.0, 1.0, n)


@functools.partial(jax.jit, static_argnums=0)
def scrambled(module, key):
  """Normal parameters for `module`, of either sign; its scalars, which are ends, stay in order."""
  params = module.init(key, jnp.zeros(1))['params']
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  draws = [jax.random.normal(k, u.shape) for k, u in zip(keys, leaves, strict=True)]
  return tree.unflatten([10.0 * draw if u.ndim else u + draw
                         for u, draw in zip(leaves, draws, strict=True)])


@pytest.mark.parametrize('schedule', FIXED, ids=name)
def test_a_fixed_schedule_decreases(schedule):
  assert (np.diff(evaluate(schedule, times())) < 0).all()


@pytest.mark.first(1)
@pytest.mark.parametrize('module', LEARNED, ids=name)
def test_a_learned_schedule_decreases_whatever_its_parameters(module):
  curves = jax.jit(jax.vmap(
      lambda key: Bound(scrambled(module, key), module)(times())))(
          jax.random.split(jax.random.key(0), 32))
  assert curves.shape == (32, 101)
  assert np.std(curves[:, 50]) > 0.5  # they are 32 different schedules
  assert (np.diff(curves, axis=1) < 0).all()


@pytest.mark.long
@pytest.mark.parametrize('single', [False, True], ids=['float64', 'float32'])
def test_every_schedule_and_process_of_the_library_passes_the_check_of_its_users(single):
  with jax.enable_x64(not single):
    infinite = [schedules.Cosine(np.inf, -np.inf), schedules.Sigmoid(0.0, 2.0, np.inf, -np.inf),
                schedules.BetaLinear(t_min=0.0), schedules.KarrasSigma(0.0, 80.0),
                TableSchedule(np.array([np.inf, 1.0, -np.inf]))]
    learned = [Bound(scrambled(module, jax.random.key(1)), module) for module in LEARNED]
    per_pixel = lambda t: schedules.Linear()(t) + jnp.zeros((2, 3))
    for each in [*FIXED, *infinite, *learned, per_pixel, RectifiedFlow(), SubVP(),
                 GaussianProcess(schedules.Cosine(), flow)]:
      schedules.check_decreasing(each)


@pytest.mark.parametrize(('schedule', 'says'), [
    (lambda t: -5.0 + 12.0 * t**1.5,
     r'rises from -5 at t = [\d.e-]+ to 7 at t = 1, and at \d+ of the \d+ steps'),
    (lambda t: jnp.abs(8.0 * t - 5.0), 'rises from 0 at t = 0.625 to 3 at t = 1'),
    (lambda t: 2.0 - t + jnp.where(t > 0.4995, 3e-3, 0.0), 'at t = 0.499 to 1.503 at t = 0.5'),
    (lambda t: jnp.stack([-t, t]), 'rises from 0 at t = 0 to 1 at t = 1'),
    (lambda t: jnp.log(0.5 - t), 'is NaN at t = 0.501'),
    (lambda t: 3.0 + 0.0 * t, 'is 3 at t = 0 and at t = 1'),
    (GaussianProcess(schedules.Linear(-5.0, 13.3)), 'rises from -5 at t = 0 to 13.3 at t = 1')])
def test_a_schedule_that_rises_is_refused_with_its_times_and_values(schedule, says):
  for single in (True, False):
    with jax.enable_x64(not single), pytest.raises(InputError, match=says) as error:
      schedules.check_decreasing(schedule)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('schedule', [
    schedules.Linear(7.0, -3.0), schedules.Cosine(7.0, -3.0),
    schedules.Laplace(0.5, 0.8, 7.0, -3.0), schedules.Laplace(-4.0, 0.8, 7.0, -3.0),
    schedules.Sigmoid(0.5, 0.8, 7.0, -3.0), TableSchedule(np.array([7.0, 1.0, -3.0]))], ids=name)
def test_end_points_are_the_ones_asked_for(schedule):
  np.testing.assert_allclose(evaluate(schedule, jnp.array([0.0, 1.0])), [7.0, -3.0], rtol=1e-9)


@pytest.mark.first(2)
@pytest.mark.parametrize('single', [False, True], ids=['float64', 'float32'])
@pytest.mark.parametrize('module', [schedules.PinnedMonotone(features=16),
                                    schedules.KnotSchedule(knots=8)], ids=name)
def test_end_points_of_a_pinned_schedule_are_exactly_its_parameters(module, single):
  with jax.enable_x64(not single):
    params = scrambled(module, jax.random.key(3))
    ends = evaluate(Bound(params, module), jnp.array([0.0, 1.0]))
    assert ends.dtype == (jnp.float32 if single else jnp.float64)
  np.testing.assert_array_equal(ends, [params['logsnr_max'], params['logsnr_min']])


def log_densities(knots):
  """Steep and flat segments, among them one that is exactly flat and one that nearly is."""
  values = np.array([0.0, 0.0, 1e-3, -0.5, 1.0, 0.2, -3.0, -9.0])
  assert len(values) == knots
  return {'logsnr_max': np.float64(9.0), 'logsnr_min': np.float64(-5.0), 'log_density': values}


def times_by_integration(params, logsnr):
  """Share of the density above each `logsnr`: its logarithm is interpolated, then integrated."""
  r = np.linspace(0.0, 1.0, 700_001)
  knots = np.linspace(0.0, 1.0, len(params['log_density']))
  density = np.exp(np.interp(r, knots, params['log_density']))
  total = np.concatenate([[0.0], np.cumsum((density[1:] + density[:-1]) / 2)])
  at = (params['logsnr_max'] - logsnr) / (params['logsnr_max'] - params['logsnr_min'])
  slope = np.interp(at, r, density) / total[-1] * 700_000
  return np.interp(at, r, total) / total[-1], slope


def test_the_knots_of_a_schedule_are_the_logarithm_of_its_density():
  module, params = schedules.KnotSchedule(knots=8), log_densities(8)
  level = evaluate(GaussianProcess(Bound(params, module)), times(1001))
  t, slope = times_by_integration(params, np.asarray(level.logsnr))
  np.testing.assert_allclose(t, times(1001), atol=1e-9)
  np.testing.assert_allclose(-14.0 / level.dlogsnr, slope, rtol=1e-5)


@pytest.mark.long
def test_knots_keep_their_digits_in_float32_at_either_end():
  """The density falls by e^-9 to either side of the mirror; t is given exactly, near 0."""
  module, params = schedules.KnotSchedule(knots=8), log_densities(8)
  mirrored = {'logsnr_max': 5.0, 'logsnr_min': -9.0, 'log_density': params['log_density'][::-1]}
  t = np.concatenate([[0.0], np.geomspace(1e-9, 0.5, 200)]).astype(np.float32)
  for given in params, mirrored:
    exact = evaluate(GaussianProcess(Bound(given, module)), t.astype(np.float64))
    with jax.enable_x64(False):
      single = evaluate(GaussianProcess(Bound(
          jax.tree.map(jnp.float32, given), module)), t)
    np.testing.assert_allclose(single.logsnr, exact.logsnr, atol=5e-6)
    np.testing.assert_allclose(single.dlogsnr, exact.dlogsnr, rtol=1e-5)


@pytest.mark.long
def test_the_gradient_of_the_knots_is_that_of_finite_differences():
  module, params = schedules.KnotSchedule(knots=8), log_densities(8)
  t = times(41)

  @jax.jit
  def values(log_density):
    level = GaussianProcess(Bound({**params, 'log_density': log_density}, module))(t)
    return jnp.stack([level.logsnr, jnp.log(-level.dlogsnr)])

  got = jax.jacfwd(values)(params['log_density'])
  h = 1e-5
  for k, shift in enumerate(h * np.eye(8)):
    up, down = values(params['log_density'] + shift), values(params['log_density'] - shift)
    np.testing.assert_allclose(got[..., k], (up - down) / (2 * h), rtol=1e-6, atol=1e-7)


def test_learned_schedules_start_as_the_straight_line():
  t = times(11)
  # The network of Monotone adds a mean of products of weights of 0.01 each.
  for module, off in ((schedules.LearnedLinear(), 1e-5), (schedules.Monotone(), 1e-3),
                      (schedules.KnotSchedule(), 1e-5)):
    @jax.jit
    def initial(t, module=module):
      return Bound(module.init(jax.random.key(1), t)['params'], module)(t)
    np.testing.assert_allclose(initial(t), 13.3 - 18.3 * t, atol=off, err_msg=name(module))


@pytest.mark.long
def test_alpha_of_the_cosine_schedule_is_the_cosine_of_an_angle_linear_in_time():
  angle = np.arccos(GaussianProcess(schedules.Cosine(), vp)(times()).alpha)
  np.testing.assert_allclose(np.diff(angle, n=2), 0.0, atol=1e-9)


def test_a_cosine_may_run_from_clean_data_to_no_signal_at_all():
  t = times()
  for single in (False, True):  # pi / 2 in float32 is too large by 4e-8
    with jax.enable_x64(not single):
      logsnr = evaluate(schedules.Cosine(np.inf, -np.inf), np.linspace(0.0, 1.0, 101))
    np.testing.assert_array_equal(np.asarray(logsnr)[[0, -1]], [np.inf, -np.inf])
    np.testing.assert_allclose(logsnr[1:-1], -2 * np.log(np.tan(np.pi / 2 * t[1:-1])), rtol=1e-5,
                               atol=1e-5)


def test_blocks_of_pixels_under_the_shifted_cosine_have_the_cosine_of_the_base_resolution():
  """The mean of 4 x 4 pixels keeps the signal (that is the model) and has 1/16 of the variance."""
  level = evaluate(GaussianProcess(schedules.shifted_cosine(256), vp), times())
  base = evaluate(GaussianProcess(schedules.Cosine(15.0, -15.0), vp), times())
  np.testing.assert_allclose(level.alpha**2 / (level.sigma**2 / 16), (base.alpha / base.sigma)**2,
                             rtol=1e-9)
  np.testing.assert_allclose(level.logsnr[jnp.array([0, -1])], [12.2274113, -17.7725887], atol=1e-7)


def test_sigma_of_the_geometric_schedule_is_the_published_one_in_the_units_of_its_data():
  t = times()
  sigma = lambda *ends: np.asarray(
      evaluate(GaussianProcess(schedules.GeometricSigma(*ends), ve), t).sigma)
  np.testing.assert_allclose(sigma()[[0, -1]], [0.02, 100.0], rtol=1e-6)  # 0.01 to 50 in [0, 1]
  np.testing.assert_allclose(sigma()[1:] / sigma()[:-1], 5000**0.01, rtol=1e-6)
  # NCSN's range, 1 to 0.01.
  np.testing.assert_allclose(sigma(0.01, 1.0)[::-1][::100 // 4], [1, 10**-0.5, 0.1, 10**-1.5, 0.01],
                             rtol=1e-6)


def test_the_karras_schedule_gives_the_sigmas_of_the_public_edm_scheduler():
  """Recorded from diffusers 0.42.1 (EDMEulerScheduler, 10 steps)."""
  recorded = [80.0, 42.41518931851267, 21.108676736193761, 9.723201355260132, 4.0661236029537591,
              1.501741979068008, 0.4699790579977467, 0.1166385635251784, 0.020435334553438746,
              0.002]
  level = evaluate(GaussianProcess(schedules.KarrasSigma(), ve), jnp.linspace(1.0, 0.0, 10))
  np.testing.assert_allclose(level.sigma, recorded, rtol=1e-12)
  linear = evaluate(GaussianProcess(schedules.KarrasSigma(0.0, 80.0, 1.0), ve), times())
  np.testing.assert_allclose(linear.sigma, 80.0 * times(), rtol=1e-12)
  np.testing.assert_allclose(linear.dsigma, 80.0, rtol=1e-9)  # at sigma = 0 too


@pytest.mark.parametrize('schedule,density', [
    (schedules.Laplace(0.7, 0.5, 9.0, -6.0), stats.laplace(0.7, 0.5)),
    (schedules.Laplace(-7.0, 2.0, 3.0, -6.0), stats.laplace(-7.0, 2.0)),
    (schedules.Sigmoid(0.7, 1.5, 9.0, -6.0), stats.logistic(0.7, 1.5)),
    (schedules.Sigmoid(4.0, 1.5, 3.0, -6.0), stats.logistic(4.0, 1.5))],
    ids=['laplace', 'laplace beyond an end', 'sigmoid', 'sigmoid beyond an end'])
def test_logsnr_at_a_uniform_time_has_the_density_cut_at_the_ends(schedule, density):
  high, low = density.cdf([schedule.logsnr_max, schedule.logsnr_min])
  t = times(1001)
  expected = density.ppf(low + (high - low) * (1.0 - np.asarray(t)))
  np.testing.assert_allclose(evaluate(schedule, t), expected, atol=1e-7)
  cut = lambda u: (density.cdf(u) - low) / (high - low)
  draws = evaluate(schedule, jax.random.uniform(jax.random.key(0), t.shape))
  assert stats.kstest(np.asarray(draws), cut).pvalue > 1e-3


def test_the_densities_without_ends_are_the_published_forms():
  t = times()
  inf = {'logsnr_max': np.inf, 'logsnr_min': -np.inf}
  level = evaluate(GaussianProcess(schedules.Sigmoid(**inf), vp), t)
  np.testing.assert_allclose(level.alpha**2, 1 - t, atol=1e-12)
  level = evaluate(GaussianProcess(schedules.Sigmoid(scale=2.0, **inf), flow), t)
  np.testing.assert_allclose([level.alpha, level.sigma], [1 - t, t], atol=1e-12)
  np.testing.assert_allclose([level.dalpha, level.dsigma], [-np.ones(101), np.ones(101)], rtol=1e-9)
  middle = np.asarray(t)[1:-1]
  formula = 0.5 * np.sign(0.5 - middle) * -np.log(1.0 - 2.0 * np.abs(middle - 0.5))
  np.testing.assert_allclose(evaluate(schedules.Laplace(**inf), t)[1:-1], formula, atol=1e-12)
  with jax.enable_x64(False):  # the tails have their digits in float32 too
    single = evaluate(schedules.Laplace(0.0, 0.5, 15.0, -15.0), jnp.array([0.0, 1e-9, 1.0]))
  np.testing.assert_allclose(single, [15.0, 0.5 * -np.log(2e-9 + np.exp(-30)), -15.0], rtol=2e-6)


def test_beta_linear_is_the_sde_of_its_beta():
  """dz = -beta/2 z dt + sqrt(beta) dw, and alpha^2 = exp(-int beta) integrated numerically."""
  u = lambda t: 1e-3 + (1 - 1e-3) * np.asarray(t)
  beta = lambda u: 0.1 + 19.9 * u
  t = times(33)
  level = evaluate(GaussianProcess(schedules.BetaLinear(), vp), t)
  f, g = sde(level)
  np.testing.assert_allclose(f, -0.5 * beta(u(t)) * (1 - 1e-3), rtol=1e-6)
  np.testing.assert_allclose(g**2, beta(u(t)) * (1 - 1e-3), rtol=1e-6)
  integral = [np.trapezoid(beta(grid), grid) for grid in np.linspace(0.0, u(t), 65).T]
  np.testing.assert_allclose(level.alpha**2, np.exp(-np.array(integral)), rtol=1e-6)


def chain(steps):
  """logsnr of the chain of Ho et al. (2020) with betas 0.1/T to 20/T in T steps, float64."""
  log_kept = np.cumsum(np.log1p(-np.linspace(0.1, 20.0, steps) / steps))
  return log_kept - np.log(-np.expm1(log_kept))


def test_beta_linear_is_the_limit_of_the_chain_of_ddpm():
  # At T = 1000 the published chain runs from 9.2102 to -10.1177.
  np.testing.assert_allclose(chain(1000)[[0, -1]], [9.2102, -10.1177], atol=1e-4)
  limit = schedules.BetaLinear(t_min=0.0)
  t = np.array([0.25, 0.5, 1.0])
  off = [np.abs(chain(n)[(n * t).astype(int) - 1] - limit(t)).max() for n in (10_000, 100_000)]
  assert off[1] < 1e-3
  np.testing.assert_allclose(off[0] / off[1], 10.0, rtol=0.01)  # of first order in 1/T


def test_beta_linear_is_that_of_the_public_dpm_solver():
  """Recorded from LuChengTHU/dpm-solver (commit 52bc3fb): t, alpha, sigma and logsnr / 2."""
  t, *recorded = np.array([
      [1.0e-3, 0.99994502651109762, 0.010485416335095232, 4.5577149327298656],
      [0.051201005025125632, 0.98451885793025984, 0.17527868775095506, 1.7257758440541002],
      [0.25200502512562817, 0.71997034783549874, 0.69400482580284051, 0.036731113511200675],
      [0.60341206030150751, 0.15856375564300690, 0.98734874051491284, -1.8288665546373593],
      [1.0, 0.0065715864949296189, 0.99997840689233863, -5.0249784066592040]]).T
  level = evaluate(GaussianProcess(schedules.BetaLinear(), vp), (t - 1e-3) / (1.0 - 1e-3))
  np.testing.assert_allclose([level.alpha, level.sigma, level.logsnr / 2], recorded, rtol=1e-10)


# ----------------------------------------------------------------- tables


def test_the_table_of_ddpm_is_the_chain_of_its_betas():
  """z_i = sqrt(1 - beta_i) z_{i-1} + sqrt(beta_i) noise, in float64; from 9.2102 to -10.1177."""
  table = TableSchedule.from_betas(schedules.linear_betas())
  np.testing.assert_allclose([table.logsnr[1], table.logsnr[1000]], [9.2102, -10.1177], atol=1e-4)
  signal, noise = [1.0], [0.0]
  for beta in np.linspace(1e-4, 0.02, 1000):
    signal.append(np.sqrt(1 - beta) * signal[-1])
    noise.append((1 - beta) * noise[-1] + beta)
  level = evaluate(GaussianProcess(table), table.time(np.arange(1001)))
  np.testing.assert_allclose(level.alpha, signal, rtol=1e-11)
  np.testing.assert_allclose(level.sigma**2, noise, rtol=1e-11)
  assert level.sigma[0] == 0.0 and level.alpha[0] == 1.0


def test_the_tables_are_those_of_the_public_schedulers():
  """sigma / alpha at time steps of diffusers 0.42.1: DDIM on `linear` and `squaredcos_cap_v2`."""
  for betas, timesteps, recorded in [
      (schedules.linear_betas(), [999, 888, 777, 666, 555, 444, 333, 222, 111, 0],
       [157.40728081040757, 54.567513088189692, 21.417496171227608, 9.4889202295252151,
        4.7033339489150761, 2.5546912050017787, 1.4623566969975685, 0.82193578582256033,
        0.38037100632746706, 0.010000500037502575]),
      (schedules.cosine_betas(), [980, 960, 950, 900, 850, 800, 750, 700, 50, 0],
       [33.761858185227084, 16.432627535031262, 13.069693918804854, 6.429928333280797,
        4.228773183430665, 3.1203816449969395, 2.446279154051933, 1.9883938697889396,
        0.09134751043368596, 0.00642541277114206])]:
    table = TableSchedule.from_betas(betas)
    level = evaluate(GaussianProcess(table, ve), table.time(np.array(timesteps) + 1))
    np.testing.assert_allclose(level.sigma, recorded, rtol=1e-9)
    first = TableSchedule.from_betas(betas, clean=False)  # the zero-based indices of public code
    np.testing.assert_array_equal(evaluate(first, first.time(np.array(timesteps))), level.logsnr)


@pytest.mark.parametrize('first, last, ends', [
    (0.00085, 0.012, (7.0694, -5.3640)), (0.0015, 0.0195, (6.5008, -8.8574)),
    (0.0015, 0.0155, (6.5008, -7.3096)), (0.0015, 0.0205, (6.5008, -9.2416))])
def test_scaled_linear_betas_are_the_chains_of_latent_diffusion(first, last, ends):
  """The ends of `alphas_cumprod` in CompVis/latent-diffusion a506df5 and in Stable Diffusion."""
  table = TableSchedule.from_betas(schedules.scaled_linear_betas(1000, first, last))
  np.testing.assert_allclose(table.logsnr[[1, 1000]], ends, atol=1e-4)
  # In between: the one chain whose roots of beta have equal steps.
  beta = 1.0 - np.exp(np.diff(np.log(1.0 / (1.0 + np.exp(-table.logsnr)))))
  steps = np.diff(np.sqrt(beta))
  np.testing.assert_allclose(steps, (np.sqrt(last) - np.sqrt(first)) / 999, rtol=1e-6)


def test_a_real_index_is_the_fractional_time_step_of_the_public_scheduler():
  """EulerDiscreteScheduler of diffusers 0.42.1 on Karras sigmas: linear in log sigma, as we are."""
  sigma = [157.40728081040749, 85.710522387849778, 44.047404875790811, 21.105410301025287,
           9.2746119511156753, 3.6525679190903184, 1.2463257094660058, 0.34969256737211857,
           0.073926192554626485]
  recorded = [999.0, 936.9218887360332, 863.8290442433714, 775.13315450661, 662.6368630544349,
              510.70346211984446, 300.9847915000796, 102.16137423640704, 18.308004650406552]
  table = TableSchedule.from_betas(schedules.linear_betas())
  index = jax.jit(TableSchedule.index)(table, -2 * np.log(sigma))
  np.testing.assert_allclose(index, np.array(recorded) + 1, rtol=1e-9)


@pytest.mark.first(4)
@pytest.mark.parametrize('table', [
    [np.inf, 3.0, 1.0, -0.5, -np.inf], [np.inf, 3.0], [2.0, -np.inf], [np.inf, -np.inf],
    [6.0, 5.0, 1.0, -4.0]], ids=str)
def test_the_index_of_a_table_is_the_inverse_of_its_schedule(table):
  table = TableSchedule(np.array(table))
  t, ends = times(), np.array([np.inf, -np.inf])
  back, ends = jax.jit(lambda table: (table.index(table(t)), table.index(ends)))(table)
  np.testing.assert_allclose(back, table.steps * t, atol=1e-10)
  np.testing.assert_array_equal(ends, [0, table.steps])


@pytest.mark.parametrize('steps', [7, 49, 1000, 4000])
def test_a_table_has_its_very_values_at_the_times_of_its_entries(steps):
  table = TableSchedule.from_betas(schedules.cosine_betas(steps))
  for single in (False, True):
    dtype = np.float32 if single else np.float64
    with jax.enable_x64(not single):
      got = evaluate(table, table.time(np.arange(steps + 1)))
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, table.logsnr.astype(dtype))


def test_the_slope_of_a_table_is_that_of_the_step_it_is_in():
  table = TableSchedule(np.array([6.0, 5.0, 1.0, -4.0]))
  level = evaluate(GaussianProcess(table), jnp.array([0.0, 0.2, 1 / 3, 0.5, 2 / 3, 1.0]))
  np.testing.assert_allclose(level.dlogsnr, [-3, -3, -3, -12, -12, -15], rtol=1e-9)


def test_a_respaced_chain_keeps_the_alphas_of_its_entries_exactly():
  table = TableSchedule.from_betas(schedules.linear_betas())
  kept = np.array([0, *np.arange(1, 1000, 37), 1000])
  chain = table.respaced(kept)
  level = evaluate(GaussianProcess(chain), chain.time(np.arange(len(kept))))
  full = evaluate(GaussianProcess(table), table.time(kept))
  for field in ('logsnr', 'alpha', 'sigma'):
    np.testing.assert_array_equal(getattr(level, field), getattr(full, field))
  # As one chain: its own betas multiply up to the alphas of the full one.
  betas = 1.0 - full.alpha[1:]**2 / full.alpha[:-1]**2
  np.testing.assert_allclose(TableSchedule.from_betas(betas).logsnr[1:], level.logsnr[1:],
                             rtol=1e-9)
  index, logsnr = jax.jit(lambda table: (table.index(level.logsnr), table.respaced(kept).logsnr))(
      table)
  np.testing.assert_allclose(index, kept, atol=1e-9)
  np.testing.assert_array_equal(logsnr, chain.logsnr)


def test_the_clipped_cosine_chain_has_the_published_alphas_until_its_last_steps():
  betas = schedules.cosine_betas()
  assert betas.max() == 0.999
  i = np.flatnonzero(betas < 0.999) + 1
  assert i[-1] == len(i) > 990  # clipped at the very end alone
  cosine = np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
  np.testing.assert_allclose(np.cumprod(1 - betas)[i - 1], cosine**2, rtol=1e-9)


def test_rescaling_to_zero_terminal_snr_is_one_affine_map_that_keeps_the_first_alpha():
  before = np.sqrt(np.cumprod(1 - schedules.linear_betas()))
  betas = schedules.zero_terminal_snr(schedules.linear_betas())
  after = np.sqrt(np.cumprod(1 - betas))
  slope, offset = np.polyfit(before, after, 1)
  np.testing.assert_allclose(slope * before + offset, after, atol=1e-12)
  np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
  assert after[-1] == 0.0 and betas[-1] == 1.0


def test_a_sampler_runs_from_no_signal_to_clean_data_along_a_table():
  table = TableSchedule.from_betas(schedules.zero_terminal_snr(schedules.linear_betas()))
  process, oracle = GaussianProcess(table), oracles.Gaussian(0.4, 0.5)
  ends = evaluate(process, jnp.array([1.0, 0.0]))
  np.testing.assert_array_equal(ends.logsnr, [-np.inf, np.inf])
  np.testing.assert_array_equal([ends.alpha, ends.sigma], [[0, 1], [1, 0]])
  assert np.isfinite([ends.dalpha, ends.dsigma]).all() and ends.dalpha[0] < 0 < ends.dsigma[1]
  z = jnp.array([[-1.5], [0.0], [2.0]])
  got = sample(ddim(oracle, process), jax.random.split(jax.random.key(0), 3), z,
               table.time(np.arange(1000, -1, -1)))
  # DDIM is of first order: at 1000 steps a thousandth or so.
  np.testing.assert_allclose(got, 0.4 + 0.5 * z, atol=5e-3)


@pytest.mark.parametrize('make,says', [
    (lambda: TableSchedule.from_alphas([0.9, 0.95]), 'entry 2 does not decrease'),
    (lambda: TableSchedule.from_alphas([1.0, 0.9]), 'entry 1 does not decrease'),
    (lambda: TableSchedule.from_alphas([0.9, np.nan]), 'entry 2 does not decrease'),
    (lambda: TableSchedule.from_alphas([0.9, -0.1]), 'from_betas'),
    (lambda: TableSchedule.from_alphas([0.9], clean=False), 'two entries'),
    (lambda: TableSchedule(np.array([3.0, 2.0, 1.0])).respaced([2, 0]), 'increase'),
    (lambda: schedules.TableSchedule.from_betas(schedules.linear_betas()).respaced([0, 500, 1500]),
     'within 0 .. 1000'),
    (lambda: TableSchedule(np.array([3.0, 2.0, 1.0])).respaced([1]), 'two or more')])
def test_a_table_that_is_none_is_refused(make, says):
  with pytest.raises(InputError, match=says):
    make()


# ----------------------------------------------------------------- NCSNv2

# dim, sigma_1 and L of the published models (sigma_L = 0.01): CIFAR-10, CelebA, LSUN bedroom and
# tower, FFHQ.
NCSNV2 = [(3 * 32**2, 50, 232), (3 * 64**2, 90, 500), (3 * 128**2, 190, 1086),
          (3 * 256**2, 348, 2311)]


@pytest.mark.parametrize('dim', [5, 100, 3072])
def test_the_ratio_of_noise_levels_solves_its_equation(dim):
  sigmas = schedules.ncsnv2_sigmas(50.0, 1e-9, dim)
  gamma = sigmas[0] / sigmas[1]

  def overlap(gamma):
    """Of the radius of noise at scale 1 and the middle six standard deviations at scale gamma."""
    radius = stats.norm(np.sqrt(dim), np.sqrt(0.5))
    wide = stats.norm(gamma * np.sqrt(dim), gamma * np.sqrt(0.5))
    return np.diff(radius.cdf(wide.mean() + 3 * wide.std() * np.array([-1, 1])))[0]
  # The number of levels is whole, so gamma lies between the root and that of one level less.
  fewer = (50.0 / 1e-9)**(1 / (len(sigmas) - 2))
  assert overlap(gamma) >= 0.5 > overlap(fewer)
  np.testing.assert_allclose(sigmas[[0, -1]], [50.0, 1e-9], rtol=1e-12)
  np.testing.assert_allclose(sigmas[:-1] / sigmas[1:], gamma, rtol=1e-9)


@pytest.mark.parametrize('dim,sigma_max,levels', NCSNV2)
def test_the_numbers_of_noise_levels_are_the_published_ones(dim, sigma_max, levels):
  # The published numbers of levels have an overlap of 0.567, the same for all; `about 0.5` says
  # the paper.
  assert abs(len(schedules.ncsnv2_sigmas(sigma_max, 0.01, dim, overlap=0.567)) - levels) <= 1
  assert 0.93 * levels < len(schedules.ncsnv2_sigmas(sigma_max, 0.01, dim)) < levels


def test_the_largest_distance_is_between_opposite_corners():
  corners = np.stack(np.meshgrid(*[[-1.0, 1.0]] * 6, indexing='ij'), -1).reshape(-1, 2, 3)
  inside = np.random.default_rng(0).uniform(-1, 1, (40, 2, 3))
  data = np.concatenate([inside, corners])
  for block in (7, 1000):
    np.testing.assert_allclose(schedules.largest_distance(data, block), 2 * np.sqrt(6), rtol=1e-12)


def test_the_ratio_of_noise_levels_is_refused_in_few_dimensions():
  with pytest.raises(InputError, match='dim=2.*GeometricSigma'):
    schedules.ncsnv2_sigmas(1.0, 0.01, 2)


@pytest.mark.parametrize('high,low', [(0.01, 50.0), (1.0, 1.0), (1.0, 0.0)])
def test_noise_levels_that_do_not_decrease_to_above_zero_are_refused(high, low):
  with pytest.raises(InputError, match=f'sigma_max = {high:g}, sigma_min = {low:g}'):
    schedules.ncsnv2_sigmas(high, low, 100)


# ------------------------------------------------------- precision and jit


def test_the_float32_ends_of_the_fixed_schedules_are_close():
  with jax.enable_x64(False):
    ends = [evaluate(schedule, jnp.array([0.0, 1.0])) for schedule in FIXED[:4]]
  assert all(u.dtype == jnp.float32 for u in ends)
  np.testing.assert_allclose(ends, [[13.3, -5.0]] * 4, atol=2e-5)


def test_another_value_of_a_fixed_schedule_is_not_traced_again():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def sigma(process, t):
    return process(t).sigma

  for high in (3.0, 4.0, 5.0):
    got = sigma(GaussianProcess(schedules.Linear(high, -high)), jnp.array([0.0]))
    np.testing.assert_allclose(got, (1 + np.exp(high))**-0.5, rtol=1e-6)


def test_values_of_two_classes_never_have_the_same_structure():
  """Or `jit` may run the program of one on the other, when their hashes happen to meet."""
  first = {type(schedule): schedule for schedule in reversed(FIXED)}.values()
  values = [*first, *(GaussianProcess(s, curve) for s in first for curve in (vp, ve))]
  structures = [jax.tree.structure(u) for u in values]
  for i, one in enumerate(structures):
    assert [j for j, other in enumerate(structures) if one == other] == [i]
  assert dataclasses.replace(FIXED[0], logsnr_max=1.0) == schedules.Linear(1.0)


def test_a_module_built_and_bound_anew_is_not_traced_again():
  @jax.jit
  @chex.assert_max_traces(n=1)
  def end(schedule):
    return schedule(jnp.ones(()))

  for low in (-1.0, -2.0, -3.0):
    module = schedules.LearnedLinear(logsnr_max=13.3, logsnr_min=-5.0)
    params = {'b': jnp.array([-1.0]), 'w': jnp.array([1.0 - low])}
    np.testing.assert_allclose(end(Bound(params, module)), low, rtol=1e-6)


@pytest.mark.first(1)
@pytest.mark.parametrize('single', [False, True], ids=['float64', 'float32'])
@pytest.mark.parametrize('step', [89.0, -89.0, 20.0, -20.0, 400.0])
def test_knots_may_differ_by_more_than_float32_can_raise_e_to(step, single):
  """One segment: t = expm1(step r) / expm1(step), so r = log(1 + t expm1(step)) / step."""
  with jax.enable_x64(not single):
    module = schedules.KnotSchedule(knots=2, logsnr_max=1.0, logsnr_min=0.0)
    params = {'logsnr_max': jnp.ones(()), 'logsnr_min': jnp.zeros(()),
              'log_density': jnp.array([0.0, step])}
    t = jnp.array([0.0, 1e-6, 0.1, 0.5, 0.9, 1.0])
    at = lambda params: Bound(params, module)(t)
    logsnr, slopes = jax.jit(at)(params), jax.jit(jax.jacrev(at))(params)
  u = np.asarray(t, np.float64)
  if step > 0:
    r = 1.0 + np.log(np.maximum(u + (1.0 - u) * np.exp(-step), 1e-300)) / step
  else:
    r = np.log(1.0 - u + u * np.exp(step)) / step
  inside = slice(1, -1)
  np.testing.assert_allclose(logsnr[inside], 1.0 - r[inside], rtol=2e-6, atol=2e-6)
  np.testing.assert_array_equal(logsnr[np.array([0, -1])], [1.0, 0.0])
  np.testing.assert_allclose(slopes['logsnr_max'], logsnr, atol=1e-6)
  np.testing.assert_allclose(slopes['logsnr_min'], 1.0 - logsnr, atol=1e-6)
