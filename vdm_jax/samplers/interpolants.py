"""Sampling by a drift and a score: the flow of an interpolant, and its SDEs.

    dz = (drift - e s) dt + sqrt(2 e) dw     down, from y at t = 1 to x at t = 0
    dz = (drift + e s) dt + sqrt(2 e) dw     up

have the marginals of the interpolant for every e(t) >= 0; e = 0 is the flow.  Albergo, Boffi and
Vanden-Eijnden (2023), eq. 2.32 to 2.34.  A Gaussian process is a special case (`of_process`); with
e = g^2 / 2 its SDE is the reverse SDE of Song et al. (2021).  (The SDE sampler of the public code
of rectified flow scales the noise without the matching score, so it does not keep the marginals.)
"""
from collections.abc import Callable

import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.interpolants import Drift, Drifts
from vdm_jax.typing import Array, Denoiser, Process, PyTree, Sampler

Diffusivity = Callable[[Array], Array]  # t -> e(t)


def none(t: Array) -> Array:
  """e = 0: the flow."""
  return jnp.zeros_like(t)


def euler(drifts: Drifts, diffusivity: Diffusivity = none, cond: PyTree = None) -> Sampler:
  """z + (s - t) drift + |s - t| e score + sqrt(2 e |s - t|) noise, up or down.

  Euler's method for the flow, Euler and Maruyama's for e > 0: weak order 1.  e is taken at the
  start of a step, so a step to an end with an infinite score does not need that score.  At the
  start of a step from such an end, e has to be 0; for example, c gamma^2 is 0 there.  A step to
  t = 0 or t = 1 draws no noise.
  """
  def step(keys, z, t, s, _):
    drift, score = drifts(z, t, cond)
    e = diffusivity(t)
    length = jnp.abs(s - t)
    z_s = z + (s - t) * drift + jnp.where(e > 0.0, length * e * score, 0.0)
    inside = (s > 0.0) & (s < 1.0)
    std = jnp.where(inside, jnp.sqrt(2.0 * e * length), 0.0)
    return z_s + std * random.normal(random.stream(keys, 'noise'), z)
  return Sampler(step)


def of_process(denoise: Denoiser, process: Process) -> Drifts:
  """The drift and the score of a denoiser: (dalpha x_hat + dsigma eps_hat, -eps_hat / sigma)."""
  def drifts(z, t, cond=None):
    level = process(t)
    estimate, level = denoise(z, level, cond), level.expand(z)
    return Drift(level.dalpha * estimate.x + level.dsigma * estimate.eps,
                 -estimate.eps / level.sigma)
  return drifts
