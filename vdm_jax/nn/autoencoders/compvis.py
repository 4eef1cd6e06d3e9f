"""The autoencoders of latent diffusion (Rombach et al. 2022), as the public code has them.

An encoder halves images L - 1 times, and a decoder doubles them back.  With C = `features` and L
resolutions:

    encoder  conv_in  ->  N blocks at each resolution  ->  block, attention, block  ->  conv_out
    decoder  conv_in  ->  block, attention, block  ->  N + 1 blocks at each resolution  ->  conv_out

A 1x1 convolution stands between each of them and the latent.  A convolution of stride 2 halves the
images; it is padded on the right and below alone.  A convolution follows each doubling.  Two kinds
differ in the latent h of the encoder:

  `KLAutoencoder`  h is the mean m and the log-variance log v of q(y | x) = N(m, v)
  `VQAutoencoder`  each h is replaced by the nearest vector of a codebook (van den Oord et al. 2017)

Images are in [-1, 1]: the value 0 of a pixel is -1, and its last value is 1.
"""
import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks import stack
from vdm_jax.nn.blocks.convolution import Conv, WeightGradient
from vdm_jax.nn.blocks.layers import (
  Attention,
  AttentionBlock,
  require_groups,
  require_halvable,
  torch_init,
  upsample,
)
from vdm_jax.typing import Array

LOG_VARIANCE = -30.0, 20.0  # q(y | x) keeps log v between these


@dataclasses.dataclass(frozen=True)
class Trunk:
  """What the encoder and the decoder have in common.

  features          C above
  multipliers       the features at each resolution, in multiples of C
  blocks            N above
  attention_levels  the resolutions at which attention follows each block; 0 is the images' own
  middle_attention  whether attention stands between the two blocks in the middle
  groups            of the normalisations; divides the features at every resolution
  dtype             of the trunk: float32, or bfloat16
  remat             how much of a block is kept for the backward pass (see `stack`)
  weight_gradient   how a convolution's weight gradient is computed (see `convolution.Conv`)
  attention         how attention is computed (see `layers.attend`)
  """
  features: int = 128
  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  blocks: int = 2
  attention_levels: tuple[int, ...] = ()
  middle_attention: bool = True
  groups: int = 32
  dtype: jnp.dtype = jnp.float32
  remat: stack.Remat = 'none'
  weight_gradient: WeightGradient = 'auto'
  attention: Attention = 'auto'

  @property
  def factor(self) -> int:
    """The side of the images, divided by the side of their latents."""
    return 2**(len(self.multipliers) - 1)

  @property
  def widths(self) -> tuple[int, ...]:
    """The features at each resolution.  Raises InputError where `groups` does not divide them."""
    widths = tuple(multiplier * self.features for multiplier in self.multipliers)
    require_groups(self.groups, *widths)
    return widths


class Block(nn.Module):
  """h + conv(swish(norm(conv(swish(norm(h)))))): [B, H, W, C'] -> [B, H, W, features].

  h passes a linear map where C' differs from `features`.
  """
  features: int
  trunk: Trunk

  @nn.compact
  def __call__(self, h: Array) -> Array:
    t = self.trunk
    norm = lambda name: nn.GroupNorm(t.groups, epsilon=1e-6, dtype=t.dtype, name=name)
    conv = lambda name: Conv(self.features, t.dtype, kernel_init=torch_init, name=name,
                             weight_gradient=t.weight_gradient)
    x = conv('conv1')(nn.swish(norm('norm1')(h)))
    x = conv('conv2')(nn.swish(norm('norm2')(x)))
    if h.shape[-1] != self.features:
      h = nn.Conv(self.features, (1, 1), kernel_init=torch_init, dtype=t.dtype, name='shortcut')(h)
    return h + x


def _block(h: Array, features: int, trunk: Trunk, name: str, attends: bool = False) -> Array:
  h = stack.rematerialised(Block, trunk.remat)(features, trunk, name=name)(h)
  return _attention(h, trunk, f'{name}_attention') if attends else h


def _attention(h: Array, trunk: Trunk, name: str) -> Array:
  block = stack.rematerialised(AttentionBlock, trunk.remat)
  return block(trunk.groups, trunk.dtype, trunk.attention, name=name)(h)


def _middle(h: Array, trunk: Trunk) -> Array:
  width = trunk.widths[-1]
  h = _block(h, width, trunk, 'mid_0')
  if trunk.middle_attention:
    h = _attention(h, trunk, 'mid_attention')
  return _block(h, width, trunk, 'mid_1')


def _out(h: Array, channels: int, trunk: Trunk) -> Array:
  """What a trunk ends in.  It is float32, as is the first convolution: both cost little."""
  h = nn.GroupNorm(trunk.groups, epsilon=1e-6, name='norm_out')(h.astype(jnp.float32))
  return Conv(channels, kernel_init=torch_init, name='conv_out',
              weight_gradient=trunk.weight_gradient)(nn.swish(h))


class Encoder(nn.Module):
  """Images x: [B, H, W, C'] -> [B, H / f, W / f, channels]; f is `trunk.factor`.

  Raises InputError: images that cannot be halved so often; groups that do not divide the features.
  """
  channels: int
  trunk: Trunk = Trunk()

  @nn.compact
  def __call__(self, x: Array) -> Array:
    t = self.trunk
    require_halvable(x, len(t.multipliers) - 1)
    h = Conv(t.features, kernel_init=torch_init, name='conv_in',
             weight_gradient=t.weight_gradient)(x).astype(t.dtype)
    for level, width in enumerate(t.widths):
      for i in range(t.blocks):
        h = _block(h, width, t, f'down_{level}_{i}', level in t.attention_levels)
      if level < len(t.widths) - 1:
        h = nn.Conv(width, (3, 3), 2, padding=((0, 1), (0, 1)), kernel_init=torch_init,
                    dtype=t.dtype, name=f'downsample_{level}')(h)
    return _out(_middle(h, t), self.channels, t)


class Decoder(nn.Module):
  """The way back: [B, h, w, C'] -> [B, f h, f w, channels].  The levels are the encoder's."""
  channels: int
  trunk: Trunk = Trunk()

  @nn.compact
  def __call__(self, y: Array) -> Array:
    t = self.trunk
    h = Conv(t.widths[-1], kernel_init=torch_init, name='conv_in',
             weight_gradient=t.weight_gradient)(y).astype(t.dtype)
    h = _middle(h, t)
    for level, width in reversed(list(enumerate(t.widths))):
      for i in range(t.blocks + 1):
        h = _block(h, width, t, f'up_{level}_{i}', level in t.attention_levels)
      if level:
        h = Conv(width, t.dtype, kernel_init=torch_init, name=f'upsample_{level}',
                 weight_gradient=t.weight_gradient)(upsample(h))
    return _out(h, self.channels, t)


def _linear(channels: int) -> nn.Module:
  return nn.Conv(channels, (1, 1), kernel_init=torch_init)


class KLAutoencoder(nn.Module):
  """The autoencoder whose latent is Gaussian: q(y | x) = N(m, v), and x' = D(y).

  channels: of the images.  latent_channels: of y.
  """
  channels: int = 3
  latent_channels: int = 4
  trunk: Trunk = Trunk()

  def setup(self):
    self.encoder = Encoder(2 * self.latent_channels, self.trunk)
    self.moments = _linear(2 * self.latent_channels)
    self.latent = _linear(self.latent_channels)
    self.decoder = Decoder(self.channels, self.trunk)

  def encode(self, x: Array) -> tuple[Array, Array]:
    """m and log v of q(y | x): [B, h, w, latent_channels] each.  x: [B, H, W, C] in [-1, 1]."""
    mean, log_variance = jnp.split(self.moments(self.encoder(x)), 2, axis=-1)
    return mean, jnp.clip(log_variance, *LOG_VARIANCE)

  def decode(self, y: Array) -> Array:
    """x': [B, f h, f w, C], about [-1, 1].  y: [B, h, w, latent_channels]."""
    return self.decoder(self.latent(y))

  def __call__(self, x: Array) -> Array:
    """D(m): the images x, encoded and decoded."""
    return self.decode(self.encode(x)[0])


class VQAutoencoder(nn.Module):
  """The autoencoder whose decoder sees vectors of a codebook: x' = D(q), q the nearest to h.

  entries: of the codebook.  So the indices of an image have h w log2(entries) bits.  The other
  fields are as in `KLAutoencoder`.
  """
  channels: int = 3
  latent_channels: int = 3
  entries: int = 8192
  trunk: Trunk = Trunk()

  def setup(self):
    self.encoder = Encoder(self.latent_channels, self.trunk)
    self.moments = _linear(self.latent_channels)
    self.latent = _linear(self.latent_channels)
    self.decoder = Decoder(self.channels, self.trunk)
    self.codebook = self.param('codebook', _codebook_init, (self.entries, self.latent_channels))

  def encode(self, x: Array) -> Array:
    """h, before the codebook: [B, h, w, latent_channels].  A latent diffusion models this h."""
    return self.moments(self.encoder(x))

  def quantise(self, h: Array) -> tuple[Array, Array]:
    """The vectors q of the codebook nearest to h, as h, and their indices [B, h, w].

    The gradient of q reaches the codebook and not h.
    """
    # |h - e|^2 without |h|^2, which is the same for all entries.
    distance = jnp.sum(jnp.square(self.codebook), axis=-1) - 2.0 * h @ self.codebook.T
    index = jnp.argmin(jax.lax.stop_gradient(distance), axis=-1)
    return jnp.take(self.codebook, index, axis=0), index

  def decode(self, h: Array) -> Array:
    """D(q): [B, f h, f w, C].  The gradient passes from q to h (`straight through`)."""
    return self.decode_quantised(h + jax.lax.stop_gradient(self.quantise(h)[0] - h))

  def decode_quantised(self, q: Array) -> Array:
    """D(q) of vectors q of the codebook."""
    return self.decoder(self.latent(q))

  def __call__(self, x: Array) -> Array:
    """D(q): the images x, encoded, quantised and decoded."""
    return self.decode(self.encode(x))


def _codebook_init(key: Array, shape: tuple[int, int]) -> Array:
  """Uniform within 1 / entries of 0, as published."""
  return jax.random.uniform(key, shape, minval=-1.0 / shape[0], maxval=1.0 / shape[0])
