"""Drawing images from a trained model.

Image i of a seed depends on (seed, i) alone, however many are drawn; on the size of the batches
through rounding only.
"""
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import devices, random
from vdm_jax.processes import sample_prior
from vdm_jax.samplers.sampling import sample
from vdm_jax.typing import Denoiser, Model, Process, PyTree, Sampler


def draw(model: Callable[[PyTree], Model], params: PyTree,
         sampler: Callable[[Denoiser, Process], Sampler], *, steps: int, start: int, stop: int,
         seed: int, batch_size: int, cond: Callable[[np.ndarray], PyTree]
         ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """(numbers [n], data int32 [n, ...]) of images start .. stop - 1, a batch at a time.

  steps: N, uniform in t from 1 to 0.  cond: numbers of images [n] -> the batch that `model.cond`
  reads, e.g. {'label': ...}.  The datum is the most probable one given z_0.

  Batches begin at multiples of batch_size and are whole even where fewer are asked for: a program
  of another size may round otherwise, and a chain of many steps makes a digit's rounding visible.
  """
  batch = _program(model, sampler, steps)
  given = devices.replicate((params, jax.random.key(seed)))
  size = devices.whole_batch(batch_size)
  aligned = start - start % size if start < stop else stop
  for rows, mask in devices.padded_rows(aligned, stop, size):
    local = devices.mine(rows)
    out = jax.device_get(batch(given, devices.place((local, cond(local)))))
    wanted = mask & (rows >= start)
    yield rows[wanted], out[wanted]


@functools.lru_cache(maxsize=8)  # the pictures of a training are drawn by one program
def _program(model, sampler, steps: int):
  times = jnp.linspace(1.0, 0.0, steps + 1)

  def batch(given, xs):
    (params, key), (numbers, told) = given, xs
    m = model(params)
    keys = random.per_example(key, numbers)
    conditioned = m.cond(told)
    denoise = lambda z, level, _=None: m.denoise(z, level, conditioned)
    z = sample_prior(m.process, keys, jnp.zeros((len(numbers), *m.shape)))
    z = sample(sampler(denoise, m.process), random.stream(keys, 'sampler'), z, times)
    return m.decode(z / m.process(jnp.zeros(())).alpha)

  return devices.over_rows(batch)
