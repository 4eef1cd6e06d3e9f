"""Explicit Runge-Kutta methods on the probability flow.

In the time of the process, the flow is dz/dt = dalpha x_hat + dsigma eps_hat.  On any curve it is
also d(z / alpha) / d rho = eps_hat with rho = sigma / alpha.  Karras et al. (2022) integrate EDM in
this form.  A method then takes the same steps for every parametrisation of time and scale of z, and
a step is exact if eps_hat does not change.

Both forms are the step of the first slope, plus the differences of later slopes from the first.  In
a step to sigma = 0 the differences are left out, so the step is of first order: the network need
not be defined at sigma = 0, and is not evaluated.  Karras et al. (2022), algorithm 1, do so with
Heun's method; here every tableau does.
"""
from typing import NamedTuple

import jax.numpy as jnp

from vdm_jax.errors import InputError
from vdm_jax.processes import time_of
from vdm_jax.samplers.first_order import transition
from vdm_jax.typing import Array, Denoiser, Process, Sampler


class Tableau(NamedTuple):
  """Butcher's array of an explicit method of S stages: z_i = z + h sum_j a_ij slope_j.

  Stage i is at a share c_i in [0, 1] of the step, the first at its start; the step is
  z + h sum_i b_i slope_i.
  """
  a: tuple[tuple[float, ...], ...]  # row i: the i entries before the diagonal
  b: tuple[float, ...]              # [S], of sum 1
  c: tuple[float, ...]              # [S], the sums of the rows


def second_order(alpha: float) -> Tableau:
  """The two-stage method of second order whose second stage is at 0 < alpha <= 1.

  Karras et al. (2022), appendix D.2.  1: Heun; 2/3: Ralston; 1/2: midpoint.
  """
  return Tableau(((), (alpha,)), (1.0 - 0.5 / alpha, 0.5 / alpha), (0.0, alpha))


EULER = Tableau(((),), (1.0,), (0.0,))
HEUN = second_order(1.0)
RALSTON = second_order(2 / 3)
MIDPOINT = second_order(0.5)
# Kutta's method of third order, and the classical one of fourth.
RK3 = Tableau(((), (0.5,), (-1.0, 2.0)), (1 / 6, 2 / 3, 1 / 6), (0.0, 0.5, 1.0))
RK4 = Tableau(((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6),
              (0.0, 0.5, 0.5, 1.0))


def runge_kutta(denoise: Denoiser, process: Process, tableau: Tableau) -> Sampler:
  """z_s = z + (s - t) sum_i b_i slope_i, slope = dalpha x_hat + dsigma eps_hat, in the time t.

  Each stage takes one evaluation.  A step to sigma = 0 is a step of Euler.
  Raises InputError if the tableau is not explicit, not consistent, or has a stage outside the step.
  """
  check(tableau)

  def slope(estimate, level):
    level = level.expand(estimate.x)
    return level.dalpha * estimate.x + level.dsigma * estimate.eps

  def step(keys, z, t, s, _):
    del keys
    at_t, at_s = process(t), process(s)
    bends = at_s.sigma > 0.0
    times = _places(tableau, t, s, bends, lambda c: t + c * (s - t))
    first = denoise(z, at_t)

    def move(to, bend):
      return z + (to.t - t) * slope(first, at_t) + jnp.where(bends, s - t, 0.0) * bend

    return move(at_s, _bend(denoise, process, tableau, first, at_t, times, slope, move))

  return Sampler(step, evaluations=len(tableau.c))


def heun(denoise: Denoiser, process: Process) -> Sampler:
  """The explicit trapezoid rule, of second order: two evaluations per step.

  Karras et al. (2022), algorithm 1, in the time of `process`.  As in the paper, a step to sigma = 0
  is a step of Euler, since a network need not be defined there.
  """
  return runge_kutta(denoise, process, HEUN)


def rho_rk(denoise: Denoiser, process: Process, tableau: Tableau) -> Sampler:
  """z_s / alpha_s = z / alpha + (rho_s - rho) sum_i b_i eps_hat_i, with rho = sigma / alpha.

  Karras et al. (2022), eq. 1, on any curve and any grid; the rhoRK of Zhang and Chen (2023).
  If logsnr is infinite at either end, the step is a step of `ddim`.  The rest is as for
  `runge_kutta`.
  """
  check(tableau)

  def step(keys, z, t, s, plan):
    del keys
    return rho_step(denoise, process, tableau, z, s, plan)

  plan = lambda times: rho_plan(process, tableau, times[:-1], times[1:])
  return Sampler(step, plan=plan, evaluations=len(tableau.c))


# ------------------------------------------------- a step in rho, from any time


class RhoPlan(NamedTuple):
  """The stages of N steps in rho."""
  times: Array  # [N, S] of the stages
  reach: Array  # [N] the length of the step in rho; 0: it is of first order


def rho_plan(process: Process, tableau: Tableau, t: Array, s: Array) -> RhoPlan:
  """The plan of N steps t -> s, which need not be consecutive.  t, s: [N]."""
  at_t, at_s = process(t), process(s)
  bends = jnp.isfinite(at_t.logsnr) & jnp.isfinite(at_s.logsnr)
  rho = at_t.sigma / at_t.alpha
  reach = jnp.where(bends, at_s.sigma / at_s.alpha - rho, 0.0)
  between = lambda c: time_of(process, -2.0 * jnp.log(rho + c * reach))
  return RhoPlan(jnp.stack(_places(tableau, t, s, bends, between), axis=-1), reach)


def rho_step(denoise: Denoiser, process: Process, tableau: Tableau, z: Array, s: Array,
             plan: RhoPlan) -> Array:
  """The step of `rho_rk` from the time plan.times[0] to s."""
  at_t = process(plan.times[0])
  first = denoise(z, at_t)

  def move(to, bend):
    return transition(first, at_t, to) + to.expand(z).alpha * plan.reach * bend

  eps = lambda estimate, level: estimate.eps
  return move(process(s), _bend(denoise, process, tableau, first, at_t, plan.times, eps, move))


# ----------------------------------------------------------- what they share


def _places(tableau, t, s, bends, between):
  """The times of the stages: `between(c)`, exact to the last bit at the ends.

  If the step does not bend, all are t, so no network is evaluated at s.
  """
  ends = {0.0: t, 1.0: s}
  return [jnp.where(bends, ends[c] if c in ends else between(c), t) for c in tableau.c]


def _bend(denoise, process, tableau, first, at_t, times, slope, move):
  """sum_i b_i (slope_i - slope_0), with the evaluations that it takes beyond `first`.

  slope(estimate, level): the integrand; move(level, bend): z at a stage.
  """
  slopes = [slope(first, at_t)]

  def weigh(weights):
    later = zip(weights[1:], slopes[1:], strict=True)
    return sum((w * (k - slopes[0]) for w, k in later), jnp.zeros_like(slopes[0]))

  for i in range(1, len(tableau.c)):
    level = process(times[i])
    slopes.append(slope(denoise(move(level, weigh(tableau.a[i])), level), level))
  return weigh(tableau.b)


def check(tableau: Tableau) -> None:
  """Raises InputError unless the tableau is an explicit, consistent one within the step."""
  a, b, c = tableau
  if [len(row) for row in a] != list(range(len(c))) or len(b) != len(c):
    raise InputError('tableau', None, 'its parts do not fit each other',
                     'give S entries of b and c, and S rows of 0, 1, ..., S - 1 entries of a')
  sums = [sum(b) - 1.0, *(sum(row) - place for row, place in zip(a, c, strict=True))]
  if max(map(abs, sums)) > 1e-12:
    raise InputError('tableau', None, 'it is not consistent',
                     'give b that sums to 1, and rows of a that sum to the entries of c')
  if min(c) < 0.0 or max(c) > 1.0:
    raise InputError('tableau', None, f'c = {c} has a stage outside of the step',
                     'give stages in [0, 1]')
