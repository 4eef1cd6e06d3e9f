"""NCSN++ and DDPM++, the networks of score-based models by SDEs (Song et al. 2021).

A U-Net of residual blocks, `Trunk`, between an embedding of time and the output:

    conv_in -> levels down (blocks, attention at some sizes, a block that halves the size)
            -> block, attention, block -> levels up, reading the outputs of the levels down

It differs from DDPM's network (Ho et al. 2020) in four ways (Song et al. 2021, appendix H):

* residual blocks change the size (`block` = 'biggan'), by a finite impulse response filter (`fir`)
  instead of nearest neighbours and means;
* every sum with a skip connection is divided by sqrt(2) (`rescale`);
* a pyramid of the input joins every level down (`progressive_input`), and a pyramid of outputs
  may be built on the way up (`progressive`);
* noise levels are embedded by random Fourier features of log sigma (`embedding` = 'fourier').

NCSN++ has all four.  DDPM++ has the first, without the filter, and the second.  In training with
the VE SDE, the output is divided by sigma, so that it is a score.  EDM's networks
(nn/unets/edm.py) have the same trunk.
"""
import math
from typing import Literal, NamedTuple, get_args

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from vdm_jax.errors import require
from vdm_jax.nn.blocks import stack
from vdm_jax.nn.blocks.convolution import Conv, WeightGradient
from vdm_jax.nn.blocks.layers import (
  Attends,
  Attention,
  Dropout,
  attend,
  require_choices,
  require_halvable,
  require_heads,
  require_labels,
  require_sizes,
  sinusoidal_embedding,
)
from vdm_jax.typing import Array, PyTree

Resample = Literal['none', 'down', 'up']
Progressive = Literal['none', 'output_skip', 'residual']
ProgressiveInput = Literal['none', 'input_skip', 'residual']


def _uniform(scale):
  return nn.initializers.variance_scaling(scale, 'fan_avg', 'uniform')


class Initial(NamedTuple):
  """Initial values of kernels: most of them, those that make q, k, v, and the last one of a branch.
  """
  kernel: nn.initializers.Initializer = _uniform(1.0)
  qkv: nn.initializers.Initializer = _uniform(0.1)
  last: nn.initializers.Initializer = _uniform(1e-10)


initial = Initial()


# --------------------------------------------------------------- changing the size


def _filter(h: Array, taps: tuple[float, ...], pad: tuple[int, int], up: int = 1,
            stride: int = 1) -> Array:
  """Puts `up` - 1 zeros between pixels, pads, and applies `taps` along both sides, every `stride`.

  The symmetric `taps` are normalised so that a constant image stays the same inside.
  """
  weights = [up * tap / sum(taps) for tap in taps]
  for axis in (1, 2):
    padding = [(0, 0, 0)] * h.ndim
    padding[axis] = (*pad, up - 1)
    h = lax.pad(h, jnp.zeros((), h.dtype), padding)
    size = h.shape[axis] - len(taps) + 1
    h = sum(w * lax.slice_in_dim(h, i, i + size, stride, axis) for i, w in enumerate(weights))
  return h


def upsample(h: Array, fir: tuple[float, ...] = (1, 1)) -> Array:
  """[B, H, W, C] -> [B, 2 H, 2 W, C]: zeros between pixels, then the filter; (1, 1) repeats pixels.

  Karras et al. (2020), StyleGAN2; Song et al. (2021), appendix H, after Zhang (2019).
  """
  p = len(fir) - 2
  return _filter(h, fir, ((p + 1) // 2 + 1, p // 2 + 1), up=2)


def downsample(h: Array, fir: tuple[float, ...] = (1, 1)) -> Array:
  """[B, H, W, C] -> [B, H / 2, W / 2, C]: every other pixel of the filtered image; see `upsample`.

  The filter (1, 1) takes the mean of 2x2 pixels.
  """
  p = len(fir) - 2
  return _filter(h, fir, ((p + 1) // 2, p // 2), stride=2)


_SIZE = {'none': lambda h, fir: h, 'down': downsample, 'up': upsample}


class FIRConv(nn.Module):
  """A 3x3 convolution and a change of size by a filter.  Zeros are padded once, outside both.

  [B, H, W, C] -> [B, H / 2, W / 2, features] or [B, 2 H, 2 W, features].
  """
  features: int
  resample: Literal['down', 'up']
  fir: tuple[float, ...]
  dtype: jnp.dtype = jnp.float32
  initial: Initial = initial

  @nn.compact
  def __call__(self, h: Array) -> Array:
    kernel = self.param('kernel', self.initial.kernel, (3, 3, h.shape[-1], self.features))
    bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
    h, kernel, bias = (u.astype(self.dtype) for u in (h, kernel, bias))
    n = len(self.fir)
    if self.resample == 'down':
      h = _filter(h, self.fir, ((n + 1) // 2, n // 2))
    else:
      h = _filter(h, self.fir, ((n - 3) // 2 + 3, (n - 4) // 2 + 3), up=2)
    stride = 2 if self.resample == 'down' else 1
    return lax.conv_general_dilated(h, kernel, (stride, stride), 'VALID',
                                    dimension_numbers=('NHWC', 'HWIO', 'NHWC')) + bias


class PlainConv(nn.Module):
  """A 3x3 convolution and a change of size without a filter, as in DDPM (Ho et al. 2020).

  On the way down the convolution has stride 2, with zeros padded below and on the right.  On the
  way up the pixels are repeated before it.
  """
  features: int
  resample: Literal['down', 'up']
  dtype: jnp.dtype = jnp.float32
  weight_gradient: WeightGradient = 'auto'
  initial: Initial = initial

  @nn.compact
  def __call__(self, h: Array) -> Array:
    if self.resample == 'down':
      return nn.Conv(self.features, (3, 3), 2, ((0, 1), (0, 1)), dtype=self.dtype,
                     kernel_init=self.initial.kernel, name='conv')(h)
    return Conv(self.features, self.dtype, self.initial.kernel, self.weight_gradient,
                name='conv')(upsample(h))


# -------------------------------------------------------------------------- blocks


class FourierEmbedding(nn.Module):
  """sin(2 pi w t), cos(2 pi w t), w normal of standard deviation `scale`: [B] -> [B, 2 features].

  Tancik et al. (2020); Song et al. (2021), appendix H.  w is kept with the parameters but is not
  trained: its gradient is zero.
  """
  features: int
  scale: float = 16.0

  @nn.compact
  def __call__(self, t: Array) -> Array:
    frequencies = self.param('frequencies', nn.initializers.normal(self.scale), (self.features,))
    phases = 2.0 * math.pi * t[:, None] * lax.stop_gradient(frequencies)
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)


def norm(h: Array, name: str, dtype: jnp.dtype, epsilon: float = 1e-6) -> Array:
  """Group normalisation in min(32, C / 4) groups."""
  channels = h.shape[-1]
  groups = min(32, channels // 4)
  require(groups > 0 and channels % groups == 0, None, None,
          f'{channels} channels are not min(32, C / 4) equal groups', 'choose features and '
          'multipliers whose products are multiples of 4, and of 32 beyond 128')
  return nn.GroupNorm(groups, epsilon=epsilon, dtype=dtype, name=name)(h)


class ResBlock(nn.Module):
  """Two convolutions around the conditioning: [B, H, W, C'] -> [B, H, W, features], or resized.

  h + conv(dropout(swish(norm(conv(resize(swish(norm(h)))) + W e)))), e the embedding.  With
  `scale_shift`, W e instead gives a factor and a summand for the normalised image (Dhariwal and
  Nichol 2021).  h is resized too.  A linear map is applied to h where C' differs from `features`,
  and with `project` wherever h is resized.  With `rescale` the sum is divided by sqrt(2).
  """
  features: int
  dropout: float = 0.0
  resample: Resample = 'none'
  fir: tuple[float, ...] = (1, 1)
  rescale: bool = True
  scale_shift: bool = False
  project: bool = True
  shortcut: str = 'shortcut'
  shortcut_init: nn.initializers.Initializer = initial.kernel
  epsilon: float = 1e-6
  initial: Initial = initial
  dtype: jnp.dtype = jnp.float32
  weight_gradient: WeightGradient = 'auto'

  @nn.compact
  def __call__(self, h: Array, embedding: Array, keys: Array | None = None) -> Array:
    resize = lambda u: _SIZE[self.resample](u, self.fir)
    conv = lambda name, init: Conv(self.features, self.dtype, init, self.weight_gradient, name=name)
    dense = lambda size, name, init: nn.Dense(size, dtype=self.dtype, kernel_init=init, name=name)
    x = resize(nn.swish(norm(h, 'norm1', self.dtype, self.epsilon)))
    x = conv('conv1', self.initial.kernel)(x)
    if self.scale_shift:
      e = dense(2 * self.features, 'scale_shift', self.initial.kernel)(embedding)[:, None, None]
      scale, shift = jnp.split(e, 2, axis=-1)
      x = norm(x, 'norm2', self.dtype, self.epsilon) * (1.0 + scale) + shift
    else:
      e = dense(self.features, 'embedding', self.initial.kernel)(embedding)[:, None, None]
      x = norm(x + e, 'norm2', self.dtype, self.epsilon)
    x = Dropout(self.dropout, name='dropout')(nn.swish(x), keys)
    x = conv('conv2', self.initial.last)(x)
    mapped = h.shape[-1] != self.features or (self.resample != 'none' and self.project)
    h = resize(h)
    if mapped:
      h = dense(self.features, self.shortcut, self.shortcut_init)(h)
    return (h + x) * math.sqrt(0.5) if self.rescale else h + x


class SelfAttention(Attends):
  """h + W softmax(q k^T / sqrt(c)) v over all positions, in heads of c channels: [B, H, W, C].

  head_features: c; 0 means one head.  fused: one linear map gives q, k and v.  Its outputs are in
  the order (head, channel, which of the three), as in EDM's weights.
  """
  head_features: int = 0
  fused: bool = False
  rescale: bool = True
  epsilon: float = 1e-6
  initial: Initial = initial
  dtype: jnp.dtype = jnp.float32
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, h: Array, keys: Array | None = None) -> Array:
    features = h.shape[-1]
    size = self.head_features or features
    require_heads('head_features', size, features)
    dense = lambda n, name, init: nn.Dense(n, dtype=self.dtype, kernel_init=init, name=name)
    x = norm(h, 'norm', self.dtype, self.epsilon).reshape(h.shape[0], -1, features)
    heads = (*x.shape[:2], features // size, size)
    if self.fused:
      qkv = dense(3 * features, 'qkv', self.initial.qkv)(x).reshape(*heads, 3)
      q, k, v = (qkv[..., i] for i in range(3))
    else:
      q, k, v = (dense(features, name, self.initial.qkv)(x).reshape(heads)
                 for name in ('query', 'key', 'value'))
    x = attend(q, k, v, self.attention, keys is not None,
               attended=self.attended)
    x = dense(features, 'out', self.initial.last)(x.reshape(h.shape))
    return (h + x) * math.sqrt(0.5) if self.rescale else h + x


# ------------------------------------------------------------------------ networks


class Trunk(nn.Module):
  """(z, embedding [B, E]) -> y [B, H, W, channels], float32.  See the fields of `NCSNpp`.

  attention_up   on the way up, attention follows the last block of a size, or every block
  head_features, fused, scale_shift, project, epsilon   see `SelfAttention` and `ResBlock`
  """
  channels: int
  features: int
  multipliers: tuple[int, ...]
  blocks: int
  attention_resolutions: tuple[int, ...]
  dropout: float
  fir: tuple[float, ...] = ()
  rescale: bool = True
  block: Literal['biggan', 'ddpm'] = 'biggan'
  resample_conv: bool = True
  progressive: Progressive = 'none'
  progressive_input: ProgressiveInput = 'none'
  combine: Literal['sum', 'cat'] = 'sum'
  attention_up: Literal['last', 'every'] = 'last'
  head_features: int = 0
  fused: bool = False
  scale_shift: bool = False
  project: bool = True
  epsilon: float = 1e-6
  initial: Initial = initial
  dtype: jnp.dtype = jnp.float32
  remat: stack.Remat = 'dots'
  weight_gradient: WeightGradient = 'auto'
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, z: Array, embedding: Array, keys: Array | None = None) -> Array:
    levels = len(self.multipliers)
    require_choices(
        block=(self.block, ('biggan', 'ddpm')), combine=(self.combine, ('sum', 'cat')),
        progressive=(self.progressive, get_args(Progressive)),
        progressive_input=(self.progressive_input, get_args(ProgressiveInput)))
    require_halvable(z, levels - 1)
    require_sizes(self, features=1, blocks=0)
    fir = self.fir or (1, 1)
    ddpm = self.block == 'ddpm'
    block_type = stack.rematerialised(ResBlock, self.remat)
    attention_type = stack.rematerialised(SelfAttention, self.remat)

    def block(name, h, features, resample='none'):
      return block_type(
          features, self.dropout, resample, fir, self.rescale, self.scale_shift, self.project,
          'shortcut_nin' if ddpm else 'shortcut', self.initial.qkv if ddpm else self.initial.kernel,
          self.epsilon, self.initial, self.dtype, self.weight_gradient, name=name)(
              h, embedding, keys)

    def attend_if(attends, name, h):
      if not attends:
        return h
      return attention_type(self.head_features, self.fused, self.rescale, self.epsilon,
                            self.initial, self.dtype, self.attention, name=name)(h, keys)

    def resized(name, h, resample):
      """h at the next level: resized by a block, or as DDPM does it."""
      if not ddpm:
        return block(name, h, h.shape[-1], resample)
      if not self.resample_conv:
        return _SIZE[resample](h, fir)
      return resized_conv(name, h, h.shape[-1], resample)

    def resized_conv(name, h, features, resample):
      if self.fir:
        return FIRConv(features, resample, self.fir, self.dtype, self.initial, name=name)(h)
      return PlainConv(features, resample, self.dtype, self.weight_gradient, self.initial,
                       name=name)(h)

    def conv(name, h, features, init):
      """A convolution in float32: it touches z or y, and costs little."""
      return Conv(features, kernel_init=init, weight_gradient=self.weight_gradient, name=name)(h)

    def out(name, h, features, init):
      h = nn.swish(norm(h.astype(jnp.float32), name.format('norm'), jnp.float32, self.epsilon))
      return conv(name.format('conv'), h, features, init)

    here = lambda h: h.shape[1] in self.attention_resolutions
    mean = lambda u, v: (u + v) * math.sqrt(0.5) if self.rescale else u + v
    kernel, last = self.initial.kernel, self.initial.last

    h, pyramid = conv('conv_in', z, self.features, kernel).astype(self.dtype), z
    skips = [h]
    for l, multiplier in enumerate(self.multipliers):
      for i in range(self.blocks):
        h = block(f'down_{l}_{i}', h, self.features * multiplier)
        h = attend_if(here(h), f'down_{l}_{i}_attention', h)
        skips.append(h)
      if l < levels - 1:
        h = resized(f'down_{l}_resample', h, 'down')
        if self.progressive_input == 'input_skip':
          pyramid = downsample(pyramid, fir)
          u = nn.Dense(h.shape[-1], dtype=self.dtype, kernel_init=kernel,
                       name=f'combine_{l}')(pyramid)
          h = u + h if self.combine == 'sum' else jnp.concatenate([u, h], axis=-1)
        elif self.progressive_input == 'residual':
          h = pyramid = mean(resized_conv(f'input_{l}', pyramid, h.shape[-1], 'down'), h)
        skips.append(h)

    h = block('mid_0', h, h.shape[-1])
    h = attend_if(True, 'mid_attention', h)
    h = block('mid_1', h, h.shape[-1])

    pyramid = None
    for l, multiplier in reversed(list(enumerate(self.multipliers))):
      for i in range(self.blocks + 1):
        h = block(f'up_{l}_{i}', jnp.concatenate([h, skips.pop()], axis=-1),
                  self.features * multiplier)
        attends = here(h) and (self.attention_up == 'every' or i == self.blocks)
        h = attend_if(attends, f'up_{l}_{i}_attention', h)
      if self.progressive == 'output_skip':
        y = out(f'output_{l}_{{}}', h, self.channels, last)
        pyramid = y if pyramid is None else upsample(pyramid, fir) + y
      elif self.progressive == 'residual' and pyramid is None:
        pyramid = out(f'output_{l}_{{}}', h, h.shape[-1], kernel).astype(self.dtype)
      elif self.progressive == 'residual':
        h = pyramid = mean(resized_conv(f'output_{l}', pyramid, h.shape[-1], 'up'), h)
      if l > 0:
        h = resized(f'up_{l}_resample', h, 'up')
    if self.progressive == 'output_skip':
      return pyramid
    return out('{}_out', h, self.channels, last)


class NCSNpp(nn.Module):
  """NCSN++ and DDPM++ for images [B, H, W, C] in [-1, 1].

  features, multipliers   channels at each size, from the largest: features * multiplier
  blocks                  residual blocks of each size on the way down; one more on the way up
  attention_resolutions   heights at which attention follows the blocks
  dropout                 rate of dropout, per example; dropout is on where keys are given
  embedding               'fourier' embeds log sigma, and time is sigma; 'positional' embeds a step
  fourier_scale           standard deviation of the frequencies
  block                   'biggan' blocks also change the size.  Between 'ddpm' blocks the size is
                          changed, by convolutions if `resample_conv` is set
  fir                     the filter for changes of size, symmetric; () for none
  rescale                 whether sums with a skip connection are divided by sqrt(2)
  progressive             a pyramid of outputs: 'output_skip', the sum of each level's own output;
                          'residual', a pyramid of features; or 'none'
  progressive_input       a pyramid of inputs: 'input_skip', z itself at each size; 'residual', a
                          pyramid of features; or 'none'
  combine                 how 'input_skip' joins the features: 'sum' or 'cat'
  scale_by_sigma          whether y is divided by sigma
  heads                   further outputs of the shape of z, after y on the last axis
  dtype, remat, weight_gradient, attention   see `unets.vdm.UNet`

  The defaults are NCSN++ (cont., VE) on CIFAR-10.
  """
  features: int = 128
  multipliers: tuple[int, ...] = (1, 2, 2, 2)
  blocks: int = 4
  attention_resolutions: tuple[int, ...] = (16,)
  dropout: float = 0.1
  embedding: Literal['fourier', 'positional'] = 'fourier'
  fourier_scale: float = 16.0
  block: Literal['biggan', 'ddpm'] = 'biggan'
  resample_conv: bool = True
  fir: tuple[float, ...] = (1, 3, 3, 1)
  rescale: bool = True
  progressive: Progressive = 'none'
  progressive_input: ProgressiveInput = 'residual'
  combine: Literal['sum', 'cat'] = 'sum'
  scale_by_sigma: bool = True
  heads: int = 0
  dtype: jnp.dtype = jnp.float32
  remat: stack.Remat = 'dots'
  weight_gradient: WeightGradient = 'auto'
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: PyTree = None,
               keys: Array | None = None) -> Array:
    """y: [B, H, W, (1 + heads) C], float32.  z: [B, H, W, C]; time, keys: [B].

    Raises InputError: settings that do not fit each other or z; any `cond`.
    """
    require_choices(embedding=(self.embedding, ('fourier', 'positional')))
    require_sizes(self, features=1, heads=0)
    require(not self.scale_by_sigma or self.embedding == 'fourier', 'scale_by_sigma', True,
            "it needs embedding = 'fourier', whose time is sigma")
    require_labels(cond, 0, time)
    if self.embedding == 'fourier':
      e = FourierEmbedding(self.features, self.fourier_scale, name='fourier')(jnp.log(time))
    else:
      e = sinusoidal_embedding(time, self.features)
    dense = lambda name: nn.Dense(4 * self.features, kernel_init=initial.kernel, name=name)
    e = nn.swish(dense('dense1')(nn.swish(dense('dense0')(e))))
    channels = z.shape[-1]
    y = Trunk((1 + self.heads) * channels, self.features, self.multipliers, self.blocks,
              self.attention_resolutions, self.dropout, self.fir, self.rescale, self.block,
              self.resample_conv, self.progressive, self.progressive_input, self.combine,
              dtype=self.dtype, remat=self.remat, weight_gradient=self.weight_gradient,
              attention=self.attention, name='trunk')(z, e, keys)
    if not self.scale_by_sigma:
      return y
    scores = y[..., :channels] / time[:, None, None, None]
    return jnp.concatenate([scores, y[..., channels:]], axis=-1) if self.heads else scores
