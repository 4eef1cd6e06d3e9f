"""A network that describes an image: convolutions make the image positions, and a causal
transformer reads these positions and then the text.

The transformer is a decoder of texts: it gives the logits of a token from the image and from the
tokens before it.
"""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.layers import require_images, require_sizes
from vdm_jax.nn.text.trunk import Tokens, Trunk, norm
from vdm_jax.typing import Array


class ImageGrid(nn.Module):
  """An image as positions: [B, H, W, C] -> [B, (H / 2^n) (W / 2^n), features], float32.

  For each of the n `channels` there are two 3x3 convolutions, the second of stride 2.  A GroupNorm
  with groups of eight channels and a relu follow each convolution.  Each position has a learned
  vector, which is added.
  """
  features: int = 64
  channels: tuple[int, ...] = (32, 64)

  @nn.compact
  def __call__(self, images: Array) -> Array:
    """Raises InputError: data that are no images."""
    require_images(images)
    require_sizes(self, features=1)
    h = images
    for i, channels in enumerate(self.channels):
      for name, stride in ((f'conv{i}', 1), (f'down{i}', 2)):
        h = nn.Conv(channels, (3, 3), stride, name=name)(h)
        h = nn.relu(nn.GroupNorm(None, group_size=8, name=f'{name}_norm')(h))
    h = nn.Dense(self.features, name='out')(h.reshape(len(h), -1, h.shape[-1]))
    return h + self.param('positions', nn.initializers.normal(0.02), h.shape[1:])


class CaptionDecoder(Trunk):
  """A causal transformer over the positions of an image, a start, and the tokens of a text.

  levels  tokens are 0 .. levels - 1
  length  L, tokens of a text
  """
  features: int = 64
  depth: int = 2
  attention_heads: int = 4
  levels: int = 18
  length: int = 6
  remat: str = 'none'

  @nn.compact
  def __call__(self, seen: Array, tokens: Array) -> Array:
    """The logits of each token, [B, L, levels], float32: those at i read the tokens before i alone.

    seen: [B, positions, features], see `ImageGrid`.  tokens: integers [B, L].
    Raises InputError: tokens of another shape or type.
    """
    require_sizes(self, features=1, depth=1, levels=1, length=1)
    h = Tokens(self.levels, self.length, self.features, name='tokens')(tokens)
    start = self.param('start', nn.initializers.normal(0.02), (self.features,))
    start = jnp.broadcast_to(start, (len(h), 1, self.features))
    h = self._blocks(jnp.concatenate([seen, start, h[:, :-1]], axis=1), causal=True)
    return nn.Dense(self.levels, name='out')(norm('norm_out')(h[:, seen.shape[1]:]))
