"""The discriminator of image patches, which autoencoders are trained against (Isola et al. 2017).

4x4 convolutions see patches of the images; each position of the output judges one patch.  It is the
discriminator of Esser et al. (2021), section 3.1, and Rombach et al. (2022), section 3.1.
"""
from typing import Literal, get_args

import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.layers import require_choices, require_images, require_sizes
from vdm_jax.typing import Array

Norm = Literal['example', 'batch']
_init = nn.initializers.normal(0.02)


class PatchDiscriminator(nn.Module):
  """Images [B, H, W, C] -> logits [B, h, w], large for real patches.

  features  of the first layer; they double with each further layer, to eight times as many at most
  layers    of stride 2
  norm      'example' normalises each channel of an example over its positions.  'batch', as
            published, normalises over the batch too: the logits of an example then depend on the
            other examples, and results depend on how devices share the batch
  """
  features: int = 64
  layers: int = 3
  norm: Norm = 'example'

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Raises InputError: no images; no features or layers; another norm."""
    require_images(x)
    require_sizes(self, features=1, layers=1)
    require_choices(norm=(self.norm, get_args(Norm)))
    conv = lambda features, stride, bias, name: nn.Conv(
        features, (4, 4), stride, padding=1, use_bias=bias, kernel_init=_init, name=name)
    h = nn.leaky_relu(conv(self.features, 2, True, 'conv_0')(x), 0.2)
    for i in range(1, self.layers + 1):
      stride = 2 if i < self.layers else 1
      h = conv(self.features * min(2**i, 8), stride, False, f'conv_{i}')(h)
      h = nn.leaky_relu(self._normalise(h, f'norm_{i}'), 0.2)
    return conv(1, 1, True, 'logits')(h)[..., 0]

  def _normalise(self, h: Array, name: str) -> Array:
    axes = (1, 2) if self.norm == 'example' else (0, 1, 2)
    mean = jnp.mean(h, axis=axes, keepdims=True)
    variance = jnp.mean(jnp.square(h - mean), axis=axes, keepdims=True)
    return _Affine(name=name)((h - mean) / jnp.sqrt(variance + 1e-5))


class _Affine(nn.Module):

  @nn.compact
  def __call__(self, h: Array) -> Array:
    init = lambda key, shape: 1.0 + _init(key, shape)
    scale = self.param('scale', init, h.shape[-1:])
    return scale * h + self.param('bias', nn.initializers.zeros, h.shape[-1:])
