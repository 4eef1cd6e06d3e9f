"""Decision Diffuser: an agent plans by drawing the states that it will see, and acts to reach them.

Ajay, Du, Gupta, Tenenbaum, Jaakkola and Agrawal (2023).  A diffusion model of windows of states
s_0, ..., s_(H - 1) is told what the plan should be like: its return, and properties of the episode
such as a constraint that holds, or a skill.  A second network has the action between two states:

    s_1, ..., s_(H - 1) ~ p(. | s_0, told),      a_0 = f(s_0, s_1)

Actions are not diffused, because they may jump where states do not.  The network always reads the
true s_0 in the place of the noisy one, in training and in sampling.  Only the first action of a
plan is made, and then the agent plans anew.

Each vector that the network is told is hidden at random in training.  So a plan may be told some of
them, and be led beyond them: classifier-free guidance.  Conditions that were never seen together
are composed by their estimates.  Plans are drawn with less noise than the chain has (a low
temperature), which leads to the likely plans.

There are two kinds of process.  `chain` is the published one: T steps with cosine betas, trained by
L_simple.  `continuous` has a log-SNR that is linear in time, and the target v.

A run makes a `Planner`.
"""
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from flax import linen as nn

from vdm_jax import data, denoisers, guidance, inputs, random, samplers, schedules, targets
from vdm_jax.data import episodes
from vdm_jax.data.episodes import ACTIONS, OBSERVATIONS, RETURNS, Piecewise
from vdm_jax.errors import InputError, require, require_choice
from vdm_jax.nn.blocks.told import Told
from vdm_jax.nn.small.actions import InverseDynamics
from vdm_jax.nn.transformers.temporal import TemporalTransformer
from vdm_jax.nn.unets.temporal import TemporalUNet
from vdm_jax.objectives import ddpm
from vdm_jax.processes import GaussianProcess, sample_prior
from vdm_jax.samplers import first_order, grids
from vdm_jax.samplers.catalogue import Method
from vdm_jax.samplers.sampling import tempered
from vdm_jax.schedules import TableSchedule, cosine_betas
from vdm_jax.systems import compose
from vdm_jax.typing import Array, ArrayLike, Denoiser, Experiment, Process, PyTree, Target, brief

__all__ = ['Dynamics', 'KINDS', 'NETS', 'Normaliser', 'Plan', 'Planner', 'ancestral',
           'default_config', 'experiment', 'losses', 'plan']

KINDS = ('chain', 'continuous')
NETS = ('unet', 'transformer')


class Normaliser(NamedTuple):
  """Maps each number of a vector, linearly between knots: see `data.episodes.fit`.

  bounded: whether values beyond the last knots are cut on the way back; otherwise the lines go on.
  """
  maps: tuple[Piecewise, ...]  # [D]
  bounded: bool = True

  def to(self, u: Array) -> Array:
    """[..., D], in the units of the data -> of the network."""
    return self._each(u, lambda u, one: _interpolate(u, one.knots, one.levels, len(one.knots) > 2))

  def back(self, u: Array) -> Array:
    """[..., D], in the units of the network -> of the data."""
    return self._each(u, lambda u, one: _interpolate(u, one.levels, one.knots, self.bounded))

  def _each(self, u: Array, change: Callable) -> Array:
    return jnp.stack([change(u[..., i], one) for i, one in enumerate(self.maps)], axis=-1)


def _interpolate(u: Array, at: Sequence[float], to: Sequence[float], cut: bool) -> Array:
  x, y = np.asarray(at, np.float32), np.asarray(to, np.float32)
  if len(x) == 2:  # a line, which loses no digits
    u = jnp.clip(u, x[0], x[1]) if cut else u
    return y[0] + (u - x[0]) * ((y[1] - y[0]) / (x[1] - x[0]))
  beyond = None if cut else 'extrapolate'
  return jnp.interp(u, x, y, left=beyond, right=beyond)


# ---------------------------------------------------------------------- plans


class Plan(NamedTuple):
  """Plans in the units of the data."""
  observations: Array  # [B, H, O]
  actions: Array       # [B, H - 1, A]  between two rows each; the first one is made


def plan(denoise: Denoiser, process: Process, known: ArrayLike, keys: Array,
         shape: tuple[int, int], method: Method, temperature: float = 0.5) -> Array:
  """Draws x with its known numbers: [B, H, O], all in the units of the network.

  Args:
    known: [B, R, O], R <= H: the first R rows; NaN where a number is free.
    keys: [B].
    shape: (H, O).
    method: the sampler, which ends at its last time.
    temperature: a factor of the noise that a plan starts from.
  """
  known = jnp.asarray(known)
  rest = ((0, 0), (0, shape[0] - known.shape[1]), (0, 0))
  y = jnp.pad(known, rest, constant_values=jnp.nan)
  mask = ~jnp.isnan(y)
  y = jnp.where(mask, y, 0.0)
  sampler = tempered(method.make(guidance.pinned(denoise, y, mask), process), temperature)
  times = method.times(process)
  z = sample_prior(process, keys, jnp.zeros(y.shape, y.dtype))
  last = process(jnp.asarray(times[-1], jnp.float32))
  return jnp.where(mask, y, samplers.sample(sampler, keys, z, times) / last.alpha)


class Dynamics(NamedTuple):
  """A model of windows of states, and of the actions between them, in the units of the network."""
  denoise: Denoiser            # of z [B, H, O], given a `Told`
  process: Process
  act: Callable[[Array, Array], Array]  # states [..., O], those that follow -> actions [..., A]


class Planner(NamedTuple):
  """A trained agent.  Vectors that it may be told have names: `returns`, and those of the config.
  """
  dynamics: Dynamics
  states: Normaliser
  actions: Normaliser
  told: dict[str, int]         # the width of each vector
  scale: float                 # returns are divided by it
  returns: tuple[float, ...]   # the least and the largest return in training; (): not known
  steps: int                   # of the sampler, if none is chosen
  horizon: int                 # H
  bounded: bool                # whether estimates of x are cut to [-1, 1]
  guidance: float = 0.2        # w, if none is chosen
  temperature: float = 0.5     # if none is chosen

  def plan(self, known: ArrayLike, keys: Array,
           told: Mapping[str, ArrayLike] | Sequence[Mapping[str, ArrayLike]] | None = None, *,
           weights: float | Sequence[float] | None = None, temperature: float | None = None,
           method: Method | None = None) -> Plan:
    """Draws plans, and their actions.

    Args:
      known: [B, R, O], the first R <= H rows of the plan, in the units of the data.  NaN: a number
        that is free.  Usually R = 1: the state.  A goal is a later row.
      keys: [B].
      told: vectors by name, [B, K] or [K] or a number; returns are in the units of the data.  A
        sequence of several dicts composes these conditions.  None: nothing is told.
      weights: w of classifier-free guidance, one, or one for each condition; 0: none.  The paper
        calls 1 + w the guidance.  Default: the model's own.
      temperature: a factor of the noise of the start, and of the steps of the default sampler.
        Default: the model's own.
      method: the sampler.  Default: `ancestral`.

    Raises InputError: a name that is not told; numbers of another shape; too many rows.
    """
    known = jnp.asarray(known, jnp.float32)
    count, size = len(self.states.maps), jnp.shape(known)
    require(len(size) == 3 and size[2] == count and 1 <= size[1] <= self.horizon, 'known', size,
            f'a plan has {self.horizon} rows of {count} numbers', 'give its first rows, [B, R, O]')
    told = [told] if isinstance(told, Mapping) else list(told or ())
    weights = self.guidance if weights is None else weights
    temperature = self.temperature if temperature is None else temperature
    plain = len(told) == 1 and isinstance(weights, (int, float)) and weights == 0
    weights = [weights] * len(told) if isinstance(weights, (int, float)) else list(weights)
    of = lambda one: guidance.conditioned_on(self.dynamics.denoise,
                                             lambda _: self._told(one, len(known)))
    denoise = of(told[0] if plain else {})  # one condition alone needs one estimate
    if told and not plain:
      denoise = guidance.composed(denoise, [of(one) for one in told], [1.0 + w for w in weights])
    if self.bounded:
      denoise = guidance.clip(denoise)
    x = plan(denoise, self.dynamics.process, self.states.to(known), keys, (self.horizon, count),
             method or ancestral(self.steps, temperature), temperature)
    actions = self.actions.back(self.dynamics.act(x[:, :-1], x[:, 1:]))
    given = jnp.pad(known, ((0, 0), (0, self.horizon - size[1]), (0, 0)), constant_values=jnp.nan)
    return Plan(jnp.where(jnp.isnan(given), self.states.back(x), given), actions)

  def _told(self, values: Mapping[str, ArrayLike], count: int) -> Told:
    for name in values:
      require(name in self.told, 'told', name, 'this model is not told so',
              f'choose of {", ".join(self.told) or "nothing"}')
    each = []
    for name, width in self.told.items():
      value = jnp.asarray(values.get(name, 0.0), jnp.float32)
      require(value.ndim == 0 or value.shape in ((width,), (count, width)), name, value.shape,
              f'it has {width} numbers', f'give [{width}], or [B, {width}]')
      value = jnp.broadcast_to(value, (count, width))
      each.append(value / self.scale if name == RETURNS else value)
    kept = jnp.array([float(name in values) for name in self.told])
    return Told(tuple(each), jnp.broadcast_to(kept, (count, len(self.told))))

  def __repr__(self) -> str:
    return brief(self)


def ancestral(steps: int, temperature: float) -> Method:
  """`ancestral` with less noise, on an even grid."""
  return Method('ancestral', functools.partial(first_order.ancestral, temperature=temperature),
                'uniform', lambda _: grids.uniform(steps), stochastic=True)


# ----------------------------------------------------------------- experiment


def default_config(**model) -> ml_collections.ConfigDict:
  """The published sizes and chain.  `config.data.episodes` has the windows."""
  config = compose.default_config(**{
      'kind': 'chain',          # of the process: or continuous
      'net': 'unet',            # or transformer
      'features': 128, 'multipliers': (1, 4, 8), 'kernel': 5, 'groups': 8,  # of the U-Net
      'depth': 4, 'attention_heads': 4,  # of the Transformer, beside its features
      'hidden': 256,            # of the network of actions
      'told': (RETURNS,),       # what the plans are told: returns, and names of episodes.told
      'hidden_rate': 0.25,      # how often each of them is hidden in training
      'goal_rate': 0.0,         # how often the last row is known too in training
      'returns_scale': 400.0,   # by which returns are divided
      'timesteps': 200,         # of the chain
      'logsnr_max': 12.0, 'logsnr_min': -8.0,  # of `continuous`
      'steps': 200, 'guidance': 0.2, 'temperature': 0.5,  # of a plan, if none are chosen
  } | model)
  config.data.episodes.update(horizon=100, normaliser='cdf')
  return config


class _Parts(NamedTuple):
  """All parts of an experiment that have no parameters."""
  net: nn.Module
  act: nn.Module
  process: Process
  target: Target
  read: inputs.Inputs
  chain: int | None  # T; None: continuous time


def losses(denoise: Denoiser, act: Callable[[Array, Array], Array], process: Process,
           x: Array, actions: Array, known: Array, t: Array, keys: Array, cond: PyTree = None, *,
           steps: int | None = None, target: Target = targets.eps, eps: Array | None = None
           ) -> tuple[Array, dict[str, Array]]:
  """Half the mean squared error of y in the unknown rows, and of the actions: [B], and the terms.

  The means are over all numbers of a window, also the known ones, whose error is 0.

  Args:
    x: [B, H, O]; actions: [B, H, A], the last of which is not used; both in the network's units.
    known: bool [B, H], the rows that the network reads without noise.
    steps, target, eps: as in `ddpm.simple`.
  """
  nats, terms = ddpm.simple(guidance.pinned(denoise, x, known[..., None]), process, x, t, keys,
                            cond, steps=steps, target=target, eps=eps)
  size = math.prod(x.shape[1:])
  error = jnp.mean(jnp.square(act(x[:, :-1], x[:, 1:]) - actions[:, :-1]), axis=(1, 2))
  return 0.5 * (nats / size + error), {'eps_error': terms['eps_error'] / size,
                                       'action_error': error}


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """The planner of `config`: its loss is `losses`, and it gives a `Planner`.

  Raises InputError for data that are no episodes, for vectors that the data lack, and for choices
  that do not exist.
  """
  m, windows = config.model, episodes.settings(config.data)
  _check(config, windows)
  spec = data.resolve(config.data)
  horizon, size = spec[OBSERVATIONS].shape
  told = {name: math.prod(spec[name].shape) for name in m.told}
  parts = _parts(config, spec[ACTIONS].shape[-1])
  bounded = windows.normaliser != 'standard'

  @functools.cache
  def normalisers() -> tuple[Normaliser, Normaliser]:
    own = windows
    if not (own.observations and own.actions):
      maps = episodes.found(config.data.name, own, config.data.validation)
      own = own._replace(observations=maps['observations'], actions=maps['actions'])
    return Normaliser(own.observations, bounded), Normaliser(own.actions, bounded)

  def denoiser(params, keys=None):
    net = lambda *args: parts.net.apply({'params': params['net']}, *args, keys=keys)
    return denoisers.denoiser(net, parts.target, parts.read)

  def act(params, state, following):
    return cast(Array, parts.act.apply({'params': params['actions']}, state, following))

  def init(key):
    key_net, key_act = jax.random.split(key)
    state = jnp.zeros((1, size))
    hidden = Told(tuple(jnp.zeros((1, width)) for width in told.values()),
                  jnp.zeros((1, len(told))))
    return {'net': parts.net.init(key_net, jnp.zeros((1, horizon, size)), jnp.zeros(1), hidden
                                  )['params'],
            'actions': parts.act.init(key_act, state, state)['params']}

  def loss(params, batch, context):
    states, actions = normalisers()
    keys, count = context.keys, len(context.keys)
    draw = lambda name: random.uniform(random.stream(keys, name), jnp.zeros(count))
    kept = [draw(f'hidden/{name}') >= m.hidden_rate for name in told]
    values = tuple(batch[name].reshape(count, -1) / (m.returns_scale if name == RETURNS else 1.0)
                   for name in told)
    cond = Told(values, jnp.stack(kept, axis=1).astype(jnp.float32) if told else
                jnp.zeros((count, 0)))
    x, rows = states.to(batch[OBSERVATIONS]), jnp.arange(horizon)
    goal = draw('goal') < m.goal_rate
    known = (rows == 0) | ((rows == horizon - 1) & goal[:, None])
    return losses(denoiser(params), functools.partial(act, params), parts.process,
                  x, actions.to(batch[ACTIONS]), known, context.t, keys, cond, steps=parts.chain,
                  target=parts.target)

  def model(params, keys=None):
    states, actions = normalisers()
    of = Dynamics(denoiser(params, keys), parts.process, functools.partial(act, params))
    return Planner(of, states, actions, told, m.returns_scale, tuple(windows.returns), m.steps,
                   horizon, bounded, m.guidance, m.temperature)

  return compose.assemble(config, init=init, loss=loss, model=model)


def _parts(config: ml_collections.ConfigDict, actions: int) -> _Parts:
  m = config.model
  conditions = len(m.told)
  if m.net == 'unet':
    net = TemporalUNet(m.features, tuple(m.multipliers), m.kernel, m.groups, conditions)
  else:
    net = TemporalTransformer(m.features, m.depth, m.attention_heads, conditions)
  act = InverseDynamics(actions, m.hidden)
  if m.kind == 'continuous':
    process = GaussianProcess(schedules.Linear(m.logsnr_max, m.logsnr_min))
    return _Parts(net, act, process, targets.v, inputs.scaled(m.logsnr_max, m.logsnr_min), None)
  table = TableSchedule.from_betas(cosine_betas(m.timesteps))
  return _Parts(net, act, GaussianProcess(table), targets.eps, inputs.chain(table), m.timesteps)


def _check(config: ml_collections.ConfigDict, windows: episodes.Windows) -> None:
  m = config.model
  require_choice('config.model.kind', m.kind, KINDS)
  require_choice('config.model.net', m.net, NETS)
  if not windows.horizon:
    raise InputError('config.data.episodes.horizon', 0, 'the data of a planner are episodes',
                     'set the rows of a plan')
  for name in m.told:
    require_choice('config.model.told', name, (RETURNS, *windows.told))
  for name in ('hidden_rate', 'goal_rate'):
    compose.require(config, name, 0.0 <= m[name] <= 1.0, 'it is a share', 'give 0 to 1')
  compose.require(config, 'temperature', m.temperature >= 0.0, 'it is below 0', 'give 0.5')
  compose.require(config, 'returns_scale', m.returns_scale > 0.0, 'it must be above 0',
                  'give the size of a return')
  for name, least in (('timesteps', 2), ('steps', 1)):
    compose.require(config, name, m[name] >= least, f'it must be {least} or more', 'give more')
  compose.require(config, 'logsnr_max', math.isfinite(m.logsnr_max) and m.logsnr_max > m.logsnr_min,
                  'log-SNR must fall', 'give a larger one than logsnr_min')
