"""Splitting methods for guided sampling, and the linear multistep method of their diffusion part.

In zbar = z / alpha and rho = sigma / alpha the probability flow under guidance by log p(y | z_t) is

  d zbar / d rho = eps_hat(z) - sigma grad log p(y | z_t),

a sum of two fields.  The first is smooth, and methods with a memory cover it in few steps.  The
second may be stiff (a large guidance scale), and there they diverge, as their regions of stability
are small.  A splitting method solves the two in turn, each by a method of its own: Wizadwongsa and
Suwajanakorn (2023).

  Lie-Trotter   guidance t -> s, then diffusion t -> s
  Strang        half of the guidance at level t, diffusion t -> s, the other half at level s

Strang's composition is of second order, and so is a sampler made of it if both parts are, and have
no memory.  Neither holds for the published one: Euler's steps of the guidance are of first order
unless its gradient is the same at all z, and differences of estimates between which guidance has
acted are not those along the diffusion alone.  So it converges with order 1, at a small error.
"""
from collections.abc import Callable

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


def plms(denoise: Denoiser, process: Process, order: int = 4) -> Sampler:
  """Pseudo linear multistep: DDIM's step from the eps_hat that Adams-Bashforth extrapolates.

  zbar_s = zbar_t + (rho_s - rho_t) (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24, Liu et al. (2022).
  It begins with the methods of orders 1, 2 and 3, so that a step is one evaluation (PNDM's first
  steps are of Runge-Kutta).

  order: 1 to 4, of Adams-Bashforth.  The method's own is 2 for all but the first: its coefficients
  suit equal steps of rho, whatever the grid, and its first step is DDIM's.
  """
  if order not in (1, 2, 3, 4):
    raise InputError('order', order, 'PLMS has no such order', 'give 1, 2, 3 or 4')

  def plan(times):
    level = process(times)
    at_t, at_s = jax.tree.map(lambda u: u[:-1], level), jax.tree.map(lambda u: u[1:], level)
    known = (at_t.alpha > 0.0) & (at_s.alpha > 0.0)
    # From alpha = 0 rho is infinite: what was estimated there is no equal step away.
    reach = jnp.where(known, jnp.minimum(jnp.cumsum(at_t.alpha > 0.0), order), 1)
    length = at_s.sigma - at_s.alpha * at_t.sigma / jnp.where(known, at_t.alpha, 1.0)
    table = jnp.asarray(_ADAMS_BASHFORTH[:, :order - 1], length.dtype)
    return Coefficients(predict=length[:, None] * table[reach - 1])

  return multistep(denoise, process, plan, depth=order, of='eps')


def splitting(denoise: Denoiser, process: Process, guidance: Callable[[Array, Level], Array],
              scheme: str = 'strang', diffusion: Callable[[Denoiser, Process], Sampler] = plms,
              guide: str = 'euler') -> Sampler:
  """Guided sampling by 'lie-trotter' or 'strang' splitting: LTSP and STSP.

  Wizadwongsa and Suwajanakorn (2023), with `plms` on the diffusion and Euler on the guidance, each
  half of it at the level where z is.  Of order 1 either way; with diffusion=heun and guide='heun'
  Strang's is of order 2 (see above), but of 1 from alpha = 0, where rho is infinite.  From there
  the error of Lie and Trotter's is log(N) / N: in v = alpha / sigma, where all is smooth, a step of
  guidance is v_t / v_s as long as it should be, and (v_s - v_t)^2 / v_s sums to that.  So is, with
  half the factor, what `plms` makes of the guidance between its estimates, by either scheme.

  guidance: (z [B, ...], level) -> grad_z log p(y | z_t) [B, ...], times its scale; diffusion: a
  deterministic sampler, whose state is z or has a field z; guide: 'euler', or 'heun' with twice
  the calls.  A gradient is not used at sigma = 0, nor at alpha = 0 by 'strang', which guides that
  step at its end.
  """
  if scheme not in ('lie-trotter', 'strang'):
    raise InputError('scheme', scheme, 'there is no such choice', "give 'lie-trotter' or 'strang'")
  if guide not in ('euler', 'heun'):
    raise InputError('guide', guide, 'there is no such choice', "give 'euler' or 'heun'")
  inner = diffusion(denoise, process)

  def push(z, level, length):
    """dz = guidance at a level that stays, over `length`."""
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
