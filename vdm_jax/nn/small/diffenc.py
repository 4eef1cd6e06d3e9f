"""A small encoder that depends on the noise level: y = x + h(x, logsnr), h = 0 at first."""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.convolution import Conv
from vdm_jax.nn.blocks.layers import Embedding, require_groups, require_images, require_sizes, zeros
from vdm_jax.nn.unets.vdm import ResBlock
from vdm_jax.typing import Array


class NoiseLevelEncoder(nn.Module):
  """`blocks` residual blocks between two convolutions: [B, H, W, C] -> [B, H, W, C], float32.

  `unets.vdm.UNet` has the same blocks, and describes the fields.
  """
  features: int = 16
  blocks: int = 1
  groups: int = 4
  logsnr_max: float = 13.3
  logsnr_min: float = -5.0

  @nn.compact
  def __call__(self, x: Array, logsnr: Array) -> Array:
    require_images(x)
    require_sizes(self, features=1, blocks=0)
    require_groups(self.groups, self.features)
    embedding = Embedding(self.features, 0, self.logsnr_max, self.logsnr_min,
                          name='embedding')(logsnr)
    h = Conv(self.features, name='conv_in')(x)
    for i in range(self.blocks):
      h = ResBlock(self.features, self.groups, name=f'block_{i}')(h, embedding)
    h = nn.swish(nn.GroupNorm(self.groups, name='norm_out')(h.astype(jnp.float32)))
    return x + Conv(x.shape[-1], kernel_init=zeros, name='conv_out')(h)
