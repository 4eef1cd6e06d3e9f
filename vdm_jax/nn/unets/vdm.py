"""The score network of variational diffusion models (Kingma et al. 2021).

This U-Net has skip connections but one resolution: every block works at the full resolution, so no
detail is lost on the way.  With L = `blocks` and C = `features`:

    conv_in  ->  L blocks down  ->  block, attention, block  ->  L + 1 blocks up  ->  conv_out

Besides their input, the blocks up read the outputs of conv_in and of the blocks down, in reverse
order.  The network's input is z with its Fourier features.  These features show the network the
low-order digits of z, which decide the last bits of an image.  The last convolution starts at zero,
and z is added to its output.  So at first y = z, which is the right estimate of the noise where all
is noise.
"""
import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import random
from vdm_jax.nn.blocks import stack
from vdm_jax.nn.blocks.convolution import Conv, WeightGradient
from vdm_jax.nn.blocks.layers import (
    Attention,
    AttentionBlock,
    DenseOfParts,
    Dropout,
    Embedding,
    GroupNorm,
    fourier_features,
    require_groups,
    require_images,
    require_sizes,
    zeros,
)
from vdm_jax.typing import Array, PyTree

STACKS = {'down', 'down_attention', 'up', 'up_attention'}  # of a `UNet`'s parameters


class ResBlock(nn.Module):
  """Two convolutions around the conditioning: [B, H, W, C'] -> [B, H, W, features].

  h + conv(dropout(swish(norm(conv(swish(norm(h))) + W cond)))).  A linear map is applied to h where
  C' differs from `features`.
  """
  features: int
  groups: int
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  weight_gradient: WeightGradient = 'auto'

  @nn.compact
  def __call__(self, h: Array, embedding: Array, keys: Array | None = None,
               skip: Array | None = None) -> Array:
    norm = lambda name: GroupNorm(self.groups, self.dtype, swish=True, name=name)
    conv = lambda name, **kw: Conv(self.features, self.dtype, name=name,
                                   weight_gradient=self.weight_gradient, **kw)
    parts = (h,) if skip is None else (h, skip)
    shift = nn.Dense(self.features, use_bias=False, kernel_init=zeros, dtype=self.dtype,
                     name='embedding')(embedding)
    x = conv('conv1')(norm('norm1')(*parts), shift)
    x = Dropout(self.dropout, name='dropout')(norm('norm2')(x), keys)
    x = conv('conv2', kernel_init=zeros)(x)
    if sum(part.shape[-1] for part in parts) != self.features:
      h = DenseOfParts(self.features, self.dtype, name='shortcut')(*parts)
    return h + x


class UNet(nn.Module):
  """The network of VDM for images of any size and number of channels.

  features, blocks       C and L above
  attention_everywhere   attention after every block, not only in the middle
  groups                 of the normalisations; divides `features`.  Leave several channels in each
                         group.  With one channel to a group (32 features, 32 groups) the second
                         normalisation of a block removes the conditioning wholly
  dropout                rate of dropout, per example; dropout is on where keys are given
  fourier                exponents n of the features sin(2^n 2 pi z), cos(2^n 2 pi z); () for none.
                         (6, 7) suit 256 levels in [-1, 1]
  classes                number of class labels; 0: `cond` is an optional scalar (see `Embedding`)
  guided                 whether `cond` may be a pair, whose second part is the weight of a guidance
  heads                  further outputs of the shape of z, after y on the last axis; 0 at first
  adds_z                 whether y is z at first, not 0.  This suits a y that estimates eps: at the
                         noisiest levels eps is z
  logsnr_max, logsnr_min the range that the embedding of logsnr maps to [0, 1000]
  dtype                  of the trunk: float32, or bfloat16
  scan                   whether the blocks down and up are loops (see `stack`) or written out; the
                         parameters are the same
  remat                  how much of a block is kept for the backward pass (see `stack`)
  weight_gradient        how a convolution's weight gradient is computed (see `convolution.Conv`)
  attention              how attention is computed (see `layers.AttentionBlock`)
  """
  features: int = 128
  blocks: int = 32
  attention_everywhere: bool = False
  groups: int = 32
  dropout: float = 0.1
  fourier: tuple[float, ...] = (6, 7)
  classes: int = 0
  guided: bool = False
  heads: int = 0
  adds_z: bool = True
  logsnr_max: float = 13.3
  logsnr_min: float = -5.0
  dtype: jnp.dtype = jnp.float32
  scan: bool = True
  remat: stack.Remat = 'dots'
  weight_gradient: WeightGradient = 'auto'
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, z: Array, logsnr: Array, cond: PyTree = None,
               keys: Array | None = None) -> Array:
    """y: [B, H, W, (1 + heads) C], float32.  z: [B, H, W, C]; logsnr, keys: [B].

    cond: see `Embedding`.  Raises InputError: data that are no images; impossible sizes.
    """
    require_images(z)
    require_sizes(self, features=1, blocks=0, heads=0)
    require_groups(self.groups, self.features)
    embedding = Embedding(self.features, self.classes, self.logsnr_max, self.logsnr_min,
                          self.guided, name='embedding')(logsnr, cond)

    block = ResBlock(self.features, self.groups, self.dropout, self.dtype, self.weight_gradient,
                     parent=None)
    attention = AttentionBlock(self.groups, self.dtype, self.attention, parent=None)
    training = keys is not None

    def blocks(name, depth, h, skips=None):
      """Runs `depth` blocks on h, each with one of `skips` beside its input; see `stack.run`."""
      first_skip = None if skips is None else skips[0]
      params = {'block': stack.parameters(self, name, block, depth, h, embedding, None,
                                          first_skip)}
      if self.attention_everywhere:
        params['attention'] = stack.parameters(self, f'{name}_attention', attention, depth, h)
      own_keys = None if keys is None else random.streams(
          keys, [f'{name}_{i}' for i in range(depth)])

      def apply(params, h, each):
        with jax.named_scope(name):
          h = block.apply({'params': params['block']}, h, embedding, each['keys'], each['skip'])
        if self.attention_everywhere:
          with jax.named_scope(f'{name}_attention'):
            h = attention.apply({'params': params['attention']}, h, training)
        return h
      return stack.run(apply, params, h, {'skip': skips, 'keys': own_keys},
                       self.scan, self.remat)

    # The first and the last convolution are float32: they touch z itself, and cost little.
    h = jnp.concatenate([z, fourier_features(z, self.fourier)], axis=-1)
    first = Conv(self.features, name='conv_in', weight_gradient=self.weight_gradient)(h)
    first = first.astype(self.dtype)
    h, skips = first, first[None] if self.scan else [first]
    if self.blocks:
      h, outs = blocks('down', self.blocks, first)
      skips = jnp.concatenate([skips, outs]) if self.scan else [first, *outs]
    h = block.clone(name='mid_0', parent=self)(h, embedding, keys)
    h = attention.clone(name='mid_attention', parent=self)(h, training)
    h = block.clone(name='mid_1', parent=self)(h, embedding, keys)
    h, _ = blocks('up', self.blocks + 1, h, skips[::-1])

    h = nn.swish(nn.GroupNorm(self.groups, name='norm_out')(h.astype(jnp.float32)))
    channels = z.shape[-1]
    y = Conv((1 + self.heads) * channels, kernel_init=zeros, name='conv_out',
             weight_gradient=self.weight_gradient)(h)
    if not self.adds_z:
      return y
    if not self.heads:
      return z + y
    return jnp.concatenate([z + y[..., :channels], y[..., channels:]], axis=-1)
