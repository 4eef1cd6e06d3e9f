"""The score networks of NCSN (Song and Ermon 2019) and NCSNv2 (Song and Ermon 2020).

A RefineNet has stages of two residual blocks on the way down.  The first stage has the full
resolution.  Each later stage has half the resolution, until detail would be lost; then it keeps the
resolution and its convolutions are dilated.

On the way up, a refinement block merges the stage's output with the result from below.  Residual
units adapt each of the two.  Their sum (multi-resolution fusion) passes a chain of poolings and
more residual units.  Each channel of each image is normalised.  This takes the means away, so they
are put back, normalised over channels ("instance norm++").

The two papers differ in how the network is told the noise level:

  NCSN     scales and biases of every normalisation are a row of a table, one row for each level
  NCSNv2   not at all; the output is divided by sigma (2020, technique 3)

Images are in [0, 1] as in the papers, and noise of standard deviation sigma is added to them.
"""
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from vdm_jax.errors import require
from vdm_jax.nn.blocks import convolution, layers, stack
from vdm_jax.nn.blocks.convolution import WeightGradient
from vdm_jax.typing import Array, PyTree

_KERNEL = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


def _about_one(key, shape, dtype=jnp.float32):
  return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


def _table(key, shape, dtype=jnp.float32):
  """Initial rows (gamma, alpha, beta): gamma and alpha are about 1, and beta is 0."""
  return _about_one(key, shape, dtype).at[:, -(shape[1] // 3):].set(0.0)


class InstanceNormPlus(nn.Module):
  """gamma ((h - mu) / s + alpha (mu - m) / v) + beta: [B, H, W, C] -> [B, H, W, C].

  mu, s: mean and standard deviation of a channel over the image.  m, v: mean and standard deviation
  of mu over the channels.  Song and Ermon (2019), appendix A.  level: the row of the table of
  `levels`, [B], if there is a table.
  """
  levels: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, h: Array, level: Array | None) -> Array:
    features = h.shape[-1]
    if self.levels:
      table = self.param('embedding', _table, (self.levels, 3 * features))
      gamma, alpha, beta = jnp.split(table[level][:, None, None], 3, axis=-1)
    else:
      gamma = self.param('gamma', _about_one, (features,))
      alpha = self.param('alpha', _about_one, (features,))
      beta = self.param('beta', layers.zeros, (features,))
    h = h.astype(jnp.float32)
    mean = jnp.mean(h, axis=(1, 2), keepdims=True)
    variance = jnp.mean(jnp.square(h - mean), axis=(1, 2), keepdims=True)
    among = jnp.var(mean, axis=-1, keepdims=True, ddof=1)
    between = (mean - jnp.mean(mean, axis=-1, keepdims=True)) * jax.lax.rsqrt(among + 1e-5)
    h = gamma * ((h - mean) * jax.lax.rsqrt(variance + 1e-5) + alpha * between) + beta
    return h.astype(self.dtype)


def _resize(h: Array, height: int, width: int) -> Array:
  """Bilinear interpolation with corners on corners: [B, H', W', C] -> [B, height, width, C]."""
  def weights(size, before):
    at = np.linspace(0.0, before - 1.0, size)
    # Hat functions about the points there are.
    return jnp.asarray(np.maximum(0.0, 1.0 - abs(at[:, None] - np.arange(before))), h.dtype)
  if h.shape[1:3] == (height, width):
    return h
  return jnp.einsum('ih,jw,bhwc->bijc', weights(height, h.shape[1]), weights(width, h.shape[2]), h)


class _Part(nn.Module):
  """The settings that all blocks share, and the layers made with them."""
  features: int
  levels: int = 0
  dtype: jnp.dtype = jnp.float32
  weight_gradient: WeightGradient = 'auto'

  def conv(self, h: Array, name: str, features: int, dilation: int = 1, size: int = 3,
           bias: bool = True) -> Array:
    if (dilation, size, bias) == (1, 3, True):
      return convolution.Conv(features, self.dtype, _KERNEL, self.weight_gradient, name=name)(h)
    h = nn.Conv(features, (size, size), padding=dilation * (size // 2), kernel_dilation=dilation,
                use_bias=bias, kernel_init=_KERNEL, dtype=self.dtype, name=name)(h)
    return checkpoint_name(h, convolution.NAME)

  def norm(self, h: Array, name: str, level: Array | None) -> Array:
    return InstanceNormPlus(self.levels, self.dtype, name=name)(h, level)

  def units(self, h: Array, name: str, level: Array | None, count: int) -> Array:
    """`count` residual units, h + conv(elu(conv(elu(h)))).  With levels, there are norms too."""
    for i in range(count):
      x = h
      for j in range(2):
        x = self.norm(x, f'{name}_{i}_{j}_norm', level) if self.levels else x
        x = self.conv(nn.elu(x), f'{name}_{i}_{j}_conv', h.shape[-1], bias=False)
      h = h + x
    return h


class ResBlock(_Part):
  """h + conv(elu(norm(conv(elu(norm(h)))))): [B, H, W, C'] -> [B, H, W, features].

  At the head of a stage (`down`), a convolution is applied to h too.  There, without dilation, the
  result has half the size.  With dilation the result keeps the size, and every convolution is
  dilated.
  """
  down: bool = False
  dilation: int = 1

  @nn.compact
  def __call__(self, h: Array, level: Array | None) -> Array:
    pooled = self.down and self.dilation == 1
    inner = h.shape[-1] if self.down else self.features
    x = self.conv(nn.elu(self.norm(h, 'norm1', level)), 'conv1', inner, self.dilation)
    x = self.conv(nn.elu(self.norm(x, 'norm2', level)), 'conv2', self.features, self.dilation)
    if self.down:
      h = self.conv(h, 'shortcut', self.features, self.dilation, 1 if pooled else 3)
    return layers.downsample(h + x) if pooled else h + x


class RefineBlock(_Part):
  """Merges the stage's output with the result from below: [B, H, W, ...] each -> [..., features].

  units_out: the number of residual units at the end.
  """
  units_out: int = 1

  @nn.compact
  def __call__(self, hs: list[Array], level: Array | None) -> Array:
    height, width = hs[0].shape[1:3]
    hs = [self.units(h, f'adapt_{i}', level, 2) for i, h in enumerate(hs)]
    if len(hs) > 1:
      fused = []
      for i, h in enumerate(hs):
        h = self.norm(h, f'fuse_{i}_norm', level) if self.levels else h
        fused.append(_resize(self.conv(h, f'fuse_{i}_conv', self.features), height, width))
      hs = [sum(fused)]
    h = x = nn.elu(hs[0])
    for i in range(2):
      if self.levels:  # padding counts as zeros
        x = nn.avg_pool(self.norm(x, f'pool_{i}_norm', level), (5, 5), padding='SAME')
      else:
        x = nn.max_pool(x, (5, 5), padding='SAME')
      x = self.conv(x, f'pool_{i}_conv', self.features, bias=False)
      h = h + x
    return self.units(h, 'out', level, self.units_out)


class RefineNet(nn.Module):
  """NCSN if it has `levels`, and NCSNv2 without.

  features         channels of the first stage
  multipliers      the channels of each stage, in multiples of `features`
  dilations        of each stage's convolutions; a later stage with dilation 1 has half the size
  levels           number of noise levels that NCSN knows.  `time` is the index of a level, and 0 is
                   the noisiest.  With levels = 0, `time` is sigma
  dtype            of the trunk: float32, or bfloat16
  remat            how much of a block is kept for the backward pass (see `stack`)
  weight_gradient  how a convolution's weight gradient is computed (see `convolution.Conv`)
  """
  features: int = 128
  multipliers: tuple[int, ...] = (1, 2, 2, 2)
  dilations: tuple[int, ...] = (1, 1, 2, 4)
  levels: int = 0
  dtype: jnp.dtype = jnp.float32
  remat: stack.Remat = 'none'
  weight_gradient: WeightGradient = 'auto'

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: PyTree = None,
               keys: Array | None = None) -> Array:
    """The score of images in [0, 1]: [B, H, W, C] -> [B, H, W, C], float32.  time: [B].

    There is no dropout, so `keys` change nothing.
    Raises InputError: any `cond`, as the network takes no labels; settings that do not fit each
    other or the images.
    """
    layers.require_labels(cond, 0, time)
    require(len(self.multipliers) == len(self.dilations), 'dilations', self.dilations,
            f'there are {len(self.multipliers)} multipliers', 'give one of each for every stage')
    layers.require_sizes(self, features=1, levels=0)
    layers.require_halvable(z, self.dilations[1:].count(1))  # a dilated stage keeps its size
    level = None
    if self.levels:
      level = jnp.clip(jnp.round(time), 0, self.levels - 1).astype(jnp.int32)
    common = (self.levels, self.dtype, self.weight_gradient)
    res_block = stack.rematerialised(ResBlock, self.remat)
    refine_block = stack.rematerialised(RefineBlock, self.remat)
    width = [multiplier * self.features for multiplier in self.multipliers]
    conv = lambda features, name: convolution.Conv(
        features, kernel_init=_KERNEL, weight_gradient=self.weight_gradient, name=name)

    h = conv(width[0], 'conv_in')(2.0 * z - 1.0).astype(self.dtype)
    outs = []
    for k, (features, dilation) in enumerate(zip(width, self.dilations, strict=True)):
      for j in range(2):
        h = res_block(features, *common, down=k > 0 and j == 0, dilation=dilation,
                      name=f'stage_{k}_{j}')(h, level)
      outs.append(h)
    below = []
    for k in reversed(range(len(outs))):
      features = width[max(k - 1, 0)] if below else width[k]
      h = refine_block(features, *common, units_out=1 if k else 3, name=f'refine_{k}')(
          [outs[k], *below], level)
      below = [h]
    h = nn.elu(InstanceNormPlus(self.levels, name='norm_out')(h, level))
    y = conv(z.shape[-1], 'conv_out')(h)
    return y if self.levels else y / time[:, None, None, None]
