"""The text transformer of GLIDE (Nichol et al. 2021, section 3.1).

It needs no vector for "no text": where a text has no token, the network reads a learned vector of
that position instead.  Tokens read all positions, before and after.
"""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.nn.blocks.layers import require_sizes
from vdm_jax.nn.text.trunk import Encoded, Tokens, Trunk, norm
from vdm_jax.typing import Array


class GLIDEText(Trunk):
  """A transformer of texts that may be shorter than L, or absent.

  levels   tokens are 0 .. levels - 1
  length   L, tokens of a text
  padding  the token that means "no token"
  outputs  D of the pooled vector

  The defaults are the published ones.  With few features, blocks and levels it is the text encoder
  of small models.
  """
  depth: int = 16
  levels: int = 50_257
  length: int = 128
  padding: int = 50_256
  outputs: int = 768

  @nn.compact
  def __call__(self, tokens: Array, mask: Array | None = None) -> Encoded:
    """The vectors of all positions, and a linear map of the last one.

    tokens: integers [B, L].  mask: [B, L], whether a token is there; None: those that are not
    `padding`.  A text without tokens is "no text".
    Raises InputError: tokens or a mask of another shape or type.
    """
    require_sizes(self, features=1, depth=1, levels=1, length=1, outputs=1)
    h = Tokens(self.levels, self.length, self.features, name='tokens')(tokens)
    there = tokens != self.padding if mask is None else mask
    require(there.shape == tokens.shape, 'mask', None, f'its shape is {there.shape}',
            f'give {tokens.shape}')
    absent = self.param('padding', nn.initializers.normal(0.02), h.shape[1:])
    h = jnp.where(there[..., None], h, absent)
    sequence = norm('norm_out')(self._blocks(h))
    return Encoded(sequence, nn.Dense(self.outputs, name='out')(sequence[:, -1]))
