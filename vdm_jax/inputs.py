"""A published network's own view of its input: (z, level) -> (the z it reads, its time [B]).

A denoiser is told z and a `Level`.  A network was trained on one process and reads what its paper
fed it: the step of a chain, the time of an SDE, a noise level, a rescaled z.  All of these are
functions of logsnr and of z, so a network serves every schedule on its own curve, and any other
curve by `predictions.on_curve`.

  name     z                time
  logsnr   z                logsnr
  scaled   z                1000 (max - logsnr) / (max - min)
  chain    z                the step of a chain, 0 the least noisy    Ho et al. (2020), and after
  sde      z                scale t, t the time of that process       Song et al. (2021), VP
  sigma    z / alpha        sigma / alpha                             Song et al. (2021), VE
  edm      c_in z / alpha   c_noise = log(sigma / alpha) / 4          Karras et al. (2022), table 1
"""
from collections.abc import Callable

import jax.numpy as jnp

from vdm_jax.processes import time_of
from vdm_jax.schedules import TableSchedule
from vdm_jax.typing import Array, Level, Process

Inputs = Callable[[Array, Level], tuple[Array, Array]]


def _each(u: Array, z: Array) -> Array:
  """One number for each example: [] or [B] -> [B]."""
  return jnp.broadcast_to(u, z.shape[:1])


def logsnr(z: Array, level: Level) -> tuple[Array, Array]:
  return z, _each(level.logsnr, z)


def scaled(logsnr_max: float, logsnr_min: float, scale: float = 1000.0) -> Inputs:
  """The range of a schedule as [0, scale]: a time for sinusoidal embeddings under any schedule."""
  def inputs(z, level):
    return z, _each(scale * (logsnr_max - level.logsnr) / (logsnr_max - logsnr_min), z)
  return inputs


def chain(table: TableSchedule, scale: float = 1.0) -> Inputs:
  """The step of a chain whose entry 0 is clean data: entry i is the timestep i - 1 of public code.

  Between two entries it is a real number, and beyond them the nearest step.  scale: of networks
  that read a multiple of it.
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


def sigma(z: Array, level: Level) -> tuple[Array, Array]:
  """alpha = 1, as on the curve `ve`, and the noise level there."""
  return z / level.expand(z).alpha, _each(level.sigma / level.alpha, z)


def edm(sigma_data: float = 0.5) -> Inputs:
  """c_in and c_noise of Karras et al. (2022), table 1, at any alpha; for `predictions.edm`."""
  def inputs(z, level):
    own = level.expand(z)
    z = z / jnp.hypot(own.sigma, own.alpha * sigma_data)
    return z, _each(-0.125 * level.logsnr, z)
  return inputs
