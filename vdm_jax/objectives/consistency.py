"""Consistency models: a function that is constant along each path of the probability flow.

Song, Dhariwal, Chen and Sutskever (2023).  f(z_t, t) is the end of the path through z_t, at the
smallest noise level, where f is the identity.  It is learned from pairs of neighbours.  With t and
s the times of two neighbouring levels on a grid of N, the loss is

    w d(f(z_t, t), f_target(z_s, s)).

In distillation (algorithm 2), one step of a solver on a teacher makes z_s of z_t.  In training
(algorithm 3), z_s is made of the same datum and the same noise as z_t.  f_target has averaged
parameters and no gradient.  A linear f learns the same function from Euler's step and from the
datum; a test shows it.

The levels are the levels of `schedules.KarrasSigma` on `ve`, so the grid of N is i / (N - 1) in t.
The code serves any curve without infinite levels.  x is f in units of the data.
"""
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random, weightings
from vdm_jax.errors import InputError, require, require_choice
from vdm_jax.inputs import Inputs, edm
from vdm_jax.objectives.metrics import Metric, l2
from vdm_jax.objectives.vlb import step_number
from vdm_jax.processes import diffuse
from vdm_jax.typing import (
    Array,
    Denoiser,
    Estimate,
    Level,
    Process,
    PyTree,
    Scalar,
    Weighting,
)

# (teacher, z_t, level of t, level of s, cond) -> z_s
Solver = Callable[[Denoiser, Array, Level, Level, PyTree], Array]


def function(net: Callable, process: Process, *, sigma_data: float = 0.5,
             inputs: Inputs | None = None) -> Denoiser:
  """f = c_skip z + c_out net, as a Denoiser whose x is f in units of the data.

  Song et al. (2023), eq. 5 and appendix C: with r = sigma / alpha and e = r at t = 0,

      c_skip = sd^2 / ((r - e)^2 + sd^2),    c_out = sd (r - e) / sqrt(r^2 + sd^2),

  so that f(z, 0) = z / alpha for any network.  It is no `Target`: a target would have to be solved
  for x at t = 0, where the network has no weight.

  net: (z, its time, cond) -> [B, ...].  sigma_data: the std of x.  inputs: by default c_in and
  c_noise of `inputs.edm`, for alpha x at t = 0.
  """
  first = process(jnp.zeros(()))
  read = inputs or edm(sigma_data * first.alpha)

  def denoise(z: Array, level: Level, cond: PyTree = None) -> Estimate:
    out = net(*read(z, level), cond)
    require(jnp.shape(out) == z.shape, None, None, f'the network returns {list(jnp.shape(out))} '
            f'for an input of {list(z.shape)}', 'let it return as many channels as it reads')
    wide = level.expand(z)
    signal = wide.alpha * sigma_data
    # alpha (r - e).  At t = 0 it is 0, and rounding must not make it negative.
    beyond = jnp.maximum(wide.sigma - wide.alpha * first.sigma / first.alpha, 0.0)
    x = (wide.alpha * sigma_data**2 * z / (jnp.square(beyond) + jnp.square(signal))
         + sigma_data * beyond / jnp.hypot(wide.sigma, signal) * out)
    noisy = wide.sigma > 0.0
    eps = jnp.where(noisy, (z - wide.alpha * x) / jnp.where(noisy, wide.sigma, 1.0), 0.0)
    return Estimate(x, eps)
  return denoise


# ------------------------------------------------------------------ solvers


def euler(teacher: Denoiser, z: Array, at_t: Level, at_s: Level, cond: PyTree = None) -> Array:
  """z_s = alpha_s x_hat + sigma_s eps_hat: Euler's step in sigma / alpha, which is DDIM's step."""
  estimate = teacher(z, at_t, cond)
  return diffuse(estimate.x, estimate.eps, at_s)


def heun(teacher: Denoiser, z: Array, at_t: Level, at_s: Level, cond: PyTree = None) -> Array:
  """Heun's step in sigma / alpha, of second order: two evaluations of the teacher.

  Karras et al. (2022), algorithm 1; the solver of Song et al. (2023).
  """
  first = teacher(z, at_t, cond)
  z_s = diffuse(first.x, first.eps, at_s)
  second = teacher(z_s, at_s, cond)
  to, here = at_s.expand(z), at_t.expand(z)
  # The change of sigma / alpha, in units of alpha_s.
  change = to.sigma - to.alpha * here.sigma / here.alpha
  return z_s + 0.5 * change * (second.eps - first.eps)


SOLVERS = {'euler': euler, 'heun': heun}


# --------------------------------------------------------------- objectives


def objective(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, target: Denoiser, levels: Scalar,
              teacher: Denoiser | None = None, solver: Solver = heun,
              metric: Metric = l2, weight: Weighting = weightings.OF_X['constant'],
              eps: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """w d(f(z_t, t), f_target(z_s, s)): consistency distillation, or training if `teacher` is None.

  Song et al. (2023): eq. 7 and algorithm 2 for distillation, eq. 10 and algorithm 3 for training.

  Args:
    x: [B, ...]; t, keys: [B].
    target: f with the target parameters; no gradient goes through it.
    levels: N >= 2, which may be traced.  t is rounded up to i / (N - 1), s is the level below.
    teacher: a diffusion model; `solver` makes the step on its flow.  If None, z_s is made of x and
      the noise of z_t.
    metric: d in units of the data, a sum over the dimensions.
    weight: a function of the level of t, of `weightings.OF_X`; constant in the paper.
    eps: the noise, drawn from `keys` if not given.
  Returns [B] and {'x_error'}, the square of the distance.
  """
  grid = step_number(t, levels - 1)
  at_t, at_s = (process((grid - back) / (levels - 1)) for back in (0.0, 1.0))
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  z = diffuse(x, eps, at_t)
  z_s = diffuse(x, eps, at_s) if teacher is None else solver(teacher, z, at_t, at_s, cond)
  wanted = jax.lax.stop_gradient(target(jax.lax.stop_gradient(z_s), at_s, cond).x)
  got = denoise(z, at_t, cond).x
  return weight(at_t) * metric(got, wanted), {'x_error': l2(got, wanted)}


# ---------------------------------------------------------------- schedules


class Discretisation(NamedTuple):
  """The number N(k) of levels at update k, and the rate mu(k) of the target's average.

  levels: the values of N in order, [n]; begins: the update at which each N begins, [n]; rates: the
  mu that goes with each N, [n].
  """
  levels: np.ndarray
  begins: np.ndarray
  rates: np.ndarray

  def at(self, update: Array) -> tuple[Array, Array]:
    """(N, mu) at this update, [] each."""
    i = jnp.sum(update >= jnp.asarray(self.begins)) - 1
    return jnp.asarray(self.levels)[i], jnp.asarray(self.rates, float)[i]


def fixed(levels: int, rate: float) -> Discretisation:
  """N(k) = levels and mu(k) = rate, as in distillation.  Raises InputError: fewer than 2 levels."""
  require(levels >= 2, 'levels', levels, 'neighbours need two levels', 'give 2 or more')
  require(0.0 <= rate < 1.0, 'rate', rate, 'it must be in [0, 1)')
  return Discretisation(np.array([levels]), np.array([0]), np.array([rate]))


def growing(first: int, last: int, updates: int, rate: float, of: str = 'paper') -> Discretisation:
  """N(k) = ceil(sqrt(k/K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1 and mu(k) = exp(s0 log mu0 / N(k)).

  Song et al. (2023), appendix C, with s0 = `first`, s1 = `last`, K = `updates` and mu0 = `rate`.
  of: 'paper', or 'public' for their public code.  The public code divides by N(k) - 1, so it begins
  at mu0^2 where s0 = 2.  From update K on, N is s1 + 1.

  The table is made with exact integers.  In float32, the ceiling of a whole number might be the
  next whole number.
  Raises InputError.
  """
  require_choice('of', of, ('paper', 'public'))
  require(first >= 2, 'first', first, 'neighbours need two levels', 'give 2 or more')
  if last < first:
    raise InputError('last', last, f'the number of levels grows from first={first}',
                     f'give {first} or more')
  require(updates >= 1, 'updates', updates, 'the levels grow over updates', 'give 1 or more')
  require(0.0 < rate < 1.0, 'rate', rate, 'it must be above 0 and below 1')
  span = (last + 1)**2 - first**2
  levels = np.arange(first, last + 2)
  # N(k) >= n where sqrt(k span / K + s0^2) > n - 1, that is k span > K ((n - 1)^2 - s0^2).
  begins = [0] + [updates * ((n - 1)**2 - first**2) // span + 1 for n in levels[1:].tolist()]
  rates = np.exp(first * math.log(rate) / (levels - int(of == 'public')))
  return Discretisation(levels, np.array(begins), rates)
