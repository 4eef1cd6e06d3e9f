"""The networks of learned adaptive noise: from an image to a latent, from a latent to schedules.

Sahoo, Gokaslan, De Sa and Kuleshov (2024), Diffusion Models With Learned Adaptive Noise.  Neither
network takes the time.  The encoder gives the logits of a k-hot vector.  The coefficients define
a polynomial in time, one polynomial for each number of the image.
"""
import math

import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.convolution import Conv
from vdm_jax.nn.blocks.layers import (
    AttentionBlock,
    Embedding,
    fourier_features,
    require_groups,
    require_images,
    require_sizes,
    zeros,
)
from vdm_jax.nn.unets.vdm import ResBlock
from vdm_jax.typing import Array


class LatentEncoder(nn.Module):
  """x [B, H, W, C] -> the logits of a k-hot latent [B, latent], all 0 at first.

  The encoder is the half of `unets.vdm.UNet` that leads down to its middle, at a constant noise
  level.  A convolution to one channel and a dense layer follow.  The fields are described in
  `unets.vdm.UNet`.
  """
  latent: int = 50
  features: int = 128
  blocks: int = 4
  groups: int = 32
  dropout: float = 0.1
  fourier: tuple[float, ...] = (6, 7)

  @nn.compact
  def __call__(self, x: Array, keys: Array | None = None) -> Array:
    require_images(x)
    require_sizes(self, latent=1, features=1, blocks=0)
    require_groups(self.groups, self.features)
    constant = jnp.zeros(x.shape[0])
    embedding = Embedding(self.features, 0, 0.0, -1.0, name='embedding')(constant)
    block = lambda name, h: ResBlock(self.features, self.groups, self.dropout, name=name)(
        h, embedding, keys)
    h = jnp.concatenate([x, fourier_features(x, self.fourier)], axis=-1)
    h = Conv(self.features, name='conv_in')(h)
    for i in range(self.blocks):
      h = block(f'down_{i}', h)
    h = block('mid_0', h)
    h = AttentionBlock(self.groups, name='mid_attention')(h)
    h = block('mid_1', h)
    h = nn.swish(nn.GroupNorm(self.groups, name='norm_out')(h))
    h = Conv(1, kernel_init=zeros, name='conv_out')(h)
    return nn.Dense(self.latent, name='dense_out')(nn.swish(h.reshape(x.shape[0], -1)))


class Coefficients(nn.Module):
  """latent [B, n] -> (a, b, c) of `systems.variational.mulan.PolynomialSchedule`, each [B, *shape].

  Two dense layers of `features`, and one for each coefficient.  a and b are 0 at first, so every
  schedule is a straight line at first.  c >= 1e-3, so no schedule is flat at both ends.
  """
  shape: tuple[int, ...]
  features: int = 3072

  @nn.compact
  def __call__(self, latent: Array) -> tuple[Array, Array, Array]:
    require_sizes(self, features=1)
    h = nn.swish(nn.Dense(self.features, name='dense0')(latent))
    h = nn.swish(nn.Dense(self.features, name='dense1')(h))
    size = math.prod(self.shape)
    a = nn.Dense(size, kernel_init=zeros, name='a')(h)
    b = nn.Dense(size, kernel_init=zeros, name='b')(h)
    c = 1e-3 + nn.softplus(nn.Dense(size, name='c')(h))
    return tuple(u.reshape(-1, *self.shape) for u in (a, b, c))
