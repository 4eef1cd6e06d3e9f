"""The Haar wavelet of images, and changes of size that use it under gates.

A 2x2 block of pixels becomes four sums and differences with the same total square,

    LL = (a + b + c + d) / 2    LH = (a - b + c - d) / 2          a b
    HL = (a + b - c - d) / 2    HH = (a - b - c + d) / 2          c d

where the first letter is the filter along the height.  The transform is orthogonal and its own
inverse.

Yang et al. (2023), `Diffusion Probabilistic Model Made Slim`, change the size of images by this
transform.  On the way down, the four bands are summed.  On the way up, each quarter of the channels
is one band.  A gate for each example, band and channel says how much of the band this step wants.
Their code is not public.  The gates here follow a second source that describes them.
"""
import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.layers import require_halvable
from vdm_jax.typing import Array


def haar(h: Array) -> Array:
  """The bands LL, LH, HL, HH: [B, H, W, C] -> [4, B, H / 2, W / 2, C].

  Raises InputError: sides that cannot be halved.
  """
  require_halvable(h, 1)
  return _butterfly(h[:, ::2, ::2], h[:, ::2, 1::2], h[:, 1::2, ::2], h[:, 1::2, 1::2])


def inverse_haar(bands: Array) -> Array:
  """The images of these four bands: [4, B, H, W, C] -> [B, 2 H, 2 W, C]."""
  a, b, c, d = _butterfly(*bands)
  rows = [jnp.stack(pair, axis=3) for pair in ((a, b), (c, d))]  # [B, H, W, 2, C]
  h = jnp.stack(rows, axis=2)                                    # [B, H, 2, W, 2, C]
  return h.reshape(h.shape[0], 2 * h.shape[1], 2 * h.shape[3], h.shape[5])


def _butterfly(a, b, c, d):
  return 0.5 * jnp.stack([a + b + c + d, a - b + c - d, a + b - c - d, a - b - c + d])


class Gates(nn.Module):
  """sigmoid(FFN(the mean of h over positions)): [B, H, W, C] -> [4, B, 1, 1, `features`]."""
  features: int

  @nn.compact
  def __call__(self, h: Array) -> Array:
    mean = jnp.mean(h.astype(jnp.float32), axis=(1, 2))
    hidden = nn.swish(nn.Dense(self.features, name='hidden')(mean))
    gates = jax.nn.sigmoid(nn.Dense(4 * self.features, name='gates')(hidden))
    return jnp.moveaxis(gates.reshape(-1, 1, 1, 4, self.features), 3, 0)


class WaveletDown(nn.Module):
  """The gated sum of the bands: [B, H, W, C] -> [B, H / 2, W / 2, C]."""

  @nn.compact
  def __call__(self, h: Array) -> Array:
    gates = Gates(h.shape[-1], name='gates')(h)
    return jnp.sum(gates.astype(h.dtype) * haar(h), axis=0)


class WaveletUp(nn.Module):
  """Images of four gated bands, each a quarter of the channels: [B, H, W, 4 C] -> [B, 2 H, 2 W, C].
  """

  @nn.compact
  def __call__(self, h: Array) -> Array:
    gates = Gates(h.shape[-1] // 4, name='gates')(h)
    return inverse_haar(gates.astype(h.dtype) * jnp.stack(jnp.split(h, 4, axis=-1)))
