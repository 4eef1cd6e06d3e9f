"""DPM-Solver and DPM-Solver++: exponential integrators in lambda = logsnr / 2.

Let h be the change of lambda over a step t -> s, and e the estimate that is interpolated.  On every
curve, the probability flow is solved by

  z_s = alpha_s x_hat + sigma_s eps_hat + w (phi_2(H) h e' + phi_3(H) h^2 e'' + ...),

    e = eps_hat, H = h,   w = -sigma_s H     DPM-Solver, noise prediction   (Lu et al. 2022a)
    e = x_hat,   H = -h,  w = -alpha_s H     DPM-Solver++, data prediction  (Lu et al. 2022b)
    e = x_hat,   H = -2h, w = -alpha_s H     SDE-DPM-Solver++: the reverse SDE, with noise

where phi_k(H) = sum_j H^j / (j + k)! and ' is d / d lambda.  Singlestep methods take the
derivatives from estimates at inner points of the step; multistep methods take them from the points
before the step.  solver_type 'dpmsolver' of the public code (diffusers: 'midpoint') replaces phi_2
by phi_1 / 2, which is equal in the limit.  solver_type 'taylor' ('heun') keeps phi_2.

A step that begins at alpha = 0 or ends at sigma = 0 has no h, so it is the first-order step of
`ddim`.
"""
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.processes import time_of
from vdm_jax.samplers.first_order import transition
from vdm_jax.samplers.multistep import Coefficients, multistep, real_steps, steps_back
from vdm_jax.typing import Array, Denoiser, Estimate, Process, Sampler


def dpm_solver(denoise: Denoiser, process: Process, order: int = 3, of: str = 'eps',
               solver_type: str = 'dpmsolver') -> Sampler:
  """DPM-Solver-1, -2, -3 (of = 'eps') and DPM-Solver++ (2S), (3S) (of = 'x'): singlestep.

  Every step of the grid has this order, and takes `order` evaluations.  Its inner points are at
  lambda_t + j h / order, found on the process.  Lu et al. (2022a), algorithms 1 and 2; Lu et al.
  (2022b).  Order 1 is `ddim`.  A step with infinite logsnr at an end is of first order, and
  evaluates the network only at its start, `order` times.

  solver_type: 'dpmsolver' or 'taylor'.
  Raises InputError if an option is unknown.
  """
  check_options(order, of, solver_type)
  fine = stage_by_stage(denoise, process, of)

  def plan(times):
    lam, finite = half_logsnr(process, times)
    regular = (finite[:-1] & finite[1:])[:, None]
    position = jnp.where(regular, jnp.arange(order), 0)
    inner = lam[:-1, None] + (lam[1:] - lam[:-1])[:, None] * position / order
    stages = jnp.where(position > 0, time_of(process, 2.0 * inner), times[:-1, None])
    numbers = stages_plan(process, jnp.append(stages.ravel(), times[-1]), position.ravel(),
                      jnp.full(stages.size, order), of, solver_type, 'taylor')
    split = jax.tree.map(lambda a: a.reshape(-1, order), numbers)
    return jnp.concatenate([stages, times[1:, None]], axis=1), split

  def step(keys, state, t, s, now):
    del t, s
    stages, numbers = now
    for j in range(order):
      at_j = jax.tree.map(lambda a, j=j: a[j], numbers)
      state = fine.step(keys, state, stages[j], stages[j + 1], at_j)
    return state

  return fine._replace(step=step, plan=plan, evaluations=order)


def dpm_solver_fast(denoise: Denoiser, process: Process, order: int = 3, of: str = 'eps',
                    solver_type: str = 'dpmsolver', lower_order_final: bool = True,
                    inner: str = 'taylor') -> Sampler:
  """DPM-Solver-fast: `dpm_solver` for any number of evaluations, one for each step of the grid.

  The grid has all times at which the network is called.  Its steps form groups of `order`, and each
  group is one step of that order: it begins at the first time of the group, and the other times are
  its inner points.  The remaining times form a step of lower order.  If no times remain,
  `lower_order_final` splits the last group into one step of order - 1 and one of order 1.  For
  order 3 this is the `fast` of Lu et al. (2022a).  For order 2 their code does not split (False),
  but diffusers does (True).  `fast_times` is their grid, even in lambda; any other grid works too.
  A step with infinite logsnr at an end is a group of its own.

  If a step of order 1 ends the grid, the error falls with order 2 at most as the grid is made
  finer.  `dpm_solver` has the full order.

  inner: solver_type of the second inner point of a step of order 3.  It is 'taylor' in the papers;
  in diffusers it is the solver_type of the other points.
  Raises InputError if an option is unknown, or if there are fewer steps than `order`.
  """
  check_options(order, of, solver_type)
  check_options(order, of, inner)

  def plan(times):
    _check_steps('dpm_solver_fast', times, order)
    _, finite = half_logsnr(process, times)
    n, i = real_steps(times), jnp.arange(times.shape[0] - 1)
    first = jnp.where(finite[0], 0, 1)
    split = lower_order_final & ((n - first) % order == 0)
    end = n - jnp.where(split | ~finite[n], 1, 0)
    position = jnp.where((first <= i) & (i < end), (i - first) % order, 0)
    size = jnp.minimum(order, end - i + position)
    return stages_plan(process, times, position, size, of, solver_type, inner)

  return stage_by_stage(denoise, process, of)._replace(plan=plan)


def fast_times(process: Process, evaluations: int, order: int = 3, lower_order_final: bool = True,
               start: float = 1.0, end: float = 0.0) -> Array:
  """The grid of `dpm_solver_fast`: steps of equal length in lambda, each with its inner points.

  [evaluations + 1] times from `start` to `end`, which are also even within a step, as in the code
  of Lu et al. (2022a).
  Raises InputError if there are too few evaluations and, outside `jit`, if logsnr is infinite at an
  end.
  """
  check_options(order, 'eps', 'taylor')
  if evaluations < order:
    raise InputError('evaluations', evaluations, f'a step of order {order} needs {order} '
                     'evaluations', 'give more, or a lower order')
  full, remainder = divmod(evaluations, order)
  if remainder:
    sizes = [order] * full + [remainder]
  elif lower_order_final and order > 1:
    sizes = [order] * (full - 1) + [order - 1, 1]
  else:
    sizes = [order] * full
  ends = jnp.asarray([start, end], float)
  lam, finite = half_logsnr(process, ends)
  if not isinstance(finite, Tracer) and not finite.all():
    raise InputError('start', start, f'logsnr is infinite there or at end={end}, and equal steps '
                     'in logsnr need two finite ends', 'begin and end where it is finite')
  fraction = jnp.asarray([(i + j / size) / len(sizes) for i, size in enumerate(sizes)
                          for j in range(size)])[1:]
  between = time_of(process, 2.0 * (lam[0] + fraction * (lam[1] - lam[0])))
  return jnp.concatenate([ends[:1], between, ends[1:]])


def dpm_solver_multistep(denoise: Denoiser, process: Process, order: int = 2, of: str = 'x',
                         sde: bool = False, solver_type: str = 'dpmsolver',
                         lower_order_below: int = 10, euler_at_final: bool = False,
                         second_difference: float = 2.0) -> Sampler:
  """Multistep: DPM-Solver++ 2M, 3M (of = 'x'), DPM-Solver (of = 'eps'), one evaluation per step.

  Lu et al. (2022b), algorithm 2 (2M), and their SDE solver.  The derivatives of e come from the
  polynomial in lambda through the latest `order` estimates; the first steps are of order 1, 2, ....
  Order 1 is `ddim`; with `sde` and of = 'x' it is `ancestral`.

  sde: the reverse SDE, eta = 1.  With of = 'eps' the step of first order is z_s = alpha_s / alpha_t
  z_t - 2 sigma_s (e^h - 1) eps_hat + sigma_s sqrt(e^2h - 1) noise: eps_hat is constant, not x_hat.
  lower_order_below: in a grid of fewer steps, the last steps are of order ..., 2, 1 (10 in the
  authors' code, 15 in diffusers, 0 for never).  euler_at_final: the last step is always of order 1.
  second_difference: the factor of the second divided difference; 2 makes it h^2 e''.  The authors'
  code and diffusers use 1, and so reach order 2 with order = 3.

  As a grid is made finer, the error falls with order 2 even for order 3, because of the first
  steps.  With shorter first steps (`grids.warm_up`) it falls with order 3.  With `sde`, the
  variance of Gaussian data converges with order 1 for order 1, and with order 2 above.
  Raises InputError if an option is unknown, or if there are fewer steps than `order`.
  """
  check_options(order, of, solver_type)

  def plan(times):
    _check_steps('dpm_solver_multistep', times, order)
    lam, finite = half_logsnr(process, times)
    n, i = real_steps(times), jnp.arange(times.shape[0] - 1)
    h = lam[1:] - lam[:-1]
    regular = finite[:-1] & finite[1:] & (h != 0.0)
    highest = jnp.where(n < lower_order_below, n - i, order)
    highest = jnp.where(euler_at_final & (i == n - 1), 1, highest)
    # Two nodes in one place are no history: before the grid began, after a time that is repeated,
    # and at an infinite lambda, which is moved to where it does not count.
    nodes = lam[:-1].at[0].set(jnp.where(finite[0], lam[0], lam[1]))
    one, two = steps_back(nodes, 1) - nodes, steps_back(nodes, 2) - nodes
    reach = jnp.where(regular & (one != 0.0), jnp.where(two != one, 3, 2), 1)
    now = jnp.minimum(jnp.minimum(reach, highest), order)
    h = jnp.where(regular, h, 1.0)
    one, two = jnp.where(now > 1, one / h, -1.0), jnp.where(now > 2, two / h, 2.0)
    level = process(times[1:])
    weight, phi_1, phi_2, phi_3 = _factors(level, h, of, sde)
    second = weight * (0.5 * phi_1 if solver_type == 'dpmsolver' else phi_2) / one
    third = _through_three(weight * phi_2, second_difference * weight * phi_3, one, two)
    predict = [jnp.where(now == 3, third[0], jnp.where(now == 2, second, 0.0)),
               jnp.where(now == 3, third[1], 0.0)]
    return Coefficients(jnp.stack(predict, axis=1)[:, :order - 1])

  eta = 1.0 if sde and of == 'x' else 0.0
  flow = multistep(denoise, process, plan, depth=order, of=of, eta=eta)
  return _hold_noise(flow, process) if sde and of == 'eps' else flow


def _hold_noise(flow: Sampler, process: Process) -> Sampler:
  """A method for the reverse SDE, made of `flow`, a multistep method of eps_hat.

  The drift of the SDE has eps_hat with the factor 2, and so has the integral over a step; noise is
  added.  If logsnr is infinite at an end, where both may be infinite, the step is the step of
  `ancestral`.
  """
  def plan(times):
    level, (lam, finite) = process(times), half_logsnr(process, times)
    regular = finite[:-1] & finite[1:]
    h = jnp.where(regular, lam[1:] - lam[:-1], 0.0)
    sigma = level.sigma[1:]
    eps = sigma * jnp.where(regular, -jnp.expm1(h), -1.0)
    noise = sigma * jnp.where(regular, jnp.sqrt(jnp.maximum(jnp.expm1(2.0 * h), 0.0)), 1.0)
    return Coefficients(2.0 * flow.plan(times).predict), eps, noise

  def step(keys, state, t, s, now):
    numbers, eps, noise = now
    state = flow.step(keys, state, t, s, numbers)
    draw = random.normal(random.stream(keys, 'noise'), state.z)
    return state._replace(z=state.z + eps * state.history[0] + noise * draw)

  return flow._replace(step=step, plan=plan)


# ------------------------------------------------------- what they have in common


def phi(h: Array) -> tuple[Array, Array, Array]:
  """phi_k(h) = sum_j h^j / (j + k)!, k = 1, 2, 3: (e^h - 1) / h, (e^h - 1 - h) / h^2, ...."""
  near = jnp.abs(h) < 1.0  # there the closed forms cancel
  u, far = jnp.where(near, h, 0.0), jnp.where(near, 1.0, h)
  series = jnp.polyval(jnp.asarray([1.0 / math.factorial(j + 3) for j in range(16, -1, -1)],
                                   h.dtype), u)
  phi_1 = jnp.expm1(far) / far
  phi_2 = (phi_1 - 1.0) / far
  closed = phi_1, phi_2, (phi_2 - 0.5) / far
  expanded = 1.0 + u * (0.5 + u * series), 0.5 + u * series, series
  one, two, three = (jnp.where(near, a, b) for a, b in zip(expanded, closed, strict=True))
  return one, two, three


def _factors(at_s, h, of, sde=False):
  """w, phi_1(H), phi_2(H), phi_3(H) of steps of length h that end at `at_s`; all [N]."""
  part, sign = (at_s.sigma, 1.0) if of == 'eps' else (at_s.alpha, -2.0 if sde else -1.0)
  return -part * sign * h, *phi(sign * h)


def _through_three(first, second, one, two):
  """Factors of e_1 - e_0 and e_2 - e_0 in  first h e' + second h^2 e'' / 2,  with e a parabola.

  one, two: the places of e_1 and e_2, in steps from e_0.
  """
  return ((first * two - second) / (one * (two - one)),
          (second - first * one) / (two * (two - one)))


class _Stage(NamedTuple):
  """The plan of a singlestep method, evaluation by evaluation: [N]."""
  begins: Array    # bool; whether a step begins at this time: e is the e_0 of those that follow
  latest: Array    # of e - e_0
  previous: Array  # of the e - e_0 one evaluation earlier


class _State(NamedTuple):
  z: Array    # [B, ...]  the latest inner point
  x: Array    # [B, ...]  x_hat and eps_hat where the step began
  eps: Array
  e: Array    # [B, ...]  the latest estimate


def stage_by_stage(denoise, process, of):
  """The sampler for the plans that `stages_plan` makes."""
  def init(z):
    return _State(z, *[jnp.zeros_like(z)] * 3)

  def step(keys, state, t, s, now):
    del keys
    at_t = process(t)
    new = denoise(state.z, at_t)
    x, eps = jnp.where(now.begins, new.x, state.x), jnp.where(now.begins, new.eps, state.eps)
    e, origin = (new.x, x) if of == 'x' else (new.eps, eps)
    z = (transition(Estimate(x, eps), at_t, process(s))
         + now.latest * (e - origin) + now.previous * (state.e - origin))
    return _State(z, x, eps, e)

  return Sampler(step, init, lambda state: state.z)


def stages_plan(process, times, position, size, of, solver_type, inner):
  """The plan of evaluations at times[:-1], each `position` [N] places after the start of its step.

  size: [N], the order of the step.
  """
  lam, _ = half_logsnr(process, times)
  i = jnp.arange(position.shape[0])
  start = lam[i - position]
  h = lam[1:] - start
  h = jnp.where((position > 0) & (h != 0.0), h, 1.0)
  weight, phi_1, phi_2, phi_3 = _factors(process(times[1:]), h, of)
  latest = jnp.where(position > 0, (lam[:-1] - start) / h, 1.0)
  previous = jnp.where(position > 1, (steps_back(lam[:-1], 1) - start) / h, 0.5 * latest)
  half = jnp.where(size == 2, solver_type == 'dpmsolver', inner == 'dpmsolver')
  second = weight * jnp.where(half, 0.5 * phi_1, phi_2) / latest
  if solver_type == 'dpmsolver':
    third = jnp.zeros_like(second), weight * phi_2 / latest
  else:
    third = _through_three(weight * phi_2, 2.0 * weight * phi_3, previous, latest)
  return _Stage(position == 0,
                jnp.where(position == 2, third[1], jnp.where(position == 1, second, 0.0)),
                jnp.where(position == 2, third[0], 0.0))


def half_logsnr(process, times):
  """logsnr / 2, or 0 where logsnr is infinite; and whether logsnr is finite."""
  lam = 0.5 * process(times).logsnr
  finite = jnp.isfinite(lam)
  return jnp.where(finite, lam, 0.0), finite


def check_options(order, of, solver_type):
  """Raises InputError unless the methods of this file have these options."""
  if order not in (1, 2, 3):
    raise InputError('order', order, 'there is no such choice', 'give 1, 2 or 3')
  if of not in ('eps', 'x'):
    raise InputError('of', of, 'there is no such choice',
                     "give 'eps' (DPM-Solver) or 'x' (DPM-Solver++)")
  if solver_type not in ('dpmsolver', 'taylor'):
    raise InputError('solver_type', solver_type, 'there is no such choice',
                     "give 'dpmsolver' or 'taylor' (what diffusers calls 'midpoint' and 'heun')")


def _check_steps(name, times, order):
  """Raises InputError if there are fewer steps than `order`.

  If `jit` traces the times, only their length, with the padding, is checked.
  """
  n = times.shape[0] - 1
  if not isinstance(times, Tracer):
    n = np.count_nonzero(np.diff(np.asarray(times)))
  if n < order:
    raise InputError('steps', int(n), f'{name} of order {order} needs at least {order}',
                     'give more steps or times, or choose a sampler of lower order')
