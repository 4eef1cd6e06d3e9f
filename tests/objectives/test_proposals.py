"""Times drawn by importance: nothing may change but the variance, and that to its known values.

The data are Gaussian, so that the integral is 1/2 log (1 + s^2 e^13.3) / (1 + s^2 e^-5) on every
path, and x = +-s, eps = +-1 give the mean error of the optimal denoiser exactly.  In d dimensions
the squared mean of a draw is then (1 + 2 / d) times its square, chi-squared as it is.
"""
import collections
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

from tests.support.gaussian import exact_decoder
from vdm_jax import oracles, schedules, values
from vdm_jax.decoders import Pixels
from vdm_jax.objectives import idode, proposals, vlb, weighted_diffusion
from vdm_jax.processes import GaussianProcess, Truncated, flow
from vdm_jax.systems import compose
from vdm_jax.train import parallel
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Context, Model

STD, HIGH, LOW, DIM = 0.5, 13.3, -5.0, 3072
CONTINUOUS = 5.956014634  # nats a dimension
LINEAR = GaussianProcess(schedules.Linear(HIGH, LOW))


def beta_linear():
  return Truncated.between(GaussianProcess(schedules.BetaLinear(t_min=0.0)), HIGH, LOW)


def error_of_eps(logsnr):
  """E |eps - eps_hat|^2 in one dimension."""
  return STD**2 * np.exp(logsnr) / (1 + STD**2 * np.exp(logsnr))


def nodes(pieces, order=12):
  """Gauss-Legendre nodes and weights on [0, 1], in parts that are finer near the ends."""
  v = np.linspace(0.0, 1.0, pieces + 1)
  edges = v**3 * (10 - 15 * v + 6 * v**2)
  x, w = np.polynomial.legendre.leggauss(order)
  width = np.diff(edges)[:, None]
  return (edges[:-1, None] + width * (x + 1) / 2).ravel(), (width * w / 2).ravel()


def moments(process, propose, pieces=200):
  """(mean, variance) of a draw in DIM dimensions: bits/dim, by quadrature over u."""
  u, share = nodes(pieces)
  sign = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])

  @jax.jit
  def draws():
    t, weight = propose(jnp.asarray(u))
    each = jax.vmap(lambda s: weighted_diffusion(
        oracles.Gaussian(0.0, STD), process, jnp.full((len(u), 1), STD * s[0]), t, None,
        eps=jnp.full((len(u), 1), s[1]))[0])(sign)
    return weight * jnp.mean(each, axis=0)

  bits = np.asarray(draws()) / np.log(2)
  mean = np.dot(share, bits)
  return mean, np.dot(share, bits**2) * (1 + 2 / DIM) - mean**2


# Of a schedule and of proposals: variances in (bits/dim)^2, at 3,072 dimensions.
KNOWN = {'log-SNR-linear': (LINEAR, 30.156), 'alpha-cosine': (
    GaussianProcess(schedules.Cosine(HIGH, LOW)), 2307.1), 'beta-linear': (None, 22345.7)}


@pytest.mark.first(1)
@pytest.mark.parametrize('name', KNOWN)
def test_uniform_times_have_the_known_variance_and_uniform_log_snr_that_of_the_linear_schedule(
    name, x64):
  process = KNOWN[name][0] or beta_linear()
  for propose, variance in ((proposals.uniform, KNOWN[name][1]),
                            (proposals.by_logsnr(process), KNOWN['log-SNR-linear'][1])):
    mean, got = moments(process, propose)
    np.testing.assert_allclose(mean, CONTINUOUS / np.log(2), rtol=1e-7)
    np.testing.assert_allclose(got, variance, rtol=2e-4)


@pytest.mark.parametrize('density,mass', [
    (lambda l: 1 / (1 + np.exp(-l)), idode.vp_mass),
    (lambda l: 1 / (1 + np.exp(-l / 2))**2, idode.sp_mass)], ids=['vp', 'sp'])
def test_times_in_proportion_to_the_squared_alpha_of_a_curve_keep_the_mean(density, mass, x64):
  """Variance from the density of logsnr alone, 1/4 error^2 / density integrated over it."""
  process = GaussianProcess(schedules.Cosine(HIGH, LOW))
  total = integrate.quad(density, LOW, HIGH)[0]
  square = integrate.quad(lambda l: 0.25 * error_of_eps(l)**2 / density(l) * total, LOW, HIGH)[0]
  mean, variance = moments(process, proposals.by_mass(process, mass))
  np.testing.assert_allclose(mean, CONTINUOUS / np.log(2), rtol=1e-7)
  np.testing.assert_allclose(
      variance, (square * (1 + 2 / DIM) - CONTINUOUS**2) / np.log(2)**2, rtol=1e-5)


def test_the_closed_form_of_idode_is_the_inverse_of_its_mass(x64):
  """gamma = -log(e^(-Z u) (1 + e^-gamma_0) - 1), with gamma = -logsnr."""
  u = jnp.linspace(0.0, 1.0, 23)
  z = np.log((1 + np.exp(HIGH)) / (1 + np.exp(LOW)))
  logsnr = jax.jit(lambda: LINEAR(proposals.by_mass(LINEAR, idode.vp_mass)(u)[0]).logsnr)()
  np.testing.assert_allclose(logsnr, np.log(np.exp(-z * u) * (1 + np.exp(HIGH)) - 1),
                             rtol=1e-9)


def test_the_times_of_the_vp_sde_for_likelihood_weighting_have_their_closed_form(x64):
  """log(e^(int beta) - 1) linear in u: a quadratic equation for the time, with weight Z / beta
  (1 - alpha^2)."""
  first, low, high = 1e-5, 0.1, 20.0
  process = GaussianProcess(schedules.BetaLinear(low, high, first))
  u = np.linspace(0.01, 0.99, 15)
  integral = lambda t: low * t + 0.5 * (high - low) * t**2
  at = lambda t: np.log(np.expm1(integral(t)))
  z = at(1.0) - at(first)
  time = (np.sqrt(low**2 + 2 * (high - low) * np.log1p(np.exp(at(first) + z * u))) - low
          ) / (high - low)
  t, weight = jax.jit(proposals.by_logsnr(process))(jnp.asarray(u))
  np.testing.assert_allclose(first + (1 - first) * t, time, rtol=1e-9)
  ours = weight * (1 - first)  # a density of the SDE's time
  np.testing.assert_allclose(ours, z * -np.expm1(-integral(time)) / (low + (high - low) * time),
                             rtol=1e-9)


@pytest.mark.long
def test_a_tabulated_density_of_the_error_is_optimal_and_unbiased(x64):
  mass = proposals.tabulated(error_of_eps, HIGH, LOW, cells=60)
  process = GaussianProcess(schedules.Cosine(HIGH, LOW))
  mean, variance = moments(process, proposals.by_mass(process, mass), pieces=4000)
  np.testing.assert_allclose(mean, CONTINUOUS / np.log(2), rtol=1e-4)
  # What is left is the noise, a share 2 / d of the squared mean, 0.0481, and what 60 cells add.
  cells = np.linspace(LOW, HIGH, 61)
  added = 0.0
  for a, b in zip(cells[:-1], cells[1:], strict=True):
    l = np.linspace(a, b, 101)
    middle = error_of_eps(0.5 * (a + b))
    added += np.trapezoid(error_of_eps(l)**2, l) / middle
  total = np.sum(error_of_eps(0.5 * (cells[1:] + cells[:-1]))) * (cells[1] - cells[0])
  added = (0.25 * added * total - CONTINUOUS**2) / np.log(2)**2
  np.testing.assert_allclose(variance, 0.0481 + added, rtol=0.01)


@pytest.mark.long
@pytest.mark.parametrize('ends', [(14.0, -6.0), (14.0, -4.0), (12.0, -6.0)])
def test_a_process_that_goes_beyond_the_table_of_a_density_has_its_own_bound(x64, ends):
  process = GaussianProcess(schedules.Linear(*ends))
  mass = proposals.tabulated(error_of_eps, HIGH, LOW, cells=60)
  high, low = (np.log1p(STD**2 * np.exp(end)) for end in ends)
  mean, _ = moments(process, proposals.by_mass(process, mass), pieces=2000)
  np.testing.assert_allclose(mean, 0.5 * (high - low) / np.log(2), rtol=1e-4)


def test_times_from_a_later_one_on_give_the_integral_from_there(x64):
  for first in (0.0, 0.3):
    mean, _ = moments(LINEAR, proposals.by_logsnr(LINEAR, first))
    snr = STD**2 * np.exp([HIGH + (LOW - HIGH) * first, LOW])
    np.testing.assert_allclose(mean, 0.5 * np.log2((1 + snr[0]) / (1 + snr[1])), rtol=1e-8)


@pytest.mark.long
def test_times_that_depend_on_the_parameters_leave_the_gradient_of_a_learned_schedule_alone(x64):
  """0 for the interior, on which the integral does not depend, and +-1/2 of the error at the ends.

  Log-SNR is uniform in u, so that the knots of the schedule are at quarters of it.
  """
  x, w = np.polynomial.legendre.leggauss(30)
  u, share = ((np.arange(4)[:, None] + (x + 1) / 2) / 4).ravel(), np.tile(w / 8, 4)
  bent = {'logsnr_max': jnp.array(6.0), 'logsnr_min': jnp.array(-4.0),
          'log_density': jnp.array([0.5, -0.5, 0.3, -1.0, 0.2])}

  @jax.jit
  @jax.grad
  def gradient(params):
    process = GaussianProcess(values.Bound(params, schedules.KnotSchedule(knots=5)))
    t, weight = proposals.by_logsnr(process)(jnp.asarray(u))
    mean = sum(weighted_diffusion(oracles.Gaussian(0.0, STD), process, jnp.full((120, 1), STD * a),
                                  t, None, eps=jnp.full((120, 1), b))[0]
               for a in (1.0, -1.0) for b in (1.0, -1.0)) / 4
    return jnp.dot(share, weight * mean)

  got = gradient(bent)
  np.testing.assert_allclose(got['log_density'], 0.0, atol=1e-8)
  np.testing.assert_allclose(got['logsnr_max'], 0.5 * error_of_eps(6.0), rtol=1e-7)
  np.testing.assert_allclose(got['logsnr_min'], -0.5 * error_of_eps(-4.0), rtol=1e-7)


def test_a_histogram_has_the_density_of_its_bins_and_keeps_the_order_of_u():
  shares = np.array([1.0, 5.0, 0.5, 3.5])
  n = 4000
  u = (jnp.arange(n) + 0.5) / n
  t, weight = jax.jit(lambda: proposals.Histogram(jnp.asarray(shares))(u))()
  counts, _ = np.histogram(t, 4, (0.0, 1.0))
  np.testing.assert_allclose(counts / n, shares / 10, atol=1.5 / n)
  np.testing.assert_allclose(weight, 10 / (4 * shares[np.minimum(t * 4, 3).astype(int)]),
                             rtol=1e-5)
  assert np.all(np.diff(t) > 0) and 0 <= t[0] and t[-1] <= 1
  np.testing.assert_allclose(np.mean(weight * np.square(t)), 1 / 3, rtol=1e-3)


# ----------------------------------------------------- losses seen so far


@pytest.mark.long
def test_a_history_holds_the_latest_losses_of_each_bin():
  """As deques of limited length do, also where a batch brings more to a bin than they hold."""
  draw = np.random.default_rng(0)
  bins, kept = 5, 3
  deques = [collections.deque(maxlen=kept) for _ in range(bins)]
  history = proposals.LossHistory.empty(bins, kept)
  add = jax.jit(proposals.LossHistory.add)
  for _ in range(12):
    t, losses = draw.beta(0.4, 0.8, 9).astype(np.float32), draw.normal(size=9).astype(np.float32)
    history = add(history, t, losses)
    for time, loss in zip(t, losses, strict=True):
      deques[int(time * bins)].append(loss)
    for row, count, expected in zip(history.losses, history.count, deques, strict=True):
      held = row if count >= kept else row[:0] if count == 0 else row[np.flatnonzero(row)]
      np.testing.assert_array_equal(np.sort(held), np.sort(expected))


def test_times_are_uniform_until_all_bins_are_full_and_then_follow_the_root_mean_square():
  size, middle = np.array([1.0, 2.0, 3.0, 10.0], np.float32), (np.arange(4) + 0.5) / 4
  u = np.linspace(0.0, 1.0, 10_001, dtype=np.float32)

  @jax.jit
  def proposed():
    nine = proposals.LossHistory.empty(4, 10).add(np.repeat(middle, 9), np.repeat(size, 9))
    # Of the other sign and 9 times the size: of 9 + 81 over 10 the root is 3, times the size.
    return nine.proposal()(u), nine.add(middle, -9.0 * size).proposal()(u)

  (early, weight), (t, _) = proposed()
  np.testing.assert_allclose(early, u, atol=1e-6)
  np.testing.assert_allclose(weight, 1.0, rtol=1e-5)
  shares = np.diff(np.interp(np.arange(5) / 4, t, u))  # u is the distribution function of t
  np.testing.assert_allclose(shares, 0.999 * size / 16 + 0.001 / 4, atol=2e-5)


B = 8
ONE = jax.devices()[:1]


def run(layout, devices, steps, batch=B):
  """(state, histories before each step) of losses that depend on the time alone: 1 + 4 t."""
  def loss(params, rows, context):
    t, weight = context.aux.proposal()(context.t)
    return params + weight * (1 + 4 * t), {'diffusion': weight * (1 + 4 * t), 't': t}

  update = step_lib.make_step(loss, optax.sgd(0.1), {}, remember=proposals.remember)
  made = layout(update, devices)
  state = step_lib.init(jnp.zeros(()), optax.sgd(0.1), {}, aux=proposals.LossHistory.empty(4, 10))
  state = made.put(state)
  for _ in range(steps):
    state, _ = made.step(state, made.place({'row': np.arange(batch)}), jax.random.key(3))
  return jax.device_get(made.view(state))


@pytest.mark.long
@pytest.mark.parametrize('layout', [parallel.jit_layout,
                                    parallel.pmap_layout])
def test_the_history_of_a_run_is_the_same_on_one_device_and_on_four_and_holds_the_losses_as_such(
    layout):
  """Losses without their weights, in the order of the global batch."""
  one, other = run(parallel.jit_layout, ONE, 12), run(layout, None, 12)
  np.testing.assert_array_equal(other.aux.count, one.aux.count)
  np.testing.assert_allclose(other.aux.losses, one.aux.losses, rtol=1e-6)
  assert one.aux.count.sum() == 12 * B and one.aux.count.min() >= 10
  low = 1 + np.arange(4)
  assert np.all((one.aux.losses >= low[:, None]) & (one.aux.losses <= low[:, None] + 1))
  assert one.aux.count[3] > one.aux.count[0]  # once full, the times follow the losses


# ----------------------------------------------------------- their use


@pytest.mark.long
def test_only_the_diffusion_term_is_weighted_and_the_library_s_draws_stay_unbiased():
  n, high, low = 40_000, 6.0, -2.0
  process = GaussianProcess(schedules.Cosine(high, low), flow)
  key_x, key_u, key = jax.random.split(jax.random.key(0), 3)
  x = STD * jax.random.rademacher(key_x, (n, 1), float)
  u, keys = jax.random.uniform(key_u, (n,)), jax.random.split(key, n)

  @jax.jit
  def both():
    arguments = oracles.Gaussian(0.0, STD), process, x
    more = {'data': x, 'decoder': exact_decoder}
    propose = proposals.by_mass(process, idode.sp_mass)
    return (proposals.importance(vlb.continuous, propose)(*arguments, u, keys, **more),
            vlb.continuous(*arguments, propose(u)[0], keys, **more), propose(u)[1])

  (nats, terms), (_, plain), weight = both()
  np.testing.assert_allclose(nats, sum(terms.values()), rtol=1e-5, atol=1e-5)
  for name, factor in (('reconstruction', 1.0), ('latent', 1.0), ('diffusion', weight)):
    np.testing.assert_allclose(terms[name], factor * plain[name], rtol=1e-5, atol=1e-6)
  mean = 0.5 * np.log((1 + STD**2 * np.exp(high)) / (1 + STD**2 * np.exp(low)))
  draws = np.asarray(terms['diffusion'], np.float64)
  assert abs(draws.mean() - mean) < 4 * draws.std() / n**0.5
  assert draws.std() / n**0.5 < 0.01 * mean


@pytest.mark.long
def test_validation_takes_uniform_times_whatever_is_proposed():
  """So that a history, full or empty, is not seen in it."""
  pixels = Pixels(8)
  model = Model(denoise=oracles.Gaussian(0.0, STD), process=LINEAR, decoder=pixels.log_prob,
                encode=pixels.encode, decode=pixels.decode, cond=lambda batch: None, shape=(2,))
  batch = {'image': jnp.arange(8).reshape(4, 2)}
  context = Context(jnp.linspace(0.1, 0.9, 4), jax.random.split(jax.random.key(0), 4), 0)
  skewed = proposals.Histogram(jnp.array([1.0, 9.0]))
  by = lambda propose, train: compose.apply_objective(
      functools.partial(proposals.bound, propose=propose), model, batch,
      context._replace(train=train))[1]
  validated, plain, trained = jax.jit(lambda: (by(skewed, False), by(proposals.uniform, True),
                                               by(skewed, True)))()
  jax.tree.map(np.testing.assert_array_equal, validated, plain)
  assert np.all(np.abs(trained['diffusion'] - plain['diffusion']) > 1e-3)
  np.testing.assert_array_equal(trained['latent'], plain['latent'])
