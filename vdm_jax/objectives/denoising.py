"""The weighted denoising loss, of which most published objectives are a choice of weighting."""
import jax.numpy as jnp

from vdm_jax import random, weightings
from vdm_jax.decoders import sum_over_data
from vdm_jax.processes import diffuse
from vdm_jax.typing import Array, Denoiser, Process, PyTree, Weighting


def weighted_diffusion(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
                       cond: PyTree = None, *, weight: Weighting = weightings.vlb,
                       eps: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """1/2 w(level) (-d logsnr/dt) |eps - eps_hat|^2 at t ~ U[0, 1]: nats [B], {'eps_error': [B]}.

  With weight 1 it is the diffusion term of the continuous-time bound: Kingma et al. (2021),
  eq. 17; with others Kingma and Gao (2023).  x: [B, ...]; t, keys: [B].
  eps: the noise, where it is coupled to the data; drawn from `keys` otherwise.
  """
  level = process(t)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  estimate = denoise(diffuse(x, eps, level), level, cond)
  # The weight stays inside the sum over data, so that levels may differ from pixel to pixel.
  wide = level.expand(x)
  error = jnp.square(eps - estimate.eps)
  loss = sum_over_data(-0.5 * weight(wide) * wide.dlogsnr * error)
  return loss, {'eps_error': sum_over_data(error)}
