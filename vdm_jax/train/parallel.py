"""The same update on one device, under pmap, or under jit with the batch and the state sharded.

An update is written once, for a shard of the batch, with the collectives of an `Axis`.
`Axis(None)` makes every collective the identity.  One device and sharded jit both use it, because
their shard is the whole (global) batch.  A layout is the short adapter that places state and batch
and wraps the update.  All layouts agree to rounding, over one process or several.

  jit_layout    the batch is split, the state is on every device; the gradients are summed
  fsdp_layout   the batch is split, and so is the state.  Each device keeps its share of parameters,
                averages and optimiser, gathers the parameters for the loss, and sums its share of
                the gradients (Rajbhandari et al. 2020, ZeRO, section 5)
  pmap_layout   as jit_layout, with one program per device
"""
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.machine.devices import shardings
from vdm_jax.typing import Array, PyTree, Update


def identity(tree: PyTree) -> PyTree:
  return tree


class Axis(NamedTuple):
  """The collectives that an update may use."""
  name: str | None = None
  # Parameters -> as a loss reads them; see `_gather`.
  gather_params: Callable[[PyTree], PyTree] = identity

  def mean(self, tree: PyTree) -> PyTree:
    return tree if self.name is None else jax.lax.pmean(tree, self.name)

  def gather(self, tree: PyTree) -> PyTree:
    """Leaves [n, ...] of this shard -> leaves of the global batch, in its order."""
    if self.name is None:
      return tree
    return jax.lax.all_gather(tree, self.name, tiled=True)

  def example_index(self, n: int) -> Array:
    """Global index of each of this shard's `n` examples: [n]."""
    start = 0 if self.name is None else jax.lax.axis_index(self.name) * n
    return start + jnp.arange(n)

  def size(self) -> int:
    return 1 if self.name is None else jax.lax.axis_size(self.name)


class Layout(NamedTuple):
  """Where the state and the batch are placed, and the update that runs there."""
  init: Callable    # (key -> state), key -> placed state
  put: Callable     # state on one device or the host, or as `target` has it -> placed state
  place: Callable   # this process's rows of a batch, [B, ...] on the host -> placed batch
  step: Callable    # placed state (donated), placed batch, key -> placed state, metrics
  view: Callable    # placed state -> arrays to validate and to save, good until the next step
  target: Callable  # shapes of the state -> what a checkpoint is restored as


class Several(NamedTuple):
  """The placed batches of several steps."""
  rows: PyTree   # leaves [steps, B, ...]
  count: Any     # []  how many of the steps are made; the batches of the others are padding


def several(update: Update) -> Update:
  """An update for `Several` batches -> metrics [steps], which are 0 of steps that are not made.

  One dispatch for many steps keeps an accelerator busy.  The loop is the same program for every
  count, so a state does not depend on how many of its steps were dispatched together.
  """
  def updates(state, batches, key, axis):
    row = lambda i: jax.tree.map(
        lambda u: jax.lax.dynamic_index_in_dim(u, i, keepdims=False), batches.rows)
    steps = len(jax.tree.leaves(batches.rows)[0])
    nothing = jax.tree.map(lambda u: jnp.zeros((steps, *u.shape), u.dtype),
                           jax.eval_shape(lambda: update(state, row(0), key, axis)[1]))

    def make(i, carry):
      state, seen = carry
      state, metrics = update(state, row(i), key, axis)
      return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), seen, metrics)
    return jax.lax.fori_loop(0, batches.count, make, (state, nothing))
  return updates


def _padded(u: np.ndarray, steps: int) -> np.ndarray:
  """[m, ...] -> [steps, ...], with zeros behind the m rows."""
  u = np.asarray(u)
  if len(u) == steps:
    return u
  out = np.zeros((steps, *u.shape[1:]), u.dtype)
  out[:len(u)] = u
  return out


def _count(batches: PyTree) -> np.int32:
  return np.int32(len(jax.tree.leaves(batches)[0]))


def jit_layout(update: Update, devices=None, steps: int = 1) -> Layout:
  """Global view: the state is on every device, and the batch is split over a mesh.

  With steps > 1, one call makes up to so many steps, and `place` takes batches [m, B, ...] with
  m <= steps.
  """
  everywhere, split = shardings(devices)
  return _global_layout(update, steps, split, lambda shapes: jax.tree.map(
      lambda _: everywhere, shapes), Axis())


# Smaller tensors stay whole: norms and biases, of which gathering saves nothing.
SMALLEST_SHARDED = 2**14


def shards(shape: tuple[int, ...], devices: int) -> tuple[int, int]:
  """(dimension, number of parts) of a tensor of the state under `fsdp_layout`.

  The tensor is cut along the dimension whose size has the largest common divisor with the number of
  devices, or the last such dimension.  With 128 channels on 512 devices, each part is on four
  devices.
  """
  if not shape or math.prod(shape) < SMALLEST_SHARDED:
    return 0, 1
  parts, dimension = max((math.gcd(n, devices), i) for i, n in enumerate(shape))
  return dimension, parts


def fsdp_layout(update: Update, devices=None, steps: int = 1) -> Layout:
  """Global view: the batch is split over the devices, and so is each large tensor of the state."""
  devices = list(devices or jax.devices())
  factors = _prime_factors(len(devices))
  names = tuple(f'axis_{i}' for i in range(len(factors)))
  mesh = Mesh(np.array(devices).reshape(factors), names)
  everywhere = NamedSharding(mesh, P())

  def sharding(leaf):
    dimension, parts = shards(leaf.shape, len(devices))
    if parts == 1:
      return everywhere
    own = []  # axes that make up `parts`
    for name, factor in zip(names, factors, strict=True):
      if parts % factor == 0:
        own.append(name)
        parts //= factor
    return NamedSharding(mesh, P(*[None] * dimension, tuple(own)))

  return _global_layout(update, steps, NamedSharding(mesh, P(names)),
                        lambda shapes: jax.tree.map(sharding, shapes),
                        Axis(gather_params=lambda params: _gather(params, sharding, everywhere)))


def _gather(params: PyTree, sharding: Callable, everywhere: NamedSharding) -> PyTree:
  """The sharded parameters, whole on every device; their cotangent is sharded as they are."""
  @jax.custom_vjp
  def gather(params):
    return jax.lax.with_sharding_constraint(params, jax.tree.map(lambda _: everywhere, params))

  def backward(_, cotangent):
    return jax.lax.with_sharding_constraint(cotangent, jax.tree.map(sharding, cotangent)),
  gather.defvjp(lambda params: (gather(params), None), backward)
  return gather(params)


def _prime_factors(n: int) -> list[int]:
  """12 -> [2, 2, 3]; 1 -> [1], since a mesh needs an axis."""
  factors, p = [], 2
  while n > 1:
    while n % p == 0:
      factors.append(p)
      n //= p
    p += 1
  return factors or [1]


def _global_layout(update: Update, steps: int, split: NamedSharding,
                   state_shardings: Callable[[PyTree], PyTree], axis: Axis) -> Layout:
  """jit over the global batch.  state_shardings: shapes of the state -> its shardings."""
  everywhere = NamedSharding(split.mesh, P())
  rows = batches = split
  if steps > 1:
    rows = NamedSharding(split.mesh, P(None, *split.spec))
    batches = Several(rows, everywhere)
  run = update if steps == 1 else several(update)

  def placed_step(state, batch, key):
    state, metrics = run(state, batch, key, axis)
    # Placed as it came, so that the next call finds the program of this one.
    return jax.lax.with_sharding_constraint(state, state_shardings(state)), metrics

  step = jax.jit(placed_step, in_shardings=(None, batches, everywhere),
                 out_shardings=(None, everywhere), donate_argnums=0)
  local = jax.make_array_from_process_local_data

  def place(batch):
    if steps == 1:
      return jax.tree.map(lambda u: local(rows, u), batch)
    return Several(jax.tree.map(lambda u: local(rows, _padded(u, steps)), batch),
                   local(everywhere, _count(batch)))

  def init(make, key):
    # Each device computes its own part, and never has the whole state.
    shardings = state_shardings(jax.eval_shape(make, key))
    return jax.jit(make, in_shardings=everywhere, out_shardings=shardings)(key)

  def put(state):
    def on(u, sharding):
      if isinstance(u, jax.Array) and u.sharding == sharding:
        return u
      u = np.asarray(u)  # which every process has
      return jax.make_array_from_callback(u.shape, sharding, lambda index: u[index])
    return jax.tree.map(on, state, state_shardings(state))

  def target(shapes):
    return jax.tree.map(lambda u, s: jax.ShapeDtypeStruct(u.shape, u.dtype, sharding=s),
                        shapes, state_shardings(shapes))
  return Layout(init, put, place, step, identity, target)


def pmap_layout(update: Update, devices=None, steps: int = 1) -> Layout:
  """One program per device; each device keeps a copy of the state.  steps: see `jit_layout`."""
  devices = list(devices or jax.devices())
  here = [device for device in devices if device.process_index == jax.process_index()]
  n = len(here)
  mapped = NamedSharding(Mesh(np.array(here), ('batch',)), P('batch'))  # of this process alone
  run = update if steps == 1 else several(update)
  axis = 0 if steps == 1 else 1
  batches = axis if steps == 1 else Several(axis, None)
  # The batch keeps its [B, ...] order, split in consecutive rows: [n, B/n, ...] on the mapped axis.
  fn = jax.pmap(lambda state, batch, key: run(state, batch, key, Axis('batch')),
                axis_name='batch', devices=devices, in_axes=(0, batches, None),
                out_axes=(0, None), donate_argnums=0)

  rows = NamedSharding(mapped.mesh, P('batch') if steps == 1 else P(None, 'batch'))

  def place(batch):
    def shard(u):
      u = np.asarray(u) if steps == 1 else _padded(u, steps)
      u = u.reshape(*u.shape[:axis], n, u.shape[axis] // n, *u.shape[axis + 1:])
      return jax.device_put(u, rows)
    placed = jax.tree.map(shard, batch)
    return placed if steps == 1 else Several(placed, _count(batch))

  # From the host, where a broadcast costs nothing: no device ever holds more than its own copy.
  put = lambda state: jax.tree.map(
      lambda u: jax.device_put(np.broadcast_to(u, (n, *u.shape)), mapped), jax.device_get(state))
  # A copy of one device's; [0, ...] keeps a scalar an array.
  view = lambda state: jax.tree.map(
      lambda u: np.array(u.addressable_shards[0].data)[0, ...], state)
  target = lambda shapes: jax.tree.map(lambda u: np.zeros(u.shape, u.dtype), shapes)
  init = lambda make, key: put(jax.jit(make)(key))
  return Layout(init, put, place, fn, view, target)
