"""The speed of the codec, and the share of its time that the network takes.

The images are random, as in the other measurements.  The network runs on the device, and the coder
runs on one core of the host, in turn.
"""
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from vdm_jax import codec as codec_lib
from vdm_jax.benchmark import report, speed, timing
from vdm_jax.benchmark.timing import say
from vdm_jax.codec.chain import timed
from vdm_jax.runs import needs

__all__ = ['codec']


def codec(subject: speed.Subject, *, steps: int = 20, repetitions: int | None = None,
          warm_up: int = 1, budget: float = timing.BUDGET) -> dict:
  """Images per second of encoding and decoding, and the shares of the network and of the coder.

  steps: the T of the chain.  The images of one batch go together, each in a lane of its own.

  Raises InputError for a model without a chain of the codec.
  """
  model = needs.require(subject.experiment.model(speed.initial_params(subject)), 'compress',
                        subject.file, 'config')
  lanes = subject.config.data.batch_size
  field = subject.experiment.data.spec[model.field]
  chain, clock = timed(codec_lib.chain(model, field.levels or 0, steps, lanes=lanes))
  batch = speed.random_batch(subject, lanes)
  images = np.asarray(batch[model.field])
  conditions = lambda rows: jax.tree.map(lambda u: u[rows], batch)
  encode = lambda: codec_lib.encode(chain, lambda rows: images[rows], lanes, conditions=conditions,
                                    progress=False)
  say('compiling the network, and the first images')
  start = time.perf_counter()
  coded = encode()
  first = time.perf_counter() - start
  decode = lambda: list(codec_lib.decode(chain, coded.lanes, lanes, conditions=conditions,
                                         progress=False))
  of = {}
  for name, work in ('encoding', encode), ('decoding', decode):
    of |= _speed(name, work, clock, lanes, repetitions, warm_up, budget)
  return {**report.about(subject.file, subject.config), 'command': 'codec', 'T': steps,
          'lanes': lanes, **of,
          'compile_seconds': max(first - lanes / of['encoding_images_per_second'], 0.0),
          'peak_memory_bytes': timing.peak_memory()}


def _speed(name: str, work: Callable[[], Any], clock: list[float], images: int,
           repetitions: int | None, warm_up: int, budget: float) -> dict:
  for _ in range(warm_up):
    work()
  clock[0] = 0.0
  taken = timing.measure(work, repetitions=repetitions, warm_up=0, budget=budget, label=name)
  network = clock[0] / sum(taken.seconds)
  return {f'{name}_images_per_second': images / taken.median, f'spread_{name}': taken.spread,
          f'{name}_repetitions': taken.repetitions, f'{name}_network_share': network,
          f'{name}_coder_share': 1.0 - network}
