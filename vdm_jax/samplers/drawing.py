"""Drawing images from a trained model.

Image i of a seed depends on (seed, i) alone, however many images are drawn.  The size of the
batches changes an image by rounding only, but a chain of many steps can amplify rounding to a level
of a pixel.  The size is `batch_size`; for fewer images, it is the smallest power of two that holds
them.
"""
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random
from vdm_jax.errors import InputError, require
from vdm_jax.machine import devices
from vdm_jax.processes import prior_std, sample_prior
from vdm_jax.samplers.sampling import check_finite, check_grid, one_time, sample
from vdm_jax.typing import Array, ArrayLike, Denoiser, Model, PyTree, SamplerMaker, Samples, Scalar


class DrawnBatch(NamedTuple):
  numbers: np.ndarray  # [n]           of the images
  data: np.ndarray     # int32 [n, ...]
  evaluations: int     # of the network, for each of them; 0: not counted


def _batches(start: int, stop: int, batch_size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Numbers of images [size], and which of them are in start .. stop - 1.

  Batches begin at multiples of their size, and the last batch is also whole, since a program of
  another size may round otherwise.  If fewer than batch_size are drawn in all, the batch is the
  next power of two: there are few sizes, and less than twice the necessary work.
  """
  size = devices.global_batch_size(min(batch_size, 1 << max(stop - 1, 0).bit_length()))
  aligned = start - start % size if start < stop else stop
  for rows, mask in devices.padded_rows(aligned, stop, size):
    yield rows, mask & (rows >= start)


def z_at_start(m: Model, keys: Array, t: ArrayLike = 1.0) -> Array:
  """z of the model's prior at the first time: [n, *m.shape].  keys: [n]."""
  like = jnp.zeros((keys.shape[0], *m.shape))
  return sample_prior(m.process, keys, like, t) if m.prior is None else m.prior(keys, like)


def x_at_end(m: Model, denoise: Denoiser, z: Array, t: ArrayLike) -> Array:
  """x of the z [n, ...] at which a sampler ends: z / alpha, or x_hat if the model says so.

  denoise: the model's denoiser, with its condition.
  """
  last = m.process(t)
  return denoise(z, last).x if m.ends_denoised else z / last.alpha


def check_start(m: Model, times: np.ndarray) -> None:
  """Raises InputError if the grid does not begin at the time of the model's first draw.

  N(0, 1) serves at any late time; a model's own prior serves at t = 1 alone.
  """
  require(m.prior is None or float(times[0]) == 1.0, 'grid', float(times[0]),
          "the grid begins at this t, but the model's own prior is for t = 1",
          'choose a grid from 1 to 0')


def check_pairs(m: Model, times: np.ndarray) -> None:
  """Raises InputError if this grid does not begin with the noise of t = 1, where students begin.

  On `vp` it is so for every grid, e.g. the published ones that begin below the last level.
  """
  check_grid(times)
  check_start(m, times)
  if m.prior is None:
    first, last = (float(prior_std(m.process, t)) for t in (times[0], 1.0))
    require(abs(first - last) <= 1e-3 * last, 'grid', float(times[0]), 'the grid begins at this t, '
            f'where noise has standard deviation {first:.4g}, but {last:.4g} at t = 1',
            'choose a grid from 1 to 0')


def in_tiles(m: Model, tile: int, overlap: int | None = None) -> Model:
  """The same model, which decodes large latents in overlapping tiles: `nn.autoencoders.tiling`.

  Then the memory of decoding depends on the tile and not on the image.  A decoder that sees the
  whole image, by normalisation or attention, gives images that differ a little.

  Args:
    tile: the side of a tile, in positions of the latent.  Latents of no larger sides stay whole.
    overlap: the positions that neighbouring tiles share at least.  Default: a quarter of `tile`.

  Raises InputError for a model that decodes no latents, and for sizes that do not fit each other.
  """
  decode, latent = m.decode_tiled, m.latent
  if decode is None:
    raise InputError('tile', tile, 'this model decodes no latents of an autoencoder',
                     'leave it out')
  shared = tile // 4 if overlap is None else overlap
  tiled = m._replace(decode=lambda x: decode(x, tile, shared), latent=None if latent is None else (
      lambda keys: in_tiles(latent(keys), tile, shared)))
  jax.eval_shape(tiled.decode, jnp.zeros((1, *m.shape)))  # refused now
  return tiled


def draw(model: Callable[[PyTree], Model], params: PyTree, sampler: SamplerMaker, *,
         times: np.ndarray, start: int, stop: int, seed: int, batch_size: int,
         cond: Callable[[np.ndarray], PyTree]
         ) -> Iterator[DrawnBatch]:
  """Images start .. stop - 1, a batch at a time.

  times: the grid [N + 1], usually from 1 down to 0.  cond: numbers of images [n] -> the batch that
  `model.cond` reads, for example {'label': ...}.  The returned datum is the nearest to z / alpha at
  the last time; given z_0, it is the most probable datum.

  Raises InputError if the grid does not decrease, or does not begin at the time of the model's own
  prior; or if z is not finite, naming the level.
  """
  check_grid(times)
  check_start(model(params), times)
  batch = _program(model, sampler, frames=())
  shared = devices.replicate((params, random.key(seed), np.asarray(times, jnp.result_type(float))))
  for rows, requested in _batches(start, stop, batch_size):
    local = devices.local_rows(rows)
    xs = devices.place((local, cond(local)))
    out, finite, _, evaluations = jax.device_get(batch(shared, xs))
    check_finite(finite, times, model(params).process)
    yield DrawnBatch(rows[requested], out[requested], int(evaluations))


def draw_own(model: Callable[[PyTree], Samples], params: PyTree, *, start: int, stop: int,
             seed: int, batch_size: int) -> Iterator[DrawnBatch]:
  """Images start .. stop - 1 of a model with its own `sample` (an autoencoder); as `draw`."""
  batch = _own(model)
  shared = devices.replicate((params, random.key(seed)))
  for rows, requested in _batches(start, stop, batch_size):
    out = jax.device_get(batch(shared, devices.place(devices.local_rows(rows))))
    yield DrawnBatch(rows[requested], out[requested], 0)


class DrawnPairs(NamedTuple):
  numbers: np.ndarray  # [n]       of the pairs
  z_1: np.ndarray      # [n, ...]  the noise
  x: np.ndarray        # [n, ...]  what it becomes, in the units of the network
  data: np.ndarray     # [n, ...]  the datum nearest to that
  evaluations: int     # of the network, for each of them


def draw_pairs(model: Callable[[PyTree], Model], params: PyTree, sampler: SamplerMaker, *,
               times: np.ndarray, start: int, stop: int, seed: int, batch_size: int,
               cond: Callable[[np.ndarray], PyTree]) -> Iterator[DrawnPairs]:
  """Noise and sample of the images start .. stop - 1 of `draw`, as floats, a batch at a time.

  Raises InputError: as `check_pairs`; a z that is not finite, naming the level.
  """
  check_pairs(model(params), times)
  batch = _pair_program(model, sampler)
  shared = devices.replicate((params, random.key(seed), np.asarray(times, jnp.result_type(float))))
  for rows, requested in _batches(start, stop, batch_size):
    local = devices.local_rows(rows)
    xs = devices.place((local, cond(local)))
    z_1, x, drawn, finite, evaluations = jax.device_get(batch(shared, xs))
    check_finite(finite, times, model(params).process)
    yield DrawnPairs(rows[requested], z_1[requested], x[requested], drawn[requested],
                     int(evaluations))


@functools.lru_cache(maxsize=1)
def _pair_program(model, sampler):
  def batch(shared, xs):
    (params, key, times), (numbers, conditions) = shared, xs
    m, z_1, x, finite, _, count = _floats(model(params), sampler, random.per_example(key, numbers),
                                          times, conditions, ())
    return z_1, x, m.decode(x), finite, count
  return devices.over_rows(batch)


@functools.lru_cache(maxsize=1)
def _own(model):
  def batch(shared, numbers):
    params, key = shared
    return model(params).sample(random.per_example(key, numbers))
  return devices.over_rows(batch)


def draw_path(model: Callable[[PyTree], Model], params: PyTree, sampler: SamplerMaker, *,
              times: np.ndarray, count: int, seed: int, cond: Callable[[np.ndarray], PyTree],
              frames: Sequence[int]) -> np.ndarray:
  """The first `count` images at several times of sampling: data int32 [len(frames), count, ...].

  frames: indices of the N + 1 times; 0 is the noise.  z is shown in units of
  sqrt(alpha^2 + sigma^2), which is about alpha near the data.  A separate program samples these
  images anew: a program that keeps all z would take too much memory for `draw`.  Raises InputError
  as `draw`.
  """
  check_grid(times)
  check_start(model(params), times)
  rows = np.arange(devices.global_batch_size(count), dtype=np.int32)
  shared = devices.replicate((params, random.key(seed), np.asarray(times, jnp.result_type(float))))
  local = devices.local_rows(rows)
  program = _program(model, sampler, frames=tuple(frames))
  _, finite, path, _ = jax.device_get(program(shared, devices.place((local, cond(local)))))
  check_finite(finite, times, model(params).process)
  return path[:, :count]


@functools.lru_cache(maxsize=8)  # the pictures of a training are drawn by one program
def _program(model, sampler, frames: tuple[int, ...]):
  def batch(shared, xs):
    (params, key, times), (numbers, conditions) = shared, xs
    keys = random.per_example(key, numbers)
    return from_keys(model(params), sampler, keys, times, conditions, frames)

  return devices.over_rows(batch)


def from_keys(m: Model, sampler: SamplerMaker, keys: Array, times: Array, conditions: PyTree,
              frames: tuple[int, ...] = ()) -> tuple[Array, Array, Array | None, Scalar]:
  """Data [n, ...] from these keys [n]; which steps were finite [N]; the path; the evaluations.

  conditions: a batch for `m.cond`.  frames: as for `draw_path`; without frames, the path is None.
  """
  m, _, x, finite, path, count = _floats(m, sampler, keys, times, conditions, frames)
  return m.decode(x), finite, jnp.stack(path) if path else None, count


def _floats(m: Model, sampler: SamplerMaker, keys: Array, times: Array, conditions: PyTree,
            frames: tuple[int, ...]) -> tuple[Model, Array, Array, Array, list[Array], Scalar]:
  """The model that draws, z_1 and x [n, ...], and the rest of `from_keys`; the path is a list."""
  if m.latent is not None:
    m = m.latent(random.stream(keys, 'latent'))
  conditioned = m.cond(conditions)
  denoise = lambda z, level, _=None: m.denoise(z, level, conditioned)
  bound = sampler(denoise, one_time(m.process))

  def look(state):
    z = bound.value(state)
    # An adaptive method counts in its state.
    count = state.evaluations if bound.evaluations is None else 0
    return jnp.all(jnp.isfinite(z)), z if frames else None, count

  z_1 = z_at_start(m, keys, times[0])
  z, (finite, states, counts) = sample(bound, random.stream(keys, 'sampler'), z_1, times,
                                       trace=look)
  x = x_at_end(m, denoise, z, times[-1])
  path = [m.decode(states[i] / jnp.hypot(*m.process(times[i])[2:4])) for i in frames]
  steps = times.shape[0] - 1
  count = (counts[-1] if bound.evaluations is None
           else steps * bound.evaluations + bound.extra_evaluations)
  count += m.ends_denoised
  return m, z_1, x, finite[1:], path, count
