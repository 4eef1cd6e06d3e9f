"""Weightings w(level) of the denoising loss 1/2 w (-d logsnr/dt) |eps - eps_hat|^2, t ~ U[0, 1].

w = 1 is the variational bound.  In this form (Kingma and Gao 2023) the loss in expectation is
1/2 int w |eps - eps_hat|^2 d logsnr: a weighting that is a function of logsnr alone does not
care about the schedule; one that divides by `dlogsnr` belongs to the schedule it is used with.
"""
import jax
import jax.numpy as jnp

from vdm_jax.typing import Array, Level, Weighting


def vlb(level: Level) -> Array:
  """1: the continuous-time variational bound."""
  return jnp.ones_like(level.logsnr)


def simple(level: Level) -> Array:
  """-2 / dlogsnr: the loss is |eps - eps_hat|^2, L_simple of Ho et al. (2020), eq. 14."""
  return -2.0 / level.dlogsnr


def min_snr(gamma: float = 5.0) -> Weighting:
  """The loss is min(1, gamma / SNR) |eps - eps_hat|^2: Hang et al. (2023), min-SNR-gamma."""
  return lambda level: simple(level) * jnp.minimum(1.0, gamma * jnp.exp(-level.logsnr))


def sigmoid(bias: float = 0.0) -> Weighting:
  """sigmoid(bias - logsnr): Kingma and Gao (2023); Hoogeboom et al. (2024)."""
  return lambda level: jax.nn.sigmoid(bias - level.logsnr)


def edm(mean: float = -1.2, std: float = 1.2, sigma_data: float = 0.5) -> Weighting:
  """The loss of Karras et al. (2022), eq. 8 and table 1, with sigma / alpha log-normal.

  w = 2 N(logsnr; -2 mean, (2 std)^2) (exp(-logsnr) + sigma_data^2) / sigma_data^2.
  """
  def weight(level):
    u = (level.logsnr + 2.0 * mean) / (2.0 * std)
    density = jnp.exp(-0.5 * u * u) / (2.0 * std * jnp.sqrt(2.0 * jnp.pi))
    return 2.0 * density * (jnp.exp(-level.logsnr) + sigma_data**2) / sigma_data**2
  return weight
