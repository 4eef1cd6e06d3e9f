"""Null-text inversion: the untold embedding is tuned so that guided sampling gives back an image.

Mokady et al. (2023), algorithm 1.  An inversion without guidance (w = 0) closes well, but sampling
with guidance leaves its path, since each step extrapolates.  So, from noise on, the embedding of
the empty text is optimised at each step, until the guided step ends on the inversion's path.  Each
step begins with the embedding of the step before.  Weights and texts stay as they are.

    path = invert(told, process, keys, x, up)                     # w = 0
    nulls = optimise(told, untold, w, process, path, times, null)
    z = sample(with_nulls(told, untold, w, process, nulls), keys, path[0], times)
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vdm_jax.errors import InputError, require
from vdm_jax.guidance import classifier_free
from vdm_jax.samplers.first_order import noisier_ddim, transition
from vdm_jax.samplers.sampling import check_grid, encode
from vdm_jax.typing import Array, ArrayLike, Denoiser, Estimate, Level, Process, Sampler

# z [B, ...], level, the untold embedding [B, ...] -> estimate
Untold = Callable[[Array, Level, Array], Estimate]


def invert(told: Denoiser, process: Process, keys: Array, x: Array, times: Array | np.ndarray
           ) -> Array:
  """The path of x up and back: z at `times`, which go down to z = x at the last: [N + 1, B, ...].

  By `noisier_ddim` without guidance: Mokady et al. (2023), "pivotal inversion".
  Raises InputError as `encode` does.
  """
  check_grid(times)
  up = noisier_ddim(told, process)
  return encode(up, keys, x, times[::-1], trace=up.value)[1][::-1]


def _step(told, untold, w, process, z, null, t, s):
  """One step of DDIM under guidance; told: of z at t, which the null does not change."""
  at_t = process(t)
  guided = classifier_free(lambda z, level, cond=None: told,
                           lambda z, level, cond=None: untold(z, level, null), w)
  return transition(guided(z, at_t), at_t, process(s))


def optimise(told: Denoiser, untold: Untold, w: ArrayLike, process: Process, path: Array,
             times: Array | np.ndarray, null: Array, updates: int = 10, rate: float = 1e-2
             ) -> Array:
  """The embedding for each step of the grid: [N, B, ...].

  Mokady et al. (2023), algorithm 1: for each step t -> s, Adam minimises the mean over data
  of (z_s - path_s)^2, where z_s is DDIM's guided step from the z that the steps so far have made.

  The numbers are those of the authors' code.  In step i Adam begins anew, with the rate
  rate (1 - i / 100).  It makes at most `updates` updates, and none after one whose loss was below
  1e-5 + 2e-5 i.  Examples are independent of each other.

  told: the denoiser with the text; untold: (z, level, embedding) -> the estimate without it; w: as
  in `guidance.classifier_free`; path: [N + 1, B, ...] at `times`, by `invert`; null: the embedding
  of the empty text, [B, ...].

  Raises InputError: a grid that does not decrease, or has another length than the path.
  """
  check_grid(times)
  require(len(path) == len(times), 'path', None, f'it has {len(path)} latents for {len(times)} '
          'times', 'give one for each time of the grid, the noisiest first')
  adam = optax.scale_by_adam()
  times = jnp.asarray(times, path.dtype)

  def at_step(carry, xs):
    z, null = carry
    i, t, s, goal = xs
    estimate = told(z, process(t))  # the same for all embeddings

    def losses(null):
      off = jnp.square(_step(estimate, untold, w, process, z, null, t, s) - goal)
      each = jnp.mean(off.reshape(len(off), -1), axis=1)
      return jnp.sum(each), each

    def update(_, state):
      null, memory, active = state
      gradient, each = jax.grad(losses, has_aux=True)(null)
      move, memory = adam.update(gradient, memory)
      wide = active.reshape(active.shape + (1,) * (null.ndim - 1))
      null = jnp.where(wide, null - rate * (1.0 - i / 100.0) * move, null)
      return null, memory, active & (each >= 1e-5 + 2e-5 * i)

    begin = null, adam.init(null), jnp.ones(len(null), bool)
    null, *_ = jax.lax.fori_loop(0, updates, update, begin)
    return (_step(estimate, untold, w, process, z, null, t, s), null), null

  xs = jnp.arange(len(times) - 1, dtype=times.dtype), times[:-1], times[1:], path[1:]
  return jax.lax.scan(at_step, (path[0], null), xs)[1]


def with_nulls(told: Denoiser, untold: Untold, w: ArrayLike, process: Process, nulls: Array
               ) -> Sampler:
  """DDIM under guidance, whose step i has the embedding nulls[i]; nulls: [N, B, ...].

  Raises InputError for a grid of another length than N steps.
  """
  def plan(times):
    if len(nulls) != len(times) - 1:
      raise InputError('nulls', None, f'they are for {len(nulls)} steps, and the grid has '
                       f'{len(times) - 1}', 'sample along the grid of `optimise`')
    return nulls

  def step(keys, z, t, s, null):
    return _step(told(z, process(t)), untold, w, process, z, null, t, s)
  return Sampler(step, plan=plan, evaluations=2)
