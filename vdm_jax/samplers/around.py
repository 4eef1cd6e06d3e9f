"""Away from given data and back: noise is added up to a time t*, and a sampler removes it.

  around        the way there and back, whose gradient keeps little memory
  adjoint       the way back, whose gradient solves the adjoint equation
  time_at       the t* from which Gaussian data come back at a chosen distance

The time t* makes the use.  SDEdit (Meng et al. 2022) makes an image realistic, purification (Nie et
al. 2022, DiffPure) removes the attack on a classifier, and Boomerang (Luzi et al. 2022) draws
neighbours of an image.  Let the data be N(m, s^2), and k = alpha^2 s^2 / (alpha^2 s^2 + sigma^2)
at t*.  In many small steps, x comes back as x' with

  by an SDE   mean m + k (x - m),        variance s^2 (1 - k^2),  E|x' - x|^2 = 2 s^2 (1 - k)
  by a flow   mean m + sqrt(k) (x - m),  variance s^2 (1 - k),    E|x' - x|^2 = 2 s^2 (1 - sqrt(k))

where the last mean is over x of the data too.  Both ways keep the law of the data.
"""
import math
from typing import Any

import diffrax
import equinox
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vdm_jax import random
from vdm_jax.errors import require, require_at_least
from vdm_jax.processes import diffuse, sde, time_of
from vdm_jax.samplers.sampling import as_latent, check_grid, sample
from vdm_jax.typing import Array, Denoiser, Process, Sampler

__all__ = ['adjoint', 'around', 'checkpointed', 'time_at']


def checkpointed(sampler: Sampler) -> Sampler:
  """`sampler`, whose gradient keeps only the state before each step.

  A gradient of N steps then takes the memory of N states and of one step.  It evaluates the
  denoiser twice in each step, and takes one vector-Jacobian product of it.
  """
  # A function of its own: `checkpoint` remembers what it has traced, with the values closed over.
  step = lambda *args: sampler.step(*args)
  return sampler._replace(step=jax.checkpoint(step, prevent_cse=False))


def around(sampler: Sampler, process: Process, keys: Array, x: Array, times: Array | np.ndarray
           ) -> Array:
  """z at the last time, from alpha x + sigma noise at the first: [B, ...].

  Nie et al. (2022) with a sampler of the reverse SDE; Luzi et al. (2022).  With the same keys, the
  result is a fixed differentiable function of x.  Its gradient is that of `checkpointed`.

  x: [B, ...], in the units of the process.  times: a grid that goes down from t*, for example from
  0.1.  keys: [B].  Raises InputError as `sample` does.
  """
  check_grid(times)
  noise = random.normal(random.stream(keys, 'guide'), x)
  return sample(checkpointed(sampler), keys, diffuse(x, noise, process(times[0])), times)


class _Paths(diffrax.AbstractBrownianPath):
  """A Brownian path for each example, from its own key alone."""
  keys: Array
  first: float = equinox.field(static=True)
  last: float = equinox.field(static=True)
  tolerance: float = equinox.field(static=True)
  like: jax.ShapeDtypeStruct = equinox.field(static=True)
  levy_area: Any = equinox.field(static=True)

  @property
  def t0(self):
    return self.first

  @property
  def t1(self):
    return self.last

  def evaluate(self, t0, t1=None, left=True, use_levy=False):
    def of(key):
      tree = diffrax.VirtualBrownianTree(self.first, self.last, self.tolerance, self.like, key)
      return tree.evaluate(t0, t1, left, use_levy)
    return jax.vmap(of)(self.keys)


class _Diagonal(diffrax.ControlTerm):
  """g(t) dW, number by number."""

  def prod(self, vf, control):
    return vf * control


def adjoint(denoise: Denoiser, process: Process, keys: Array, z: Array, start: float, end: float,
            steps: int, *, noise: bool = True) -> Array:
  """z at `start` -> z at `end`, in equal steps of Heun's method; the gradient is by the adjoint.

  The reverse SDE, or without noise the probability flow.  The gradient by z follows the adjoint
  equation back along the same path (Li et al. 2020, by diffrax), so its memory does not grow with
  the steps.  It is the gradient of the solution, not of the steps: the two differ by the error of
  the steps.  `around` has the gradient of its steps.  There is no gradient by parameters.

  start, end: 1 >= start > end >= 0, both where alpha and sigma are above 0.  keys: [B].
  Raises InputError for other times, and for less than one step.
  """
  require_at_least('steps', steps)
  require(0.0 <= end < start <= 1.0, 'start', start, f'with end={end} there is no way back',
          'give 1 >= start > end >= 0')
  for name, t in (('start', start), ('end', end)):
    level = process(jnp.asarray(t, float))
    known = not isinstance(level.alpha, Tracer)
    require(not known or bool((level.alpha > 0.0) & (level.sigma > 0.0)), name, t,
            'alpha or sigma is 0 there, where the drift is infinite', 'choose a time inside')
  z = as_latent(z)

  def drift(t, z, _):
    level = process(t)
    x, eps, _ = denoise(z, level)
    level = level.expand(z)
    # f z - g^2 score is the velocity of the flow, and as much again of its share of the score.
    more = level.dsigma - level.dalpha / level.alpha * level.sigma if noise else 0.0
    return level.dalpha * x + (level.dsigma + more) * eps

  terms: Any = diffrax.ODETerm(drift)
  if noise:
    paths = _Paths(keys=keys, first=end, last=start, tolerance=0.5 * (start - end) / steps,
                   like=jax.ShapeDtypeStruct(z.shape[1:], z.dtype),
                   levy_area=diffrax.BrownianIncrement)
    g = lambda t, z, _: jnp.broadcast_to(sde(process(t).expand(z))[1], z.shape)
    terms = diffrax.MultiTerm(terms, _Diagonal(g, paths))
  solution = diffrax.diffeqsolve(
      terms, diffrax.Heun(), start, end, (end - start) / steps, z,
      adjoint=diffrax.BacksolveAdjoint(), max_steps=steps + 2)
  assert solution.ys is not None
  return solution.ys[0]


def time_at(process: Process, distance: float, std: float = 1.0, *, noise: bool = True) -> float:
  """The t* from which data N(m, std^2) come back at this distance, the root mean square over x.

  By the equations of this module.  noise: by an SDE; else by a flow.
  Raises InputError for a distance that no t* has: independent data are sqrt(2) std apart.
  """
  farthest = math.sqrt(2.0) * std
  require(0.0 < distance < farthest, 'distance', distance, f'data of standard deviation {std:.4g} '
          f'come back at a distance above 0 and below {farthest:.4g}', 'give such a number')
  kept = 1.0 - 0.5 * (distance / std)**2
  k = kept if noise else kept**2
  return float(time_of(process, math.log(k / (1.0 - k)) - 2.0 * math.log(std)))
