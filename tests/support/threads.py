"""Threads that stand for the processes of a run: what they tell each other, and what each sees.

A thread is told that it is process i of several.  Collectives go through a barrier, and compare
their names.  So threads that make other calls than the others fail, where processes would wait for
each other for ever.
"""
import concurrent.futures
import threading

import jax
import numpy as np
from jax.experimental import multihost_utils


def run(monkeypatch, *functions, seconds=60.0):
  """What each function returns, or the exception that it raises, as the process of its number."""
  here, count = threading.local(), len(functions)
  barrier, told = threading.Barrier(count, timeout=seconds), [None] * count
  index = lambda *_: getattr(here, 'index', 0)

  def gathered(value, call='process_allgather'):
    told[index()] = call, np.asarray(value)
    barrier.wait()
    calls, values = zip(*told, strict=True)
    barrier.wait()
    assert len(set(calls)) == 1, f'the processes call {", ".join(calls)}'
    return np.stack(values)

  def broadcast(value, is_source=None):
    is_source = index() == 0 if is_source is None else is_source
    return gathered(value if is_source else np.zeros_like(value), 'broadcast_one_to_all').sum(
        axis=0, dtype=value.dtype)

  def call(i, function):
    here.index = i
    try:
      return function()
    except Exception as error:
      return error

  with monkeypatch.context() as patch:
    patch.setattr(jax, 'process_count', lambda *_: count)
    patch.setattr(jax, 'process_index', index)
    patch.setattr(multihost_utils, 'process_allgather', gathered)
    patch.setattr(multihost_utils, 'broadcast_one_to_all', broadcast)
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
      return list(pool.map(call, range(count), functions))
