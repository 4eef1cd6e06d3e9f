"""Weightings, against the losses of their papers written in those papers' own terms."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vdm_jax import oracles, targets, weightings
from vdm_jax.errors import InputError
from vdm_jax.objectives import check_limits, edm, proposals, weighted_diffusion
from vdm_jax.processes import (
    GaussianProcess,
    RectifiedFlow,
    SubVP,
    Truncated,
    diffuse,
    flow,
    from_alpha_sigma,
    sub_vp,
    ve,
    vp,
)
from vdm_jax.schedules import BetaLinear, Cosine, KarrasSigma, Linear, Sigmoid, TableSchedule
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')


def crude(z, level, cond=None):
  """A denoiser that is wrong by much: x_hat = tanh(z)."""
  level, x = level.expand(z), jnp.tanh(z)
  return Estimate(x, (z - level.alpha * x) / level.sigma)


def evaluate(weight, process, n=6):
  """(loss [n], level, x, eps, estimate) at n times for a random x of three dimensions."""
  t = jnp.linspace(0.05, 0.95, n)
  x, eps = jax.random.normal(jax.random.key(0), (2, n, 3))
  loss, _ = weighted_diffusion(crude, process, x, t, None, weight=weight, eps=eps)
  level = process(t)
  return loss, level, x, eps, crude(diffuse(x, eps, level), level)


PROCESSES = [GaussianProcess(Linear(6.0, -4.0), vp), GaussianProcess(Cosine(6.0, -4.0), flow)]


@pytest.mark.parametrize('process', PROCESSES, ids=['linear vp', 'cosine flow'])
def test_simple_is_the_plain_squared_error_of_eps(process):
  loss, _, _, eps, estimate = evaluate(weightings.simple, process)
  np.testing.assert_allclose(loss, np.sum((eps - estimate.eps)**2, axis=1), rtol=1e-10)


@pytest.mark.parametrize('process', PROCESSES, ids=['linear vp', 'cosine flow'])
def test_min_snr_is_a_squared_error_of_x_with_the_ratio_clipped(process):
  """Hang et al. (2023): min(SNR, 5) |x - x_hat|^2; some of the times lie on either side of 5."""
  loss, level, x, _, estimate = evaluate(weightings.min_snr(5.0), process)
  snr = np.asarray((level.alpha / level.sigma)**2)
  assert snr.min() < 5.0 < snr.max()
  np.testing.assert_allclose(loss, np.minimum(snr, 5.0) * np.sum((x - estimate.x)**2, axis=1),
                             rtol=1e-9)


def test_the_bound_weighs_the_squared_error_of_x_by_the_loss_of_signal_to_noise_ratio():
  """Kingma et al. (2021), eq. 16: -1/2 SNR'(t) |x - x_hat|^2, SNR' by finite differences."""
  process, h = PROCESSES[1], 1e-5
  loss, level, x, _, estimate = evaluate(weightings.vlb, process)
  snr = lambda t: np.exp(np.asarray(process(t).logsnr))
  slope = (snr(level.t + h) - snr(level.t - h)) / (2 * h)
  np.testing.assert_allclose(loss, -0.5 * slope * np.sum((x - estimate.x)**2, axis=1), rtol=1e-6)


def test_sigmoid_is_the_variance_of_the_noise_of_vp_shifted_by_its_bias():
  logsnr = jnp.linspace(-20.0, 20.0, 9)
  level = PROCESSES[0](jnp.zeros(9))._replace(logsnr=logsnr)
  np.testing.assert_allclose(weightings.sigmoid(0.0)(level), vp(logsnr)[1]**2, rtol=1e-9)
  np.testing.assert_allclose(weightings.sigmoid(-2.0)(level), vp(logsnr + 2.0)[1]**2, rtol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize('data_std', [0.5, 2.0])
def test_edm_is_the_loss_of_karras_et_al_for_their_optimal_denoiser(data_std):
  """E over ln s ~ N(-1.2, 1.2^2) of (s^2 + 0.25) / (0.5 s)^2 |D - x|^2 = 1 for data of std 0.5.

  D - x has variance data_std^2 s^2 / (data_std^2 + s^2); for another data_std by Gauss-Hermite.
  """
  nodes, weights = np.polynomial.hermite_e.hermegauss(60)
  s = np.exp(-1.2 + 1.2 * nodes)
  error = data_std**2 * s**2 / (data_std**2 + s**2)
  expected = np.sum(weights * (s**2 + 0.25) / (0.5 * s)**2 * error) / np.sqrt(2 * np.pi)
  if data_std == 0.5:
    np.testing.assert_allclose(expected, 1.0)
  # Both errors are linear in x and eps, so the four points (+-std, +-1) average them exactly.
  n = 2000
  t = jnp.tile((jnp.arange(n) + 0.5) / n, 4)
  x = jnp.repeat(jnp.array([data_std, data_std, -data_std, -data_std]), n)[:, None]
  eps = jnp.repeat(jnp.array([1.0, -1.0, 1.0, -1.0]), n)[:, None]
  process = GaussianProcess(Linear(20.0, -16.0), flow)
  loss, _ = weighted_diffusion(oracles.Gaussian(0.0, data_std), process, x, t, None,
                               weight=weightings.edm(), eps=eps)
  np.testing.assert_allclose(jnp.mean(loss), expected, rtol=1e-6)


# ------------------------------------- one error, told in terms of any target


CURVES = [vp, ve, flow, sub_vp]


def squared(target, level, x, eps, estimate):
  """|y - y_hat|^2 [n] of a target."""
  a, b = target(level.expand(x))
  return np.sum((a * (x - estimate.x) + b * (eps - estimate.eps))**2, axis=1)


@pytest.mark.parametrize('curve', CURVES)
def test_the_error_of_eps_is_that_of_x_times_snr_on_every_curve_and_of_v_times_snr_plus_one_on_vp(
    curve):
  _, level, x, eps, estimate = evaluate(weightings.vlb, GaussianProcess(Cosine(6.0, -4.0), curve))
  snr = np.asarray((level.alpha / level.sigma)**2)
  of_x = squared(targets.x, level, x, eps, estimate)
  np.testing.assert_allclose(squared(targets.eps, level, x, eps, estimate), snr * of_x,
                             rtol=1e-9)
  of_v = squared(targets.v, level, x, eps, estimate)
  if curve is vp:
    np.testing.assert_allclose(of_v, (snr + 1.0) * of_x, rtol=1e-9)
  else:
    assert np.abs(of_v / ((snr + 1.0) * of_x) - 1.0).max() > 0.1


@pytest.mark.parametrize('curve', CURVES)
@pytest.mark.parametrize('target', [targets.x, targets.eps, targets.v,
                                    targets.score, targets.flow, targets.edm()],
                         ids=['x', 'eps', 'v', 'score', 'flow', 'edm'])
def test_the_bound_in_terms_of_any_target_is_the_bound(target, curve):
  """1/2 (-dlogsnr/dt) sigma^2 alpha^2 / det^2 |y - y_hat|^2 / alpha^2, det = alpha b - sigma a.

  As y - y_hat = (a - b alpha / sigma) (x - x_hat) = -det / sigma (x - x_hat).
  """
  loss, level, x, eps, estimate = evaluate(weightings.vlb,
                                           GaussianProcess(Cosine(6.0, -4.0), curve))
  a, b = target(level)
  share = (level.alpha / (level.alpha * b - level.sigma * a))**2
  np.testing.assert_allclose(
      loss, -0.5 * level.dlogsnr * share * squared(target, level, x, eps, estimate), rtol=1e-9)


@pytest.mark.parametrize('curve', CURVES)
def test_the_three_weightings_of_salimans_and_ho_are_those_of_the_error_of_x(curve):
  """max of both errors is at each level the one or the other: some of the times on either side."""
  process = GaussianProcess(Linear(6.0, -4.0), curve)
  of = lambda weight: evaluate(weight, process)
  loss, level, x, eps, estimate = of(weightings.truncated_snr)
  of_x, of_eps = (squared(u, level, x, eps, estimate) for u in (targets.x, targets.eps))
  assert (of_x > of_eps).any() and (of_eps > of_x).any()
  np.testing.assert_allclose(loss, np.maximum(of_x, of_eps), rtol=1e-9)
  np.testing.assert_allclose(of(weightings.snr_plus_one)[0], of_x + of_eps, rtol=1e-9)
  np.testing.assert_allclose(of(weightings.simple)[0], of_eps, rtol=1e-9)
  if curve is vp:
    np.testing.assert_allclose(of(weightings.snr_plus_one)[0],
                               squared(targets.v, level, x, eps, estimate), rtol=1e-9)


def test_p2_divides_the_error_of_eps_by_a_power_of_k_plus_snr():
  """With k = gamma = 1 on vp the loss is sigma^2 |eps - eps_hat|^2 = alpha^2 |x - x_hat|^2."""
  process = PROCESSES[0]
  loss, level, x, eps, estimate = evaluate(weightings.p2(), process)
  np.testing.assert_allclose(
      loss, level.alpha**2 * np.sum((x - estimate.x)**2, axis=1), rtol=1e-9)
  half, *_ = evaluate(weightings.p2(0.5, 1.0), process)
  plain, *_ = evaluate(weightings.simple, process)
  np.testing.assert_allclose(half, np.sqrt(loss * plain), rtol=1e-9)
  # At high noise it is L_simple over k^gamma.
  quiet = process(jnp.array(0.5))._replace(logsnr=jnp.array(-40.0))
  np.testing.assert_allclose(weightings.p2(2.0, 3.0)(quiet), weightings.simple(quiet) / 9.0,
                             rtol=1e-9)


# ------------------------------------------------- edm, and its own times


def test_log_normal_times_are_those_of_sigma_over_alpha():
  """Even u give the quantiles of ln s ~ N(-1.2, 1.2^2): erf inverted by scipy."""
  process = GaussianProcess(Cosine(20.0, -16.0), flow)
  u = jnp.linspace(0.01, 0.99, 9)
  level = jax.jit(lambda: process(proposals.by_mass(process, proposals.log_normal())(u)[0]))()
  np.testing.assert_allclose(np.log(level.sigma / level.alpha), stats.norm(-1.2, 1.2).ppf(u),
                             atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize('mean,std,sigma_data', [(-1.2, 1.2, 0.5), (-0.4, 0.9, 0.7)])
def test_edm_at_its_own_noise_levels_is_the_plain_squared_error_of_f(mean, std, sigma_data):
  """lambda c_out^2 = 1; times the probability of the levels that the process has."""
  process = GaussianProcess(Linear(6.0, -4.0), flow)
  n = 7
  x, eps = jax.random.normal(jax.random.key(0), (2, n, 3))
  u = (jnp.arange(n) + 0.5) / n
  loss, t = jax.jit(lambda: (
      edm.objective(crude, process, x, u, None, mean=mean, std=std, sigma_data=sigma_data,
                    eps=eps)[0],
      proposals.by_mass(process, proposals.log_normal(mean, std))(u)[0]))()
  share = np.diff(stats.norm(-2.0 * mean, 2.0 * std).cdf([-4.0, 6.0]))[0]
  level = process(t)
  error = squared(targets.edm(sigma_data), level, x, eps,
                  crude(diffuse(x, eps, level), level))
  np.testing.assert_allclose(loss, share * error, rtol=1e-9)


def test_edm_at_its_own_noise_levels_is_its_weighting_at_uniform_times_in_expectation():
  """And the bound that it reports is the bound: both integrals from the same errors."""
  process, std, n = GaussianProcess(Cosine(6.0, -4.0), vp), 0.5, 2000
  u = jnp.tile((jnp.arange(n) + 0.5) / n, 4)
  x = jnp.repeat(jnp.array([std, std, -std, -std]), n)[:, None]
  eps = jnp.repeat(jnp.array([1.0, -1.0, 1.0, -1.0]), n)[:, None]

  @jax.jit
  def means():
    wrong = oracles.Gaussian(0.1, 0.8)
    even = lambda weight: weighted_diffusion(wrong, process, x, u, None, weight=weight, eps=eps)[0]
    drawn, terms = edm.objective(wrong, process, x, u, None, eps=eps)
    return (jnp.mean(drawn), jnp.mean(even(weightings.edm())),
            jnp.mean(terms['diffusion']), jnp.mean(even(weightings.vlb)))

  drawn, even, bound, expected = means()
  np.testing.assert_allclose(drawn, even, rtol=1e-5)
  np.testing.assert_allclose(bound, expected, rtol=1e-5)


# ------------------------------------------------------- at the ends of time

# Processes, and the limits at t = 0 and t = 1 of -1/2 dlogsnr/dt sigmoid(logsnr) w for w = 1, and
# for w = sigmoid(1 - logsnr), which is exp(1 - logsnr) where logsnr -> infinity.
_LOGISTIC = np.exp(1.0) / 2
ENDS = {
    'flow': (RectifiedFlow(), (np.inf, 0), (0, 0)),
    'sub_vp': (SubVP(), (np.inf, None), (0, None)),
    'vp_sde': (GaussianProcess(BetaLinear(t_min=0.0)), (np.inf, None), (np.exp(1) / 20, None)),
    'cosine': (GaussianProcess(Cosine(np.inf, -np.inf)), (np.inf, 0), (0, 0)),
    'cosine_on_flow': (GaussianProcess(Cosine(np.inf, -np.inf), flow), (np.inf, 0), (0, 0)),
    'logistic': (GaussianProcess(Sigmoid(0.0, 1.0, np.inf, -np.inf), sub_vp), (np.inf, 0.5),
                 (_LOGISTIC, 0.5)),
    'edm': (GaussianProcess(KarrasSigma(0.0, 80.0, 1.0), ve), (np.inf, None), (0, None)),
    'table': (GaussianProcess(TableSchedule(np.array([np.inf, 1.0, -np.inf]))), (np.inf, 0),
              (0, 0)),
    'no_signal': (Truncated.between(RectifiedFlow(), 5.0, -np.inf), (None, 0), (None, 0)),
    'trigonometric': (from_alpha_sigma(lambda t: jnp.cos(0.5 * jnp.pi * t),
                                       lambda t: jnp.sin(0.5 * jnp.pi * t)), (np.inf, 0), (0, 0)),
    'finite': (PROCESSES[0], (None, None), (None, None))}
# Of the other weightings they depend on logsnr alone: at infinity, and at minus infinity.
LIMITS = {'simple': (1, 0), 'truncated_snr': (1, 1), 'snr_plus_one': (1, 1), 'min_snr': (0, 0),
          'p2': (0, 0), 'edm': (0, 0), 'sigmoid': None, 'vlb': None}
WEIGHTS = {'simple': weightings.simple, 'truncated_snr': weightings.truncated_snr,
           'snr_plus_one': weightings.snr_plus_one, 'min_snr': weightings.min_snr(),
           'p2': weightings.p2(), 'edm': weightings.edm(), 'sigmoid': weightings.sigmoid(1.0),
           'vlb': weightings.vlb}


def limit(name, process, end):
  """Of the loss by |v - v_hat|^2 / (alpha^2 + sigma^2)."""
  own, of_vlb, of_sigmoid = ENDS[process]
  level = own(jnp.asarray(float(end)))
  if np.isfinite(level.logsnr):
    return -0.5 * WEIGHTS[name](level) * level.dlogsnr * jax.nn.sigmoid(level.logsnr)
  return {'vlb': of_vlb, 'sigmoid': of_sigmoid}.get(name, LIMITS[name])[end]


@pytest.mark.long
@pytest.mark.parametrize(('process', 'single'), [
    *((process, False) for process in ENDS), ('flow', True), ('sub_vp', True), ('cosine', True)])
def test_the_loss_and_its_gradient_at_the_ends_of_time_are_their_limits(process, single):
  """Of an estimate theta tanh(z) of v, which is finite everywhere: the error of v is a closed form.
  """
  own = ENDS[process][0]

  def found(theta, x, eps, t):
    estimate = lambda z, level, _: targets.solve(targets.v, theta * jnp.tanh(z), z, level)
    loss = lambda weight: jnp.sum(weighted_diffusion(estimate, own, x, t, None, eps=eps,
                                                     weight=weight)[0])
    losses = jnp.stack([loss(weight) for weight in WEIGHTS.values()])
    return losses, losses

  def error(theta, x, eps, t):
    level = own(t).expand(x)
    v = level.alpha * eps - level.sigma * x
    of_v = jnp.square(v - theta * jnp.tanh(diffuse(x, eps, level)))
    return jnp.sum(of_v / (level.alpha**2 + level.sigma**2))

  given = np.random.default_rng(0).normal(size=(2, 1, 3))
  for end in (0, 1):
    expected = jax.value_and_grad(error)(0.3, *given, jnp.full(1, float(end)))
    with jax.enable_x64(not single):
      at = jnp.float32(0.3) if single else 0.3, *map(jnp.asarray, given), jnp.full(1, float(end))
      slopes, values = jax.jit(jax.jacrev(found, has_aux=True))(*at)
    for name, value, slope in zip(WEIGHTS, values, slopes, strict=True):
      coefficient = limit(name, process, end)
      if coefficient == np.inf:
        assert value > 100
        known = type(own).__name__.replace('function', 'from_alpha_sigma')
        with pytest.raises(InputError, match=f'{name} on the process {known}.* t = {end}'):
          check_limits(own, WEIGHTS[name])
      else:
        # As sigma ~ sqrt(t) at the data of some, half of half of the digits.  The density of `edm`
        # falls in the logarithm of the time alone.
        atol = 0.02 if single else 5e-3 if name == 'edm' else 1e-4
        np.testing.assert_allclose([value, slope], np.multiply(coefficient, expected),
                                   rtol=0.05 if single else 1e-3, atol=atol, err_msg=name)


@pytest.mark.first(1)
@pytest.mark.parametrize('name', [name for name in WEIGHTS if name != 'vlb'])
def test_every_weighting_but_that_of_the_bound_has_limits_on_every_process(name):
  for process, _, _ in ENDS.values():
    check_limits(process, WEIGHTS[name])


def test_the_bound_has_limits_where_the_data_have_noise():
  check_limits(ENDS['finite'][0])
  check_limits(ENDS['no_signal'][0])
  with pytest.raises(InputError) as error:
    check_limits(ENDS['vp_sde'][0])
  assert 'the weighting vlb on the process GaussianProcess(BetaLinear)' in str(error.value)
  assert '\n' not in str(error.value)
