"""Prediction targets, and how a network with a target becomes a denoiser.

Every target in use is linear in (x, eps):  y = a x + b eps.  With z = alpha x + sigma eps, this is
a 2x2 system for x and eps.  So one solve serves all targets; det = alpha b - sigma a.

  name       a                    b
  x          1                    0
  eps        0                    1
  v          -sigma               alpha              Salimans and Ho (2022)
  score      0                    -1 / sigma         the gradient of log q(z_t)
  half_score 0                    -2 / sigma         the score of (x + 1) / 2, of half the size
  flow       -1                   1                  Liu et al. (2022), our direction of time
  velocity   d alpha / dt         d sigma / dt       of the process trained on
  removed    alpha - scale        sigma              Luhman and Luhman (2021): z - scale x
  edm        see `edm`                               Karras et al. (2022), table 1

A target belongs to the network.  It may use the level's alpha, sigma and logsnr, but not how fast
time passes: under another schedule, the same network would then mean something else.  So `velocity`
is given the process that the network was trained on, and finds the time in that process.

In float32 a `v` target is solved to 5e-7 for |logsnr| <= 20.  An `x` target loses the precision of
eps at high logsnr (9e-5 at 13.3), as 1/sigma grows.  An `eps` target loses the precision of x at
low logsnr, as 1/alpha grows.
"""
import jax.numpy as jnp

from vdm_jax.processes import time_of
from vdm_jax.typing import Array, Estimate, Level, Process, Target

__all__ = ['edm', 'eps', 'flow', 'half_score', 'removed', 'score', 'solve', 'v', 'velocity', 'x']

x: Target = lambda l: (jnp.ones_like(l.alpha), jnp.zeros_like(l.alpha))
eps: Target = lambda l: (jnp.zeros_like(l.alpha), jnp.ones_like(l.alpha))
v: Target = lambda l: (-l.sigma, l.alpha)
score: Target = lambda l: (jnp.zeros_like(l.alpha), -1.0 / l.sigma)
half_score: Target = lambda l: (jnp.zeros_like(l.alpha), -2.0 / l.sigma)
flow: Target = lambda l: (-jnp.ones_like(l.alpha), jnp.ones_like(l.alpha))


def velocity(trained_on: Process) -> Target:
  """dz/dt of the conditional path, dalpha x + dsigma eps, in the time of `trained_on`.

  Another schedule has this logsnr at another t, so the time is taken from `trained_on`.
  """
  def target(level):
    own = trained_on(time_of(trained_on, level.logsnr))
    return own.dalpha, own.dsigma
  return target


def removed(scale: float = 1.0) -> Target:
  """z - scale x, the part of z to remove: the student is z - net(z), Luhman and Luhman (2021).

  scale: the factor from x to the network's coding of images, see `decoders.Pixels.to_ends`.
  """
  return lambda l: (l.alpha - scale, l.sigma)


def edm(sigma_data: float = 0.5) -> Target:
  """The preconditioned output F of Karras et al. (2022), table 1 and eq. 7, at any alpha.

  With s = sigma / alpha, the estimate is x = c_skip z / alpha + c_out F.  Hence

      F = ((1 - c_skip) x - c_skip s eps) / c_out
        = (sigma x / sigma_data - alpha sigma_data eps) / sqrt(sigma^2 + alpha^2 sigma_data^2).

  F is `v` in units of sigma_data, up to the sign.  F is as well conditioned as `v` where alpha or
  sigma vanish.  c_in and c_noise belong to the `inputs` of `denoiser`.
  """
  def target(level):
    signal = level.alpha * sigma_data
    std = jnp.hypot(level.sigma, signal)
    return level.sigma / (sigma_data * std), -signal / std
  return target


def solve(target: Target, y: Array, z: Array, level: Level) -> Estimate:
  """(y, z) -> (x, eps).  y, z: [B, ...].  x from `eps` on `vp` is Ho et al. (2020), eq. 15."""
  level = level.expand(z)
  a, b = target(level)
  det = level.alpha * b - level.sigma * a
  return Estimate(x=(b * z - level.sigma * y) / det, eps=(level.alpha * y - a * z) / det)


