"""TimeGrad: forecasts of C time series, one row after another, each drawn by a diffusion model.

Rasul, Seward, Schuster and Vollgraf (2021).  A recurrent network reads the past, and its state h_t
is the condition of a diffusion model of the row x_t in R^C:

    h_t = RNN(lagged values, features of row t, h_t-1),      x_t ~ p(x_t | h_t)

Training feeds the true past, and its loss is a mean over the rows of the context and the horizon.
A forecast feeds back the rows that it drew.  So forecasts have any horizon, and S paths are S draws
of the joint distribution of all its rows and series.

Every window is scaled by itself, so that series of any units and levels are alike.  For one long
record the config may give the scales instead.

There are two kinds of p(x_t | h_t).  `chain` is the published one: a chain of T steps, trained by
L_simple.  `flow` is flow matching on straight lines.  The probability flow of a kind gives a
negative log-likelihood for every row, given all rows before it: see `nats_of_rows`.

A run makes a `Forecaster`.  The part of it that forecasts, a `Recurrence`, is apart from networks.
"""
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from vdm_jax import data, denoisers, inputs, processes, random, samplers, schedules, targets
from vdm_jax.data import series
from vdm_jax.decoders import Reals
from vdm_jax.errors import InputError, require, require_choice
from vdm_jax.likelihood import ode
from vdm_jax.nn.small.mlp import MLP
from vdm_jax.nn.small.timegrad import Past, StepDenoiser
from vdm_jax.objectives import ddpm, flow_matching
from vdm_jax.processes import GaussianProcess, sample_prior
from vdm_jax.samplers import catalogue
from vdm_jax.samplers.catalogue import Method
from vdm_jax.schedules import TableSchedule, linear_betas
from vdm_jax.systems import compose
from vdm_jax.systems.flows.flow_matching import told_time
from vdm_jax.typing import Array, Denoiser, Experiment, Model, Process, PyTree, brief

__all__ = ['Forecaster', 'KINDS', 'NETS', 'Recurrence', 'SCALERS', 'default_config', 'experiment',
           'forecast', 'lagged', 'nats_of_rows', 'scaled_by']

KINDS = ('chain', 'flow')
NETS = ('convolutions', 'mlp')
SCALERS = ('mean_abs', 'standard', 'fixed')


# ------------------------------------------------------------------ forecasts


class Recurrence(NamedTuple):
  """A model of a series, row by row.  The leaves of a state are [B, ...]."""
  denoise: Denoiser                     # of one row [B, C], given its condition
  process: Process
  begin: Callable[[PyTree], PyTree]     # a batch of histories -> the state after them
  tell: Callable[[PyTree, Array], tuple[PyTree, Array]]  # state, features of the next row [B, F]
                                        # -> state, the condition of this row
  observe: Callable[[PyTree, Array], tuple[PyTree, Array]]  # state, the row as the denoiser sees it
                                        # -> state, the row in the units of the data [B, C]


def forecast(of: Recurrence, batch: PyTree, keys: Array, shape: tuple[int, int, int],
             method: Method) -> Array:
  """Paths of the rows that follow histories: [B, S, H, C], in the units of the data.

  Args:
    batch: `features` [B, history + H, F], and what `of.begin` reads.
    keys: [B].  Path s of a window depends on its key and s alone.
    shape: (S paths, H rows, C series).
    method: the sampler of a row, which ends at its last time.
  """
  paths, horizon, count = shape
  times = method.times(of.process)
  last = of.process(jnp.asarray(times[-1], jnp.float32))
  features = batch[series.FEATURES][:, -horizon:]
  # The history is read once, whatever the number of paths.
  state = jax.tree.map(lambda u: jnp.repeat(u, paths, axis=0), of.begin(batch))
  features = jnp.repeat(features, paths, axis=0)
  each = jax.vmap(lambda key: random.per_example(key, jnp.arange(paths)))(keys).reshape(-1)

  def row(state, xs):
    number, told = xs
    state, cond = of.tell(state, told)
    own = jax.vmap(lambda key: jax.random.fold_in(key, number))(each)
    z = sample_prior(of.process, own, jnp.zeros((len(own), count)))
    sampler = method.make(lambda z, level, _=None: of.denoise(z, level, cond), of.process)
    return of.observe(state, samplers.sample(sampler, own, z, times) / last.alpha)

  rows = jnp.arange(horizon), jnp.moveaxis(features, 1, 0)
  _, values = jax.lax.scan(row, state, rows)
  return jnp.moveaxis(values, 0, 1).reshape(-1, paths, horizon, count)


def nats_of_rows(denoise: Denoiser, process: Process, x: Array, cond: Array, keys: Array, *,
                 start: float | None = None, steps: int = 25) -> Array:
  """-log p(x_t | condition of row t) of the probability flow, in nats: [B, H].

  It is `likelihood.ode.estimator` with the exact divergence, for every row by itself.

  Args:
    x: [B, H, C]; cond: [B, H, K]; keys: [B].
    start: the time at which the flow ends, if sigma vanishes at t = 0.  One normal step goes from
      there to the data.
    steps: of the Runge-Kutta method.
  """
  batch, horizon, count = x.shape
  own = jax.vmap(lambda key: random.per_example(key, jnp.arange(horizon)))(keys).reshape(-1)
  same = lambda x: x
  one = Model(denoise=denoise, process=process, decoder=Reals().log_prob, encode=same, decode=same,
              cond=lambda batch: batch['condition'], shape=(count,), field='row')
  estimate = ode.estimator(None if start is None else _undequantised, start=start, steps=steps,
                           probe='exact')
  rows = {'row': x.reshape(-1, count), 'condition': cond.reshape(-1, cond.shape[-1])}
  return estimate(one, rows, own)['nats'].reshape(batch, horizon)


def _undequantised(x: Array, keys: Array) -> tuple[Array, Array]:
  """Real numbers are not dequantised: x itself, and log q = 0."""
  return x, jnp.zeros(len(x))


class Forecaster(NamedTuple):
  """A trained forecaster of `series` columns."""
  recurrence: Recurrence
  row_nats: Callable[..., Array] | None  # (batch of whole windows, keys [B]) -> -log p of each row
                                  # of the horizon, given all rows before it: [B, H], in nats of a
                                  # density of the data in their units; None: the network knows
                                  # whole steps of a chain only, and a flow needs all times
  method: Method                  # the sampler of a row
  series: int                     # C
  history: int                    # rows that are read before the first forecast
  horizon: int                    # rows that it was trained to forecast

  def forecast(self, batch: PyTree, keys: Array, *, paths: int = 100, horizon: int | None = None,
               method: Method | None = None) -> Array:
    """`paths` draws of the rows after histories: [B, S, H, C]; see the function `forecast`.

    batch: `series` [B, history or more, C], of which later rows are not read, and `features`
    [B, history + H, F], if the model reads any.  Raises InputError if the features end before.
    """
    horizon = horizon or self.horizon
    rows, values = self.history + horizon, batch[series.SERIES][:, :self.history]
    told = batch.get(series.FEATURES, jnp.zeros((len(values), rows, 0), jnp.float32))
    require(told.shape[1] >= rows, 'horizon', horizon, f'the features go on for '
            f'{told.shape[1] - self.history} rows after the history', 'forecast fewer rows')
    batch = {series.SERIES: values, series.FEATURES: told[:, :rows]}
    return forecast(self.recurrence, batch, keys, (paths, horizon, self.series),
                    method or self.method)

  def __repr__(self) -> str:
    return brief(self)


# -------------------------------------------------------------------- windows


def lagged(values: Array, lags: tuple[int, ...], rows: int) -> Array:
  """The values of earlier rows, for each of the last `rows` rows: [B, R, C] -> [B, rows, C, lags].
  """
  first = values.shape[1] - rows
  return jnp.stack([values[:, first - lag:first - lag + rows] for lag in lags], axis=-1)


def scaled_by(history: Array, context: int, scaler: str) -> tuple[Array, Array]:
  """The location and the scale of each series of a window: [B, 1, C] both.

  history: [B, R, C]; context: the last rows of it, from which `mean_abs` is taken.

    mean_abs   0, and the mean of |x| over the context, as published
    standard   the mean and the standard deviation over the whole history
    fixed      0 and 1: the config gives the numbers, the same for all windows

  A series that is constant (of `mean_abs`: zero) has the scale 1.  The public code takes another
  window's scale there, so that a forecast depends on the batch.
  """
  if scaler == 'fixed':
    return jnp.zeros_like(history[:, :1]), jnp.ones_like(history[:, :1])
  if scaler == 'mean_abs':
    location = jnp.zeros_like(history[:, :1])
    scale = jnp.mean(jnp.abs(history[:, -context:]), axis=1, keepdims=True)
  else:
    location = jnp.mean(history, axis=1, keepdims=True)
    scale = jnp.std(history, axis=1, keepdims=True)
  # The deviation of a constant is not quite 0 in float32.
  least = 1e-5 * jnp.max(jnp.abs(history), axis=1, keepdims=True)
  return location, jnp.where(scale > least, scale, 1.0)


def _features(batch: PyTree) -> Array:
  """The features of a batch, [B, R, F], where F may be 0."""
  values = batch[series.SERIES]
  return batch.get(series.FEATURES, jnp.zeros((*values.shape[:2], 0), jnp.float32))


# ----------------------------------------------------------------- experiment


def default_config(**model) -> ml_collections.ConfigDict:
  """The published sizes and chain.  `config.data.series` has the windows."""
  config = compose.default_config(**{
      'kind': 'chain',         # of p(x_t | h_t): or flow
      'lags': (1, 24, 168),    # in rows; the rest of the history is the context
      'scaler': 'mean_abs',    # or standard, fixed: see `scaled_by`
      'location': (), 'scale': (),  # of `fixed`: a number for each column; empty: 0 and 1
      'nonnegative': (),       # columns that are cut at 0; they must be in data.series.columns
      'cells': 40, 'layers': 2, 'conditioning': 100, 'embedding': 1,
      'net': 'convolutions',   # or mlp
      'blocks': 8,             # of the denoiser
      'features': 8,           # of each block: channels of convolutions, or numbers of the mlp
      'dropout': 0.0,          # of the mlp
      'timesteps': 100, 'first_beta': 1e-4, 'last_beta': 0.1,  # of the chain
      'logsnr_max': 14.0, 'logsnr_min': -14.0,                 # of the flow
  } | model)
  config.data.series.history = 192
  return config


class _Parts(NamedTuple):
  """All parts of an experiment that have no parameters."""
  past: nn.Module
  net: nn.Module
  process: Process
  target: Any
  read: inputs.Inputs
  method: Method
  start: float | None  # of the likelihood, see `nats_of_rows`
  whole_steps: bool    # whether the network knows whole steps of the chain only


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """The forecaster of `config`.  Its loss is a mean over rows and series; it gives a `Forecaster`.

  `chain`: |eps - eps_hat|^2.  `flow`: |u - u_hat|^2, with the term `eps_error` beside it.

  Raises InputError for data that are no series, for lags that are not shorter than the history, for
  columns that are not named, and for choices that do not exist.
  """
  m, windows = config.model, series.settings(config.data)
  _check(config, windows)
  spec = data.resolve(config.data)
  rows, count = spec[series.SERIES].shape
  most = max(m.lags)
  context = windows.history - most
  parts = _parts(config)
  for name in ('location', 'scale'):
    compose.require(config, name, len(m[name]) in (0, count), f'there are {count} columns',
                    'give one number for each, or none')
    compose.require(config, name, not m[name] or m.scaler == 'fixed', f'{m.scaler} takes it from '
                    'each window', 'leave it empty, or set config.model.scaler=fixed')
  compose.require(config, 'scale', all(u > 0.0 for u in m.scale), 'a scale is above 0',
                  'give such numbers')
  cut = np.array([name in m.nonnegative for name in windows.columns] or [False] * count)

  def scaled(batch):
    """The values of a window as the network sees them, their location and their scale."""
    values = batch[series.SERIES]
    location, scale = scaled_by(values[:, :windows.history], context, m.scaler)
    location = location + np.array(m.location or 0.0, np.float32)
    scale = scale * np.array(m.scale or 1.0, np.float32)
    return (values - location) / scale, location, scale

  def conditions(params, values, features):
    """The conditions of all rows after the first `most`, [B, rows, K], and the state at the end."""
    length = values.shape[1] - most
    seen = lagged(values, tuple(m.lags), length)
    return parts.past.apply({'params': params['past']}, seen, features[:, most:most + length])

  def denoiser(params, keys=None):
    net = lambda *args: parts.net.apply({'params': params['net']}, *args,
                                        **({} if keys is None else {'keys': keys}))
    return denoisers.denoiser(net, parts.target, parts.read)

  def begin(params, batch):
    values, location, scale = scaled(batch)
    _, carry = conditions(params, values, _features(batch))
    return {'carry': carry, 'tail': values[:, -most:], 'location': location, 'scale': scale}

  def tell(params, state, features):
    seen = jnp.stack([state['tail'][:, -lag] for lag in m.lags], axis=-1)
    cond, carry = parts.past.apply({'params': params['past']}, seen[:, None], features[:, None],
                                   state['carry'])
    return {**state, 'carry': carry}, cond[:, 0]

  def observe(state, x):
    location, scale = state['location'][:, 0], state['scale'][:, 0]
    value = location + scale * x
    value = jnp.where(cut, jnp.maximum(value, 0.0), value)
    x = (value - location) / scale  # what is fed back is what was forecast
    return {**state, 'tail': jnp.concatenate([state['tail'][:, 1:], x[:, None]], axis=1)}, value

  def init(key):
    key_past, key_net = jax.random.split(key)
    batch = {name: jnp.asarray(value) for name, value in spec.zeros(1).items()}
    seen = lagged(batch[series.SERIES], tuple(m.lags), rows - most)
    (cond, _), past = parts.past.init_with_output(key_past, seen, _features(batch)[:, most:])
    net = parts.net.init(key_net, jnp.zeros((1, count)), jnp.zeros(1), cond[:, 0])
    return {'past': past['params'], 'net': net['params']}

  def loss(params, batch, context):
    values, _, _ = scaled(batch)
    cond, _ = conditions(params, values, _features(batch))
    length = rows - most
    number = jnp.arange(length)
    # The times of a window's rows are spread evenly, and each is uniform.
    t = random.stratified(context.t[:, None], number, length)
    keys = jax.vmap(lambda key: random.per_example(key, number))(
        random.stream(context.keys, 'rows')).reshape(-1)
    flat = lambda u: u.reshape(-1, *u.shape[2:])
    dropout = random.stream(keys, 'dropout') if context.train else None
    args = denoiser(params, dropout), parts.process, flat(values[:, most:]), flat(t), keys
    if m.kind == 'chain':
      nats, terms = ddpm.simple(*args, flat(cond), steps=m.timesteps)
    else:
      nats, terms = flow_matching.objective(*args, flat(cond))
    each = lambda u: jnp.mean(u.reshape(-1, length), axis=1) / count
    return each(nats), jax.tree.map(each, terms)

  def row_nats(params, batch, keys):
    values, _, scale = scaled(batch)
    cond, _ = conditions(params, values, _features(batch))
    nats = nats_of_rows(denoiser(params), parts.process, values[:, -windows.horizon:],
                        cond[:, -windows.horizon:], keys, start=parts.start)
    return nats + jnp.sum(jnp.log(scale), axis=-1)

  def model(params, keys=None):
    of = Recurrence(denoiser(params), parts.process, functools.partial(begin, params),
                    functools.partial(tell, params), observe)
    nats = functools.partial(row_nats, params)
    return Forecaster(of, None if parts.whole_steps else nats, parts.method, count,
                      windows.history, windows.horizon)

  return compose.assemble(config, init=init, loss=loss, model=model)


def _parts(config: ml_collections.ConfigDict) -> _Parts:
  m = config.model
  past = Past(m.cells, m.layers, m.conditioning, m.embedding)
  if m.net == 'mlp':
    net = MLP(m.features, m.blocks, m.dropout, classes=m.conditioning)
  else:
    net = StepDenoiser(m.blocks, m.features, smooth=m.kind == 'flow')
  if m.kind == 'flow':
    process = GaussianProcess(schedules.Polynomial(1.0, m.logsnr_max, m.logsnr_min),
                              processes.flow)
    read = inputs.lines() if m.net == 'mlp' else inputs.lines(1000.0)
    net = told_time(net) if m.net == 'mlp' else net
    return _Parts(past, net, process, targets.flow, read, catalogue.method('heun', 10), None,
                  False)
  table = TableSchedule.from_betas(linear_betas(m.timesteps, m.first_beta, m.last_beta))
  if m.net == 'mlp':
    net = net.clone(logsnr_max=0.0, logsnr_min=m.timesteps - 1.0)
  return _Parts(past, net, GaussianProcess(table), targets.eps, inputs.chain(table),
                catalogue.method('ancestral', m.timesteps), 1.0 / m.timesteps, m.net != 'mlp')


def _check(config: ml_collections.ConfigDict, windows: series.Windows) -> None:
  m = config.model
  require_choice('config.model.kind', m.kind, KINDS)
  require_choice('config.model.net', m.net, NETS)
  require_choice('config.model.scaler', m.scaler, SCALERS)
  if not windows.history:
    raise InputError('config.data.series.history', 0, 'the data of a forecaster are time series',
                     'set the rows that it reads before a forecast')
  compose.require(config, 'lags', len(m.lags) > 0 and all(lag >= 1 for lag in m.lags),
                  'a lag is a number of rows, 1 or more', 'give one lag or more')
  compose.require(config, 'lags', max(m.lags) < windows.history, 'the longest one must be shorter '
                  f'than the history of {windows.history} rows (config.data.series.history)',
                  'give a longer history')
  for name in m.nonnegative:
    require_choice('config.model.nonnegative', name, windows.columns)
  compose.require(config, 'dropout', m.net == 'mlp' or not m.dropout,
                  'this network has no dropout', 'set it to 0')
  compose.require(config, 'timesteps', m.timesteps >= 2, 'a chain has two steps or more',
                  'give more')
  compose.require(config, 'last_beta', 0.0 < m.first_beta < m.last_beta < 1.0,
                  'betas rise from above 0 to below 1', 'give such ends')
  compose.require(config, 'logsnr_max', math.isfinite(m.logsnr_max) and m.logsnr_max > m.logsnr_min,
                  'log-SNR must fall', 'give a larger one than logsnr_min')
