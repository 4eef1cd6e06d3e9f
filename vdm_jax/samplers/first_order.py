"""One evaluation a step, from the estimate at its start alone."""
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.processes import tau
from vdm_jax.typing import Array, Denoiser, Estimate, Level, Process, Sampler

_same = lambda z: z


def transition(estimate: Estimate, at_t: Level, at_s: Level, keys: Array | None = None,
               eta: float = 0.0) -> Array:
  """alpha_s x_hat + sigma_s (sqrt(1 - eta^2 tau) eps_hat + eta sqrt(tau) noise); see `ddim`.

  The first-order part of every exponential integrator.  keys: [B], used where eta is not 0.
  """
  x, eps, _ = estimate
  at_t, at_s = at_t.expand(x), at_s.expand(x)
  if eta != 0.0:
    share = tau(at_t, at_s)
    noise = random.normal(random.stream(keys, 'noise'), x)
    eps = jnp.sqrt(1.0 - eta**2 * share) * eps + eta * jnp.sqrt(share) * noise
  return at_s.alpha * x + at_s.sigma * eps


def ddim(denoise: Denoiser, process: Process, eta: float = 0.0) -> Sampler:
  """z_s = alpha_s x_hat + sigma_s (sqrt(1 - eta^2 tau) eps_hat + eta sqrt(tau) noise).

  Song, Meng and Ermon (2021), eq. 12 and 16, on any process; tau = 1 - SNR(t)/SNR(s).  eta = 0
  is deterministic and of first order in the probability flow, eta = 1 is `ancestral`.
  """
  def step(keys, z, t, s, _):
    at_t, at_s = process(t), process(s)
    return transition(denoise(z, at_t), at_t, at_s, keys, eta)
  return Sampler(_same, step, _same)


def ancestral(denoise: Denoiser, process: Process) -> Sampler:
  """z_s ~ q(z_s | z_t, x = x_hat): Ho et al. (2020), algorithm 2 with the smaller variance;
  Kingma et al. (2021), eq. 9 and appendix A.4."""
  return ddim(denoise, process, eta=1.0)
