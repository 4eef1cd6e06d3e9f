"""Noise schedules t -> logsnr(t), decreasing in t on [0, 1].

A schedule says *how fast* noise comes in; the curve of `processes` says *where* in
(alpha, sigma) the process is at that logsnr.  A fixed schedule is a value: its numbers are
pytree leaves, so changing them never recompiles.  A learned schedule is a Linen module;
`Bound` turns it, at a point in parameter space, into the same kind of thing: a pure function.
A published chain of discrete steps is a `TableSchedule`, exact at the times of its entries.

With t uniform a schedule is a density of noise levels, and t is its upper tail probability:
`Laplace` and `Sigmoid` are given as such.

A schedule may be infinite at its ends (clean data at t = 0, no signal at t = 1): give infinite
end points.  `processes.GaussianProcess` is finite there in all but logsnr.

The official VDM code speaks of gamma = -logsnr.  The learned schedules below keep their
parameters in that convention, so that an imported checkpoint's numbers are its own.
"""
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.core import Tracer
from scipy import optimize
from scipy.special import ndtr

from vdm_jax.errors import InputError
from vdm_jax.typing import (
  Array,
  ArrayLike,
  Level,
  Process,
  PyTree,
  Scalar,
  Schedule,
  static,
  value,
)

__all__ = ['BetaLinear', 'Bound', 'Cosine', 'GeometricSigma', 'KarrasSigma', 'KnotSchedule',
           'Laplace', 'LearnedLinear', 'Linear', 'Monotone', 'PinnedMonotone', 'SameAlpha',
           'Shifted', 'Sigmoid', 'TableSchedule', 'as_float', 'check_decreasing', 'cosine_betas',
           'largest_distance', 'linear_betas', 'ncsnv2_sigmas', 'shifted_cosine',
           'zero_terminal_snr']


@value
class Bound:
  """A Linen module at a point in parameter space: a pure function, and a pytree.

  Build it inside `jit`: it is a new object at every call, but an equal one (modules compare
  by their fields), so it does not retrace.  A module with a fresh lambda as a field does.

  keys: one PRNG key per example [B] for a network's dropout, or None for none.
  """
  params: PyTree
  module: nn.Module = static()
  keys: Array | None = None

  def __call__(self, *args: Any) -> Any:
    random: dict[str, Any] = {} if self.keys is None else {'keys': self.keys}
    return self.module.apply({'params': self.params}, *args, **random)


def as_float(u: ArrayLike) -> Array:
  """u, as floating numbers if it is integers: those, as times 0 and 1, have no derivative."""
  u = jnp.asarray(u)
  return u if jnp.issubdtype(u.dtype, jnp.floating) else u.astype(float)


def check_decreasing(schedule: Schedule | Process, points: int = 1001) -> None:
  """Raises InputError, with the times and values, where logsnr rises in t, is NaN, or never falls.

  It is looked at at `points` even times of [0, 1] and at some closer to both ends.  It may stand
  still for a while, and rise by rounding.  Of levels with data axes each is checked.  Does nothing
  where the values are unknown, under `jit`.
  """
  near = np.geomspace(1e-6, 0.5 / points, 20)
  times = np.unique(np.concatenate([np.linspace(0.0, 1.0, points), near, 1.0 - near]))

  def at(t):
    found = schedule(t)
    return found.logsnr if isinstance(found, Level) else jnp.asarray(found, float)

  found = jax.lax.map(at, jnp.asarray(times, float))
  if isinstance(found, Tracer):
    return
  found = np.asarray(found, np.float64).reshape(len(times), -1)

  def refuse(what):
    raise InputError(None, None, f'the noise schedule: {what}',
                     'a schedule maps t, 0 = data and 1 = noise, to a logsnr that falls; of one '
                     'that rises take the negative, or run it in 1 - t')

  undefined = np.argwhere(np.isnan(found))
  if undefined.size:
    refuse(f'logsnr is NaN at t = {times[undefined[0, 0]]:.6g}')
  # Rounding: of logsnr itself, and of whatever it is a difference of.
  finite = np.where(np.isfinite(found), found, 0.0)
  slack = 1e-5 * (1.0 + np.maximum(np.abs(finite[:-1]), np.abs(finite[1:])))
  rises = found[1:] > found[:-1] + slack
  if rises.any():
    step, of = np.argwhere(rises)[0]
    falls = np.flatnonzero(~(found[1:, of] > found[:-1, of]))
    i = np.max(falls[falls < step], initial=-1) + 1  # where it begins to rise
    j = np.min(falls[falls > step], initial=len(times) - 1)
    refuse(f'logsnr rises from {found[i, of]:.6g} at t = {times[i]:.6g} to {found[j, of]:.6g} at '
           f't = {times[j]:.6g}, and at {rises.any(axis=1).sum()} of the {len(times) - 1} steps '
           'that were looked at')
  flat = np.flatnonzero(found[0] == found[-1])
  if flat.size:
    refuse(f'logsnr is {found[0, flat[0]]:.6g} at t = 0 and at t = 1')


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
  """logsnr(t) = -2 log tan(a + (b - a) t), with a, b such that the end points are as given.

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
    here = angle(-0.5 * self.logsnr_max, -0.5 * self.logsnr_min)
    rest = angle(0.5 * self.logsnr_max, 0.5 * self.logsnr_min)
    return 2.0 * (jnp.log(jnp.sin(rest)) - jnp.log(jnp.sin(here)))


def shifted_cosine(size: int, base: int = 64, logsnr_max: float = 15.0,
                   logsnr_min: float = -15.0) -> 'Shifted':
  """logsnr(t) = cosine(t) + 2 log(base / size): the cosine schedule of images of `base` pixels a
  side, for images of `size` a side.

  Means over (size / base)^2 pixels then have the noise of the base resolution.  Hoogeboom, Heek
  and Salimans (2023), section 3.1; the end points are those of the cosine, before the shift.
  """
  return Shifted(Cosine(logsnr_max, logsnr_min), 2.0 * float(np.log(base / size)))


@value
class BetaLinear:
  """On the `vp` curve, the SDE with beta(u) = beta_min + (beta_max - beta_min) u.

  logsnr = -log(expm1(int_0^u beta)), u = t_min + (1 - t_min) t.  This is the continuous limit
  of the linear betas of DDPM (Ho et al. 2020, section 4) that Song et al. (2021), appendix C,
  call the VP SDE.  At u = 0 logsnr is infinite; `t_min` is where the process starts (Song et
  al. use 1e-3 for samples and 1e-5 for likelihoods).
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

  The VE SDE of Song et al. (2021), appendix C, for data in [-1, 1]: their values for CIFAR-10 are
  0.01 and 50, of data in [0, 1].  The L noise levels of Song and Ermon (2019), 1 to 0.01 with
  L = 10, are GeometricSigma(0.01, 1.0) at the times np.linspace(1, 0, L), in [0, 1] again.
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

  Karras et al. (2022), eq. 5 and table 1, whose grid of N steps is np.linspace(1, 0, N), and then
  sigma = 0.  With sigma_min = 0 the process itself ends in clean data, with all lower levels on the
  way; with rho = 1 too, sigma = sigma_max t, the time of their ODE.
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
  """logsnr has the logistic density, whose distribution is sigmoid((logsnr - mean) / scale), cut.

  logsnr(t) = mean + scale log((1 - t) / t) if it is not cut at the two ends.  With infinite end
  points and mean 0, scale 1 on the `vp` curve is alpha^2 = 1 - t, and scale 2 on the `flow` curve
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
  """Probabilities above and below logsnr(t), of a symmetric density that is cut at both ends."""
  high = (density.logsnr_max - density.mean) / density.scale
  low = (density.logsnr_min - density.mean) / density.scale
  t = as_float(t)
  return tail(high) * (1.0 - t) + tail(low) * t, tail(-high) * (1.0 - t) + tail(-low) * t


# ---------------------------------------------------------------- wrappers


@value
class Shifted:
  """logsnr(t) = schedule(t) + shift: the same schedule at another noise level throughout.

  Hoogeboom et al. (2023), section 3.1; Chen (2023) scales the data instead, by exp(shift / 2).
  """
  schedule: Schedule
  shift: Scalar

  def __call__(self, t: ArrayLike) -> Array:
    return self.schedule(jnp.asarray(t)) + self.shift


@value
class SameAlpha:
  """On the curve `sub_vp`, the alpha that `schedule` has on `vp`, at every time.

  sigma = 1 - alpha^2, so logsnr = log alpha^2 - 2 log(1 - alpha^2): the sub-VP SDE of Song et al.
  (2021), section 3.4, where `schedule` is that of the VP SDE, `BetaLinear`.
  """
  schedule: Schedule

  def __call__(self, t: ArrayLike) -> Array:
    logsnr = self.schedule(jnp.asarray(t))
    return jax.nn.log_sigmoid(logsnr) - 2.0 * jax.nn.log_sigmoid(-logsnr)


# ---------------------------------------------------------------- tables


@value
class TableSchedule:
  """A published chain: N + 1 values of logsnr, at the times i / N, linear in between.

  logsnr: [N + 1], decreasing; the first may be infinite (clean data), and the last (no signal).
  Next to an infinite value sigma / alpha, or alpha / sigma, is linear in t instead.  The slope at
  an entry is that of the step which ends there.

  Built by `from_alphas`, `from_betas` or `from_sigmas` with `clean`, the indices are those of Ho et
  al. (2020), z_0 being data and z_1, ..., z_N the noisy ones; the zero-based `timestep` of public
  code is the index less one.
  """
  logsnr: Array | np.ndarray

  @classmethod
  def from_alphas(cls, alphas: np.ndarray, clean: bool = True) -> 'TableSchedule':
    """alphas: alpha_i^2 on the `vp` curve, i = 1 ... T: `alpha bar` of Ho et al. (2020), [T].

    clean: whether the data themselves, sigma = 0, are entry 0; else entry 0 is the table's first.
    Raises ValueError unless 1 >= alpha_1^2 > ... >= 0.
    """
    alphas = np.asarray(alphas, np.float64)
    if (alphas < 0.0).any() or (alphas > 1.0).any():
      raise ValueError('the squared alphas of a table lie in [0, 1]; betas go to `from_betas`')
    with np.errstate(divide='ignore'):
      return cls._of(np.log(alphas) - np.log1p(-alphas), clean)

  @classmethod
  def from_betas(cls, betas: np.ndarray, clean: bool = True) -> 'TableSchedule':
    """alpha_i^2 = prod_{j <= i} (1 - beta_j): Ho et al. (2020), eq. 4.  betas: [T]."""
    return cls.from_alphas(np.cumprod(1.0 - np.asarray(betas, np.float64)), clean)

  @classmethod
  def from_sigmas(cls, sigmas: np.ndarray, clean: bool = True) -> 'TableSchedule':
    """sigmas: sigma_i / alpha_i in either order, as those of `ncsnv2_sigmas`.  [T]."""
    with np.errstate(divide='ignore'):
      return cls._of(-2.0 * np.log(np.sort(np.asarray(sigmas, np.float64))), clean)

  @classmethod
  def _of(cls, logsnr, clean):
    logsnr = np.concatenate([[np.inf], logsnr]) if clean else logsnr
    wrong = np.flatnonzero(~(logsnr[1:] < logsnr[:-1]))
    if len(logsnr) < 2 or wrong.size:
      raise ValueError('a table needs two entries or more, of decreasing logsnr'
                       + (f'; entry {wrong[0] + 1} does not decrease' if wrong.size else ''))
    return cls(logsnr)

  @property
  def steps(self) -> int:
    """N: the last index, that of t = 1."""
    return len(self.logsnr) - 1

  def time(self, index: Array) -> Array:
    """The time of an entry, index / N, at which the schedule has its very value."""
    return index / self.steps

  def index(self, logsnr: Array) -> Array:
    """The index of a logsnr, a real number between entries: what a network of discrete time reads.

    The inverse of the schedule; a logsnr beyond the table has the index of the nearer end.
    """
    dtype = jnp.result_type(logsnr, 0.0)
    table = jnp.asarray(self.logsnr, dtype)
    logsnr = jnp.clip(logsnr, table[-1], table[0])
    i = jnp.clip(jnp.searchsorted(-table, -logsnr) - 1, 0, self.steps - 1)
    a, b, up, down = self._step(table, i)
    return i + jnp.select(
        [up & down, up, down],
        [jax.nn.sigmoid(-0.5 * logsnr), jnp.exp(0.5 * (a - logsnr)),
         -jnp.expm1(0.5 * (logsnr - a))],
        (a - logsnr) / (a - b))

  def respaced(self, indices: Array | np.ndarray | Sequence[int]) -> 'TableSchedule':
    """The chain of these entries alone, with exactly their alphas: [n + 1] increasing indices.

    Nichol and Dhariwal (2021), section 4, `strided` sampling.  To end in clean data keep index 0.
    Its steps are longer, so its betas are others; a network still reads `index` of this table.
    Raises ValueError: fewer than two indices, or not increasing within 0 .. N.
    """
    indices = np.asarray(indices)
    if (indices.size < 2 or (np.diff(indices) <= 0).any() or indices[0] < 0
        or indices[-1] > self.steps):
      raise ValueError(f'indices {indices}: those of a respaced table are two or more, which '
                       f'increase within 0 .. {self.steps}')
    return TableSchedule(self.logsnr[indices])

  def __call__(self, t: ArrayLike) -> Array:
    t = as_float(t)
    table = jnp.asarray(self.logsnr, jnp.result_type(t, 0.0))
    u = t * self.steps
    entry = jnp.round(u)
    # i / N N may round to a neighbour of i, but the entries are to be exact.
    close = jnp.abs(u - entry) <= 2.0 * jnp.finfo(table.dtype).eps * entry
    u += jax.lax.stop_gradient(jnp.where(close, entry - u, 0.0))
    i = jnp.clip(jnp.ceil(u) - 1.0, 0.0, self.steps - 1.0).astype(jnp.int32)
    u -= i
    a, b, up, down = self._step(table, i)
    return (a * (1.0 - u) + b * u + 2.0 * jnp.log(jnp.where(down, 1.0 - u, 1.0))
            - 2.0 * jnp.log(jnp.where(up, u, 1.0)))

  @staticmethod
  def _step(table, i):
    """The finite values of step i, from entry i to i + 1, and which of the two are infinite."""
    first, last = table[i], table[i + 1]
    up, down = jnp.isinf(first), jnp.isinf(last)
    a = jnp.where(up, jnp.where(down, 0.0, last), first)
    return a, jnp.where(down, a, last), up, down


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
  """beta_1, ..., beta_T in equal steps, [T].  Ho et al. (2020), section 4; float64.

  As a `TableSchedule` its noisy entries have logsnr 9.2102 to -10.1177.  (Other chains are as
  short to write: latent diffusion has np.linspace(0.00085**0.5, 0.012**0.5, 1000)**2.)
  """
  return np.linspace(first, last, steps)


def cosine_betas(steps: int = 1000, offset: float = 0.008, highest: float = 0.999) -> np.ndarray:
  """alpha_i^2 = f(i / T) / f(0), f(u) = cos^2(pi/2 (u + offset) / (1 + offset)), as betas [T].

  Clipped at `highest`, without which the last alpha would vanish.  Nichol and Dhariwal (2021),
  eq. 17 and the text below; float64.
  """
  angle = 0.5 * np.pi * (np.arange(steps + 1) / steps + offset) / (1.0 + offset)
  kept = np.square(np.cos(angle))
  return np.minimum(1.0 - kept[1:] / kept[:-1], highest)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
  """The betas of a chain whose last alpha is 0 and whose first is kept, [T]; the last beta is 1.

  All alphas (not squared) go through one affine map.  Lin et al. (2024), algorithm 1.
  """
  alpha = np.sqrt(np.cumprod(1.0 - np.asarray(betas, np.float64)))
  kept = np.square((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1])))
  return 1.0 - kept / np.concatenate([[1.0], kept[:-1]])


# ------------------------------------------------ the noise levels of NCSNv2


def largest_distance(data: np.ndarray, block: int = 1000) -> float:
  """The largest distance between two examples.  data: [N, ...]; `block` at a time, N^2 in all.

  Technique 1 of Song and Ermon (2020), section 3.1: the largest sigma.
  """
  data = np.reshape(np.asarray(data, np.float64), (len(data), -1))
  data = data - np.mean(data, axis=0)
  norm = np.sum(np.square(data), axis=1)
  most = 0.0
  for i in range(0, len(data), block):
    for j in range(i, len(data), block):
      a, b = slice(i, i + block), slice(j, j + block)
      most = max(most, np.max(norm[a, None] + norm[b] - 2.0 * data[a] @ data[b].T))
  return float(np.sqrt(most))


def ncsnv2_sigmas(sigma_max: float, sigma_min: float, dim: int,
                  overlap: float = 0.5) -> np.ndarray:
  """Noise levels from sigma_max to sigma_min in equal ratios, as many as techniques 1 and 2 need.

  The ratio gamma is at most the root of Phi(c (gamma - 1) + 3 gamma) - Phi(c (gamma - 1)
  - 3 gamma) = overlap with c = sqrt(2 dim): the chance that the radius of the noise at a level is
  within three standard deviations of that at the next larger one.  Song and Ermon (2020), section
  3.2; they ask for about 0.5, and the numbers of levels that they use are those of 0.567.
  sigma_max: `largest_distance` of the data; dim: the numbers in one example.  Returns [L],
  decreasing.  The step size that belongs to them is `samplers.langevin.annealing_step_size`.

  Raises ValueError: dim below 5, for which the equation has no root; not 0 < sigma_min < sigma_max.
  """
  if not 0.0 < sigma_min < sigma_max:
    raise ValueError(f'sigma_max = {sigma_max:.6g}, sigma_min = {sigma_min:.6g}: noise levels go '
                     'from the larger to the smaller, which is above 0')
  if dim < 5:
    raise ValueError(f'dim {dim}: the ratio of noise levels is determined for 5 dimensions or more;'
                     ' choose GeometricSigma and a number of levels instead')
  c = np.sqrt(2.0 * dim)
  excess = lambda gamma: (ndtr(c * (gamma - 1.0) + 3.0 * gamma)
                          - ndtr(c * (gamma - 1.0) - 3.0 * gamma) - overlap)
  gamma = optimize.root_scalar(excess, bracket=(1.0, (c + 9.0) / (c - 3.0)), method='brentq').root
  ratios = np.log(sigma_max / sigma_min) / np.log(gamma)
  return np.geomspace(sigma_max, sigma_min, int(np.ceil(ratios)) + 1)


# ---------------------------------------------------------------- learned


class LearnedLinear(nn.Module):
  """gamma(t) = b + |w| t: two scalars.  `learnable_scalar` of the official VDM code."""
  logsnr_max: float = 13.3  # at initialisation
  logsnr_min: float = -5.0

  @nn.compact
  def __call__(self, t: ArrayLike) -> Array:
    w = self.param('w', nn.initializers.constant(self.logsnr_max - self.logsnr_min), (1,))
    b = self.param('b', nn.initializers.constant(-self.logsnr_max), (1,))
    t = jnp.asarray(t)
    return -(b[0] + jnp.abs(w[0]) * t)


class _PositiveDense(nn.Module):
  """A dense layer whose kernel enters through its absolute value, so that it is monotone."""
  features: int
  kernel_init: nn.initializers.Initializer = nn.initializers.normal()
  bias_init: nn.initializers.Initializer | None = nn.initializers.zeros

  @nn.compact
  def __call__(self, u: Array) -> Array:
    kernel = self.param('kernel', self.kernel_init, (u.shape[-1], self.features))
    u = u @ jnp.abs(kernel)
    if self.bias_init is None:
      return u
    return u + self.param('bias', self.bias_init, (self.features,))


class Monotone(nn.Module):
  """gamma(t) = l1(t) + l3(2 sigmoid(l2(2 t - 1)) - 1) / features, all kernels in absolute value.

  `learnable_nnet` of the official VDM code: its end points are *not* pinned, they move with
  the interior (`PinnedMonotone` separates the two).
  """
  features: int = 1024
  logsnr_max: float = 13.3  # at initialisation
  logsnr_min: float = -5.0

  @nn.compact
  def __call__(self, t: ArrayLike) -> Array:
    constant = nn.initializers.constant
    u = as_float(t)[..., None]
    line = _PositiveDense(1, constant(self.logsnr_max - self.logsnr_min),
                          constant(-self.logsnr_max), name='l1')(u)
    h = _PositiveDense(self.features, name='l2')(2.0 * (u - 0.5))
    h = 2.0 * (nn.sigmoid(h) - 0.5)
    bend = _PositiveDense(1, bias_init=None, name='l3')(h) / self.features
    return -(line + bend)[..., 0]


class PinnedMonotone(nn.Module):
  """logsnr(t) = max + (min - max) u(t): end points and interior are parameters of their own.

  u(t) = (raw(t) - raw(0)) / (raw(1) - raw(0)) with raw monotone: Kingma et al. (2021), appendix
  I.2, eq. 59.  The continuous bound depends on the end points alone, so the interior may be trained
  for another purpose (the estimator's variance: `systems.learned_schedule`).

  Only this rescaling is the paper's; the network is ours, and not the one of `Monotone`:
  raw(t) = t + mean_j softplus(w_out_j) sigmoid(exp(w_in_j) (2 t - 1 - tanh(b_in_j))): steps of any
  steepness, all within (0, 1).  The schedule of least variance may be thousands of times steeper at
  one end than in the middle, which steps of about equal steepness do not reach.
  """
  features: int = 64
  logsnr_max: float = 13.3  # at initialisation
  logsnr_min: float = -5.0

  @nn.compact
  def __call__(self, t: ArrayLike) -> Array:
    high = self.param('logsnr_max', nn.initializers.constant(self.logsnr_max), ())
    low = self.param('logsnr_min', nn.initializers.constant(self.logsnr_min), ())
    normal = nn.initializers.normal(1.0)
    steepness = jnp.exp(self.param('w_in', normal, (self.features,)))
    centre = jnp.tanh(self.param('b_in', normal, (self.features,)))
    height = jax.nn.softplus(self.param('w_out', normal, (self.features,)))

    def raw(u):
      h = nn.sigmoid((2.0 * u[..., None] - 1.0 - centre) * steepness)
      return u + jnp.mean(height * h, axis=-1)

    t = as_float(t)
    first, last = raw(jnp.zeros((), t.dtype)), raw(jnp.ones((), t.dtype))
    u = (raw(t) - first) / (last - first)
    # Sums over features may round differently at t = 1 and in `last`; the ends are exact.
    u += jax.lax.stop_gradient(jnp.where((t == 0.0) | (t == 1.0), t - u, 0.0))
    return high * (1.0 - u) + low * u


class KnotSchedule(nn.Module):
  """logsnr(t) = max + (min - max) r(t), where t(r) = int_0^r p / int_0^1 p is a free distribution.

  log p is linear between `knots` equally spaced values of r, its parameters there, all 0 at first
  (the straight line).  Within a segment the integral and its inverse are closed forms.  End points
  and purpose are those of `PinnedMonotone`: the density of noise levels of least variance is
  proportional to E[|eps - eps_hat|^4]^(1/2), which may fall by orders of magnitude.

  More knots follow it more closely, but a segment that is hardly ever drawn is hardly learned.
  """
  knots: int = 20
  logsnr_max: float = 13.3  # at initialisation
  logsnr_min: float = -5.0

  @nn.compact
  def __call__(self, t: ArrayLike) -> Array:
    high = self.param('logsnr_max', nn.initializers.constant(self.logsnr_max), ())
    low = self.param('logsnr_min', nn.initializers.constant(self.logsnr_min), ())
    log_density = self.param('log_density', nn.initializers.zeros, (self.knots,))
    t = as_float(t)
    # Each half from its own end: sums of small shares of time keep their digits, ends are exact.
    r, rest = _quantile(t, log_density), _quantile(1.0 - t, log_density[::-1])
    return jnp.where(t < 0.5, high + (low - high) * r, low + (high - low) * rest)


def _quantile(t, log_density):
  """r in [0, 1] below which a share t of the density lies: exact at 0, digits lost towards 1."""
  first, slope = log_density[:-1], jnp.diff(log_density)
  # The integral over a segment is exp(first) expm1(slope) / slope.
  small = jnp.abs(slope) < 0.03  # where the closed forms cancel, and their series are exact
  steep = jnp.abs(jnp.where(small, 1.0, slope))
  excess = jnp.where(small, 0.5 * slope + slope**2 / 24.0,
                     jnp.maximum(slope, 0.0) + jnp.log(-jnp.expm1(-steep) / steep))
  share = jax.nn.softmax(first + excess)
  edges = jnp.concatenate([jnp.zeros(1, share.dtype), jnp.cumsum(share)])
  i = jnp.sum(t[..., None] >= edges[1:-1], axis=-1)
  s = (t - edges[i]) / jnp.where(share[i] > 0.0, share[i], 1.0)  # one share is nearly all
  s += jax.lax.stop_gradient(jnp.clip(s, 0.0, 1.0) - s)  # of rounding; the slope stays
  # log(1 + s expm1(slope)) / slope: its series are the cumulants of a Bernoulli variable.
  slope, small = slope[i], small[i]
  p = s * (1.0 - s)
  series = s + p * slope * (0.5 + slope * ((1.0 - 2.0 * s) / 6.0 + slope * (1.0 - 6.0 * p) / 24.0))
  # Where it falls steeply from the other end, where 1 - s keeps its digits.
  falls = slope < -15.0
  away = jnp.where(small, 1.0, jnp.where(falls, -slope, slope))
  s = jnp.where(falls, 1.0 - s, s)
  # Beyond 80 as away + log(s + (1 - s) exp(-away)): exp(away) itself overflows in float32.
  steep, some = away > 80.0, jnp.where(s > 0.0, s, 1.0)
  far = jnp.where(s > 0.0, 1.0 + jnp.log(some + (1.0 - some) * jnp.exp(-away)) / away, 0.0)
  near = jnp.where(steep, 1.0, away)
  u = jnp.where(steep, far, jnp.log1p(s * jnp.expm1(near)) / near)
  u = jnp.where(small, series, jnp.where(falls, 1.0 - u, u))
  return (i + u) / len(share)
