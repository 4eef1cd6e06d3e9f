"""The conditional flow of a variational dequantiser: where inside its bin a pixel should lie.

The flow is an invertible map, given the image.  It maps standard normal noise to numbers that
`dequantisers.variational` squashes into the bins.  It couples even and odd pixels (Dinh et al.
2017, section 3.4) through convolutions, so the noise of a pixel may depend on its neighbours'
noise.  Nothing needs the inverse.
"""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.convolution import Conv
from vdm_jax.nn.blocks.layers import require_images, require_sizes, zeros
from vdm_jax.typing import Array


class Couplings(nn.Module):
  """(eps, x) -> (v, log |dv / deps|): affine couplings of the two colours of a checkerboard.

  A coupling moves one colour, v <- v exp(s) + b, with s = 2 tanh(./2).  There s and b are functions
  of x and of v on the other colour.  The `couplings` move the colours in turn, so two of them move
  every pixel.  The map starts as the identity.

  eps, x, v: images [B, H, W, C], x in [-1, 1]; the determinant: [B].
  """
  features: int = 32
  couplings: int = 4

  @nn.compact
  def __call__(self, eps: Array, x: Array) -> tuple[Array, Array]:
    require_images(eps)
    require_sizes(self, features=1, couplings=0)
    batch, height, width, channels = eps.shape
    colour = (jnp.arange(height)[:, None] + jnp.arange(width)) % 2
    v, log_det = eps, jnp.zeros(batch, eps.dtype)
    for i in range(self.couplings):
      moved = (colour == i % 2)[..., None].astype(eps.dtype)
      h = jnp.concatenate([x, v * (1.0 - moved), jnp.broadcast_to(moved, v.shape)], axis=-1)
      h = nn.swish(Conv(self.features, name=f'coupling_{i}_conv1')(h))
      h = nn.swish(Conv(self.features, name=f'coupling_{i}_conv2')(h))
      h = Conv(2 * channels, kernel_init=zeros, name=f'coupling_{i}_out')(h)
      log_scale, shift = jnp.split(h, 2, axis=-1)
      # Bounded: a step too far at first must not squash a pixel against the edge of its bin.
      log_scale = moved * 2.0 * jnp.tanh(0.5 * log_scale)
      v = v * jnp.exp(log_scale) + moved * shift
      log_det += jnp.sum(log_scale, axis=(1, 2, 3))
    return v, log_det
