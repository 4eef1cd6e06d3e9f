"""DiffEnc: the bound of a diffusion whose data are encoded differently at every noise level.

q(z_t | x) = N(alpha x_t, sigma^2) with x_t = encoder(x, logsnr_t).  Between two levels, the mean of
q(z_s | z_t, x) has one term more than in a VDM: alpha_s (x_s - x_t).  So in continuous time the
model estimates, from z_t,

    w = x_t + d x_t / d logsnr,  with the term  1/2 int_0^1 (-d logsnr/dt) SNR E|w - w_hat|^2 dt.

The generative model is the reverse SDE of a VDM whose denoiser is w_hat, with its ancestral steps.
Where x_t moves, the eps_hat of w_hat is off by -alpha / sigma dx_t/dlogsnr.  In the drift of the
SDE, -g^2 score, this adds all of alpha dx_t/dt.  The probability flow has -1/2 g^2 score, and would
get only half of it.  So the probability flow is no flow of the marginals: a deterministic sampler
is biased, and the flow has no likelihood.  An encoder that leaves x alone gives the bound of `vlb`,
to the digit.

Nielsen, Christensen, Dittadi and Winther (2024), DiffEnc: Variational Diffusion with a Learned
Encoder.  They use w_hat = x_hat + sigma^2 x_hat, see `counter_term`.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.objectives import vlb
from vdm_jax.processes import diffuse, tau
from vdm_jax.typing import Array, Decoder, Denoiser, Process, PyTree
from vdm_jax.units import sum_of_terms, sum_over_data

Encoder = Callable[[Array, Array], Array]  # x [B, ...], logsnr [B] -> x_t [B, ...]


def blend(inner: Encoder) -> Encoder:
  """x_t = x + sigmoid(-logsnr) (y - x), y = inner(x, logsnr): the data do not change at t = 0.

  On the `vp` curve this is alpha^2 x + sigma^2 y, the trainable encoder of the paper.
  """
  def encoder(x, logsnr):
    noise = jax.nn.sigmoid(-logsnr).reshape(-1, *(1,) * (x.ndim - 1))
    return x + noise * (inner(x, logsnr) - x)
  return encoder


def counter_term(denoise: Denoiser) -> Denoiser:
  """w_hat = x_hat + sigmoid(-logsnr) x_hat, of the paper; the last term stands for dx_t/dlogsnr.

  For x_t = alpha^2 x on the `vp` curve, the derivative equals that term.
  """
  def countered(z, level, cond=None):
    estimate = denoise(z, level, cond)
    level = level.expand(z)
    more = jax.nn.sigmoid(-level.logsnr) * estimate.x
    # eps = (z - alpha w) / sigma, without dividing what is nearly zero by sigma.
    return estimate._replace(x=estimate.x + more,
                             eps=estimate.eps - level.alpha / level.sigma * more)
  return countered


def _end_terms(encoder, process, x, t, *args):
  at = lambda time: encoder(x, process(time).logsnr)
  return vlb.end_terms(process, at(jnp.zeros_like(t)), at(jnp.ones_like(t)), t, *args)


def continuous(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
               cond: PyTree = None, *, encoder: Encoder, data: Array, decoder: Decoder,
               eps: Array | None = None, eps_0: Array | None = None
               ) -> tuple[Array, dict[str, Array]]:
  """One-sample estimate of the continuous-time bound; `denoise` estimates w.

  x: [B, ...], the data before the encoder.  Other arguments and the result: see `vlb.continuous`.
  """
  level = process(t)
  x_t, change = jax.jvp(lambda logsnr: encoder(x, logsnr), (level.logsnr,),
                        (jnp.ones_like(level.logsnr),))
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  estimate = denoise(diffuse(x_t, eps, level), level, cond)
  wide = level.expand(x)
  # sqrt(SNR) (w - w_hat) in units of the noise, which keeps its digits near the data.
  error = eps - wide.alpha / wide.sigma * change - estimate.eps
  diffusion = sum_over_data(-0.5 * wide.dlogsnr * jnp.square(error))
  terms = {**_end_terms(encoder, process, x, t, keys, data, decoder, eps_0), 'diffusion': diffusion}
  return sum_of_terms(terms), terms


def discrete(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
             cond: PyTree = None, *, steps: int, encoder: Encoder, data: Array, decoder: Decoder,
             eps: Array | None = None, eps_0: Array | None = None
             ) -> tuple[Array, dict[str, Array]]:
  """One-sample estimate of the bound of a chain of `steps` = T ancestral steps with w_hat.

  T/2 |alpha_s (tau (x_t - w_hat) + x_s - x_t)|^2 / (sigma_s^2 tau), with t rounded up to the grid
  and s = t - 1/T.  Arguments and results as in `continuous`.
  """
  grid = jnp.maximum(jnp.ceil(t * steps), 1.0)
  at_t, at_s = process(grid / steps), process((grid - 1.0) / steps)
  x_t, x_s = encoder(x, at_t.logsnr), encoder(x, at_s.logsnr)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  estimate = denoise(diffuse(x_t, eps, at_t), at_t, cond)
  wide, to = at_t.expand(x), at_s.expand(x)
  share = tau(wide, to)
  # In units of the noise at t: x_t - w_hat = sigma_t / alpha_t (eps_hat - eps).
  error = estimate.eps - eps + wide.alpha / wide.sigma * (x_s - x_t) / share
  ratio = jnp.expm1(to.logsnr - wide.logsnr)  # SNR(s) / SNR(t) - 1
  diffusion = sum_over_data(0.5 * steps * ratio * jnp.square(error))
  terms = {**_end_terms(encoder, process, x, t, keys, data, decoder, eps_0), 'diffusion': diffusion}
  return sum_of_terms(terms), terms


__all__ = ['Encoder', 'blend', 'continuous', 'counter_term', 'discrete']
