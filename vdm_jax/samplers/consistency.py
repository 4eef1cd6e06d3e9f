"""Sampling from a consistency model, in one step or in several.

Song, Dhariwal, Chen and Sutskever (2023), algorithm 1.  The estimate of x is the end of the path
through z_t: z_0 in units of the data, including the noise at t = 0.  One step from pure noise gives
a sample.  Further steps add noise again, and go to another end.
"""
import jax.numpy as jnp

from vdm_jax import processes, random
from vdm_jax.typing import Array, Denoiser, Level, Process, Sampler


def renoise(x: Array, at_0: Level, at_s: Level, keys: Array) -> Array:
  """z_s ~ q(z_s | z_0), where z_0 = alpha_0 x: [B, ...].  keys: [B].

  alpha_s x + sigma_s sqrt(1 - SNR(s)/SNR(0)) noise.  On `ve` this is x + sqrt(s^2 - e^2) noise, as
  in the paper, since z_0 already contains noise of level e.
  """
  noise = random.normal(random.stream(keys, 'noise'), x)
  return processes.renoise(at_0.expand(x).alpha * x, noise, at_0, at_s)


def consistency(denoise: Denoiser, process: Process) -> Sampler:
  """z_s ~ q(z_s | z_0), z_0 = alpha_0 f(z_t): noise is added to the end of the path.

  Song et al. (2023), algorithm 1.  A grid of one step is one-step sampling.  Only the step to t = 0
  adds no noise.  denoise: a consistency model, whose estimate of x is f.
  """
  def step(keys, z, t, s, _):
    return renoise(denoise(z, process(t)).x, process(jnp.zeros_like(t)), process(s), keys)
  return Sampler(step)
