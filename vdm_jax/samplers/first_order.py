"""One evaluation per step, at the start of the step: z_s = a x_hat + b eps_hat + c noise.

`ddim` chooses how much of the noise in z_s is drawn anew, and keeps the variance of that noise.
`ancestral` draws from the posterior at x_hat, with the posterior's variance or a larger one.  At
eta = 1 and share = 0 the two are equal.  `ddim_to_x` is `ddim` that ends in its last estimate of x.
`noisier_ddim` is `ddim` that inverts with less error.
"""
from collections.abc import Callable

import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.processes import interpolated_std, tau
from vdm_jax.typing import Array, Denoiser, Estimate, Level, Process, Sampler


def transition(estimate: Estimate, at_t: Level, at_s: Level, keys: Array | None = None,
               eta: float = 0.0) -> Array:
  """alpha_s x_hat + sigma_s (sqrt(1 - eta^2 tau) eps_hat + eta sqrt(tau) noise); see `ddim`.

  The first-order part of every exponential integrator.  keys: [B], used where eta is not 0.
  """
  x, eps, _ = estimate
  at_t, at_s = at_t.expand(x), at_s.expand(x)
  if eta != 0.0:
    if keys is None:
      raise InputError('keys', None, f'eta = {eta} draws noise', 'give a key for each example, [B]')
    share = tau(at_t, at_s)
    noise = random.normal(random.stream(keys, 'noise'), x)
    eps = jnp.sqrt(1.0 - eta**2 * share) * eps + eta * jnp.sqrt(share) * noise
  return at_s.alpha * x + at_s.sigma * eps


def ddim(denoise: Denoiser, process: Process, eta: float = 0.0) -> Sampler:
  """z_s = alpha_s x_hat + sigma_s (sqrt(1 - eta^2 tau) eps_hat + eta sqrt(tau) noise).

  Song, Meng and Ermon (2021), eq. 12 and 16, on any process; tau = 1 - SNR(t)/SNR(s).  eta = 0 is
  deterministic and a first-order method for the probability flow (so `encode` inverts it to that
  order).  eta = 1 is `ancestral`.
  Raises InputError if eta is outside [0, 1].
  """
  if not 0.0 <= eta <= 1.0:
    raise InputError('eta', eta, 'it must be from 0 (no noise) to 1 (ancestral)',
                     'give such a number')

  def step(keys, z, t, s, _):
    at_t, at_s = process(t), process(s)
    return transition(denoise(z, at_t), at_t, at_s, keys, eta)
  return Sampler(step)


def ddim_to_x(denoise: Denoiser, process: Process) -> Sampler:
  """DDIM whose last step is z_s = alpha_s x_hat: samples are the last estimate of x itself.

  The sampler that Salimans and Ho (2022) distil ends in this way, in their public code.  It makes
  no further evaluation, and does not use the last level of the grid.  If sigma vanishes at the end
  of the grid, it is `ddim`.
  """
  def step(keys, z, t, s, last):
    at_t, at_s = process(t), process(s)
    estimate = denoise(z, at_t)
    end = estimate._replace(eps=jnp.where(last, 0.0, estimate.eps))
    return transition(end, at_t, at_s)
  return Sampler(step, plan=lambda times: times[1:] == times[-1])


def noisier_ddim(denoise: Denoiser, process: Process) -> Sampler:
  """DDIM that evaluates the network at the noisier of its two levels, on the way up too.

  On the way down it is `ddim`.  On the way up it evaluates the network at the level to which the
  step leads, on the z of the level before:

    z_s = alpha_s x + sigma_s eps,  eps = eps_hat(z_t, level s),  x = (z_t - sigma_t eps) / alpha_t

  Public editing code inverts in this way (Mokady et al. 2023, for example).  A round trip then
  uses the same levels in both directions, and loses less than with `ddim`, which inverts at the
  level where it is.  `encode` with it may not begin where alpha = 0.
  """
  def step(keys, z, t, s, _):
    at_t, at_s = process(t), process(s)
    estimate = denoise(z, process(jnp.maximum(t, s)))
    wide, up = at_t.expand(z), s > t
    x = (z - wide.sigma * estimate.eps) / jnp.where(up, wide.alpha, 1.0)
    return transition(estimate._replace(x=jnp.where(up, x, estimate.x)), at_t, at_s)
  return Sampler(step)


def ancestral(denoise: Denoiser, process: Process,
              share: float | Callable[[Estimate], Array] = 0.0,
              gradient: Callable[[Array, Level], Array] | None = None,
              temperature: float = 1.0) -> Sampler:
  """z_s ~ N(mean of q(z_s | z_t, x = x_hat), beta^v beta_tilde^(1 - v)) with v = `share`.

  beta_tilde = sigma_s^2 tau is the variance of the posterior; beta = sigma_t^2 tau is the variance
  of q(z_t | z_s).  Ho et al. (2020), algorithm 2 and section 3.2: v = 0 ("fixed small") is best for
  a single datum, v = 1 ("fixed large") for data of unit variance.  Between them, Nichol and
  Dhariwal (2021), eq. 15; `share` may be a function of the estimate, `processes.learned_share`.
  v = 0 is also Kingma et al. (2021), eq. 9 and appendix A.4.  The ancestral sampler of Song et al.
  (2021) for `vp` has v = 1, and their sampler for `ve` has v = 0.

  A step to sigma_s = 0 draws no noise, whatever v, like the last step of the algorithm.  beta is in
  the units of the curve, so only v = 0 gives the same samples on all curves.

  gradient: (z_t, level of t) -> [B, ...], for guidance; the mean moves by variance x gradient.
  Dhariwal and Nichol (2021), algorithm 1; Nichol et al. (2021), section 2.4, with CLIP.
  `guidance.classifier` moves it by (alpha_s / alpha_t) beta x gradient, whatever v.

  temperature: a factor of the noise of every step.  Ajay et al. (2023) halve it, and the noise of
  z_1 too: see `sampling.tempered`.
  """
  def step(keys, z, t, s, _):
    at_t, at_s = process(t), process(s)
    estimate = denoise(z, at_t)
    v = share(estimate) if callable(share) else share
    slope = None if gradient is None else gradient(z, at_t)
    at_t, at_s = at_t.expand(z), at_s.expand(z)
    std = interpolated_std(at_t, at_s, v)
    std = jnp.where(at_s.sigma > 0.0, std, 0.0)
    eps_scale = jnp.sqrt(1.0 - tau(at_t, at_s))
    mean = at_s.alpha * estimate.x + at_s.sigma * eps_scale * estimate.eps
    if slope is not None:
      mean += jnp.square(std) * slope
    return mean + temperature * std * random.normal(random.stream(keys, 'noise'), z)
  return Sampler(step)
