"""Data that are N(0, 1/4) in one dimension, or N(0, 1): what an optimal model of them has."""
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


def chain_nats(betas, share=None):
  """The bound of a chain that begins at data N(0, 1), with the exact denoiser: nats a dimension.

  q(z_s | z_t) = N(sqrt(1 - beta) z_t, beta) for such data, so a kernel of the variance r beta costs
  1/2 (log r + 1 / r - 1) more than the entropy of the data, in each step.

  share: v of the variance beta^v beta_tilde^(1 - v).  None: beta, and the published variance in the
  first step, where v is 0.
  """
  signal = np.cumprod(1.0 - np.asarray(betas, np.float64))
  noise = 1.0 - signal
  first = 1.0 - signal[1] * noise[0] / (noise[1] * signal[0])
  r = np.concatenate([[first**(1.0 - (share or 0.0))],
                      (noise[:-1] / noise[1:])**(0.0 if share is None else 1.0 - share)])
  return 0.5 * np.log(2 * np.pi * np.e) + 0.5 * np.sum(np.log(r) + 1.0 / r - 1.0)
