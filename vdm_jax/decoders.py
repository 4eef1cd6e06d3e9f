"""Between discrete data and the continuous x that is diffused.

Data are integers 0 .. levels - 1 (pixels, or quantised coordinates); x are the centres of
`levels` equal bins of [-1, 1].  The decoder p(data | z_0) of Kingma et al. (2021), eq. 8,
gives each level the probability q(z_0 | its x), normalised over the levels: the exact
posterior under a flat prior.
"""
import math

import jax
import jax.numpy as jnp
from flax import struct

from vdm_jax.typing import Array, Level, value


def sum_over_data(u: Array) -> Array:
  """[B, ...] -> [B]."""
  return jnp.sum(u.reshape(u.shape[0], -1), axis=-1)


def bits_per_dim(nats, shape: tuple[int, ...]):
  """nats / (D ln 2), D the number of dimensions of one example of `shape`."""
  return nats / (math.prod(shape) * math.log(2.0))


@value
class Pixels:
  """Integer data of `levels` values per dimension."""
  levels: int = struct.field(pytree_node=False, default=256)

  def encode(self, data: Array) -> Array:
    """Integers [B, ...] -> the centres of their bins in [-1, 1], float32."""
    return 2.0 * (data.astype(jnp.float32) + 0.5) / self.levels - 1.0

  def decode(self, x: Array) -> Array:
    """[B, ...] -> the nearest level, int32.  Also the argmax of `log_prob` at x = z_0 / alpha."""
    level = jnp.round((x + 1.0) * (self.levels / 2) - 0.5)
    return jnp.clip(level, 0, self.levels - 1).astype(jnp.int32)

  def log_prob(self, data: Array, z: Array, level: Level) -> Array:
    """log p(data | z_0) in nats, [B].  data: integers [B, ...]; z: [B, ...]; level: of t = 0."""
    level = level.expand(z)
    centres = self.encode(jnp.arange(self.levels))
    x = (z / level.alpha)[..., None]
    logit = lambda centres: -0.5 * jnp.square(x - centres) * jnp.exp(level.logsnr)[..., None]
    # The largest logit is known without looking, that of the nearest level, so each sum below is a
    # fused reduction, and without a gradient [B, ..., levels] never stands in memory.
    best = jax.lax.stop_gradient(logit(self.encode(self.decode(x))))
    logits = logit(centres) - best
    chosen = jnp.sum(jnp.where(jnp.arange(self.levels) == data[..., None], logits, 0.0), axis=-1)
    return sum_over_data(chosen - jnp.log(jnp.sum(jnp.exp(logits), axis=-1)))
