"""Runge-Kutta methods on the probability flow dz/dt = dalpha x_hat + dsigma eps_hat."""
import jax.numpy as jnp

from vdm_jax.typing import Denoiser, Process, Sampler

_same = lambda z: z


def heun(denoise: Denoiser, process: Process) -> Sampler:
  """The explicit trapezoid rule, of second order: two evaluations a step.

  Karras et al. (2022), algorithm 1, in the time of `process`; like there, a step down to
  sigma = 0 is Euler's, since a network need not be defined there.
  """
  def field(z, level):
    x, eps, _ = denoise(z, level)
    level = level.expand(z)
    return level.dalpha * x + level.dsigma * eps

  def step(keys, z, t, s, _):
    del keys
    at_t, at_s = process(t), process(s)
    slope = field(z, at_t)
    end = field(z + (s - t) * slope, at_s)
    return z + 0.5 * (s - t) * (slope + jnp.where(at_s.expand(z).sigma > 0.0, end, slope))

  return Sampler(_same, step, _same, evaluations=2)
