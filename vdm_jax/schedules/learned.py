"""Schedules with parameters: Linen modules that are learned with the network."""
import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.schedules.fixed import as_float
from vdm_jax.typing import Array, ArrayLike

__all__ = ['KnotSchedule', 'LearnedLinear', 'Monotone', 'PinnedMonotone']


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

  This is `learnable_nnet` of the official VDM code.  Its end points are *not* pinned: they move
  with the interior (`PinnedMonotone` separates the two).
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
  """logsnr(t) = max + (min - max) u(t): end points and interior have separate parameters.

  u(t) = (raw(t) - raw(0)) / (raw(1) - raw(0)) with raw monotone: Kingma et al. (2021), appendix
  I.2, eq. 59.  The continuous bound depends on the end points alone.  So the interior may be
  trained for another purpose: `systems.variational.learned_schedule` trains it for the variance
  of the estimator.

  Only this rescaling comes from the paper.  The network is ours, and differs from `Monotone`:
  raw(t) = t + mean_j softplus(w_out_j) sigmoid(exp(w_in_j) (2 t - 1 - tanh(b_in_j))). It is a sum
  of steps of any steepness, all within (0, 1).  The schedule of least variance may be thousands of
  times steeper at one end than in the middle.  Steps of about equal steepness cannot represent it.
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
  """logsnr(t) = max + (min - max) r(t), where t(r) = int_0^r p / int_0^1 p for a learned density p.

  log p is linear between `knots` equally spaced values of r.  Its values there are the parameters;
  they are all 0 at first (the straight line).  Within a segment the integral and its inverse are
  closed forms.  End points and purpose are as in `PinnedMonotone`: the density of noise levels of
  least variance is proportional to E[|eps - eps_hat|^4]^(1/2), which may fall by orders of
  magnitude.

  More knots follow that density more closely, but a segment that is hardly ever drawn hardly
  learns.
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
    r = _quantile(t, log_density)
    from_noise = _quantile(1.0 - t, log_density[::-1])  # 1 - r
    return jnp.where(t < 0.5, high + (low - high) * r, low + (high - low) * from_noise)


def _quantile(t, log_density):
  """r in [0, 1] below which a share t of the density lies; exact at 0, less precise towards 1."""
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
