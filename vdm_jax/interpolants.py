"""Stochastic interpolants: a path between two data sets, and noise that vanishes at both ends.

    z_t = a x + b y + gamma eps,     x at t = 0 (a = 1, b = gamma = 0),  y at t = 1

Albergo, Boffi and Vanden-Eijnden (2023), 2303.08797, definition 2.1.  x and y have any joint
distribution; eps is normal and independent of both.  The paper's time begins at the base y, and our
time begins at the data x.  The formulae are the same; only sampling runs the other way.  The
marginals of z_t follow from

    v = E[da x + db y | z],    s = -E[eps | z] / gamma,    drift = v - gamma dgamma s

Here v is the velocity of the path without noise, and s is the score of z_t.  The `drift`, which the
paper calls b, is the velocity of the flow of z_t.  The SDE dz = (drift -+ e s) dt + sqrt(2 e) dw
has the same marginals for every e(t) >= 0.  The sign chooses whether it runs towards the data or
away from them; see `samplers.interpolants`.

An interpolant takes the variance gamma^2, not gamma.  The reason is the Brownian bridge: at both of
its ends gamma' is infinite, but gamma gamma' is finite.  A Gaussian process is the one-sided case
(`one_sided`), where y = 0 and the base is eps.
"""
import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from vdm_jax.schedules import as_float
from vdm_jax.typing import Array, ArrayLike, Process, PyTree

__all__ = ['Coefficients', 'Drift', 'Drifts', 'Interpolant', 'Path', 'Variance', 'brownian',
           'encoding_decoding', 'interpolant', 'interpolate', 'linear', 'mirror', 'one_sided',
           'quadratic', 'sigmoid', 'sine_squared', 'trigonometric']


_END = 1e-4  # a time


class Coefficients(NamedTuple):
  """An interpolant at one time.  All fields have the shape of `t`."""
  t: Array
  a: Array             # of x
  b: Array             # of y
  gamma: Array         # of the noise
  da: Array
  db: Array
  dgamma: Array        # nearer to an end than `_END`: as large as there, since it may be infinite
  gamma_dgamma: Array  # half the slope of gamma^2: finite

  def expand(self, z: Array) -> 'Coefficients':
    """Appends axes until every field broadcasts against `z`: [B, ...]."""
    pad = lambda u: jnp.reshape(u, jnp.shape(u) + (1,) * (z.ndim - jnp.ndim(u)))
    return Coefficients(*map(pad, self))


Interpolant = Callable[[ArrayLike], Coefficients]  # t -> coefficients
Path = Callable[[Array], tuple[Array, Array]]      # t -> (a, b)
Variance = Callable[[Array], Array]                # t -> gamma^2


class Drift(NamedTuple):
  """The velocity of the flow of z_t, and the score of the density of z_t."""
  drift: Array  # [B, ...]  E[dz_t / dt | z], called b in the paper
  score: Array  # [B, ...]


class Drifts(Protocol):

  def __call__(self, z: Array, t: Array, cond: PyTree = None, /) -> Drift:
    """z: [B, ...]; t: [B] or []."""
    ...


def interpolant(path: Path, variance: Variance) -> Interpolant:
  """The interpolant of a path and a variance; one jvp computes the derivatives."""
  def at(t):
    t = as_float(t)
    one = jnp.ones_like(t)
    (a, b), (da, db) = jax.jvp(path, (t,), (one,))
    square, slope = jax.jvp(variance, (t,), (one,))
    near, near_slope = jax.jvp(variance, (jnp.clip(t, _END, 1.0 - _END),), (one,))
    return Coefficients(t, a, b, jnp.sqrt(jnp.maximum(square, 0.0)), da, db,
                        0.5 * near_slope / jnp.sqrt(near), 0.5 * slope)
  return at


def one_sided(process: Process) -> Interpolant:
  """A Gaussian process as an interpolant whose base is eps: a = alpha, b = 0, gamma = sigma.

  Albergo et al. (2023), definition 3.3.  The drift is the velocity of the probability flow
  of `process`.
  """
  def at(t):
    level = process(t)
    zero = jnp.zeros_like(level.alpha)
    return Coefficients(level.t, level.alpha, zero, level.sigma, level.dalpha, zero, level.dsigma,
                        level.sigma * level.dsigma)
  return at


def interpolate(x: Array, y: Array, eps: Array, at: Coefficients) -> Array:
  """z = a x + b y + gamma eps.  x, y, eps: [B, ...]."""
  at = at.expand(x)
  return at.a * x + at.b * y + at.gamma * eps


# ------------------------------------------------------------------------------- paths


def linear(t: Array) -> tuple[Array, Array]:
  """a = 1 - t, b = t."""
  return 1.0 - t, t


def trigonometric(variance: Variance = jnp.zeros_like) -> Path:
  """a = c cos(pi t / 2), b = c sin(pi t / 2), c^2 = 1 - gamma^2: z has unit variance if x and y do.

  variance: gamma^2 of the interpolant; by default 0, so that c = 1.
  """
  def path(t):
    angle, c = 0.5 * math.pi * t, jnp.sqrt(1.0 - variance(t))
    return c * jnp.cos(angle), c * jnp.sin(angle)
  return path


def encoding_decoding(t: Array) -> tuple[Array, Array]:
  """a = cos^2(pi t) before t = 1/2, b = cos^2(pi t) after it; at t = 1/2, z is noise alone."""
  weight = jnp.square(jnp.cos(math.pi * t))
  return jnp.where(t < 0.5, weight, 0.0), jnp.where(t > 0.5, weight, 0.0)


def mirror(t: Array) -> tuple[Array, Array]:
  """a = 1, b = 0: the path goes from the data, through noise, and back to the data."""
  return jnp.ones_like(t), jnp.zeros_like(t)


# --------------------------------------------------------------------------- variances


def brownian(scale: float = 1.0) -> Variance:
  """gamma^2 = scale t (1 - t): a Brownian bridge."""
  return lambda t: scale * t * (1.0 - t)


def quadratic(t: Array) -> Array:
  """gamma^2 of gamma = t (1 - t)."""
  return jnp.square(t * (1.0 - t))


def sine_squared(t: Array) -> Array:
  """gamma^2 of gamma = sin^2(pi t)."""
  return jnp.sin(math.pi * t)**4


def sigmoid(steepness: float = 10.0) -> Variance:
  """gamma^2 of a plateau between two sigmoids of this steepness, shifted to be 0 at both ends.

  gamma = sig(f (t - 1/2) + 1) - sig(f (t - 1/2) - 1) - sig(1 - f / 2) + sig(-1 - f / 2), where f is
  the steepness.  The authors' code calls this gamma 'sigmoid'.
  """
  sig = jax.nn.sigmoid
  half = 0.5 * steepness

  def variance(t):
    u = steepness * t - half
    ends = sig(jnp.asarray(1.0 - half, u.dtype)) - sig(jnp.asarray(-1.0 - half, u.dtype))
    return jnp.square(sig(u + 1.0) - sig(u - 1.0) - ends)
  return variance
