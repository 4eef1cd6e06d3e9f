"""Noise schedules t -> logsnr(t), decreasing in t on [0, 1].

A schedule says *how fast* noise comes in; the curve of `processes` says *where* in
(alpha, sigma) the process is at that logsnr.  A fixed schedule is a value: its numbers are
pytree leaves, so changing them never recompiles.  A learned schedule is a Linen module;
`Bound` turns it, at a point in parameter space, into the same kind of thing: a pure function.
A published chain of discrete steps is a `TableSchedule`, exact at the times of its entries.

With t uniform, a schedule is a density of noise levels, and t is its upper tail probability.
`Laplace` and `Sigmoid` are defined by their densities.

A schedule may be infinite at its ends (clean data at t = 0, no signal at t = 1): give infinite end
points.  There, all fields of `processes.GaussianProcess` but logsnr and dlogsnr are finite.

The official VDM code uses gamma = -logsnr.  The learned schedules keep their parameters in that
convention, so the numbers of an imported checkpoint do not change.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, ArrayLike, Level, Process, Scalar, Schedule
from vdm_jax.values import value

__all__ = ['BetaLinear', 'Cosine', 'GeometricSigma', 'KarrasSigma', 'Laplace', 'Linear',
           'SameAlpha', 'Shifted', 'Sigmoid', 'as_float', 'check_decreasing', 'shifted_cosine']


def as_float(u: ArrayLike) -> Array:
  """u as floating numbers: integers, such as the times 0 and 1, have no derivative."""
  u = jnp.asarray(u)
  return u if jnp.issubdtype(u.dtype, jnp.floating) else u.astype(float)


def check_decreasing(schedule: Schedule | Process, points: int = 1001) -> None:
  """Raises InputError, with the times and values, where logsnr rises in t, is NaN, or never falls.

  logsnr is checked at `points` even times of [0, 1], and at some times closer to both ends.  It may
  stay constant for a while, and rise by rounding.  If levels have data axes, every entry is
  checked. Under `jit`, where the values are unknown, this does nothing.
  """
  near = np.geomspace(1e-6, 0.5 / points, 20)
  times = np.unique(np.concatenate([np.linspace(0.0, 1.0, points), near, 1.0 - near]))

  def at(t):
    value = schedule(t)
    return value.logsnr if isinstance(value, Level) else jnp.asarray(value, float)

  logsnr = jax.lax.map(at, jnp.asarray(times, float))
  if isinstance(logsnr, Tracer):
    return
  logsnr = np.asarray(logsnr, np.float64).reshape(len(times), -1)

  def refuse(what):
    raise InputError(None, None, f'the noise schedule: {what}',
                     'a schedule maps t, 0 = data and 1 = noise, to a logsnr that falls; negate '
                     'one that rises, or run it in 1 - t')

  undefined = np.argwhere(np.isnan(logsnr))
  if undefined.size:
    refuse(f'logsnr is NaN at t = {times[undefined[0, 0]]:.6g}')
  # Rounding: of logsnr itself, and of whatever it is a difference of.
  finite = np.where(np.isfinite(logsnr), logsnr, 0.0)
  slack = 1e-5 * (1.0 + np.maximum(np.abs(finite[:-1]), np.abs(finite[1:])))
  rises = logsnr[1:] > logsnr[:-1] + slack
  if rises.any():
    step, of = np.argwhere(rises)[0]
    falls = np.flatnonzero(~(logsnr[1:, of] > logsnr[:-1, of]))
    i = np.max(falls[falls < step], initial=-1) + 1  # where it begins to rise
    j = np.min(falls[falls > step], initial=len(times) - 1)
    refuse(f'logsnr rises from {logsnr[i, of]:.6g} at t = {times[i]:.6g} to {logsnr[j, of]:.6g} at '
           f't = {times[j]:.6g}, and at {rises.any(axis=1).sum()} of the {len(times) - 1} steps '
           'that were looked at')
  flat = np.flatnonzero(logsnr[0] == logsnr[-1])
  if flat.size:
    refuse(f'logsnr is {logsnr[0, flat[0]]:.6g} at t = 0 and at t = 1')


# ------------------------------------------------------------------ fixed


@value
class Linear:
  """logsnr(t) = max + (min - max) t.  The `fixed` schedule of Kingma et al. (2021)."""
  logsnr_max: Scalar = 13.3
  logsnr_min: Scalar = -5.0

  def __call__(self, t: ArrayLike) -> Array:
    t = jnp.asarray(t)
    return self.logsnr_max + (self.logsnr_min - self.logsnr_max) * t


@value
class Cosine:
  """logsnr(t) = -2 log tan(a + (b - a) t), where a and b follow from the end points.

  The alpha-cosine schedule of Nichol and Dhariwal (2021), section 3.2, in the continuous form
  of Salimans and Ho (2022): on the `vp` curve alpha(t) is the cosine of an angle linear in t.
  The chain itself, with its clipped last steps, is `cosine_betas`.
  """
  logsnr_max: Scalar = 13.3
  logsnr_min: Scalar = -5.0

  def __call__(self, t: ArrayLike) -> Array:
    t = as_float(t)
    # The angle and its complement: neither loses digits where it is small.
    angle = lambda at_0, at_1: (jnp.arctan(jnp.exp(at_0)) * (1.0 - t)
                                + jnp.arctan(jnp.exp(at_1)) * t)
    angle_at_t = angle(-0.5 * self.logsnr_max, -0.5 * self.logsnr_min)
    complement = angle(0.5 * self.logsnr_max, 0.5 * self.logsnr_min)
    return 2.0 * (jnp.log(jnp.sin(complement)) - jnp.log(jnp.sin(angle_at_t)))


def shifted_cosine(size: int, base: int = 64, logsnr_max: float = 15.0,
                   logsnr_min: float = -15.0) -> 'Shifted':
  """logsnr(t) = cosine(t) + 2 log(base / size): the cosine schedule, shifted for larger images.

  base, size: the side of an image in pixels.  Means over (size / base)^2 pixels then have the noise
  of the base resolution.  Hoogeboom, Heek and Salimans (2023), section 3.1; the end points belong
  to the cosine, before the shift.
  """
  return Shifted(Cosine(logsnr_max, logsnr_min), 2.0 * float(np.log(base / size)))


@value
class BetaLinear:
  """On the `vp` curve, the SDE with beta(u) = beta_min + (beta_max - beta_min) u.

  logsnr = -log(expm1(int_0^u beta)), u = t_min + (1 - t_min) t.  This is the continuous limit
  of the linear betas of DDPM (Ho et al. 2020, section 4) that Song et al. (2021), appendix C,
  call the VP SDE.  At u = 0 logsnr is infinite.  The process starts at u = `t_min` (Song et al. use
  1e-3 for samples and 1e-5 for likelihoods).
  """
  beta_min: Scalar = 0.1
  beta_max: Scalar = 20.0
  t_min: Scalar = 1e-3

  def __call__(self, t: ArrayLike) -> Array:
    u = self.t_min + (1.0 - self.t_min) * jnp.asarray(t)
    return -jnp.log(jnp.expm1(u * self.beta_min + 0.5 * u * u * (self.beta_max - self.beta_min)))


@value
class GeometricSigma:
  """On the `ve` curve, sigma(t) = sigma_min (sigma_max / sigma_min)^t.

  The VE SDE of Song et al. (2021), appendix C, for data in [-1, 1].  Their values for CIFAR-10 are
  0.01 and 50, for data in [0, 1].  The L noise levels of Song and Ermon (2019), 1 to 0.01 with
  L = 10, are GeometricSigma(0.01, 1.0) at the times np.linspace(1, 0, L), also for data in [0, 1].
  """
  sigma_min: Scalar = 0.02
  sigma_max: Scalar = 100.0

  def __call__(self, t: ArrayLike) -> Array:
    t = jnp.asarray(t)
    low, high = jnp.log(self.sigma_min), jnp.log(self.sigma_max)
    return -2.0 * (low + (high - low) * t)


@value
class KarrasSigma:
  """On the `ve` curve, sigma(t)^(1/rho) is linear in t, from sigma_min to sigma_max.

  Karras et al. (2022), eq. 5 and table 1.  Their grid of N steps is np.linspace(1, 0, N), followed
  by sigma = 0.  With sigma_min = 0 the process itself ends in clean data, and passes all lower
  levels. If also rho = 1, then sigma = sigma_max t, the time of their ODE.
  """
  sigma_min: Scalar = 0.002
  sigma_max: Scalar = 80.0
  rho: Scalar = 7.0

  def __call__(self, t: ArrayLike) -> Array:
    t = jnp.asarray(t)
    low, high = (jnp.power(u, 1.0 / self.rho) for u in (self.sigma_min, self.sigma_max))
    # Not through sigma, which underflows long before its logarithm does.
    return -2.0 * self.rho * jnp.log(low + (high - low) * t)


# ------------------------------------------------- densities of logsnr


@value
class Polynomial:
  """On the `flow` curve, alpha^(1 / degree) falls in a straight line: alpha = (1 - t)^degree.

  Degree 1 is rectified flow, the path of optimal transport of Lipman et al. (2023).  Other degrees
  are the polynomial paths of their code.  logsnr = 2 log(alpha / (1 - alpha)), cut at both ends,
  which may be infinite.
  """
  degree: Scalar = 1.0
  logsnr_max: Scalar = 13.3
  logsnr_min: Scalar = -20.0

  def __call__(self, t: ArrayLike) -> Array:
    t = as_float(t)
    root = lambda logsnr: jax.nn.log_sigmoid(jnp.asarray(0.5 * logsnr, t.dtype)) / self.degree
    first, last = root(self.logsnr_max), root(self.logsnr_min)
    # The root and its complement: neither loses digits where it is small.
    log_root = jnp.log(jnp.exp(first) * (1.0 - t) + jnp.exp(last) * t)
    complement = -jnp.expm1(first) * (1.0 - t) - jnp.expm1(last) * t
    late = complement > 0.5
    log_alpha = self.degree * jnp.where(
        late, log_root, jnp.log1p(-jnp.where(late, 0.0, complement)))
    return 2.0 * (log_alpha - jnp.log(-jnp.expm1(log_alpha)))


@value
class Laplace:
  """logsnr has the Laplace density exp(-|logsnr - mean| / scale) / (2 scale), cut at both ends.

  logsnr(t) = mean - scale sgn(1/2 - t) log(1 - 2 |t - 1/2|) if it is not cut.  Hang et al. (2024),
  `Improved Noise Schedule for Diffusion Training`, with the values they recommend.
  """
  mean: Scalar = 0.0
  scale: Scalar = 0.5
  logsnr_max: Scalar = 13.3
  logsnr_min: Scalar = -5.0

  def __call__(self, t: ArrayLike) -> Array:
    def tail(u):  # P(logsnr > mean + scale u)
      half = 0.5 * jnp.exp(-jnp.abs(u))
      return jnp.where(u > 0.0, half, 1.0 - half)
    above, below = _tails(self, tail, t)
    early = above < below
    distance = -self.scale * jnp.log(2.0 * jnp.where(early, above, below))  # from the lesser tail
    return self.mean + jnp.where(early, distance, -distance)


@value
class Sigmoid:
  """logsnr is logistic, with the distribution function sigmoid((logsnr - mean) / scale), cut.

  logsnr(t) = mean + scale log((1 - t) / t) if it is not cut at the two ends.  With infinite end
  points and mean 0, scale 1 on the `vp` curve is alpha^2 = 1 - t.  Scale 2 on the `flow` curve is
  rectified flow, alpha = 1 - t.
  """
  mean: Scalar = 0.0
  scale: Scalar = 1.0
  logsnr_max: Scalar = 13.3
  logsnr_min: Scalar = -5.0

  def __call__(self, t: ArrayLike) -> Array:
    above, below = _tails(self, lambda u: jax.nn.sigmoid(-u), t)
    return self.mean + self.scale * (jnp.log(below) - jnp.log(above))


def _tails(density, tail, t):
  """Probabilities above and below logsnr(t), for a symmetric density that is cut at both ends."""
  high = (density.logsnr_max - density.mean) / density.scale
  low = (density.logsnr_min - density.mean) / density.scale
  t = as_float(t)
  return tail(high) * (1.0 - t) + tail(low) * t, tail(-high) * (1.0 - t) + tail(-low) * t


# ---------------------------------------------------------------- wrappers


@value
class Shifted:
  """logsnr(t) = schedule(t) + shift: the same schedule, with every noise level shifted.

  Hoogeboom et al. (2023), section 3.1; Chen (2023) scales the data instead, by exp(shift / 2).
  """
  schedule: Schedule
  shift: Scalar

  def __call__(self, t: ArrayLike) -> Array:
    return self.schedule(jnp.asarray(t)) + self.shift


@value
class SameAlpha:
  """On the curve `sub_vp`, the alpha that `schedule` has on `vp`, at every time.

  sigma = 1 - alpha^2, so logsnr = log alpha^2 - 2 log(1 - alpha^2).  If `schedule` is `BetaLinear`,
  this is the sub-VP SDE of Song et al. (2021), section 3.4.
  """
  schedule: Schedule

  def __call__(self, t: ArrayLike) -> Array:
    logsnr = self.schedule(jnp.asarray(t))
    return jax.nn.log_sigmoid(logsnr) - 2.0 * jax.nn.log_sigmoid(-logsnr)


# ---------------------------------------------------------------- tables


# ------------------------------------------------ the noise levels of NCSNv2


# ---------------------------------------------------------------- learned


