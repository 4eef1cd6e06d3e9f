"""The straightness of the trajectories of a flow."""
import jax
import jax.numpy as jnp

from vdm_jax.samplers.euler import euler
from vdm_jax.samplers.sampling import as_latent, sample
from vdm_jax.typing import Array, ArrayLike, Denoiser, Process, SamplerMaker
from vdm_jax.units import sum_over_data

__all__ = ['of_trajectory', 'straightness']


def of_trajectory(trajectory: Array, times: ArrayLike) -> Array:
  """int |(z_1 - z_0) - dz/dt|^2 dt of broken lines: [N + 1, B, ...] at times [N + 1] -> [B].

  The sum over the data of the straightness of Liu et al. (2023), section 2.2; Lee, Kim and Ye
  (2023) measure its mean over the dimensions as curvature.  times: from 1 down to 0.
  """
  times = jnp.asarray(times, trajectory.dtype)
  lengths = times[:-1] - times[1:]
  pad = lambda u: u.reshape(-1, *[1] * (trajectory.ndim - 1))
  velocity = (trajectory[:-1] - trajectory[1:]) / pad(lengths)
  overall = (trajectory[0] - trajectory[-1]) / (times[0] - times[-1])
  bent = jax.vmap(sum_over_data)(jnp.square(velocity - overall))
  return jnp.sum(lengths[:, None] * bent, axis=0) / (times[0] - times[-1])


def straightness(denoise: Denoiser, process: Process, keys: Array, z: Array, times: ArrayLike,
                 sampler: SamplerMaker = euler) -> tuple[Array, Array]:
  """(S [B], samples [B, ...]) of the trajectories from z along `times`, by Euler's method.

  S is 0 if one step is exact.  sampler: any deterministic sampler instead of Euler's method.
  """
  method = sampler(denoise, process)
  end, trajectory = sample(method, keys, as_latent(z), times, trace=method.value)
  return of_trajectory(trajectory, times), end
