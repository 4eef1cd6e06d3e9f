"""How a published network reads its input: (z, level) -> (the z it reads, its time [B]).

A denoiser is given z and a `Level`.  A network was trained on one process and reads the input of
its paper: the step of a chain, the time of an SDE, a noise level, a rescaled z.  All of these are
functions of logsnr and z.  So a network serves every schedule on its own curve.  With
`denoisers.on_curve`, it serves any other curve too.

  name     z                time
  logsnr   z                logsnr
  scaled   z                1000 (max - logsnr) / (max - min)
  chain    z                the step of a chain, 0 the least noisy    Ho et al. (2020), and later
  sde      z                scale t, t the time of that process       Song et al. (2021), VP
  lines    z                scale t, t the time of rectified flow     Liu et al. (2023)
  angle    z                scale arctan(sigma / alpha) 2 / pi        Salimans and Ho (2022)
  sigma    scale z + shift  sigma / 2, or a multiple of it            Song and Ermon (2020)
  edm      c_in z           c_noise = log(sigma) / 4                  Karras et al. (2022), table 1

The last two rows are for processes that add noise to unscaled data: `ve` or `Scaled(ve, ...)`.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax.processes import time_of
from vdm_jax.schedules import TableSchedule
from vdm_jax.typing import Array, Level, Process, Scalar

__all__ = ['Inputs', 'angle', 'chain', 'edm', 'lines', 'logsnr', 'scaled', 'sde', 'sigma']

Inputs = Callable[[Array, Level], tuple[Array, Array]]


def _each(u: Array, z: Array) -> Array:
  """One number for each example: [] or [B] -> [B]."""
  return jnp.broadcast_to(u, z.shape[:1])


def logsnr(z: Array, level: Level) -> tuple[Array, Array]:
  return z, _each(level.logsnr, z)


def scaled(logsnr_max: float, logsnr_min: float, scale: float = 1000.0) -> Inputs:
  """Maps a schedule's range to [0, scale]: a time for sinusoidal embeddings under any schedule."""
  def inputs(z, level):
    return z, _each(scale * (logsnr_max - level.logsnr) / (logsnr_max - logsnr_min), z)
  return inputs


def chain(table: TableSchedule, scale: float = 1.0) -> Inputs:
  """The step of a chain whose entry 0 is clean data; entry i is the timestep i - 1 of public code.

  Between two entries, the step is a real number.  Beyond the ends, it is the nearest step.

  scale: a factor of the step, for networks that read a multiple of the step.
  """
  def inputs(z, level):
    step = jnp.clip(table.index(level.logsnr) - 1.0, 0.0, table.steps - 1.0)
    return z, _each(scale * step, z)
  return inputs


def sde(trained_on: Process, scale: float = 999.0) -> Inputs:
  """The time at which `trained_on` has this logsnr, in [0, scale]."""
  def inputs(z, level):
    return z, _each(scale * time_of(trained_on, level.logsnr), z)
  return inputs


def lines(scale: float = 1.0) -> Inputs:
  """The time at which rectified flow has this logsnr, in [0, scale]: sigma / (alpha + sigma).

  The public code of Liu et al. (2023) has scale 999.
  """
  def inputs(z, level):
    return z, _each(scale * jax.nn.sigmoid(-0.5 * level.logsnr), z)
  return inputs


def angle(scale: float = 1000.0) -> Inputs:
  """The time of alpha = cos(pi t / 2), sigma = sin(pi t / 2), in [0, scale].

  In the public code of Salimans and Ho (2022), the network reads this time.
  """
  def inputs(z, level):
    return z, _each(scale * 2.0 / jnp.pi * jnp.arctan(jnp.exp(-0.5 * level.logsnr)), z)
  return inputs


def sigma(of_sigma: float = 0.5, scale: float = 1.0, shift: float = 0.0) -> Inputs:
  """sigma times `of_sigma`; with `of_sigma` = 1/2, this is the noise level of images in [0, 1].

  scale, shift: the network reads scale z + shift.  Both are 1/2 for a network that reads images in
  [0, 1].
  """
  def inputs(z, level):
    return scale * z + shift, _each(of_sigma * level.sigma, z)
  return inputs


def edm(sigma_data: Scalar = 0.5) -> Inputs:
  """c_in = 1 / sqrt(sigma^2 + sigma_data^2) and c_noise, of Karras et al. (2022), table 1.

  sigma_data: the standard deviation of the data alpha x that the network was trained on.
  """
  def inputs(z, level):
    return z / jnp.hypot(level.expand(z).sigma, sigma_data), _each(0.25 * jnp.log(level.sigma), z)
  return inputs
