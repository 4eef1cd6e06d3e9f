"""Splitting methods for guided sampling, and the linear multistep method for their diffusion part.

In zbar = z / alpha and rho = sigma / alpha the probability flow under guidance by log p(y | z_t) is

  d zbar / d rho = eps_hat(z) - sigma grad log p(y | z_t),

which is a sum of two fields.  The first field is smooth, and methods with a memory need few steps.
The second may be stiff (a large guidance scale).  Methods with a memory then diverge, as their
regions of stability are small.  A splitting method solves the two fields in turn, each by its own
method: Wizadwongsa and Suwajanakorn (2023).

  Lie-Trotter   guidance t -> s, then diffusion t -> s
  Strang        half of the guidance at level t, diffusion t -> s, the other half at level s

Strang's composition is of second order.  A sampler made of it is of second order if both parts are,
and have no memory.  Neither holds for the published sampler.  Euler's steps of the guidance are of
first order unless the gradient is the same at all z.  And the remembered estimates differ also by
the guidance between them, not by the diffusion alone.  So the published sampler converges with
order 1, at a small error.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.samplers.multistep import Coefficients, multistep
from vdm_jax.typing import Array, Denoiser, Level, Process, Sampler

# Adams-Bashforth on equal steps: multiples of e_1 - e_0, e_2 - e_0, e_3 - e_0, by order.
_ADAMS_BASHFORTH = np.array([[0.0, 0.0, 0.0],
                             [-1 / 2, 0.0, 0.0],
                             [-16 / 12, 5 / 12, 0.0],
                             [-59 / 24, 37 / 24, -9 / 24]])


class _Plan(NamedTuple):
  later: Coefficients  # of Adams-Bashforth
  half: Array          # [N] half of the step's length, in the units of z at its end
  twice: Array         # [N] bool; whether it is the step of the improved Euler method


def plms(denoise: Denoiser, process: Process, order: int = 4) -> Sampler:
  """Pseudo linear multistep: DDIM's step from the eps_hat that Adams-Bashforth extrapolates.

  zbar_s = zbar_t + (rho_s - rho_t) (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24, Liu et al. (2022).
  The first step is one of the improved Euler method, from the mean of eps_hat at both of its ends.
  The second and third steps have the methods of orders 2 and 3.  So N steps take N + 1 evaluations,
  as in the code of Rombach et al. (2022); the first steps in the paper are Runge-Kutta steps.

  A step from alpha = 0, where rho is infinite, is DDIM's step.  The step after it is then the step
  of the improved Euler method.  If that step ends at sigma = 0, it is also DDIM's step, and N steps
  take N evaluations.

  order: 1 to 4, of Adams-Bashforth; 1 is DDIM.  Its coefficients suit equal steps of rho, whatever
  the grid.  On such a grid the method converges with order 3 (with 2 for `order` 2), and on other
  smooth grids with order 2.
  """
  if order not in (1, 2, 3, 4):
    raise InputError('order', order, 'PLMS has no such order', 'give 1, 2, 3 or 4')

  def plan(times):
    level = process(times)
    at_t, at_s = jax.tree.map(lambda u: u[:-1], level), jax.tree.map(lambda u: u[1:], level)
    known = (at_t.alpha > 0.0) & (at_s.alpha > 0.0)
    # From alpha = 0 rho is infinite: what was estimated there is no equal step away.
    counted = (at_t.alpha > 0.0) & (times[1:] != times[:-1])
    number = jnp.cumsum(counted)
    reach = jnp.where(known, jnp.clip(number, 1, order), 1)
    length = at_s.sigma - at_s.alpha * at_t.sigma / jnp.where(known, at_t.alpha, 1.0)
    table = jnp.asarray(_ADAMS_BASHFORTH[:, :order - 1], length.dtype)
    return _Plan(Coefficients(predict=length[:, None] * table[reach - 1]), 0.5 * length,
                 counted & known & (number == 1) & (at_s.sigma > 0.0))

  inner = multistep(denoise, process, lambda times: plan(times).later, depth=order, of='eps')
  if order == 1:
    return inner

  def step(keys, state, t, s, now):
    state = inner.step(keys, state, t, s, now.later)

    def improved(z):
      e = denoise(z, process(s)).eps
      return (z + now.half * (e - state.history[0])).astype(z.dtype)
    return state._replace(z=jax.lax.cond(now.twice, improved, lambda z: z, state.z))

  return inner._replace(step=step, plan=plan, extra_evaluations=1)


def splitting(denoise: Denoiser, process: Process, guidance: Callable[[Array, Level], Array],
              scheme: str = 'strang', diffusion: Callable[[Denoiser, Process], Sampler] = plms,
              guide: str = 'euler') -> Sampler:
  """Guided sampling by 'lie-trotter' or 'strang' splitting: LTSP and STSP.

  Wizadwongsa and Suwajanakorn (2023), with `plms` for the diffusion and Euler for the guidance;
  each half of the guidance is at the level of z.  Both schemes are of order 1.  With diffusion=heun
  and guide='heun', Strang's scheme is of order 2 (see above), but of order 1 from alpha = 0, where
  rho is infinite.  From alpha = 0, the error of the Lie-Trotter scheme is log(N) / N.  In
  v = alpha / sigma, where all is smooth, a step of guidance has v_t / v_s of its correct length,
  and (v_s - v_t)^2 / v_s sums to log(N) / N.  With half that factor, `plms` has the same error in
  both schemes, from the guidance between its estimates.

  guidance: (z [B, ...], level) -> grad_z log p(y | z_t) [B, ...], times its scale; diffusion: a
  deterministic sampler, whose state is z or has a field z; guide: 'euler', or 'heun' with twice the
  calls.  No gradient is used at sigma = 0.  At alpha = 0, 'strang' uses none either, and guides
  that step at its end.
  """
  if scheme not in ('lie-trotter', 'strang'):
    raise InputError('scheme', scheme, 'there is no such choice', "give 'lie-trotter' or 'strang'")
  if guide not in ('euler', 'heun'):
    raise InputError('guide', guide, 'there is no such choice', "give 'euler' or 'heun'")
  inner = diffusion(denoise, process)

  def push(z, level, length):
    """dz = guidance at a fixed level, over `length`."""
    slope = guidance(z, level)
    if guide == 'heun':
      slope = 0.5 * (slope + guidance(z + length * slope, level))
    return jnp.where(length != 0.0, z + length * slope, z)

  def moved(state, z):
    return z if isinstance(state, jax.Array) else state._replace(z=z)

  def step(keys, state, t, s, now):
    at_t, at_s = process(t), process(s)
    # sigma (rho_t - rho_s), in the units of z at t; below, in those at s.
    length = at_t.sigma * (at_t.sigma - at_t.alpha * at_s.sigma / at_s.alpha)
    known = at_t.alpha > 0.0
    if scheme == 'strang':
      length = jnp.where(known, 0.5 * length, 0.0)
    state = moved(state, push(inner.value(state), at_t, length))
    state = inner.step(keys, state, t, s, now)
    if scheme == 'lie-trotter':
      return state
    rho = at_t.sigma / jnp.where(known, at_t.alpha, 1.0)
    # From alpha = 0 rho is infinite; there z is eps, and guidance moves x_hat alone, by
    # sigma^2 / alpha times its gradient.
    length = jnp.where(known, 0.5 * at_s.sigma * (at_s.alpha * rho - at_s.sigma),
                       jnp.square(at_s.sigma))
    return moved(state, push(inner.value(state), at_s, length))

  return inner._replace(step=step)
