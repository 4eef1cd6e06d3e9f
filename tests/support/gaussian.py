"""Data that are N(0, 1/4) in one dimension: what an optimal model of them has."""
import jax.numpy as jnp
import numpy as np

from vdm_jax import oracles
from vdm_jax.samplers.analytic import Variances

STD = 0.5


def exact_decoder(data, z, level):
  """log q(x | z_0) for the Gaussian data: with it nothing is lost at t = 0."""
  level = level.expand(z)
  mean = oracles.Gaussian(0.0, STD)(z, level).x
  variance = STD**2 * level.sigma**2 / (level.alpha**2 * STD**2 + level.sigma**2)
  return jnp.sum(-0.5 * ((data - mean)**2 / variance + jnp.log(2 * jnp.pi * variance)), axis=-1)


def true_variances(steps):
  """Var(v | z_t) of the Gaussian at a chain's levels: Var(x | z_t) / sigmoid(-logsnr)."""
  logsnr = np.linspace(-5.0, 13.3, steps + 1)
  of_x = 1.0 / (1.0 / STD**2 + np.exp(logsnr))
  return Variances(jnp.asarray(logsnr), jnp.asarray(of_x * (1.0 + np.exp(logsnr))), 0.0)
