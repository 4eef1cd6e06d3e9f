"""Maps between discrete data and the continuous x that is diffused.

Data are integers 0 .. levels - 1 (pixels, or quantised coordinates).  The x of an integer is the
centre of one of `levels` equal bins of [-1, 1].  The decoder p(data | z_0) of Kingma et al. (2021),
eq. 8, gives each level a probability proportional to q(z_0 | x of the level).  These probabilities
are the exact posterior under a flat prior.  `Codebook` has vectors in the place of levels.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import log_ndtr
from jax.scipy.stats import norm

from vdm_jax.typing import Array, Decoder, Level, Scalar
from vdm_jax.units import sum_over_data
from vdm_jax.values import static, value

__all__ = ['Codebook', 'DiscretisedNormal', 'Pixels', 'Reals', 'at_mean', 'log_normal', 'normal']

_BLOCK = 64  # entries of a codebook at a time


@value
class Pixels:
  """Integer data of `levels` values per dimension."""
  levels: int = static(default=256)

  def encode(self, data: Array) -> Array:
    """Integers [B, ...] -> the centres of their bins in [-1, 1], in the default precision."""
    return 2.0 * (data.astype(jnp.result_type(float)) + 0.5) / self.levels - 1.0

  @property
  def to_ends(self) -> float:
    """The factor that turns x into DDPM's coding, where the outermost levels are -1 and 1."""
    return self.levels / (self.levels - 1)

  def unrounded(self, x: Array) -> Array:
    """x on the scale of the levels, real numbers: the inverse of `encode`."""
    return (x + 1.0) * (self.levels / 2) - 0.5

  def decode(self, x: Array) -> Array:
    """[B, ...] -> the nearest level, int32.  It is the argmax of `log_prob` at x = z_0 / alpha."""
    level = jnp.round(self.unrounded(x))
    return jnp.clip(level, 0, self.levels - 1).astype(jnp.int32)

  def log_prob(self, data: Array, z: Array, level: Level) -> Array:
    """log p(data | z_0) in nats, [B].  data: integers [B, ...]; z: [B, ...]; level: at t = 0."""
    level = level.expand(z)
    # Numbers, so that compilation rounds a centre everywhere alike: `logit` multiplies its rounding
    # by SNR, and each level is in both sums below.
    centres = jnp.asarray((2.0 * np.arange(self.levels) + 1.0) / self.levels - 1.0, z.dtype)
    x = (z / level.alpha)[..., None]
    logit = lambda centres: -0.5 * jnp.square(x - centres) * jnp.exp(level.logsnr)[..., None]
    # The largest logit is known without looking, that of the nearest level, so each sum below is a
    # fused reduction, and without a gradient [B, ..., levels] never stands in memory.
    best = jax.lax.stop_gradient(logit(centres[self.decode(x)]))
    chosen = logit(centres[data][..., None]) - best
    total = jnp.sum(jnp.exp(logit(centres) - best), axis=-1)
    return sum_over_data(chosen[..., 0] - jnp.log(total))


@value
class Codebook:
  """Indices of a codebook: the x of an index is its vector.

  The decoder p(k | z_0) of a position is proportional to N(z_0; alpha_0 e_k, sigma_0^2): as for the
  levels of `Pixels`, it is the exact posterior under equal odds of all K entries.

  vectors: [K, C], in the units of x.
  """
  vectors: Array

  def encode(self, data: Array) -> Array:
    """Indices [B, ...] -> their vectors [B, ..., C]."""
    return jnp.take(self.vectors, data, axis=0)

  def decode(self, x: Array) -> Array:
    """[B, ..., C] -> the nearest index, int32.  It is the argmax of `log_prob` at x = z_0 / alpha.
    """
    distance = jnp.sum(jnp.square(x[..., None, :] - self.vectors), axis=-1)
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)

  def log_prob(self, data: Array, z: Array, level: Level) -> Array:
    """log p(indices | z_0) in nats, [B].  data: [B, ...]; z: [B, ..., C]; level: at t = 0."""
    level = level.expand(z)
    x, snr = (z / level.alpha)[..., None, :], jnp.exp(level.logsnr)[..., None, :]
    logit = lambda vectors: -0.5 * jnp.sum(snr * jnp.square(x - vectors), axis=-1)
    # Some entries after others, so that [B, ..., K] never stands in memory.
    first = len(self.vectors) % _BLOCK or _BLOCK
    blocks = self.vectors[first:].reshape(-1, _BLOCK, self.vectors.shape[1])

    def add(total, block):
      return jnp.logaddexp(total, jax.nn.logsumexp(logit(block), axis=-1)), None
    total, _ = jax.lax.scan(add, jax.nn.logsumexp(logit(self.vectors[:first]), axis=-1), blocks)
    chosen = logit(self.encode(data)[..., None, :])
    return sum_over_data(chosen[..., 0] - total)


@value
class Reals:
  """Real data, standardised: x = (data - mean) / std."""
  mean: Scalar = 0.0
  std: Scalar = 1.0

  def encode(self, data: Array) -> Array:
    """Data [B, ...] -> x, float32."""
    return (data.astype(jnp.float32) - self.mean) / self.std

  def decode(self, x: Array) -> Array:
    """x [B, ...] -> data, float32."""
    return x * self.std + self.mean

  def log_prob(self, data: Array, z: Array, level: Level) -> Array:
    """Log density of the data in nats, [B]: `normal` of x, minus log std for each dimension."""
    x = self.encode(data)
    return normal(x, z, level) - sum_over_data(jnp.broadcast_to(jnp.log(self.std), x.shape))


def _log_interval(a: Array, b: Array) -> Array:
  """log(Phi(b) - Phi(a)), element by element, for a < b; Phi is the standard normal's CDF.

  Nothing cancels, in either tail and however close a and b are.  The relative error of the
  probability is about 1e-5 in float32; in the tails it is the error of a float32 logarithm.
  """
  a, b = jnp.where(a > 0.0, -b, a), jnp.where(a > 0.0, -a, b)  # by symmetry into the left tail
  width, middle = b - a, 0.5 * (a + b)
  log_b = log_ndtr(b)
  # log Phi(b) - log Phi(a); where that would cancel, the width times the slope at the middle.
  narrow = width < 0.02
  inside = jnp.where(narrow, middle, 0.0)
  slope = jnp.exp(norm.logpdf(inside) - log_ndtr(inside))
  difference = jnp.where(narrow, width * slope, log_b - log_ndtr(a))
  return log_b + jnp.log(-jnp.expm1(-difference))


def log_normal(x: Array, mean: Array, std: Array) -> Array:
  """log N(x; mean, std^2) in nats, [B].  x: [B, ...]; mean and std broadcast against x."""
  return sum_over_data(norm.logpdf(x, mean, std))


def normal(y: Array, z: Array, level: Level) -> Array:
  """log N(y; z_0 / alpha_0, (sigma_0 / alpha_0)^2) in nats, [B]: the decoder of continuous data.

  y, z: [B, ...]; level: at t = 0.
  """
  level = level.expand(z)
  return log_normal(y, z / level.alpha, jnp.exp(-0.5 * level.logsnr))


def at_mean(decoder: Decoder) -> Callable[[Array, Array, Array], Array]:
  """(data, mean, std) -> log p(data) in nats, [B]: the decoder of z_0 = mean, of that noise.

  It is the last step of a chain that begins at the data, `vlb.LastStep`.  std broadcasts against
  mean [B, ...], and alpha is 1.
  """
  def log_prob(data, mean, std):
    one, none = jnp.ones_like(std), jnp.zeros_like(std)
    return decoder(data, mean, Level(none, -2.0 * jnp.log(std), one, std, none, none, none))
  return log_prob


@value
class DiscretisedNormal:
  """p(k) = Phi((upper_k - mean) / std) - Phi((lower_k - mean) / std): N(mean, std^2) cut into bins.

  Ho et al. (2020), eq. 13.  The outermost bins are open, so the probabilities of the levels sum to
  1.  With a learned std, this is the last term of the bound of Nichol and Dhariwal (2021).

  Here Phi is exact.  The code of both papers replaces Phi by a tanh of a cubic, with an error of at
  most 1.8e-4.  But the tail of the tanh is a sixth of the true tail at 5 standard deviations, and a
  seventieth at 6.  That code also raises probabilities below 1e-12 to 1e-12, so its result is no
  bound.

  outermost: the centre of the last bin.  None means the coding of `Pixels`: the centres of `levels`
  equal bins of [-1, 1].  1.0 means DDPM's coding: level k is at 2 k / (levels - 1) - 1, and the
  bins are 2 / (levels - 1) wide.
  """
  levels: int = static(default=256)
  outermost: float | None = static(default=None)

  def log_prob(self, data: Array, mean: Array, std: Array) -> Array:
    """log p(data) in nats, [B].  data: integers [B, ...]; mean: [B, ...]; std: broadcastable."""
    outermost = 1.0 - 1.0 / self.levels if self.outermost is None else self.outermost
    half = outermost / (self.levels - 1)
    centre = half * (2.0 * data.astype(mean.dtype) - (self.levels - 1))
    below, above = (centre - half - mean) / std, (centre + half - mean) / std
    return sum_over_data(jnp.where(
        data == 0, log_ndtr(above),
        jnp.where(data == self.levels - 1, log_ndtr(-below), _log_interval(below, above))))
