"""The probability flow with steps as long as a tolerance allows.

The steps depend on the sample, so there is no grid and no plan, and the number of evaluations is a
result.  Every example has its own steps, so an image does not depend on the other images of its
batch.  Yet each call of the denoiser serves all examples, each at its own level, until the slowest
has arrived.
"""
from typing import Any, NamedTuple

import diffrax
import equinox
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vdm_jax.errors import InputError
from vdm_jax.processes import time_of
from vdm_jax.samplers.first_order import transition
from vdm_jax.samplers.sampling import as_latent
from vdm_jax.typing import Array, ArrayLike, Denoiser, Process


class Solution(NamedTuple):
  z: Array            # [B, ...]  at t1
  evaluations: Array  # []  calls of the denoiser, each for the whole batch


def adaptive_ode(denoise: Denoiser, process: Process, z: Array, t0: ArrayLike = 1.0,
                 t1: ArrayLike = 0.0, *, rtol: float = 1e-5, atol: float = 1e-5,
                 solver: diffrax.AbstractERK | None = None, max_steps: int = 1000) -> Solution:
  """Integrates dz/dt = dalpha x_hat + dsigma eps_hat from t0 to t1: down samples, up encodes.

  Song et al. (2021), section 4.3, with the embedded method of Dormand and Prince, and by default
  the tolerances of Song et al.  z: [B, ...].  The error of a step is a root mean square over one
  example's dimensions, and stays below atol + rtol |z|.

  The network is never evaluated at sigma = 0.  The last stretch, from
  rho = sigma / alpha = sqrt(atol) / 10, is one step of `ddim`.  The first stretch of an encoding
  takes x_hat = z / alpha.  Both leave an error of the order of rho^2 for data that has a density.

  solver: an explicit embedded Runge-Kutta method of diffrax.  The result is not differentiable.
  Raises InputError for another solver.  Outside `jit`, where values are known, it also raises if
  max_steps did not suffice; inside `jit`, z is then NaN.
  """
  solver = diffrax.Dopri5() if solver is None else solver
  tableau = getattr(solver, 'tableau', None)
  if not (isinstance(solver, diffrax.AbstractERK) and isinstance(tableau, diffrax.ButcherTableau)):
    raise InputError('solver', type(solver).__name__, 'it is not an explicit Runge-Kutta method: '
                     'an implicit one needs the Jacobian of the network',
                     'give an explicit one, such as diffrax.Dopri5()')
  z = as_latent(z)
  t0, t1 = jnp.asarray(t0, z.dtype), jnp.asarray(t1, z.dtype)
  near_data = time_of(process, jnp.full_like(t0, -2.0 * jnp.log(0.1 * jnp.sqrt(atol))))
  inside = lambda t: jnp.where(process(t).sigma > 0.0, t, near_data)
  begin, end = inside(t0), inside(t1)

  def velocity(z, t):
    level = process(t)
    x, eps, _ = denoise(z, level)
    level = level.expand(z)
    return level.dalpha * x + level.dsigma * eps

  field = _of_one_example(velocity, z, jnp.broadcast_to(t0, z.shape[:1]))

  def solve(z):
    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, z, _: field(z, t)), solver, begin, end, 0.01 * (end - begin), z,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol), max_steps=max_steps,
        throw=False)

  z = jnp.where(begin == t0, 1.0, process(begin).alpha / process(t0).alpha) * z
  solution: Any = jax.vmap(solve)(z)
  arrived = solution.result == diffrax.RESULTS.successful
  z = jnp.where(jnp.reshape(arrived, (-1,) + (1,) * (z.ndim - 1)), solution.ys[:, 0], jnp.nan)
  z = jax.lax.cond(
      end == t1, lambda z: z,
      lambda z: transition(denoise(z, process(end)), process(end), process(t1)), z)
  if not isinstance(arrived, Tracer) and not np.all(arrived):
    raise InputError('max_steps', max_steps, f'{np.sum(~np.asarray(arrived))} of {len(z)} examples '
                     'did not reach the end in max_steps steps', 'raise max_steps or the '
                     'tolerances, or check that the network is finite between t0 and t1')
  # A method whose last stage is the next step's first evaluates that one once.
  reused = int(tableau.fsal)
  per_step = tableau.num_stages - reused
  steps = jnp.max(solution.stats['num_steps'])
  return Solution(z, reused + per_step * steps + (end != t1))


def _of_one_example(function, *batch):
  """`function` of a batch as a function of one example, for use under `vmap` alone.

  Under `vmap`, `function` gets the whole batch at once.  So the values that it closes over (a
  condition, dropout keys) may have a batch axis too.  `vmap` of a batch of one would not allow
  that.
  """
  # What it closes over has to be an argument: a rule of `vmap` runs inside of the solver's loop.
  closed, static = equinox.partition(equinox.filter_closure_convert(function, *batch),
                                     equinox.is_array)

  @jax.custom_batching.custom_vmap
  def one(closed, *example):
    del closed
    return jnp.zeros_like(example[0])  # for its shape

  @one.def_vmap
  def _(size, batched, closed, *examples):
    broadcast = lambda is_batched, a: a if is_batched else jnp.broadcast_to(a, (size, *a.shape))
    examples = map(broadcast, batched[1:], examples)
    return equinox.combine(closed, static)(*examples), True

  return lambda *example: one(closed, *example)
