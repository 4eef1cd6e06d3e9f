"""TimeGrad against a recording of its public code, and against series whose forecasts are known."""
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.recordings import replay, shared
from vdm_jax import random, samplers, schedules
from vdm_jax.data.series import FEATURES, SERIES
from vdm_jax.errors import InputError
from vdm_jax.evaluation import forecasts
from vdm_jax.nn.small.timegrad import Past, StepDenoiser
from vdm_jax.objectives import ddpm
from vdm_jax.processes import GaussianProcess, vp
from vdm_jax.samplers import catalogue
from vdm_jax.schedules import TableSchedule, linear_betas
from vdm_jax.systems.applications import timegrad
from vdm_jax.typing import Context, Estimate, Forecasts

# ------------------------------------------------------------- the recording


def _dense(weight, bias):
  return {'kernel': weight.reshape(len(weight), -1).T, 'bias': bias}


def _imported(data):
  """The parameters of the recording under our names: {'past', 'net'}."""
  of = lambda name: data[f'param/{name}']
  dense = lambda name: _dense(of(f'{name}.weight'), of(f'{name}.bias'))
  conv = lambda name: {'kernel': of(f'{name}.weight').transpose(2, 1, 0),
                       'bias': of(f'{name}.bias')}
  past = {'embedding': of('embed.weight'), 'dense': dense('proj_dist_args.proj.0')}
  for i in range(2):
    inward, onward = ([of(f'rnn.{kind}_{way}_l{i}') for kind in ('weight', 'bias')]
                      for way in ('ih', 'hh'))
    cell = {}
    for gate, weight, bias, own, added in zip(
        'rzn', *(np.split(u, 3) for u in (*inward, *onward)), strict=True):
      new = gate == 'n'  # in this gate alone the two biases do not add up
      cell[f'i{gate}'] = _dense(weight, bias if new else bias + added)
      cell[f'h{gate}'] = _dense(own, added) if new else {'kernel': own.T}
    past[f'layer_{i}'] = cell
  theirs = {'step_0': 'diffusion_embedding.projection1',
            'step_1': 'diffusion_embedding.projection2',
            'cond_0': 'cond_upsampler.linear1', 'cond_1': 'cond_upsampler.linear2',
            'dense_in': 'input_projection'}
  net = {name: dense(f'denoise_fn.{their}') for name, their in theirs.items()}
  for i in range(4):
    for name, their in (('step', 'diffusion_projection'), ('cond', 'conditioner_projection'),
                        ('out', 'output_projection')):
      net[f'block_{i}_{name}'] = dense(f'denoise_fn.residual_layers.{i}.{their}')
    net[f'block_{i}_conv'] = conv(f'denoise_fn.residual_layers.{i}.dilated_conv')
  net |= {'conv_skip': conv('denoise_fn.skip_projection'),
          'conv_out': conv('denoise_fn.output_projection')}
  return {'past': past, 'net': net}


def _config(rows=(11, 4), count=5, features=4, **model):
  """A forecaster of windows that no file has to hold."""
  config = timegrad.default_config(lags=(1, 2, 5), timesteps=20, cells=12, conditioning=10,
                                   blocks=4, **model)
  found = [('series', (sum(rows), count), 'float32', None)]
  if features:
    found.append(('features', (sum(rows), features), 'float32', None))
  config.data.found = tuple(found)
  config.data.series.update(history=rows[0], horizon=rows[1])
  return config


def _whole(data):
  both = lambda name: np.concatenate([data[f'in/past_{name}'], data[f'in/future_{name}']], axis=1)
  return {SERIES: jnp.asarray(both('target_cdf')), FEATURES: jnp.asarray(both('time_feat'))}


@pytest.mark.long
def test_the_state_of_the_past_equals_that_of_the_public_code():
  data = shared('timegrad')
  meta, batch, params = json.loads(str(data['meta'])), _whole(data), _imported(data)
  history = batch[SERIES][:, :11]
  location, scale = timegrad.scaled_by(history, meta['context'], 'mean_abs')
  np.testing.assert_array_equal(location, 0.0)
  np.testing.assert_allclose(scale, data['encoder/scale'], rtol=1e-5)
  seen = timegrad.lagged(batch[SERIES], tuple(meta['lags']), 10)
  np.testing.assert_allclose(seen, data['lagged'], rtol=1e-6)
  net = Past(meta['cells'], 2, meta['conditioning'])
  cond, _ = net.apply({'params': params['past']}, seen / scale[..., None], batch[FEATURES][:, 5:])
  np.testing.assert_allclose(cond, data['encoder/condition'], atol=2e-6)


@pytest.mark.long
def test_the_denoiser_and_the_loss_equal_those_of_the_public_code():
  data = shared('timegrad')
  batch, params = _whole(data), _imported(data)
  net = StepDenoiser(layers=4)
  apply = jax.jit(lambda *args: net.apply({'params': params['net']}, *args))
  flat = lambda u: jnp.asarray(u[:, 0])
  out = apply(flat(data['eps/z']), jnp.asarray(data['eps/t'], jnp.float32), flat(data['eps/cond']))
  np.testing.assert_allclose(out, flat(data['eps/out']), atol=3e-6)

  of = timegrad.experiment(_config()).model(params).recurrence
  x = (batch[SERIES][:, 5:] / data['encoder/scale']).reshape(-1, 5)
  cond = jnp.asarray(data['encoder/condition']).reshape(-1, 10)
  t = (jnp.asarray(data['loss/t'], jnp.float32) + 1.0) / 20
  loss, _ = ddpm.simple(of.denoise, of.process, x, t, random.each(random.key(0), 30), cond,
                        eps=flat(data['loss/noise']))
  np.testing.assert_allclose(loss.mean() / 5, data['loss/value'], rtol=1e-5)


@pytest.mark.long
def test_paths_equal_those_of_the_public_code_with_its_draws():
  data = shared('timegrad')
  of = timegrad.experiment(_config()).model(_imported(data)).recurrence
  repeated = {name: jnp.repeat(value, 4, axis=0) for name, value in _whole(data).items()}
  noise = jnp.asarray(data['sample/noise'])[:, :, 0].reshape(4, 21, 12, 5)
  times = jnp.linspace(1.0, 0.0, 21)

  @jax.jit
  def run(batch):
    def row(state, xs):
      features, draws = xs
      state, cond = of.tell(state, features)
      sampler = samplers.ancestral(lambda z, level, _=None: of.denoise(z, level, cond), of.process)
      return of.observe(state, replay(sampler, draws[0], times, draws[1:, None]))
    features = jnp.moveaxis(batch[FEATURES][:, 11:], 1, 0)
    return jax.lax.scan(row, of.begin(batch), (features, noise))[1]

  history = {SERIES: repeated[SERIES][:, :11], FEATURES: repeated[FEATURES]}
  paths = jnp.moveaxis(run(history), 0, 1).reshape(3, 4, 4, 5)
  scale = np.abs(data['sample/paths']).max()
  np.testing.assert_allclose(paths, data['sample/paths'], atol=2e-5 * scale)


# -------------------------------------------------------------- closed forms


A = np.array([[0.6, 0.2], [-0.3, 0.7]])
NOISE = np.array([[1.0, 0.5], [0.5, 2.0]])  # the covariance of a row, given the row before


def _exact(z, level, mean, covariance):
  """The posterior mean of N(mean, covariance) data."""
  count = z.shape[-1]
  one = lambda z, alpha, sigma, mean: mean + alpha * covariance @ jnp.linalg.solve(
      alpha**2 * covariance + sigma**2 * jnp.eye(count), z - alpha * mean)
  spread = lambda u: jnp.broadcast_to(u, z.shape[:1])
  alpha, sigma = spread(level.alpha), spread(level.sigma)
  x = jax.vmap(one)(z, alpha, sigma, mean)
  return Estimate(x, (z - alpha[:, None] * x) / sigma[:, None])


def _autoregression(process, a=A, covariance=NOISE):
  """A VAR(1) whose denoiser is exact: the state is the last row."""
  return timegrad.Recurrence(
      lambda z, level, cond=None: _exact(z, level, cond, jnp.asarray(covariance)), process,
      begin=lambda batch: batch[SERIES][:, -1],
      tell=lambda state, features: (state, state @ jnp.asarray(a, jnp.float32).T),
      observe=lambda state, x: (x, x))


@pytest.mark.long
def test_paths_of_a_var1_have_its_predictive_mean_and_covariance():
  """Within rows, and between rows: a path is a draw of all rows together."""
  start, paths, horizon = np.array([[2.0, -1.0], [0.0, 3.0]]), 4000, 3
  process = GaussianProcess(schedules.Cosine(10.0, -10.0), vp)
  batch = {SERIES: jnp.asarray(start, jnp.float32)[:, None], FEATURES: jnp.zeros((2, 4, 0))}
  drawn = np.asarray(jax.jit(lambda batch: timegrad.forecast(
      _autoregression(process), batch, random.each(random.key(1), 2), (paths, horizon, 2),
      catalogue.method('heun', 30)))(batch), np.float64)
  mean, covariance = [], np.zeros((2 * horizon, 2 * horizon))
  at, own = start, np.zeros((2, 2))
  for h in range(horizon):
    at, own = at @ A.T, A @ own @ A.T + NOISE
    mean.append(at)
    for later in range(h, horizon):
      between = np.linalg.matrix_power(A, later - h) @ own
      covariance[2 * later:2 * later + 2, 2 * h:2 * h + 2] = between
      covariance[2 * h:2 * h + 2, 2 * later:2 * later + 2] = between.T
  mean, spread = np.stack(mean, axis=1), np.diag(covariance)
  for one, expected in zip(drawn.reshape(2, paths, -1), mean.reshape(2, -1), strict=True):
    error = np.sqrt(spread / paths)
    assert (np.abs(one.mean(axis=0) - expected) < 4.0 * error).all()
    error = np.sqrt((np.outer(spread, spread) + covariance**2) / paths)
    assert (np.abs(np.cov(one.T) - covariance) < 4.0 * error).all()


@pytest.mark.long
def test_paths_of_an_ar1_have_the_spread_and_the_crps_of_its_closed_form():
  """phi = 0.8, sigma = 1: std_h / sqrt(pi), times 1 + 1 / S for S paths; targets of numpy."""
  rng, n, count, horizon = np.random.default_rng(1), 1000, 20, 24
  process = GaussianProcess(schedules.Cosine(10.0, -10.0), vp)
  last = rng.standard_normal(n) / 0.6
  at, target = last, []
  for _ in range(horizon):
    at = 0.8 * at + rng.standard_normal(n)
    target.append(at)
  target = np.stack(target, axis=1)
  batch = {SERIES: jnp.asarray(last, jnp.float32)[:, None, None],
           FEATURES: jnp.zeros((n, 1 + horizon, 0))}
  paths = np.asarray(jax.jit(lambda batch: timegrad.forecast(
      _autoregression(process, np.full((1, 1), 0.8), np.eye(1)), batch,
      random.each(random.key(4), n), (count, horizon, 1), catalogue.method('heun', 20)))(batch),
      np.float64)[..., 0]
  crps = forecasts.crps(target, paths)
  for step, std, ideal in ((1, 1.0, 0.56419), (2, 1.280625, 0.722515), (4, 1.520442, 0.857818),
                           (8, 1.643043, 0.926988), (24, 1.666648, 0.940305)):
    deviation = paths[:, :, step - 1] - 0.8**step * last[:, None]
    found = np.sqrt(np.mean(deviation**2))
    assert abs(found / std - 1.0) < 4.0 / math.sqrt(2 * n * count), step
    each = crps[:, step - 1]
    assert abs(each.mean() - ideal * (1.0 + 1.0 / count)) < 4.0 * each.std() / math.sqrt(n), step


@pytest.mark.long
@pytest.mark.parametrize('std,ratio', [(2.0, 0.97801), (1.0, 0.97062), (0.5, 0.95272),
                                       (0.1, 0.83910)])
def test_the_published_chain_narrows_perfect_forecasts_by_a_known_factor(std, ratio):
  """Its 100 steps lose variance even where the network is perfect."""
  table = TableSchedule.from_betas(linear_betas(100, 1e-4, 0.1))
  of = _autoregression(GaussianProcess(table), np.zeros((1, 1)), np.array([[std**2]]))
  batch = {SERIES: jnp.zeros((1, 1, 1)), FEATURES: jnp.zeros((1, 2, 0))}
  drawn = jax.jit(lambda batch: timegrad.forecast(
      of, batch, random.each(random.key(2), 1), (40_000, 1, 1),
      catalogue.method('ancestral', 100)))(batch)
  found = float(jnp.std(drawn)) / std
  assert abs(found - ratio) < 4.0 * ratio / math.sqrt(2 * 40_000)


@pytest.mark.long
@pytest.mark.parametrize('start', [None, 0.01])
def test_the_nats_of_rows_are_those_of_their_normal_distribution(start):
  """Both ends of the flow: sigma_0 > 0, and a last step to data without noise."""
  process = GaussianProcess(schedules.Cosine(14.0, -14.0), vp)
  rng, rows = np.random.default_rng(0), 64
  x = rng.standard_normal((rows + 1, 2)) @ np.linalg.cholesky(NOISE).T
  mean = x[:-1] @ A.T
  deviation = x[1:] - mean
  exact = 0.5 * (np.einsum('ni,ij,nj->n', deviation, np.linalg.inv(NOISE), deviation)
                 + np.linalg.slogdet(2.0 * np.pi * NOISE)[1])
  of = _autoregression(process)
  nats = jax.jit(functools.partial(timegrad.nats_of_rows, of.denoise, of.process, start=start))(
      jnp.asarray(x[1:], jnp.float32)[None], jnp.asarray(mean, jnp.float32)[None],
      keys=random.each(random.key(3), 1))[0]
  # One draw of the noise of the last level each, so single rows differ a little.
  difference = np.asarray(nats) - exact
  assert abs(difference.mean()) < 4.0 * difference.std() / math.sqrt(rows) + 2e-3
  assert np.abs(difference).max() < 0.1


# --------------------------------------------------------------- experiments


def _batch(config, rows=15, count=2, seed=0, n=3):
  rng = np.random.default_rng(seed)
  return {SERIES: jnp.asarray(5.0 + rng.standard_normal((n, rows, count)), jnp.float32)}


@pytest.mark.long
@pytest.mark.parametrize('kind,net', [('chain', 'mlp'), ('flow', 'convolutions'), ('flow', 'mlp')])
def test_a_forecaster_of_each_kind_forecasts_and_scales_with_its_series(kind, net):
  """Units do not matter: ten times the series are forecast by ten times the paths."""
  config = _config(count=2, features=0, kind=kind, net=net)
  built = timegrad.experiment(config)
  params = jax.tree.map(lambda u: u + 0.1, built.init(random.key(0)))
  batch, keys = _batch(config), random.each(random.key(1), 3)
  made = built.model(params)
  assert isinstance(made, Forecasts)
  run = jax.jit(lambda batch: made.forecast(batch, keys, paths=4, horizon=2,
                                            method=catalogue.method('ddim', 5)))
  paths = run(batch)
  assert paths.shape == (3, 4, 2, 2)
  np.testing.assert_allclose(run({SERIES: 10.0 * batch[SERIES]}), 10.0 * paths, rtol=1e-3,
                             atol=0.05)
  shape = jax.eval_shape(made.row_nats, batch, keys).shape
  assert shape == (3, 4)
  context = Context(jnp.array([0.1, 0.4, 0.8]), keys, jnp.zeros(()))
  loss, terms = jax.jit(lambda *args: built.loss(*args, context))(params, batch)
  assert loss.shape == (3,) and set(terms) == {'eps_error'}


@pytest.mark.long
def test_forecasts_depend_on_the_history_alone_and_on_the_key_of_their_window():
  config = _config(count=2, features=0, net='mlp', nonnegative=(), scaler='standard')
  built = timegrad.experiment(config)
  made = built.model(jax.tree.map(lambda u: u + 0.1, built.init(random.key(0))))
  keys, batch = random.each(random.key(1), 3), _batch(config)
  run = jax.jit(lambda batch, keys: made.forecast(batch, keys, paths=2, horizon=2,
                                                  method=catalogue.method('ancestral', 5)))
  future = {SERIES: batch[SERIES].at[:, 11:].add(100.0)}
  np.testing.assert_array_equal(run(future, keys), run(batch, keys))
  turned = {SERIES: batch[SERIES][::-1]}
  np.testing.assert_allclose(run(turned, keys[::-1])[::-1], run(batch, keys), rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_fixed_scales_are_those_of_the_config():
  """Series that were standardised before need none."""
  batch, keys = _batch(_config()), random.each(random.key(1), 3)
  location, scale = np.array([5.0, -2.0]), np.array([2.0, 10.0])
  paths = []
  for own, at, by in ((((5.0, -2.0), (2.0, 10.0)), location, scale), (((), ()), 0.0, 1.0)):
    config = _config(count=2, features=0, net='mlp', scaler='fixed', location=own[0], scale=own[1])
    built = timegrad.experiment(config)
    made = built.model(jax.tree.map(lambda u: u + 0.1, built.init(random.key(0))))
    values = {SERIES: jnp.asarray(at + by * (batch[SERIES] - 5.0), jnp.float32)}
    run = jax.jit(lambda batch, made=made: made.forecast(
        batch, keys, paths=2, horizon=2, method=catalogue.method('ddim', 5)))
    paths.append((np.asarray(run(values)) - at) / by)
  np.testing.assert_allclose(*paths, rtol=1e-3, atol=1e-4)


@pytest.mark.long
def test_columns_that_cannot_be_negative_are_cut_at_zero():
  config = _config(count=2, features=0, net='mlp')
  config.data.series.columns = ('rain', 'temperature')
  config.model.nonnegative = ('rain',)
  built = timegrad.experiment(config)
  made = built.model(built.init(random.key(0)))
  batch = {SERIES: _batch(config)[SERIES] - 5.0}  # around 0
  paths = jax.jit(lambda batch: made.forecast(batch, random.each(random.key(1), 3), paths=50,
                                              method=catalogue.method('ddim', 5)))(batch)
  assert paths[..., 0].min() == 0.0 and (paths[..., 0] == 0.0).any()
  assert paths[..., 1].min() < 0.0


@pytest.mark.parametrize('field,value,problem', [
    ('lags', (1, 11), 'shorter than the history of 11'), ('lags', (), 'give one lag'),
    ('kind', 'chains', 'did you mean chain'), ('nonnegative', ('rain',), 'nonnegative'),
    ('scale', (1.0,) * 5, 'takes it from each window'), ('scale', (1.0,), 'there are 5 columns'),
    ('dropout', 0.5, 'no dropout'), ('last_beta', 1.5, 'betas rise'),
])
def test_settings_that_no_forecaster_has_are_refused(field, value, problem):
  config = _config()
  config.model[field] = value
  with pytest.raises(InputError, match=problem):
    timegrad.experiment(config)


def test_data_without_windows_are_refused():
  config = _config()
  config.data.series.history = 0
  with pytest.raises(InputError, match='set the rows that it reads before a forecast'):
    timegrad.experiment(config)
