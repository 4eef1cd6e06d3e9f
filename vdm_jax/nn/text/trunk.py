"""What the networks of texts share: tokens as vectors, and the transformer between vectors.

Every network here is a transformer whose blocks normalise first (`blocks.transformer.Block`).  The
networks differ in what they read, in whether a token reads later tokens, and in what they return.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.nn.blocks import stack, transformer
from vdm_jax.typing import Array

STACK = 'blocks'  # the name of the stacked blocks in the parameters of a network here


class Encoded(NamedTuple):
  """A text as vectors, float32."""
  sequence: Array       # [B, L, C], a vector for each token
  pooled: Array | None  # [B, D], one vector for the text; None: the network has none


class Tokens(nn.Module):
  """A vector for each token, and one for each position, added: [B, L] -> [B, L, C], float32.

  A token of `levels` or more has the vector nan.
  """
  levels: int
  length: int
  features: int

  @nn.compact
  def __call__(self, tokens: Array) -> Array:
    """Raises InputError unless `tokens` are integers [B, length]."""
    fits = tokens.ndim == 2 and tokens.shape[1] == self.length
    require(fits and jnp.issubdtype(tokens.dtype, jnp.integer), 'tokens', None,
            f'they are {tokens.dtype} {tokens.shape}, and this network reads {self.length} tokens '
            'of a text', f'give integers [B, {self.length}]')
    vector = self.param('embedding', nn.initializers.normal(0.02), (self.levels, self.features))
    position = self.param('positions', nn.initializers.normal(0.01), (self.length, self.features))
    return jnp.take(vector, tokens, axis=0, mode='fill') + position


class Sequence(nn.Module):
  """The vectors of all tokens by `text`, a network of texts: [B, L] -> [B, L, C].

  Cross-attention reads them.  The parameters are those of `text`.
  """
  text: nn.Module

  def setup(self):
    nn.share_scope(self, self.text)

  def __call__(self, tokens: Array) -> Array:
    return self.text(tokens).sequence


class Trunk(nn.Module):
  """The transformer of a network, whose class adds what comes before and after.

  features         C, the length of a vector
  depth            blocks
  attention_heads  of each block
  dtype            of the trunk: float32, or bfloat16
  scan             whether the blocks run as a loop, or are written out (see `stack`)
  remat            how much of a block is kept for the backward pass (see `stack`)
  """
  features: int = 512
  depth: int = 12
  attention_heads: int = 8
  dtype: jnp.dtype = jnp.float32
  scan: bool = True
  remat: stack.Remat = 'dots'

  def _blocks(self, h: Array, **settings) -> Array:
    """h through the blocks: [B, L, C] -> the same shape.  settings: of `transformer.Block`."""
    return self._each_block(h, **settings)[0]

  def _each_block(self, h: Array, **settings) -> tuple[Array, Array | list[Array]]:
    """h after the last block, and after each: [depth, B, L, C], or a list."""
    block = transformer.Block(self.attention_heads, self.dtype, **settings, parent=None)
    h = h.astype(self.dtype)
    params = stack.parameters(self, STACK, block, self.depth, h)
    apply: Callable[..., Any] = lambda params, h, each: block.apply({'params': params}, h)
    with jax.named_scope(STACK):
      h, outs = stack.run(apply, params, h, {}, self.scan, self.remat)
    return h.astype(jnp.float32), outs


def norm(name: str) -> nn.LayerNorm:
  """A normalisation outside the blocks."""
  return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)
