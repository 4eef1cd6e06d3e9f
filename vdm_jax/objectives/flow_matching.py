"""Flow matching: a network learns the velocity of a path by regression on conditional velocities.

    E |u(z_t, t) - (dalpha x + dsigma eps)|^2,    z_t = alpha x + sigma eps,  t uniform

Lipman, Chen, Ben-Hamu, Nickel and Le (2023), eq. 9 and 14, conditional flow matching.  By their
theorem 2, its gradient equals the gradient of a regression on the velocity of the marginals.  The
minimiser is the probability flow of the process.  Their time is 1 - t.

Their paths are processes.  Optimal transport is `RectifiedFlow`, on the curve `flow`; the diffusion
path is `schedules.BetaLinear` on `vp`.  The cosine path of their code is `schedules.Cosine` on
`vp`, and the polynomial path is `schedules.Polynomial` on `flow`.  On straight lines the velocity
is eps - x, and the loss is the loss of rectified flow.

To couple data and noise, give the `eps` of each datum: see `couplings`, `curvature`,
`rectified_flow`.
"""
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.processes import diffuse
from vdm_jax.typing import Array, Denoiser, Process, PyTree
from vdm_jax.units import sum_over_data


def velocity(denoise: Denoiser, process: Process, z: Array, t: Array, cond: PyTree = None
             ) -> Array:
  """dalpha x_hat + dsigma eps_hat, the velocity of the flow at z: [B, ...].  t: [B] or []."""
  level = process(t)
  estimate, level = denoise(z, level, cond), level.expand(z)
  return level.dalpha * estimate.x + level.dsigma * estimate.eps


def objective(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, eps: Array | None = None
              ) -> tuple[Array, dict[str, Array]]:
  """|u - u_hat|^2, a sum over the data: [B], and {'eps_error'}, |eps - eps_hat|^2.

  Lipman et al. (2023), eq. 14.  x: [B, ...]; t, keys: [B].  eps: the noise, where it is coupled to
  the data; drawn from `keys` otherwise.
  """
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  level = process(t)
  estimate = denoise(diffuse(x, eps, level), level, cond)
  wide, error = level.expand(x), eps - estimate.eps
  loss = sum_over_data(jnp.square(wide.dalpha * (x - estimate.x) + wide.dsigma * error))
  return loss, {'eps_error': sum_over_data(jnp.square(error))}
