"""Weightings w(level) of the denoising loss 1/2 w (-d logsnr/dt) |eps - eps_hat|^2, t ~ U[0, 1].

w = 1 is the variational bound.  In this form (Kingma and Gao 2023) the loss in expectation is
1/2 int w |eps - eps_hat|^2 d logsnr.  If a weighting is a function of logsnr alone, this loss does
not depend on the schedule.  A weighting that divides by `dlogsnr` depends on its schedule.

The squared errors of all targets are the same up to a factor: on every curve,
|eps - eps_hat|^2 = SNR |x - x_hat|^2, and on `vp` |v - v_hat|^2 = (SNR + 1) |x - x_hat|^2.  So a
weighting does not depend on the network's target.  With uniform times the loss is

  name            |eps - eps_hat|^2 times      |x - x_hat|^2 times
  vlb             -1/2 dlogsnr/dt              -1/2 dSNR/dt
  simple          1                            SNR
  truncated_snr   max(1, 1 / SNR)              max(SNR, 1)
  snr_plus_one    1 + 1 / SNR                  SNR + 1
  min_snr         min(1, gamma / SNR)          min(SNR, gamma)
  p2              1 / (k + SNR)^gamma          SNR / (k + SNR)^gamma

`sigmoid` and `edm` are functions of logsnr times the first row, `vlb`.

`OF_X` has the last column by name, for losses of x_hat that are evaluated where alpha is 0, such as
the losses of distillation.  There SNR is 0, so these weights use no quotient of derivatives and no
eps.
"""
from collections.abc import Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from vdm_jax.typing import Array, Level, Weighting

__all__ = ['OF_X', 'edm', 'min_snr', 'p2', 'sigmoid', 'simple', 'snr_plus_one', 'truncated_snr',
           'vlb']


def vlb(level: Level) -> Array:
  """1: the continuous-time variational bound."""
  return jnp.ones_like(level.logsnr)


def simple(level: Level) -> Array:
  """-2 / dlogsnr: the loss is |eps - eps_hat|^2, L_simple of Ho et al. (2020), eq. 14.

  It equals SNR |x - x_hat|^2, the `SNR` weighting of Salimans and Ho (2022), section 4.
  """
  return -2.0 / level.dlogsnr


def truncated_snr(level: Level) -> Array:
  """The loss is max(|x - x_hat|^2, |eps - eps_hat|^2) = max(SNR, 1) |x - x_hat|^2.

  Salimans and Ho (2022), section 4.  Unlike the weight of `simple`, it is not 0 without signal.
  """
  return simple(level) * jnp.maximum(1.0, jnp.exp(-level.logsnr))


def snr_plus_one(level: Level) -> Array:
  """The loss is (SNR + 1) |x - x_hat|^2, on `vp` |v - v_hat|^2: Salimans and Ho (2022), section 4.
  """
  return simple(level) * (1.0 + jnp.exp(-level.logsnr))


def min_snr(gamma: float = 5.0) -> Weighting:
  """The loss is min(SNR, gamma) |x - x_hat|^2: Hang et al. (2023), section 3.4, min-SNR-gamma."""
  return lambda level: simple(level) * jnp.minimum(1.0, gamma * jnp.exp(-level.logsnr))


def p2(gamma: float = 1.0, k: float = 1.0) -> Weighting:
  """The loss is |eps - eps_hat|^2 / (k + SNR)^gamma: Choi et al. (2022), perception prioritised.

  The authors use k = 1 and gamma 1 or 0.5.
  """
  return lambda level: simple(level) * (k + jnp.exp(level.logsnr))**-gamma


def sigmoid(bias: float = 0.0) -> Weighting:
  """sigmoid(bias - logsnr): Kingma and Gao (2023), VDM++; Hoogeboom et al. (2024).

  Hoogeboom et al. state it for the error of x: SNR sigmoid(bias - logsnr) is exp(bias)
  sigmoid(logsnr - bias).  The weight decreases with logsnr, so the loss is a mean of bounds on
  noisy data (Kingma and Gao).
  """
  return lambda level: jax.nn.sigmoid(bias - level.logsnr)


def edm(mean: float = -1.2, std: float = 1.2, sigma_data: float = 0.5) -> Weighting:
  """The loss of Karras et al. (2022), eq. 8 and table 1, with sigma / alpha log-normal.

  w = 2 N(logsnr; -2 mean, (2 std)^2) (exp(-logsnr) + sigma_data^2) / sigma_data^2, for even times.
  `objectives.edm` draws the noise levels from this density instead.
  """
  def weight(level):
    u = (level.logsnr + 2.0 * mean) / (2.0 * std)
    density = jnp.exp(-0.5 * u * u) / (2.0 * std * jnp.sqrt(2.0 * jnp.pi))
    return 2.0 * density * (jnp.exp(-level.logsnr) + sigma_data**2) / sigma_data**2
  return weight


# level -> the factor of |x - x_hat|^2; finite wherever sigma > 0.
OF_X: Mapping[str, Weighting] = MappingProxyType({
    'constant': lambda level: jnp.ones_like(level.logsnr),
    'snr': lambda level: jnp.exp(level.logsnr),
    'truncated_snr': lambda level: jnp.maximum(jnp.exp(level.logsnr), 1.0),
    'snr_plus_one': lambda level: jnp.exp(level.logsnr) + 1.0,
})
