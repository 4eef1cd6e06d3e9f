"""The weighted denoising loss. Most published objectives choose its weighting."""
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vdm_jax import random, weightings
from vdm_jax.errors import InputError
from vdm_jax.processes import diffuse, inside
from vdm_jax.typing import Array, Denoiser, Process, PyTree, Weighting
from vdm_jax.units import sum_over_data


def weighted_diffusion(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
                       cond: PyTree = None, *, weight: Weighting = weightings.vlb,
                       eps: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """1/2 w(level) (-d logsnr/dt) |eps - eps_hat|^2 at t ~ U[0, 1]: nats [B], {'eps_error': [B]}.

  With weight 1 it is the diffusion term of the continuous-time bound: Kingma et al. (2021), eq. 17.
  For other weights see Kingma and Gao (2023).  x: [B, ...]; t, keys: [B]. eps: the noise, where it
  is coupled to the data; drawn from `keys` otherwise.

  At an end where logsnr is infinite, it is the limit of the loss (`processes.inside`).  Whether
  there is a limit depends on the weighting and the process (`check_limits`).
  """
  level = process(inside(process, t))
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  estimate = denoise(diffuse(x, eps, level), level, cond)
  # The weight stays inside the sum over data, so that levels may differ from pixel to pixel.
  wide = level.expand(x)
  error = jnp.square(eps - estimate.eps)
  loss = sum_over_data(-0.5 * weight(wide) * wide.dlogsnr * error)
  return loss, {'eps_error': sum_over_data(error)}


def check_limits(process: Process, weight: Weighting = weightings.vlb) -> None:
  """Raises InputError if the loss grows without bound towards t = 0 or t = 1.

  The error names the weighting and the process.  Where logsnr is infinite, for example at clean
  data, weighting 1 has no limit, so there is no bound.  Call this function where an experiment is
  built; under `jit`, where values are unknown, it does nothing.
  """
  def coefficient(t):
    # Of |v - v_hat|^2 = |eps - eps_hat|^2 / alpha^2 on `vp`, which is of the order of 1 everywhere.
    level = process(t)
    return -0.5 * weight(level) * level.dlogsnr * jax.nn.sigmoid(level.logsnr)

  with jax.enable_x64(True):
    for end in (0.0, 1.0):
      inwards = 1.0 - 2.0 * end
      ends = process(jnp.asarray(end)).logsnr
      if isinstance(ends, Tracer):
        return
      if not np.isinf(ends).any():
        continue
      near, nearer = (np.asarray(coefficient(jnp.asarray(end + inwards * distance)))
                      for distance in (1e-6, 1e-12))
      if not np.all(np.isfinite(nearer) & (np.abs(nearer) <= 10.0 * np.abs(near) + 1e-9)):
        raise InputError(
            None, None, f'the weighting {_name(weight)} on the process {_name(process)}: the loss '
            f'grows without bound towards t = {end:.0f}, where logsnr is infinite',
            'choose another weighting, e.g. weightings.simple, or levels that are finite: '
            'processes.Truncated.between(process, 13.3, -5.0)')


def _name(function) -> str:
  """`min_snr` for the result of min_snr(5.0), `GaussianProcess(BetaLinear)` for a process."""
  own = getattr(function, '__qualname__', type(function).__name__).split('.')[0]
  inner = getattr(function, 'schedule', getattr(function, 'process', None))
  return own if inner is None else f'{own}({_name(inner)})'
