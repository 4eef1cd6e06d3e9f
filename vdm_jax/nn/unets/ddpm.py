"""The U-Net of denoising diffusion probabilistic models (Ho et al. 2020, appendix B).

It has residual blocks at several resolutions, each half of the one before, and attention at 16x16.
Every block sees the step of the chain.  With C = `features`:

    conv_in  ->  2 blocks at each resolution  ->  block, attention, block
             ->  3 blocks at each resolution  ->  conv_out

A block on the way up reads its input and one output of the way down, last in first out.  That is an
output of a block, of a change of size or of conv_in.  A convolution of stride 2, padded on the
right and below, halves the images.  A convolution follows each doubling.  The network estimates
the noise.
"""
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks import stack
from vdm_jax.nn.blocks.convolution import Conv, WeightGradient
from vdm_jax.nn.blocks.layers import (
  Attention,
  AttentionBlock,
  require_choices,
  require_groups,
  require_halvable,
  require_sizes,
  upsample,
  zeros,
)
from vdm_jax.nn.blocks.wavelets import WaveletDown, WaveletUp
from vdm_jax.nn.unets.adm import ResBlock, StepEmbedding
from vdm_jax.typing import Array

_init = nn.initializers.variance_scaling(1.0, 'fan_avg', 'uniform')


class Block(nn.Module):
  """A residual block, followed by attention if `attends`: [B, H, W, C'] -> [B, H, W, features]."""
  features: int
  attends: bool
  groups: int = 32
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  weight_gradient: WeightGradient = 'auto'
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, h: Array, embedding: Array, keys: Array | None = None) -> Array:
    h = ResBlock(self.features, self.groups, self.dropout, epsilon=1e-6, kernel_init=_init,
                 dtype=self.dtype, weight_gradient=self.weight_gradient,
                 name='residual')(h, embedding, keys)
    if self.attends:
      h = AttentionBlock(self.groups, self.dtype, self.attention,
                         name='self_attention')(h, keys is not None)
    return h


class UNet(nn.Module):
  """The network of DDPM; `time` is the step of the chain, and step 0 has the least noise.

  features                C above
  multipliers             the features at each resolution, in multiples of C
  blocks                  number at each resolution on the way down; one more on the way up
  attention_resolutions   heights of the images at which attention follows a block
  attention_up            on the way up, attention follows every block, or only the last of its
                          resolution, as in the public code of Song et al. (2021)
  resampling              by convolutions, as published, or by gated wavelets (see `wavelets`)
  classes                 number of class labels; 0, as published, for none
  heads                   further outputs of the shape of z, after y on the last axis
  groups                  of the normalisations; divides the features at every resolution
  dropout                 rate of dropout, per example; dropout is on where keys are given
  dtype                   of the trunk: float32, or bfloat16
  remat                   how much of a block is kept for the backward pass (see `stack`)
  weight_gradient         how a convolution's weight gradient is computed (see `convolution.Conv`)
  attention               how attention is computed (see `layers.attend`)
  """
  features: int = 128
  multipliers: tuple[int, ...] = (1, 2, 2, 2)
  blocks: int = 2
  attention_resolutions: tuple[int, ...] = (16,)
  attention_up: Literal['every', 'last'] = 'every'
  resampling: Literal['convolution', 'wavelets'] = 'convolution'
  classes: int = 0
  heads: int = 0
  groups: int = 32
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32
  remat: stack.Remat = 'dots'
  weight_gradient: WeightGradient = 'auto'
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: Array | None = None,
               keys: Array | None = None) -> Array:
    """y: [B, H, W, (1 + heads) C], float32.  z: [B, H, W, C]; time, keys: [B].

    cond: labels, integers [B], -1 for none; or None.
    Raises InputError: settings that do not fit each other or the images; a wrong `cond`.
    """
    levels = len(self.multipliers)
    require_halvable(z, levels - 1)
    require_sizes(self, features=1, blocks=0, heads=0)
    require_choices(attention_up=(self.attention_up, ('every', 'last')),
                    resampling=(self.resampling, ('convolution', 'wavelets')))
    widths = [mult * self.features for mult in self.multipliers]
    require_groups(self.groups, *widths)
    embedding = StepEmbedding(self.features, self.classes, endpoint=True, cosine_first=False,
                              kernel_init=_init, name='embedding')(time, cond)

    def block(h, width, name, attends):
      module = stack.rematerialised(Block, self.remat)
      return module(width, attends, self.groups, self.dropout, self.dtype, self.weight_gradient,
                    self.attention, name=name)(h, embedding, keys)

    # The first and the last convolution are float32: they touch z itself, and cost little.
    wavelets = self.resampling == 'wavelets'
    h = Conv(self.features, kernel_init=_init, name='conv_in',
             weight_gradient=self.weight_gradient)(z).astype(self.dtype)
    outs = [h]
    for level, width in enumerate(widths):
      attends = h.shape[1] in self.attention_resolutions
      for i in range(self.blocks):
        h = block(h, width, f'down_{level}_{i}', attends)
        outs.append(h)
      if level < levels - 1:
        if wavelets:
          h = WaveletDown(name=f'downsample_{level}')(h)
        else:
          h = nn.Conv(width, (3, 3), 2, padding=((0, 1), (0, 1)), kernel_init=_init,
                      dtype=self.dtype, name=f'downsample_{level}')(h)
        outs.append(h)
    h = block(h, widths[-1], 'mid_0', True)
    h = block(h, widths[-1], 'mid_1', False)
    # In the order in which they run: up_0 has the lowest resolution.
    for level, width in enumerate(widths[::-1]):
      attends = h.shape[1] in self.attention_resolutions
      for i in range(self.blocks + 1):
        here = attends and (self.attention_up == 'every' or i == self.blocks)
        h = block(jnp.concatenate([h, outs.pop()], axis=-1), width, f'up_{level}_{i}', here)
      if level < levels - 1 and wavelets:
        bands = nn.Dense(4 * width, dtype=self.dtype, kernel_init=_init, name=f'bands_{level}')(h)
        h = WaveletUp(name=f'upsample_{level}')(bands)
      elif level < levels - 1:
        h = Conv(width, self.dtype, kernel_init=_init, name=f'upsample_{level}',
                 weight_gradient=self.weight_gradient)(upsample(h))

    h = nn.GroupNorm(self.groups, name='norm_out')(h.astype(jnp.float32))
    return Conv((1 + self.heads) * z.shape[-1], kernel_init=zeros, name='conv_out',
                weight_gradient=self.weight_gradient)(nn.swish(h))
