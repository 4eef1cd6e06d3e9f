"""Samples with known numbers: inpainting by replacement, RePaint, and samples that follow a path.

Every step leaves z on the next level, and its known part is then replaced.  The methods differ in
the values that replace it.

  `replacement`  fresh noise around the known data, alpha_s y + sigma_s noise
  `repaint`      the same, along times that also go up again
  `blended`      a path that was computed before, such as the inversion of an image

Replacement is biased.  The denoiser sees known numbers whose noise it cannot relate to the step
before, so the rest follows them too little.  For two unit Gaussians of correlation rho, the mean of
the unknown one is rho y.  In many small steps an ancestral sampler reaches (1 - sqrt(1 - rho^2)) y
/ rho instead: 0.5 y for rho = 0.8.  More passes of `repaint` come closer.  `samplers.multiplied`
has a posterior.
"""
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.processes import renoise
from vdm_jax.samplers.sampling import require_one_step, run
from vdm_jax.typing import Array, ArrayLike, Process, Sampler


def replacement(sampler: Sampler, process: Process, y: ArrayLike, known: ArrayLike) -> Sampler:
  """`sampler`; after each step, the known part of z_s becomes alpha_s y + sigma_s noise.

  Song et al. (2021), appendix I.2; the noise is new in every step.  After the last step the known
  part is alpha_s y exactly.

  y: broadcasts to z, any finite number where it is not known.  known: bool, broadcasts to z.
  Raises InputError if the sampler remembers more than z.
  """
  require_one_step(sampler, 'sampler', 'replacement')

  def plan(times):
    # Also of a padded grid, and of a path that meets its last level before: only at the very end.
    over = jnp.flip(jnp.cumprod(jnp.flip(times == times[-1])))
    return sampler.plan(times), over[1:]

  def step(keys, z, t, s, plan):
    inner, last = plan
    z = sampler.step(keys, z, t, s, inner)
    at_s = process(s).expand(z)
    noise = (1 - last) * random.normal(random.stream(keys, 'known'), z)
    return jnp.where(known, at_s.alpha * y + at_s.sigma * noise, z)

  return sampler._replace(step=step, plan=plan)


def jumps(times: ArrayLike, length: int = 10, visits: int = 10) -> np.ndarray:
  """The path of RePaint: `times` [N + 1], with walks back up by `length` steps.

  Lugmayr et al. (2022), section 4.2.  At every length-th level from the data (but
  not at the data themselves, and not where fewer than `length` levels are above), the path goes up
  `length` levels and down again, `visits` - 1 times.  With length=1 each step is made `visits`
  times.  The defaults with 250 steps are published: 2,410 steps down.

  Raises InputError: numbers below 1; a length of more than the grid has.
  """
  times = np.asarray(times)
  n = len(times) - 1
  require_at_least('length', length)
  require_at_least('visits', visits)
  require(length < n, 'length', length, f'the grid has {n} steps', 'jump by fewer')
  # Levels are counted from the first step above the data, as in the paper's code.
  left = dict.fromkeys(range(0, n - length, length), visits - 1)
  level, path = n - 1, [n - 1]
  while level >= 0:
    level -= 1
    path.append(level)
    if left.get(level):
      left[level] -= 1
      path += range(level + 1, level + length + 1)
      level += length
  return times[n - 1 - np.array(path)]


def walking(sampler: Sampler, process: Process, y: ArrayLike, known: ArrayLike) -> Sampler:
  """`replacement`, which may also go up: a step to a later time draws z from q(z_s | z_t).

  Raises InputError as `replacement` does.
  """
  inner = replacement(sampler, process, y, known)

  def step(keys, z, t, s, plan):
    up = lambda: renoise(z, random.normal(random.stream(keys, 'up'), z), process(t), process(s))
    return jax.lax.cond(s > t, up, lambda: inner.step(keys, z, t, s, plan))

  return inner._replace(step=step)


def repaint(sampler: Sampler, process: Process, keys: Array, z: Array, path: ArrayLike,
            y: ArrayLike, known: ArrayLike) -> Array:
  """z_1 -> a sample with the known part y, along a path of times that go down and up: [B, ...].

  Lugmayr et al. (2022), algorithm 1.  Walks down are those of `replacement`, by their paper with
  the `ancestral` sampler.  Walks up draw from q(z_t | z_s).  They let the unknown part see the same
  level again.

  path: times of [0, 1], e.g. by `jumps`.  keys: [B]; y, known: as in `replacement`.
  Raises InputError: as `replacement`; a path that is not one-dimensional, or leaves [0, 1].
  """
  path = np.asarray(path)
  require(path.ndim == 1 and len(path) > 1, 'path', None, f'its shape is {path.shape}',
          'give one dimension and at least two times')
  require(bool(np.all((path >= 0.0) & (path <= 1.0))), 'path', None, 'it leaves [0, 1]',
          'give times in [0, 1]')
  return run(walking(sampler, process, y, known), keys, z, path)


def blended(sampler: Sampler, path: Array, mask: ArrayLike) -> Sampler:
  """`sampler`; after each step, z is replaced by the z of `path` where the mask is False.

  Both are at the level to which the step leads.  So at the end the sample is path[-1] there.

  path: [N + 1, B, ...], z at the times of the grid, down from its first.  mask: bool, broadcasts to
  z.  Raises InputError if the sampler remembers more than z, or if path has another length.
  """
  require_one_step(sampler, 'sampler', 'blending')

  def plan(times):
    if len(path) != len(times):
      raise InputError('path', None, f'it has {len(path)} latents for {len(times)} times',
                       'give one for each time of the grid, the noisiest first')
    return sampler.plan(times), path[1:]

  def step(keys, z, t, s, plan):
    inner, other = plan
    return jnp.where(mask, sampler.step(keys, z, t, s, inner), other)

  return sampler._replace(step=step, plan=plan)
