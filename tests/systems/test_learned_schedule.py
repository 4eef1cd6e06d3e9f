"""The interior of a schedule by least variance: exact variances, gradients, what is learned.

Gaussian data in 3072 dimensions have closed forms under every schedule; those of the published
ones were computed elsewhere, in float64.
"""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from vdm_jax import schedules, values
from vdm_jax.errors import InputError
from vdm_jax.likelihood import time_variances
from vdm_jax.objectives import proposals
from vdm_jax.processes import GaussianProcess
from vdm_jax.studies import gaussian
from vdm_jax.systems.variational import learned_schedule
from vdm_jax.train import optimizer, parallel
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Experiment

MEAN = 8.592713  # bits/dim, of every schedule from 13.3 to -5


@pytest.fixture(scope='module')
def published():
  with jax.enable_x64(True):
    return time_variances.published_schedules(GaussianProcess(schedules.Linear(13.3, -5.0)))


@pytest.mark.parametrize('name,variance,digits', [
    ('log-SNR-linear', 30.16, 0.005), ('alpha-cosine', 2307, 0.5), ('beta-linear', 22346, 0.5)])
def test_variances_of_the_published_schedules_are_the_recorded_ones(published, name, variance,
                                                                    digits):
  with jax.enable_x64(True):
    mean, found = gaussian.estimate(published[name])
  np.testing.assert_allclose(mean, MEAN, atol=1e-6)
  np.testing.assert_allclose(found, variance, atol=digits)


def test_stratified_times_divide_the_variance_of_the_linear_schedule_by_167(published, x64):
  linear = published['log-SNR-linear']
  ratio = gaussian.estimate(linear)[1] / gaussian.estimate(linear, batch=128)[1]
  np.testing.assert_allclose(ratio, 167, atol=0.5)


@pytest.mark.long
@pytest.mark.parametrize('name', ['alpha-cosine', 'beta-linear'])
def test_uniform_log_snr_has_the_variances_of_the_linear_schedule_under_every_other(published, name,
                                                                                    x64):
  process, linear = published[name], published['log-SNR-linear']
  for batch in (1, 16):
    found = gaussian.estimate(process, proposals.by_logsnr(process), batch=batch)
    np.testing.assert_allclose(found, gaussian.estimate(linear, batch=batch), rtol=1e-6)


def test_equal_information_in_equal_times_has_the_least_variance(x64):
  """t is the share of int v dlogsnr, v = sigmoid(logsnr + log std^2), from the end of the data."""
  log_var = np.log(0.25)
  information = lambda logsnr: jnp.logaddexp(0.0, logsnr + log_var)
  high, low = information(13.3), information(-5.0)
  least = lambda t: jnp.log(jnp.expm1(high + (low - high) * t)) - log_var
  for batch in (1, 128):
    mean, variance = gaussian.estimate(GaussianProcess(least), batch=batch)
    np.testing.assert_allclose(mean, MEAN, atol=1e-6)
    np.testing.assert_allclose(variance, 0.0481, atol=5e-5)
    np.testing.assert_allclose(variance, 2.0 / 3072 * mean**2, rtol=1e-6)


# ---------------------------------------------------------------- gradient


def bent_knots():
  return {'schedule': {'logsnr_max': jnp.float32(6.0), 'logsnr_min': jnp.float32(-4.0),
                       'log_density': jnp.array([0.5, -0.5, 0.3, -1.0])}}


@pytest.mark.long
def test_the_gradient_of_the_interior_is_that_of_the_mean_square_and_of_the_ends_of_the_mean():
  """Over many batches, within errors: d E[l^2] by quadrature, d E[l] = +-v / 2 at the ends.

  Whatever is subtracted from l; with its mean the noise is less.
  """
  dim, batch, repeats, module = 16, 16, 600, schedules.KnotSchedule(knots=4)
  params = bent_knots()
  process = lambda log_density: GaussianProcess(values.Bound(
      {**params['schedule'], 'log_density': log_density}, module))
  base = gaussian.experiment(module, 0.0, dim=dim)._replace(tx=optax.sgd(1.0))
  experiment = learned_schedule.by_variance(base)

  @jax.jit
  def gradients(usual, keys):
    def one(key):
      state = step_lib.init(params, experiment.tx, (), usual)
      after = experiment.update(state, jnp.zeros(batch), key, parallel.Axis())[0].params
      return jax.tree.map(jnp.subtract, params, after)['schedule']
    return jax.vmap(one)(keys)

  node, weight = np.polynomial.legendre.leggauss(400)

  def mean_square(log_density):
    g = gaussian.integrand(process(log_density), jnp.asarray((node + 1) / 2, jnp.float32))
    return (1.0 + 2.0 / dim) * jnp.dot(jnp.asarray(weight / 2, jnp.float32), jnp.square(g))

  v = stats.logistic.cdf(np.array([6.0, -4.0]) + np.log(0.25))
  log_density = params['schedule']['log_density']
  expected = {'log_density': jax.jit(jax.grad(mean_square))(log_density),
              'logsnr_max': v[0] / (2 * np.log(2)), 'logsnr_min': -v[1] / (2 * np.log(2))}
  assert np.abs(expected['log_density']).max() > 0.1
  mean, _ = gaussian.estimate(process(log_density), dim=dim)
  noise = []
  for usual in (0.0, mean):
    found = gradients(usual, jax.random.split(jax.random.key(0), repeats))
    for name, value in expected.items():
      each = np.asarray(found[name], np.float64)
      error = each.std(axis=0, ddof=1) / np.sqrt(repeats)
      assert (np.abs(each.mean(axis=0) - value) < 4.0 * error + 1e-4 * np.abs(value)).all(), name
    noise.append(np.asarray(found['log_density']).std(axis=0))
  assert (noise[1] < noise[0]).all()


@pytest.mark.first(1)
@pytest.mark.parametrize('make,devices', [
    (parallel.jit_layout, jax.devices()[:1]), (parallel.jit_layout, None),
    (parallel.pmap_layout, None)], ids=['one', 'jit', 'pmap'])
def test_the_mean_over_past_global_batches_is_subtracted_in_every_layout(make, devices):
  """l_i = a q_i + b r_i, of which b is interior: three steps of SGD in numpy."""
  q, r = np.linspace(-1.0, 2.0, 8), np.linspace(3.0, 0.5, 8)**2

  def loss(params, rows, context):
    ends, interior = params['schedule']['logsnr_max'], params['schedule']['log_density']
    losses = ends * rows['q'] + interior * rows['r']
    return losses + 5.0, {'diffusion': losses}

  base = Experiment(init=None, loss=loss, model=None, data=None, tx=optax.sgd(0.01), ema={})
  experiment = learned_schedule.by_variance(base, memory=0.75)
  layout = make(experiment.update, devices)
  params = {'schedule': {'logsnr_max': jnp.float32(0.7), 'logsnr_min': jnp.float32(0.0),
                         'log_density': jnp.float32(-1.5)}}
  state = layout.put(step_lib.init(params, base.tx, (), experiment.aux))
  a, b, usual = 0.7, -1.5, 0.0
  for _ in range(3):
    state, _ = layout.step(state, layout.place({'q': np.float32(q), 'r': np.float32(r)}),
                           jax.random.key(0))
    losses = a * q + b * r
    a, b = a - 0.01 * q.mean(), b - 0.01 * np.mean(2.0 * (losses - usual) * r)
    usual += 0.25 * (losses.mean() - usual)
  state = jax.device_get(layout.view(state))
  np.testing.assert_allclose([state.params['schedule']['logsnr_max'],
                              state.params['schedule']['log_density'], state.aux], [a, b, usual],
                             rtol=1e-5)
  assert experiment.aux == 0.0  # the state is donated, the experiment is not


@pytest.mark.parametrize('schedule', [schedules.LearnedLinear(), schedules.Monotone(4), None],
                         ids=['linear', 'monotone', 'fixed'])
def test_a_schedule_without_end_points_of_its_own_is_refused(schedule):
  base = gaussian.experiment(schedule, 0.1, dim=2)
  if schedule is None:
    base = base._replace(init=lambda key: {'net': jnp.zeros(1)}, tx=optax.sgd(0.1))
  experiment = learned_schedule.by_variance(base)

  def update(key):
    state = step_lib.init(base.init(key), base.tx, (), experiment.aux)
    return experiment.update(state, jnp.zeros(4), key, parallel.Axis())

  with pytest.raises(InputError, match='choose schedules.KnotSchedule or PinnedMonotone'):
    jax.eval_shape(update, jax.random.key(0))


# ---------------------------------------------------------------- learned


def learned(module, steps, dim):
  process = gaussian.learn(module, steps, dim=dim)
  with jax.enable_x64(True):
    return gaussian.estimate(process, dim=dim)


@pytest.mark.long
def test_knots_learn_the_least_variance_there_is():
  """In 64 dimensions, where that is 2.31 and the straight line has 33.3 bits/dim squared."""
  least = 2.0 / 64 * MEAN**2
  assert gaussian.estimate(GaussianProcess(schedules.Linear()), dim=64)[1] > 14.0 * least
  mean, variance = learned(schedules.KnotSchedule(), 300, 64)
  assert least * (1.0 - 1e-4) < variance < 1.1 * least
  np.testing.assert_allclose(mean, MEAN, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize('module,most', [(schedules.PinnedMonotone(), 1.0),
                                         (schedules.KnotSchedule(), 1.1 * 0.0481)],
                         ids=['pinned', 'knots'])
def test_the_interior_goes_from_nearly_the_line_to_the_optimum_in_3072_dimensions(module, most):
  before = GaussianProcess(values.Bound(module.init(jax.random.key(0), jnp.zeros(1))['params'],
                                           module))
  assert gaussian.estimate(before)[1] > 20.0
  mean, variance = learned(module, 1000, 3072)
  assert 0.048 < variance < most
  np.testing.assert_allclose(mean, MEAN, atol=1e-4)


# -------------------------------------------------------------- optimiser

PARAMS = {'net': {'dense': {'kernel': jnp.full(2, 3.0), 'bias': jnp.full(2, 3.0)}},
          'schedule': {'logsnr_max': jnp.full((), 3.0), 'log_density': jnp.full(4, 3.0)}}


def after_one_step(gradient, **fields):
  config = optimizer.default_config()
  config.update(warmup_steps=0, **fields)
  tx = optimizer.adamw(config)
  updates, _ = tx.update(gradient, tx.init(PARAMS), PARAMS)
  return optax.apply_updates(PARAMS, updates)


@pytest.mark.long
def test_the_schedule_has_its_own_rate_and_no_decay():
  """The first step of Adam is the rate times the sign of the gradient; the kernel decays."""
  ones = jax.tree.map(jnp.ones_like, PARAMS)
  got = after_one_step(ones, learning_rate=0.01, schedule_learning_rate=0.3, weight_decay=0.5)
  np.testing.assert_allclose(got['net']['dense']['bias'], 3.0 - 0.01, rtol=1e-6)
  np.testing.assert_allclose(got['net']['dense']['kernel'], 3.0 * (1 - 0.01 * 0.5) - 0.01,
                             rtol=1e-6)
  for leaf in got['schedule'].values():
    np.testing.assert_allclose(leaf, 3.0 - 0.3, rtol=1e-6)


@pytest.mark.long
def test_the_gradient_of_the_schedule_does_not_clip_that_of_the_network():
  """With b1 = b2 = 0 and a large eps a step is -rate g / eps: the gradient Adam was given."""
  gradient = {'net': {'dense': {'kernel': jnp.array([0.3, 0.4]), 'bias': jnp.zeros(2)}},
              'schedule': {'logsnr_max': jnp.array(0.0), 'log_density': jnp.array([0., 0, 30, 40])}}
  given = {'learning_rate': 1.0, 'b1': 0.0, 'b2': 0.0, 'eps': 1e3, 'weight_decay': 0.0,
           'clip_norm': 1.0}
  seen = lambda **more: jax.tree.map(lambda before, after: 1e3 * (before - after), PARAMS,
                                     after_one_step(gradient, **given, **more))
  apart, together = seen(schedule_learning_rate=1.0), seen()
  np.testing.assert_allclose(apart['net']['dense']['kernel'], [0.3, 0.4], atol=1e-3)
  np.testing.assert_allclose(apart['schedule']['log_density'], [0, 0, 0.6, 0.8], atol=2e-3)
  np.testing.assert_allclose(together['net']['dense']['kernel'], [0.006, 0.008], atol=1e-3)


def test_without_a_rate_of_its_own_the_optimiser_is_that_of_older_configs():
  """Whose state restores their checkpoints: plain AdamW, and no field."""
  config = optimizer.default_config()
  state = optimizer.adamw(config).init(PARAMS)
  plain = optax.adamw(optimizer.learning_rate(config), b1=0.9, b2=0.99, weight_decay=0.01,
                      mask=optimizer.decay_mask).init(PARAMS)
  assert jax.tree.structure(state) == jax.tree.structure(plain)
  with config.unlocked():
    del config.schedule_learning_rate
  assert jax.tree.structure(optimizer.adamw(config).init(PARAMS)) == jax.tree.structure(plain)
