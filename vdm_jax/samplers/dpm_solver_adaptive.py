"""DPM-Solver with adaptive step sizes: a separate driver, not a `Sampler`.

A step of order k also has the estimates for a step of order k - 1.  The distance of the two
results, relative to the tolerance, decides whether the step is taken, and the length of the next
step.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from vdm_jax.errors import InputError
from vdm_jax.processes import time_of
from vdm_jax.samplers.dpm_solver import check_options, half_logsnr, stage_by_stage, stages_plan
from vdm_jax.samplers.first_order import transition
from vdm_jax.typing import Array, Denoiser, Estimate, Process


class Adaptive(NamedTuple):
  z: Array            # [B, ...]  at `end`; NaN if it was not reached
  evaluations: Array  # []        calls of the denoiser, each of the whole batch
  accepted: Array     # []        steps
  rejected: Array     # []        steps that were tried again, shorter
  reached: Array      # [] bool   whether `z` is at `end`


class _State(NamedTuple):
  z: Array
  lower: Array     # [B, ...]  the result of lower order of the last step that was taken
  lam: Array       # []        logsnr / 2 of z
  h: Array         # []        the next step, in it
  accepted: Array
  rejected: Array


def dpm_solver_adaptive(denoise: Denoiser, process: Process, z: Array, order: int = 3,
                        of: str = 'eps', solver_type: str = 'dpmsolver', *, atol: float = 0.0078,
                        rtol: float = 0.05, h: float = 0.05, safety: float = 0.9,
                        start: float = 1.0, end: float = 0.0, attempts: int = 1000) -> Adaptive:
  """DPM-Solver-12 (order 2) and -23 (order 3), from `z` [B, ...] at time `start` down to `end`.

  Lu et al. (2022a), appendix on adaptive step sizes, and their code; with of = 'x' it is
  DPM-Solver++.  A step is taken if E <= 1, and the next h is safety h E^(-1/order), where

    E = max over the batch of sqrt(mean over data of ((higher - lower) / delta)^2),
    delta = max(atol, rtol max(|lower|, |lower of the step before|)).

  The whole batch has one step size, as in the authors' code, so an image depends on the other
  images of its batch.  `jax.vmap` over batches of one gives each image its own step size.  Inner
  points are as for `dpm_solver`.  An attempt takes `order` evaluations.  h: the first step, in
  lambda = logsnr / 2.  atol, rtol: in units of z; the defaults are the authors' for images in [-1,
  1].

  Raises InputError if an option is unknown.  Outside `jit`, it also raises if logsnr is infinite at
  an end, or if `end` was not reached; inside `jit`, z is then NaN.
  """
  check_options(order, of, solver_type)
  if order == 1:
    raise InputError('order', 1, 'the step size comes from a comparison with the method of one '
                     'order less', 'give 2 or 3')
  (first, last), finite = half_logsnr(process, jnp.asarray([start, end], z.dtype))
  known = not isinstance(finite, Tracer)
  if known and not finite.all():
    raise InputError('start', start, f'logsnr is infinite there or at end={end}, and steps in '
                     'logsnr need two finite ends', 'begin and end where it is finite')
  fine = stage_by_stage(denoise, process, of)

  def attempt(z, lam, to):
    """(result of the lower order, result), with to > lam."""
    fraction = jnp.arange(order + 1, dtype=z.dtype) / order
    times = time_of(process, 2.0 * (lam + (to - lam) * fraction))
    plan = stages_plan(process, times, jnp.arange(order), jnp.full(order, order), of, solver_type,
                   'taylor')
    fewer = jnp.arange(order - 1)
    below = stages_plan(process, jnp.append(times[:order - 1], times[order]), fewer,
                    jnp.full(order - 1, order - 1), of, solver_type, 'taylor')
    state = fine.init(z)
    for j in range(order):
      numbers = jax.tree.map(lambda a, j=j: a[j], plan)
      state = fine.step(None, state, times[j], times[j + 1], numbers)
      if j == order - 2:
        origin = state.x if of == 'x' else state.eps
        lower = (transition(Estimate(state.x, state.eps), process(times[0]), process(times[order]))
                 + below.latest[j] * (state.e - origin))
    return lower, state.z

  def body(now):
    to = jnp.minimum(now.lam + now.h, last)
    lower, higher = attempt(now.z, now.lam, to)
    delta = jnp.maximum(atol, rtol * jnp.maximum(jnp.abs(lower), jnp.abs(now.lower)))
    square = jnp.square((higher - lower) / delta)
    error = jnp.sqrt(jnp.max(jnp.mean(square.reshape(len(z), -1), axis=1)))
    taken = error <= 1.0
    keep = lambda new, old: jnp.where(taken, new, old)
    return _State(keep(higher, now.z), keep(lower, now.lower), keep(to, now.lam),
                  safety * (to - now.lam) * error**(-1.0 / order),
                  now.accepted + taken, now.rejected + ~taken)

  def unfinished(now):
    # A step that is NaN or nothing will not become better.
    going = (now.h > 0.0) & (now.accepted + now.rejected < attempts)
    return going & (now.lam < last)

  count = jnp.zeros((), int)
  done = jax.lax.while_loop(unfinished, body,
                            _State(z, z, first, jnp.asarray(h, z.dtype), count, count))
  reached = done.lam == last
  if not isinstance(reached, Tracer) and not reached:
    raise InputError(problem='no step has an error within the tolerances at logsnr = '
                     f'{2.0 * float(done.lam):.6g} '
                     f'after {int(done.accepted + done.rejected)} attempts',
                     remedy='loosen atol and rtol, raise attempts, or see whether the network '
                     'gives NaN there')
  return Adaptive(jnp.where(reached, done.z, jnp.nan), order * (done.accepted + done.rejected),
                  done.accepted, done.rejected, reached)
