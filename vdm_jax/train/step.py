"""One optimisation step.

Randomness belongs to the step.  The key of the step is fold_in(key, step), and example i of the
*global* batch has fold_in(key of the step, i + 1).  The times are stratified over the global batch,
t_i = (u + i/B) mod 1 (`random.stratified`).  So the numbers depend neither on the number of devices
nor on how many examples are computed together.  No random state has to be saved.
"""
import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from vdm_jax import random
from vdm_jax.errors import InputError, require
from vdm_jax.train.parallel import Axis
from vdm_jax.typing import Array, Context, Experiment, Loss, PyTree, Scalar, Update


@struct.dataclass
class TrainState:
  """The whole state of a run, apart from its data and its key."""
  step: Array             # []  updates made
  params: PyTree
  ema: dict[str, PyTree]  # by name: several rates may run side by side
  opt: optax.OptState
  aux: PyTree = None      # what a loss may read: a teacher, a history


def first_aux(aux: PyTree, params: PyTree) -> PyTree:
  """`aux`, or its result if it is a function of the first parameters (a teacher)."""
  return aux(params) if callable(aux) else aux


def init(params: PyTree, tx: optax.GradientTransformation, ema=('ema',), aux=None) -> TrainState:
  """The state before the first step; every average starts as the parameters.

  Each average owns its buffers, because the state is donated, and donation fails for leaves that
  share memory.  aux is copied too: an `Experiment` keeps it, or it is a function of params (see
  `first_aux`).
  """
  own = lambda: jax.tree.map(jnp.copy, params)
  return TrainState(jnp.zeros((), jnp.int32), params, {k: own() for k in ema}, tx.init(params),
                    jax.tree.map(jnp.array, first_aux(aux, params)))


def default_average(ema: dict[str, float]) -> str:
  """The average for validation, and for evaluation if no other is named: the slowest one."""
  return max(ema, key=ema.get)


def check_averages(ema: dict[str, float], field: str = 'ema') -> None:
  """Raises InputError for a rate outside of [0, 1): the average would never move, or would grow."""
  for name, rate in ema.items():
    require(0.0 <= rate < 1.0, f'{field}.{name}', rate, 'the rate of an average must be in [0, 1)')


def caution(name: str, rate: float, steps: int) -> str:
  """A warning if an average still holds more than a tenth of the weights at the start, else ''.

  The share of these weights after `steps` steps is rate^steps.
  """
  share = rate**steps
  if steps < 1 or share <= 0.1:
    return ''
  return (f'The average {name!r} of rate {rate:g} still holds {share:.0%} of the weights at the '
          f"start after {steps:,} steps: train longer, name a shorter average, or 'raw'.")


def average(ema: PyTree, params: PyTree, rate: Scalar) -> PyTree:
  """rate * ema + (1 - rate) * params, in a form for which an average of constants is that constant.

  In float32 the weighted sum itself drifts away from parameters that do not move.
  """
  return jax.tree.map(lambda e, p: e + (1.0 - rate) * (p - e), ema, params)


class OwnGradient(NamedTuple):
  """Parameters that follow a gradient of their own, 1/B sum_i c_i d loss_i, not the mean loss's."""
  of: Callable[[tuple[str, ...]], bool]       # the names on a parameter's path -> whether it is one
  # losses [B], terms {name: [B]} -> c [B], a constant.  These B are some of the batch, those of a
  # device or of a microbatch: c_i is a function of example i alone.
  cotangent: Callable[[Array, dict], Array]


def context_of(state: TrainState, key: Array, n: int, axis: Axis) -> Context:
  """The context of a step for the n examples that this shard has of the global batch."""
  i = axis.example_index(n)
  key = jax.random.fold_in(key, state.step)
  t = random.stratified(random.unit(key), i, n * axis.size())
  return Context(t, random.per_example(key, i + 1), state.step, jax.lax.stop_gradient(state.ema),
                 state.aux)


def mean_of_microbatches(f: Callable[..., PyTree], rows: tuple[PyTree, ...], k: int) -> PyTree:
  """The mean of f(*rows), a tree of numbers, over k microbatches, which run one after another."""
  if k == 1:
    return f(*rows)
  zeros = jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), jax.eval_shape(f, *rows))
  total, _ = jax.lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, f(*part)), None),
                          zeros, _microbatches(rows, k))
  return jax.tree.map(lambda u: u / k, total)


def _microbatches(rows: PyTree, k: int) -> PyTree:
  """Leaves [n, ...] -> [k, n/k, ...]: microbatch m has the rows m, m + k, m + 2k, ...

  The rows of a microbatch are not consecutive.  The batch is split over devices in consecutive
  rows, so each microbatch takes its share from every device, and no row moves.
  """
  n = jax.tree.leaves(rows)[0].shape[0]
  if n % k:
    raise ValueError(f'accumulate = {k} does not divide the {n} rows of a shard')
  return jax.tree.map(lambda u: u.reshape(n // k, k, *u.shape[1:]).swapaxes(0, 1), rows)


def make_step(loss: Loss, tx: optax.GradientTransformation, ema: dict[str, float], *,
              own: OwnGradient | None = None,
              remember: Callable[[PyTree, Context, Array, dict], PyTree] | None = None) -> Update:
  """An `Update` (state, batch, key, axis) -> (state, metrics): all that the trainer runs.

  The gradient is the gradient of the mean of `loss` over the global batch.

  Args:
    own: gives some parameters another gradient, at the price of a second vector-Jacobian product.
      c_i = 2 loss_i makes it the gradient of the mean square.
    ema: {name: rate}, see `average`.
    remember: (aux, context, losses, terms) -> aux, with all [B] of the global batch: a history that
      later steps read as context.aux.

  The update takes the keyword `accumulate`, the number k of microbatches.  They run one after
  another, and their gradients are summed, so a step needs the memory of B/k examples.  Each example
  keeps its time and key of the whole batch, so the step is the same, to rounding.  `loss` and
  `own.cotangent` see one microbatch at a time, and `remember` sees all [B] in their order.  Over
  devices, the gradients are summed once under pmap, and k times under jit.

  The metrics are 'loss' and the loss's own terms, as means over the global batch, and 'grad_norm',
  the global norm before any clipping.

  Raises InputError: a rate outside of [0, 1).
  The update raises ValueError if `own` chooses no parameter, if the losses are not [B], or if
  `accumulate` does not divide the rows of a shard.
  """
  check_averages(ema)

  def step(state: TrainState, batch, key, axis: Axis, accumulate: int = 1):
    n = jax.tree.leaves(batch)[0].shape[0]
    context = context_of(state, key, n, axis)
    t, keys = context.t, context.keys

    def gradient(batch, t, keys):
      """(1/n sum c_i d loss_i over these examples, with n for the shard; the losses; the terms)."""
      part = context._replace(t=t, keys=keys)
      losses, pull_back, terms = jax.vjp(
          lambda params: loss(axis.gather_params(params), batch, part), state.params, has_aux=True)
      if losses.shape != t.shape:
        raise ValueError(f'a loss returns [B] = {t.shape}, not {losses.shape}')
      grads, = pull_back(jnp.full_like(losses, 1.0 / n))
      if own is not None:
        others, = pull_back(own.cotangent(losses, terms).astype(losses.dtype) / n)
        chosen = jax.tree_util.tree_map_with_path(
            lambda path, _: own.of(tuple(entry.key for entry in path)), grads)
        if not any(jax.tree.leaves(chosen)):
          raise ValueError('own: its `of` chooses none of the parameters '
                           f'{jax.tree_util.tree_structure(grads)}')
        grads = jax.tree.map(lambda other, g, its: its if other else g, chosen, grads, others)
      return grads, (losses, terms)

    rows = (batch, t, keys)
    if accumulate == 1:
      grads, (losses, terms) = gradient(*rows)
    else:
      def add(total, rows):
        grads, out = gradient(*rows)
        return jax.tree.map(jnp.add, total, grads), out
      zeros = jax.tree.map(jnp.zeros_like, state.params)
      grads, out = jax.lax.scan(add, zeros, _microbatches(rows, accumulate))
      losses, terms = jax.tree.map(lambda u: u.swapaxes(0, 1).reshape(n, *u.shape[2:]), out)
    means = jax.tree.map(jnp.mean, (losses, terms))
    (value, metrics), grads = axis.mean((means, grads))
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    averaged = {name: average(state.ema[name], params, rate) for name, rate in ema.items()}
    aux = state.aux
    if remember is not None:
      everything = context._replace(t=axis.gather(t), keys=axis.gather(keys))
      aux = remember(aux, everything, *axis.gather((losses, terms)))
    return (state.replace(step=state.step + 1, params=params, ema=averaged, opt=opt, aux=aux),
            {'loss': value, **metrics, 'grad_norm': optax.tree.norm(grads)})

  return step


def update_of(experiment: Experiment, accumulate: int = 1) -> Update:
  """The step of an experiment: its own `update`, or the step made of its loss, tx and ema.

  Raises InputError: microbatches, if the experiment's own update takes no `accumulate`.
  """
  update = experiment.update or make_step(experiment.loss, experiment.tx, experiment.ema)
  if accumulate == 1:
    return update
  if 'accumulate' not in inspect.signature(update).parameters:
    raise InputError('config.train.accumulate', accumulate,
                     'this config makes its own steps, which have no microbatches', 'leave it at 1')
  return functools.partial(update, accumulate=accumulate)


# ----------------------------------------------------------------- players


class Player(NamedTuple):
  """A player moves some of the parameters, by its own loss and its own optimiser."""
  loss: Loss               # of all parameters
  tx: optax.GradientTransformation
  moves: tuple[str, ...]   # the names in `params` of those that it moves


def _moved_by(name: str, player: Player, params: PyTree) -> PyTree:
  if missing := [part for part in player.moves if part not in params]:
    raise InputError('players', name, f'it moves {", ".join(missing)}, which are no parameters',
                     f'choose among {", ".join(sorted(params))}')
  return {part: params[part] for part in player.moves}


def optimisers(players: Mapping[str, Player]) -> optax.GradientTransformation:
  """The `tx` of an experiment whose update is made by `players`: one state for each player.

  Its init raises InputError: a player moves parameters that do not exist.
  """
  def init(params):
    return {name: player.tx.init(_moved_by(name, player, params))
            for name, player in players.items()}

  def update(updates, state, params=None):
    raise TypeError('several players have no gradient in common: use the update of `players`')
  return optax.GradientTransformation(init, update)


def players(players: Mapping[str, Player], ema: dict[str, float]) -> Update:
  """The `Update` in which the players make their steps in turn, each after the moves before it.

  The players share the batch, its times and its keys.  Draws that must differ need names of their
  own.  All moves count as one step, and afterwards the averages are updated once.  A player's
  gradient covers only the parameters that it moves, and no other gradient is computed.  The keyword
  `accumulate` has the meaning that `make_step` gives it: each player sums its gradients before it
  moves.  `optimisers` makes the state.

  The metric 'loss' is the loss of the first player, and also the loss of the experiment, for
  validation.  'grad_norm' is the norm of all gradients together.  The metrics of each player are
  NAME_loss, NAME_grad_norm and NAME_TERM.

  Raises InputError: a rate outside of [0, 1).
  """
  check_averages(ema)

  def step(state: TrainState, batch, key, axis: Axis, accumulate: int = 1):
    params, opt, metrics = dict(state.params), {}, {}
    own_opt: Any = state.opt
    for name, player in players.items():
      own = _moved_by(name, player, params)
      rest = {part: u for part, u in params.items() if part not in own}

      def loss(own, batch, context, rest=rest, player=player):
        return player.loss({**axis.gather_params(rest), **own}, batch, context)

      moved, out = make_step(loss, player.tx, {})(
          dataclasses.replace(state, params=own, opt=own_opt[name]), batch, key, axis,
          accumulate=accumulate)
      params |= moved.params
      opt[name] = moved.opt
      metrics |= {f'{name}_{term}': u for term, u in out.items()}
    norms = jnp.stack([metrics[f'{name}_grad_norm'] for name in players])
    averaged = {name: average(state.ema[name], params, rate) for name, rate in ema.items()}
    return (dataclasses.replace(state, step=state.step + 1, params=params, ema=averaged, opt=opt),
            {'loss': metrics[f'{next(iter(players))}_loss'], **metrics,
             'grad_norm': jnp.sqrt(jnp.sum(jnp.square(norms)))})

  return step
