"""The variational bound on -log p(data), in three terms.

-log p(data) <= E[-log p(data | z_0)]  +  KL(q(z_1 | x) || p(z_1))  +  diffusion term
                  reconstruction          latent

In continuous time the diffusion term is 1/2 int_0^1 (-d logsnr/dt) E|eps - eps_hat|^2 dt; with T
steps it is a sum of T Kullback-Leibler terms, estimated at one of them, drawn by t.  Both
are unbiased for t ~ U[0, 1], and depend on the schedule through its end points alone (continuous)
or through its grid (T steps).  Source: Kingma et al. (2021), eq. 11-17.
"""
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.decoders import sum_over_data
from vdm_jax.objectives.denoising import weighted_diffusion
from vdm_jax.processes import diffuse, prior_kl
from vdm_jax.typing import Array, Decoder, Denoiser, Process, PyTree


def _end_terms(process, x, t, keys, data, decoder, eps_0):
  """Reconstruction and latent terms in nats, [B] each."""
  # One time per example, so that the levels of a per-pixel schedule are [B, ...] as at `t`.
  first, last = process(jnp.zeros_like(t)), process(jnp.ones_like(t))
  if eps_0 is None:
    # A stream of its own: sharing the diffusion term's noise would correlate the terms.
    eps_0 = random.normal(random.stream(keys, 'eps_0'), x)
  return {'reconstruction': -decoder(data, diffuse(x, eps_0, first), first),
          'latent': sum_over_data(prior_kl(x, last))}


def continuous(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
               cond: PyTree = None, *, data: Array, decoder: Decoder, eps: Array | None = None,
               eps_0: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """One-sample estimate of the continuous-time bound, Kingma et al. (2021), eq. 17.

  x: [B, ...], the encoding of the discrete `data` [B, ...]; t, keys: [B]; eps, eps_0: the noise
  [B, ...] of the diffusion and the reconstruction term, drawn from `keys` if not given.
  Returns nats [B] and {'reconstruction', 'latent', 'diffusion'} [B], whose sum it is.
  """
  diffusion, _ = weighted_diffusion(denoise, process, x, t, keys, cond, eps=eps)
  terms = {**_end_terms(process, x, t, keys, data, decoder, eps_0), 'diffusion': diffusion}
  return sum(terms.values()), terms


def discrete(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
             cond: PyTree = None, *, steps: int, data: Array, decoder: Decoder,
             eps: Array | None = None, eps_0: Array | None = None
             ) -> tuple[Array, dict[str, Array]]:
  """One-sample estimate of the bound of the chain with `steps` = T equal steps of time.

  T/2 (SNR(s)/SNR(t) - 1) |eps - eps_hat|^2 with t rounded up to the grid, s = t - 1/T:
  Kingma et al. (2021), eq. 13-14.  The reverse kernel's variance is that of q(z_s | z_t, x).
  Arguments and results as in `continuous`.
  """
  grid = jnp.maximum(jnp.ceil(t * steps), 1.0)
  at_t, at_s = process(grid / steps), process((grid - 1.0) / steps)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  estimate = denoise(diffuse(x, eps, at_t), at_t, cond)
  ratio = jnp.expm1(at_s.expand(x).logsnr - at_t.expand(x).logsnr)  # SNR(s) / SNR(t) - 1
  diffusion = sum_over_data(0.5 * steps * ratio * jnp.square(eps - estimate.eps))
  terms = {**_end_terms(process, x, t, keys, data, decoder, eps_0), 'diffusion': diffusion}
  return sum(terms.values()), terms
