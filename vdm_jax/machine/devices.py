"""A batch over all devices of all processes: the passes over a data set, and over samples.

The training step has its layouts in `train.parallel`; what only reads parameters needs no more
than this: parameters everywhere, rows split, the last batch padded and masked.
"""
import os
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.errors import InputError
from vdm_jax.typing import PyTree

__all__ = ['broadcast_from_first', 'global_batch_size', 'local_rows', 'over_rows', 'padded_rows',
           'place', 'replicate', 'require_memory', 'shardings']


def shardings(devices=None) -> tuple[NamedSharding, NamedSharding]:
  """(everywhere, split by rows) over a one-dimensional mesh of `devices`, all by default."""
  mesh = Mesh(np.array(devices or jax.devices()), ('batch',))
  return NamedSharding(mesh, P()), NamedSharding(mesh, P('batch'))


def global_batch_size(size: int) -> int:
  """The smallest multiple of the number of devices that is at least `size`."""
  n = jax.device_count()
  return -(-size // n) * n


def require_memory(field: str, value: int, needed: float) -> None:
  """Raises InputError where `needed` bytes are more than this machine's memory."""
  there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if needed > there:
    raise InputError(field, value, f'it takes {needed / 2**30:,.0f} GiB at least, and this '
                     f'machine has {there / 2**30:,.0f} GiB', 'ask for less')


def padded_rows(start: int, stop: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Rows int32 [batch] that cover start .. stop - 1 once, and the mask [batch] of those that count.

  The last batch repeats its last row where it is not full, so one program serves all.
  """
  for first in range(start, stop, batch):
    rows = np.arange(first, first + batch, dtype=np.int32)
    yield np.minimum(rows, stop - 1), rows < stop


def local_rows(rows: np.ndarray) -> np.ndarray:
  """This process's consecutive share of the rows of a global batch."""
  n = len(rows) // jax.process_count()
  return rows[jax.process_index() * n:(jax.process_index() + 1) * n]


def place(batch: PyTree) -> PyTree:
  """This process's rows -> global arrays, split over all devices."""
  _, split = shardings()
  return jax.tree.map(lambda u: jax.make_array_from_process_local_data(split, np.asarray(u)), batch)


def broadcast_from_first(find: Callable[[], int]) -> int:
  """The integer `find()` of process 0, on all processes: they might disagree otherwise."""
  if jax.process_count() == 1:
    return find()
  number = find() if jax.process_index() == 0 else 0
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def replicate(tree: PyTree) -> PyTree:
  """Arrays of this process -> everywhere.  Arrays on all devices stay as they are."""
  everywhere, _ = shardings()

  def put(u):
    if isinstance(u, jax.Array) and len(u.sharding.device_set) == jax.device_count():
      return u
    if isinstance(u, jax.Array) and jax.dtypes.issubdtype(u.dtype, jax.dtypes.prng_key):
      # Keys themselves device_put takes to no other process.
      data = jax.device_put(jax.random.key_data(u), everywhere)
      return jax.random.wrap_key_data(data, impl=jax.random.key_impl(u))
    return jax.device_put(u, everywhere)
  return jax.tree.map(put, tree)


def over_rows(fn: Callable) -> Callable:
  """jit of fn(params, batch): the batch's leaves split; the result everywhere.

  The parameters may be sharded: they are gathered for the call.
  """
  everywhere, split = shardings()

  def with_gathered(params, batch):
    return fn(jax.lax.with_sharding_constraint(params, everywhere), batch)
  return jax.jit(with_gathered, in_shardings=(None, split), out_shardings=everywhere)
