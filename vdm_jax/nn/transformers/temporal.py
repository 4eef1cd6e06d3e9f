"""A Transformer of plans: a row is a token, [B, H, C] -> [B, H, C].

The blocks are those of `dit`: the time, and the vectors that the network is told, shift and scale
each block.  Every row sees every other row, so the number of rows is free.
"""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.layers import require_sizes, sinusoidal_embedding, zeros
from vdm_jax.nn.blocks.told import Vectors
from vdm_jax.nn.transformers.dit import Block, Time
from vdm_jax.nn.unets.temporal import require_sequence
from vdm_jax.typing import Array, PyTree


class TemporalTransformer(nn.Module):
  """Blocks of attention over the rows of a plan.

  features, depth   of the blocks
  attention_heads   of each block; divides `features`
  conditions        the number of vectors that it is told, see `told.Told`
  """
  features: int = 128
  depth: int = 4
  attention_heads: int = 4
  conditions: int = 0

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: PyTree = None, keys: Array | None = None
               ) -> Array:
    """y: [B, H, C], 0 at first.  z: [B, H, C]; time: [B]; cond: a `Told`, if there are conditions;
    keys: not used.

    Raises InputError: data of another shape; impossible sizes; a condition of another kind.
    """
    require_sequence(z)
    require_sizes(self, features=4, depth=1, attention_heads=1, conditions=0)
    rows = jnp.arange(z.shape[1], dtype=jnp.float32)
    h = nn.Dense(self.features, name='dense_in')(z) + sinusoidal_embedding(rows, self.features)
    c = Time(self.features, name='time')(time)
    for each in Vectors(self.features, self.conditions, name='told')(cond):
      c += each
    for i in range(self.depth):
      h = Block(self.attention_heads, name=f'block_{i}')(h, c)
    return nn.Dense(z.shape[-1], kernel_init=zeros, name='dense_out')(
        nn.LayerNorm(name='norm_out')(h))
