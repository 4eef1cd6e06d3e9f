"""Gaussian processes q(z_t | x) = N(alpha_t x, sigma_t^2).

A process is a *schedule* (how fast: t -> logsnr) on a *curve* (where: logsnr ->
(alpha, sigma)).  Everything else follows: the derivatives by one jvp, the SDE by
f = dalpha / alpha and g^2 = -sigma^2 dlogsnr, and the posterior and the KL terms by Bayes' rule.
The curve is a choice of units: bounds and exact samplers do not depend on it.
"""
import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.schedules import as_float
from vdm_jax.typing import Array, ArrayLike, Curve, Estimate, Level, Process, Scalar, Schedule
from vdm_jax.values import static, value

__all__ = ['COMPARED_AT', 'GaussianProcess', 'RectifiedFlow', 'Scaled', 'SubVP', 'Truncated',
           'compared_levels', 'difference', 'diffuse', 'flow', 'from_alpha_sigma', 'inside',
           'interpolated_std', 'learned_share', 'posterior', 'prior_kl', 'prior_std', 'renoise',
           'sample_prior', 'sde', 'slopes', 'sub_vp', 'tau', 'time_of', 've', 'vp']

# ----------------------------------------------------------------- curves


def _with_slopes(slopes: Curve) -> Callable[[Curve], Curve]:
  """Gives a curve `slopes`, the closed forms of its derivatives by logsnr."""
  def give(curve):
    setattr(curve, 'slopes', slopes)  # noqa: B010
    return curve
  return give


def slopes(curve: Curve) -> Curve:
  """logsnr -> the derivatives of (alpha, sigma) by logsnr: `curve.slopes`, or else by one jvp.

  `vp` and `flow` have slopes in closed form.  Automatic differentiation would compute 1 - alpha^2,
  which is 0 in float32 at logsnr 20.
  """
  own = getattr(curve, 'slopes', None)
  if own is not None:
    return own
  return lambda logsnr: jax.jvp(curve, (logsnr,), (jnp.ones_like(logsnr),))[1]


def _vp_slopes(logsnr: Array) -> tuple[Array, Array]:
  alpha, sigma = vp(logsnr)
  return 0.5 * alpha * jax.nn.sigmoid(-logsnr), -0.5 * sigma * jax.nn.sigmoid(logsnr)


@_with_slopes(_vp_slopes)
def vp(logsnr: ArrayLike) -> tuple[Array, Array]:
  """alpha^2 + sigma^2 = 1: variance preserving."""
  logsnr = jnp.asarray(logsnr)
  return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def _ve_slopes(logsnr: Array) -> tuple[Array, Array]:
  alpha, sigma = ve(logsnr)
  return jnp.zeros_like(alpha), -0.5 * sigma


@_with_slopes(_ve_slopes)
def ve(logsnr: ArrayLike) -> tuple[Array, Array]:
  """alpha = 1: variance exploding."""
  logsnr = jnp.asarray(logsnr)
  return jnp.ones_like(logsnr), jnp.exp(-0.5 * logsnr)


def _flow_slopes(logsnr: Array) -> tuple[Array, Array]:
  alpha, sigma = flow(logsnr)
  return 0.5 * alpha * sigma, -0.5 * alpha * sigma


@_with_slopes(_flow_slopes)
def flow(logsnr: ArrayLike) -> tuple[Array, Array]:
  """alpha + sigma = 1: the straight lines of rectified flow."""
  logsnr = jnp.asarray(logsnr)
  return jax.nn.sigmoid(0.5 * logsnr), jax.nn.sigmoid(-0.5 * logsnr)


def _sub_vp_slopes(logsnr: Array) -> tuple[Array, Array]:
  alpha, sigma = sub_vp(logsnr)
  ratio = 2.0 * alpha * jnp.exp(0.5 * logsnr)  # 2 alpha^2 / sigma
  return 0.5 * alpha / (1.0 + ratio), -0.5 * sigma / (1.0 + 1.0 / ratio)


@_with_slopes(_sub_vp_slopes)
def sub_vp(logsnr: ArrayLike) -> tuple[Array, Array]:
  """alpha^2 + sigma = 1: the curve of the sub-VP SDE (Song et al. 2021, section 3.4).

  Their process has the alpha of the VP SDE, so its logsnr at the same time is different.  That
  process is `from_alpha_sigma(alpha, lambda t: 1 - alpha(t)**2)`.
  """
  c = jnp.exp(-0.5 * jnp.asarray(logsnr))
  alpha = 2.0 / (c + jnp.hypot(c, 2.0))
  return alpha, 2.0 / (1.0 + jnp.hypot(1.0, 2.0 / c))  # c alpha, also where c is infinite


@dataclasses.dataclass(frozen=True)
class Scaled:
  """`curve` for data that are multiplied by `scale` before noise is added: alpha grows by `scale`.

  The bins of `decoders.Pixels` fill [-1, 1].  Published networks code images in other units: with
  the outermost of K levels at -1 and 1 (`scale` = K / (K - 1)), or in [0, 1] (half of that
  `scale`).  With `Scaled`, the processes of these networks act on our x, so our levels, bins and
  decoders apply.
  """
  curve: Curve
  scale: float

  def __call__(self, logsnr: Array) -> tuple[Array, Array]:
    alpha, sigma = self.curve(logsnr - 2.0 * math.log(self.scale))
    return self.scale * alpha, sigma

  def slopes(self, logsnr: Array) -> tuple[Array, Array]:
    dalpha, dsigma = slopes(self.curve)(logsnr - 2.0 * math.log(self.scale))
    return self.scale * dalpha, dsigma


# -------------------------------------------------------------- processes


@value
class GaussianProcess:
  """schedule o curve: t -> Level.  A fixed schedule is a value; a learned schedule is a `Bound`.

  logsnr may be infinite at an end: a schedule may begin with clean data, or end without signal.  On
  `ve` it may not end without signal, because sigma would be infinite.  Where logsnr is infinite,
  dalpha and dsigma are taken at a distance of 1e-6 in t, and dlogsnr is -inf.
  """
  schedule: Schedule
  curve: Curve = static(default=vp)

  def __call__(self, t: ArrayLike) -> Level:
    t = as_float(t)
    logsnr = self.schedule(t)
    alpha, sigma = self.curve(logsnr)
    # At an end alpha and sigma have their limits, but the chain rule makes 0 * inf of their slopes.
    here = _inwards(t, logsnr, 1e-6)
    at, dlogsnr = jax.jvp(self.schedule, (here,), (jnp.ones_like(t),))
    dalpha, dsigma = (dlogsnr * slope for slope in slopes(self.curve)(at))
    dlogsnr = jnp.where(jnp.isinf(logsnr), -jnp.inf, dlogsnr)
    return Level(t, logsnr, alpha, sigma, dlogsnr, dalpha, dsigma)


def _inwards(t, logsnr, distance):
  """t, moved by `distance` off an end where logsnr is infinite (at any pixel)."""
  logsnr = jax.lax.stop_gradient(logsnr)
  end = jnp.where(jnp.isinf(logsnr), jnp.sign(logsnr), 0.0)
  sign = jnp.sign(jnp.sum(end, axis=range(t.ndim, logsnr.ndim)))
  return t + distance * sign.astype(t.dtype)


def inside(process: Process, t: ArrayLike) -> Array:
  """t, moved inwards by sqrt(machine epsilon) from an end where logsnr is infinite.

  So a loss takes its limit at an end with clean data, or without signal.  The error of this move is
  as small as the rounding of 1 / alpha or 1 / sigma there.
  """
  t = as_float(t)
  return _inwards(t, process(t).logsnr, math.sqrt(jnp.finfo(t.dtype).eps))


def from_alpha_sigma(alpha: Callable[[Array], Array], sigma: Callable[[Array], Array]) -> Process:
  """The process of two functions of time, finite where alpha or sigma vanish.

  An example is rectified flow, `from_alpha_sigma(lambda t: 1 - t, lambda t: t)`.  Its logsnr is
  infinite at both ends, but alpha, sigma and their derivatives are finite.

  A sigma that grows like sqrt(t), for example sqrt(t (2 - t)), has an infinite slope at t = 0, and
  so has the velocity of a loss there.  Take `Truncated.between` of the process then, or the same
  path as a schedule on `vp`, whose slopes are taken at a distance of 1e-6.

  An alpha below the rounding of sigma (sigma times machine epsilon) counts as 0.  For example,
  cos(pi / 2) is 6e-17 in float64, which would give a logsnr of -75.
  """
  def process(t):
    t = as_float(t)
    one = jnp.ones_like(t)
    a, da = jax.jvp(alpha, (t,), (one,))
    s, ds = jax.jvp(sigma, (t,), (one,))
    s = jnp.maximum(s, 0.0)
    # cos(pi / 2) is above 0 in float64 and below in float32.  A sigma as small may be meant (t^3).
    a = jnp.where(a < jnp.finfo(a.dtype).eps * s, 0.0, jnp.maximum(a, 0.0))
    logsnr = 2.0 * (jnp.log(a) - jnp.log(s))
    dlogsnr = jnp.where((a > 0.0) & (s > 0.0), 2.0 * (da / a - ds / s), -jnp.inf)  # not 0 / 0
    return Level(t, logsnr, a, s, dlogsnr, da, ds)
  return process


@value
class RectifiedFlow:
  """alpha = 1 - t, sigma = t + sigma_min (1 - t): straight lines from data to noise.

  Liu et al. (2023) have no sigma_min.  With sigma_min, this is the path of optimal transport of
  Lipman et al. (2023), eq. 20, whose time is 1 - t.  logsnr falls from infinity, or from
  -2 log sigma_min, to -infinity.
  """
  sigma_min: Scalar = 0.0

  def __call__(self, t: ArrayLike) -> Level:
    return from_alpha_sigma(lambda t: 1.0 - t, lambda t: t + self.sigma_min * (1.0 - t))(t)


@value
class SubVP:
  """alpha = exp(-1/2 int_0^t beta), sigma = 1 - alpha^2, beta linear from beta_min to beta_max.

  The sub-VP SDE of Song et al. (2021), section 3.4 and appendix C.  It has the alpha of the VP SDE
  (`schedules.BetaLinear`), and at no time a larger variance.  The data are clean at t = 0, and
  logsnr is -10.05 at t = 1.  Song et al. sample from t = 1 to 1e-3.
  """
  beta_min: Scalar = 0.1
  beta_max: Scalar = 20.0

  def __call__(self, t: ArrayLike) -> Level:
    integral = lambda t: t * self.beta_min + 0.5 * t * t * (self.beta_max - self.beta_min)
    return from_alpha_sigma(lambda t: jnp.exp(-0.5 * integral(t)),
                            lambda t: -jnp.expm1(-integral(t)))(t)


@value
class Truncated:
  """`process` between two of its times, which are now t = 0 and t = 1.  Made by `between`."""
  process: Process
  first: Scalar
  last: Scalar

  @classmethod
  def between(cls, process: Process, logsnr_max: Scalar, logsnr_min: Scalar) -> 'Truncated':
    """The part of `process` from logsnr_max, at t = 0, to logsnr_min, at t = 1.

    A limit beyond an end of `process` (for example an infinite limit) keeps that end.  The two
    times are found once, here, and carry no gradient.

    Raises InputError unless logsnr_max > logsnr_min.  Traced limits are not checked.
    """
    traced = any(isinstance(u, Tracer) for u in (logsnr_max, logsnr_min))
    if not traced and not logsnr_max > logsnr_min:
      raise InputError(problem=f'logsnr_max = {logsnr_max}, logsnr_min = {logsnr_min}: the first, '
                       'at t = 0, must be larger', remedy='exchange them')
    limits = jnp.stack([jnp.asarray(u, float) for u in (logsnr_max, logsnr_min)])
    return cls(process, *jax.lax.stop_gradient(time_of(process, limits)))

  def __call__(self, t: ArrayLike) -> Level:
    t = as_float(t)
    first, last = (jnp.asarray(u, t.dtype) for u in (self.first, self.last))
    span = last - first
    # Not first + span t, which need not be `last` at t = 1.
    level = self.process(first * (1.0 - t) + last * t)
    return level._replace(t=t, dlogsnr=span * level.dlogsnr, dalpha=span * level.dalpha,
                          dsigma=span * level.dsigma)


# ------------------------------------------------- what follows from them


def diffuse(x: Array, eps: Array, level: Level) -> Array:
  """z = alpha x + sigma eps.  x, eps: [B, ...].  On `vp`, Ho et al. (2020), eq. 4."""
  level = level.expand(x)
  return level.alpha * x + level.sigma * eps


def renoise(z: Array, eps: Array, at_s: Level, at_t: Level) -> Array:
  """z_t ~ q(z_t | z_s), s <= t: (alpha_t / alpha_s) z_s + sigma_t sqrt(tau) eps.

  z, eps: [B, ...].  Kingma et al. (2021), appendix A.1: tau sigma_t^2 is their sigma_{t|s}^2.
  """
  at_s, at_t = at_s.expand(z), at_t.expand(z)
  return at_t.alpha / at_s.alpha * z + at_t.sigma * jnp.sqrt(tau(at_t, at_s)) * eps


def time_of(process: Process, logsnr: ArrayLike) -> Array:
  """The t in [0, 1] at which `process` has this logsnr, by bisection: logsnr decreases in t.

  logsnr: any shape; a value beyond the end points, or infinite, gives the nearer end.
  """
  def halve(_, interval):
    low, high = interval
    middle = 0.5 * (low + high)
    early = process(middle).logsnr > logsnr
    return jnp.where(early, middle, low), jnp.where(early, high, middle)
  logsnr = as_float(logsnr)
  zeros = jnp.zeros_like(logsnr)
  # As many halvings as float64 can tell apart; in float32 the last ones change nothing.
  low, high = jax.lax.fori_loop(0, 53, halve, (zeros, zeros + 1.0))
  # Exact at both ends, also where the times next to one share its logsnr.
  times = jnp.where(low == 0.0, 0.0, 0.5 * (low + high))
  return jnp.where(logsnr <= process(zeros + 1.0).logsnr, 1.0, times)


def sde(level: Level) -> tuple[Array, Array]:
  """(f, g) of dz = f z dt + g dw:  f = d log alpha / dt,  g^2 = -sigma^2 d logsnr / dt.

  f and g are finite where sigma vanishes, and infinite where alpha vanishes.
  """
  f = level.dalpha / level.alpha
  # -sigma^2 dlogsnr without the product of zero and infinity at sigma = 0.
  return f, jnp.sqrt(2.0 * level.sigma * (level.dsigma - f * level.sigma))


def tau(at_t: Level, at_s: Level) -> Array:
  """1 - SNR(t) / SNR(s) in [0, 1]: the share of z_s's noise that q(z_s | z_t, x) draws anew.

  tau is exactly 0 where t = s, also if both logsnr are infinite; it is 1 if only one is infinite.
  """
  change = jnp.where(at_t.logsnr == at_s.logsnr, 0.0, at_t.logsnr - at_s.logsnr)  # inf - inf = 0
  return -jnp.expm1(change)


def posterior(z: Array, x: Array, at_t: Level, at_s: Level) -> tuple[Array, Array]:
  """Mean and standard deviation of q(z_s | z_t, x), s < t.  z, x: [B, ...].

  mean = sqrt(1 - tau) (sigma_s / sigma_t) z + alpha_s tau x,  std = sigma_s sqrt(tau).
  Ho et al. (2020), eq. 7, on `vp`; Kingma et al. (2021), appendix A.2, on any curve.  It is not
  defined where sigma_t = 0.
  """
  at_t, at_s = at_t.expand(z), at_s.expand(z)
  share = tau(at_t, at_s)
  mean = jnp.sqrt(1.0 - share) * at_s.sigma / at_t.sigma * z + at_s.alpha * share * x
  return mean, at_s.sigma * jnp.sqrt(share)


def interpolated_std(at_t: Level, at_s: Level, share: ArrayLike) -> Array:
  """sqrt(beta^v beta_tilde^(1 - v)), v = `share`: a std of p(z_s | z_t) between two kernels' stds.

  beta_tilde = sigma_s^2 tau is the variance of q(z_s | z_t, x).  beta = sigma_t^2 tau is the
  variance of q(z_t | z_s) on `vp`.  Nichol and Dhariwal (2021), eq. 15.  The levels broadcast
  against `share`.
  """
  return jnp.sqrt(tau(at_t, at_s)) * at_s.sigma**(1.0 - share) * at_t.sigma**share


def learned_share(estimate: Estimate) -> Array:
  """(u + 1) / 2 of a variance head u = estimate.extra['variance']: the share in `interpolated_std`.

  Nichol and Dhariwal (2021), section 3.1.  u is the network's output, in the range [-1, 1] of their
  public code.  Only this function maps u to [0, 1], and it does not clip.
  """
  return 0.5 * (estimate.extra['variance'] + 1.0)


def prior_std(process: Process, t: ArrayLike = 1.0) -> Array:
  """Standard deviation of p(z_1) = N(0, alpha_1^2 + sigma_1^2), as data of unit variance give it.

  It is 1 on the `vp` curve.  On other curves, the prior is the same in the units of the curve.

  t: the end of the process; smaller than 1 for a grid that begins at that t.
  """
  level = process(jnp.asarray(t, float))
  return jnp.hypot(level.alpha, level.sigma)


def sample_prior(process: Process, keys: Array, like: Array, t: ArrayLike = 1.0) -> Array:
  """z_1 ~ p(z_1), of the shape of `like`: [B, ...]; example i uses keys[i] alone."""
  return prior_std(process, t) * random.normal(random.stream(keys, 'z_1'), like)


def prior_kl(x: Array, level: Level) -> Array:
  """KL(q(z_1 | x) || p(z_1)) in nats, element by element: [B, ...]. level: at t = 1.

  1/2 (sigmoid(logsnr) (x^2 - 1) - log sigmoid(-logsnr)) with p(z_1) of `prior_std`.  The number is
  the same on every curve.
  """
  logsnr = level.expand(x).logsnr
  return 0.5 * (jax.nn.sigmoid(logsnr) * (jnp.square(x) - 1.0) - jax.nn.log_sigmoid(-logsnr))


# ------------------------------------------------------------- comparison

COMPARED_AT = (0.0, 0.25, 0.5, 0.75, 1.0)  # the times at which two processes are compared


def compared_levels(process: Process) -> np.ndarray:
  """alpha and sigma at the times `COMPARED_AT`: [2, 5]."""
  return np.stack(np.broadcast_arrays(*process(jnp.array(COMPARED_AT))[2:4]))


def difference(ours: np.ndarray, theirs: np.ndarray, owner: str) -> str:
  """How two processes differ, given their `compared_levels`; '' if they are the same.

  owner: of the process `ours`, as in 'the student'.
  """
  if np.allclose(ours, theirs, rtol=1e-4, atol=1e-6):
    return ''
  at = int(np.abs(ours - theirs).max(axis=0).argmax())
  say = lambda level: f'alpha = {level[0, at]:.4g} and sigma = {level[1, at]:.4g}'
  return f'at t = {COMPARED_AT[at]:g} {say(theirs)}, where {owner} has {say(ours)}'
