"""Splits a batch over all devices of all processes, for passes over a data set or over samples.

Code that only reads parameters needs no more than this: the parameters are on every device, the
rows are split, and the last batch is padded and masked.  The training step has its layouts in
`train.parallel`.
"""
import os
import pickle
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from vdm_jax.errors import InputError
from vdm_jax.typing import PyTree

__all__ = ['broadcast_from_first', 'global_batch_size', 'local_rows', 'on_all', 'over_rows',
           'padded_rows', 'place', 'replicate', 'require_memory', 'shardings']

_T = TypeVar('_T')


def shardings(devices=None) -> tuple[NamedSharding, NamedSharding]:
  """Two shardings over a mesh of `devices` (by default all): replicated, and split by rows."""
  mesh = Mesh(np.array(devices or jax.devices()), ('batch',))
  return NamedSharding(mesh, P()), NamedSharding(mesh, P('batch'))


def global_batch_size(size: int) -> int:
  """The smallest multiple of the number of devices that is at least `size`."""
  n = jax.device_count()
  return -(-size // n) * n


def require_memory(field: str, value: int, needed: float) -> None:
  """Raises InputError if `needed` bytes are more than this machine's memory."""
  there = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
  if needed > there:
    raise InputError(field, value, f'it takes {needed / 2**30:,.0f} GiB at least, and this '
                     f'machine has {there / 2**30:,.0f} GiB', 'ask for less')


def padded_rows(start: int, stop: int, batch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Rows int32 [batch] that cover start .. stop - 1 once, and a mask [batch] of the rows to count.

  If the last batch is not full, it repeats its last row.  So one program serves all batches.
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


def broadcast_from_first(find: Callable[[], _T]) -> _T:
  """The value of `find()` in process 0, on all processes, so that they cannot disagree.

  find: returns a value that can be pickled.  Only process 0 calls it.

  Raises InputError, on all processes, if `find` does.
  """
  if jax.process_count() == 1:
    return find()
  value, error = _broadcast(_tried(find) if jax.process_index() == 0 else None, source=0)
  if error is not None:
    raise error
  return value


def on_all(find: Callable[[], _T]) -> _T:
  """The value of `find()`, which each process calls for itself.

  Raises InputError, on all processes, if `find` does in any of them: the error of the first one.
  """
  if jax.process_count() == 1:
    return find()
  value, error = _tried(find)
  failed = multihost_utils.process_allgather(np.int32(error is not None))
  if failed.any():
    raise _broadcast(error, source=int(np.argmax(failed)))
  return value


def _tried(find: Callable[[], Any]) -> tuple[Any, InputError | None]:
  """The value of `find()`, and the error that it raises instead."""
  try:
    return find(), None
  except InputError as error:
    return None, error


def _broadcast(value: Any, source: int) -> Any:
  """The value of the process with the number `source`, on all processes."""
  here = jax.process_index() == source
  data = np.frombuffer(pickle.dumps(value) if here else b'', np.uint8)
  size = int(multihost_utils.broadcast_one_to_all(np.int32(data.size), here))
  padded = np.zeros(-(-size // 256) * 256, np.uint8)  # few shapes, as each is compiled
  padded[:data.size] = data
  return pickle.loads(multihost_utils.broadcast_one_to_all(padded, here).tobytes())


def replicate(tree: PyTree) -> PyTree:
  """Copies this process's arrays to every device.  Arrays on all devices stay as they are."""
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
  """jit of fn(params, batch), with the batch split over the devices and the result replicated.

  The parameters may be sharded.  They are gathered for the call.
  """
  everywhere, split = shardings()

  def with_gathered(params, batch):
    return fn(jax.lax.with_sharding_constraint(params, everywhere), batch)
  return jax.jit(with_gathered, in_shardings=(None, split), out_shardings=everywhere)
