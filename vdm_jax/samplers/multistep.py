"""The engine of the linear multistep methods: one evaluation per step, and a memory of estimates.

Every exponential multistep method is the first-order step plus planned multiples of differences
of estimates.  With e the estimate that the method interpolates (x_hat: data prediction; eps_hat:
noise prediction), e_0 the present estimate, and e_1, e_2, ... the earlier estimates,

  z_s = first + sum_j predict_j (e_j - e_0),      first = transition(z_t -> s; x_hat, eps_hat).

A corrector (UniPC) revises z once the estimate at z is known, at no further evaluation.  With the
numbers of the *previous* step, and `e_new` the estimate at its end,

  z = first + sum_j correct_j (e_j - e_0) + arrive (e_new - e_0).

So a method is a function of the grid that gives these numbers, computed once for all steps.  They
are zero where the history is too short, or where logsnr is infinite and a step has to be of first
order.  Because of the differences, z is finite at both end points of every process.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from vdm_jax.samplers.first_order import transition
from vdm_jax.typing import Array, Denoiser, Process, Sampler


class Coefficients(NamedTuple):
  """The plan of a multistep method: for each of N steps, the factors of K - 1 differences."""
  predict: Array  # [N, K - 1] of e_1 - e_0, e_2 - e_0, ... in the step t -> s
  # Of a corrector, or all None:
  correct: Array | None = None   # [N, K - 1] the same, of the step that *ended* at t
  arrive: Array | None = None    # [N] of e_new - e_0 in that step
  corrects: Array | None = None  # [N] bool; whether z_t is revised at all (never at the start)
  # What a revision of z_t adds to `first`: sigma_s / sigma_t of it where e is x_hat, alpha_s /
  # alpha_t where e is eps_hat.
  carry: Array | None = None     # [N]


class _State(NamedTuple):
  z: Array        # [B, ...]
  first: Array    # [B, ...]     the first-order part of z
  history: Array  # [K, B, ...]  the latest estimates e, latest first


def multistep(denoise: Denoiser, process: Process, plan: Callable[[Array], Coefficients], *,
              depth: int, of: str, eta: float = 0.0) -> Sampler:
  """A sampler with the factors that `plan(times)` gives.

  depth: K, the number of estimates in a step, with the present one; of: 'x' or 'eps', the kind of
  e; eta: eta of the first-order step (1 for the SDE variants).  With a corrector eta must be 0.
  """
  def init(z):
    return _State(z, z, jnp.zeros((depth, *z.shape), z.dtype))

  def combine(numbers, history, origin):
    """sum_j numbers_j (history_j - origin); a number of 0 adds nothing, whatever the history is."""
    total = jnp.zeros_like(origin)
    for j in range(depth - 1):
      total += numbers[j] * (history[j] - origin)
    return total

  def step(keys, state, t, s, now):
    at_t, at_s = process(t), process(s)
    estimate = denoise(state.z, at_t)
    e = estimate.x if of == 'x' else estimate.eps
    first = transition(estimate, at_t, at_s, keys, eta)
    if now.correct is not None:
      revised = (state.first + combine(now.correct, state.history[1:], state.history[0])
                 + now.arrive * (e - state.history[0]))
      first += jnp.where(now.corrects, now.carry * (revised - state.z), 0.0)
    z = first + combine(now.predict, state.history, e)
    return _State(z, first, jnp.concatenate([e[None], state.history[:-1]]))

  return Sampler(step, init, lambda state: state.z, plan)


def steps_back(values: Array, j: int) -> Array:
  """values[i - j] at each i (the grid j steps earlier), or values[0] where there is none.

  values: [N].
  """
  return values[jnp.maximum(jnp.arange(values.shape[0]) - j, 0)]


def real_steps(times: Array) -> Array:
  """The number of steps before the padding (repeats of the last time), []."""
  return jnp.sum(times[1:] != times[:-1])
