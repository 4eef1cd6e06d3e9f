"""Euler's method in the time of the process, on the probability flow and on the reverse SDE.

With dz = f z dt + g dw forwards, the process runs backwards along (Song et al. 2021, eq. 6 and 13)

  dz = (f z - g^2 score) dt + g dw       and, with the same marginals,
  dz = (f z - g^2 score / 2) dt = (dalpha x_hat + dsigma eps_hat) dt.

The last form is finite on every process.  Where alpha = 0, f and g are infinite, since z tells
nothing about x there; each sampler below states its remedy.  Exponential methods, such as
`first_order` and `exponential_sde`, solve the linear part exactly, and need fewer steps.
"""
import jax
import jax.numpy as jnp
from jax.core import Tracer

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.processes import sde, tau
from vdm_jax.typing import Array, Denoiser, Process, Sampler


def euler(denoise: Denoiser, process: Process) -> Sampler:
  """z_s = z + (s - t) (dalpha x_hat + dsigma eps_hat): the probability flow, of first order.

  One step is exact if the path z_t of each datum is straight and x_hat is constant (rectified
  flow).  With alpha = 1 and sigma proportional to t it is `ddim`, as in Karras et al. (2022),
  section 3.
  """
  def step(keys, z, t, s, _):
    del keys
    level = process(t)
    x, eps, _ = denoise(z, level)
    level = level.expand(z)
    return z + (s - t) * (level.dalpha * x + level.dsigma * eps)
  return Sampler(step)


def euler_maruyama(denoise: Denoiser, process: Process) -> Sampler:
  """z_s = z - h (f z - g^2 score) + g sqrt(h) noise, h = t - s: weak order 1.

  Euler-Maruyama on the reverse SDE of Song et al. (2021), eq. 6.  A step from alpha = 0 (f, g
  infinite), or to sigma = 0 (the noise would stay in the sample), is the ancestral step.
  """
  def step(keys, z, t, s, _):
    level = process(t)
    x, eps, _ = denoise(z, level)
    at_t, at_s = level.expand(z), process(s).expand(z)
    h, (f, g), new = t - s, sde(at_t), tau(at_t, at_s)
    ancestral = (at_t.alpha == 0.0) | (at_s.sigma == 0.0)
    # -g^2 score = 2 (dsigma - f sigma) eps_hat, and f z = dalpha x_hat + f sigma eps_hat.
    a = jnp.where(ancestral, at_s.alpha, at_t.alpha - h * at_t.dalpha)
    b = jnp.where(ancestral, at_s.sigma * jnp.sqrt(1.0 - new),
                  at_t.sigma - h * (2.0 * at_t.dsigma - f * at_t.sigma))
    c = jnp.where(ancestral, at_s.sigma * jnp.sqrt(new), g * jnp.sqrt(h))
    return a * x + b * eps + c * random.normal(random.stream(keys, 'noise'), z)
  return Sampler(step)


def exponential_sde(denoise: Denoiser, process: Process) -> Sampler:
  """z_s = e^h z + 2 (e^h - 1) score + sqrt(e^(2h) - 1) noise, h = log(alpha_s / alpha_t), on `vp`.

  The reverse SDE of dz = -z dh + sqrt(2) dw, solved exactly for the score of z_t, which is frozen
  for the step.  The bound of Chen et al. (2022, arXiv 2209.11215) is for this algorithm: see
  `vdm_jax.convergence`.  On other curves it makes the same samples, in the units of the curve.

  The last step draws noise too, even to sigma = 0.  Data with a smooth density need it there.  Data
  that are points get noise of the standard deviation sqrt(e^(2h) - 1): end the grid with a short
  step, or take `ancestral`.  A grid may not begin where alpha = 0.
  """
  def step(keys, z, t, s, _):
    at_t, at_s = process(t), process(s)
    eps = denoise(z, at_t).eps
    at_t, at_s = at_t.expand(z), at_s.expand(z)
    h = 0.5 * (jax.nn.log_sigmoid(at_s.logsnr) - jax.nn.log_sigmoid(at_t.logsnr))
    here, there = jnp.hypot(at_t.alpha, at_t.sigma), jnp.hypot(at_s.alpha, at_s.sigma)
    noise = random.normal(random.stream(keys, 'noise'), z)
    return there * (jnp.exp(h) * z / here - 2.0 * jnp.expm1(h) * here / at_t.sigma * eps
                    + jnp.sqrt(jnp.expm1(2.0 * h)) * noise)
  return Sampler(step)


def reverse_diffusion(denoise: Denoiser, process: Process, noise: bool = True) -> Sampler:
  """z_s = (2 - a) z + G^2 score + G noise, where q(z_t | z_s) = N(a z_s, G^2): weak order 1.

  Song et al. (2021), appendix E: the reverse SDE in the discretisation of the forward SDE.  Here
  this is the exact transition, a = alpha_t / alpha_s and G^2 = sigma_t^2 tau.  On `vp` a = sqrt(1 -
  beta) and G^2 = beta, on `ve` a = 1 and G^2 = sigma_t^2 - sigma_s^2.  With a and G^2 of the Euler
  step, it is `euler_maruyama`.  A step to sigma_s = 0 draws no noise.

  noise=False: half the score and no noise, the discretised probability flow (appendix D.3), of
  first order.  It cannot start from alpha = 0: a = 0 is no small step, and no noise corrects the
  error.

  Raises InputError if noise=False and the grid starts at alpha = 0; it is checked outside `jit`.
  """
  def plan(times: Array):
    lost = jnp.any(process(times[0]).alpha == 0.0)
    if not noise and not isinstance(lost, Tracer) and bool(lost):
      raise InputError('noise', False, f'reverse_diffusion begins at t = {float(times[0]):.6g}, '
                       'where alpha = 0, and its error there does not vanish with more steps',
                       'begin the grid at a smaller t, or take `ddim` or `euler`')

  def step(keys, z, t, s, _):
    level = process(t)
    eps = denoise(z, level).eps
    at_t, at_s = level.expand(z), process(s).expand(z)
    new = tau(at_t, at_s)
    mean = lambda weight: z + (1.0 - at_t.alpha / at_s.alpha) * z - weight * at_t.sigma * new * eps
    if not noise:
      return mean(0.5)
    std = jnp.where(at_s.sigma > 0.0, at_t.sigma * jnp.sqrt(new), 0.0)
    return mean(1.0) + std * random.normal(random.stream(keys, 'noise'), z)
  return Sampler(step, plan=plan)
