"""Truncated diffusion: a chain that ends before the data are lost, and a prior for its end.

Zheng, He, Chen and Zhou (2023), `Truncated Diffusion Probabilistic Models and Diffusion-based
Adversarial Auto-Encoders`.  A chain of T steps makes only its first T' steps, at a fraction of the
cost.  One prior p(z_T') replaces the rest.  It should match q(z_T') = E q(z_T' | x), which is not
N(0, 1):

    L = KL(q(z_T' | x) || p(z_T')) + the other terms of the chain     explicit: a bound
    L = D(q(z_T'), p(z_T'))        + the other terms                  implicit: adversarial

The mean of the first KL is KL(q(z_T') || p) plus the information that z_T' has about x, which no
prior changes.  So the best Gaussian has the mean and the variance of z_T'.  For Gaussian data this
prior is exact, whatever T' is.  For other data it fails as T' falls, and a generator may not.
"""
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.objectives.variational import Normal, gaussian_kl
from vdm_jax.processes import diffuse
from vdm_jax.typing import Array, Level
from vdm_jax.units import sum_over_data


def latent(x: Array, level: Level, prior: Normal) -> Array:
  """KL(q(z | x) || p(z)) in nats, [B].  x: [B, ...]; level: at the chain's end; prior: p."""
  level = level.expand(x)
  return gaussian_kl(Normal(level.alpha * x, jnp.broadcast_to(level.sigma, x.shape)), prior)


def truth(x: Array, level: Level, keys: Array) -> Array:
  """z ~ q(z | x), [B, ...], with noise of its own: the draws that a prior should match."""
  return diffuse(x, random.normal(random.stream(keys, 'z_truth'), x), level)


def energy_distance(fake: Array, other: Array, real: Array) -> Array:
  """|p - q| + |p' - q| - |p - p'| - |q - q'|, [B]: on average the energy distance to q(z_T').

  Székely and Rizzo (2013).  The distance is 0 only if p(z_T') = q(z_T').

  fake, other: p and p', two draws from a prior for each example, [B, ...].  real: q, from `truth`.
  q' is the q of the example before, so the examples must be in a random order.
  """
  apart = lambda a, b: jnp.sqrt(sum_over_data(jnp.square(a - b)))
  return (apart(fake, real) + apart(other, real) - apart(fake, other)
          - apart(real, jnp.roll(real, 1, axis=0)))
