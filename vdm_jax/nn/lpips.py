"""LPIPS: a distance of images by the features of VGG-16 (Zhang et al. 2018).

With f_l the features of layer l, of unit length over the channels, and weights w_l >= 0,

    d(x, y) = sum_l mean over positions of  sum_c w_lc (f_lc(x) - f_lc(y))^2.

The layers are the last of each of the five stages of VGG-16 (Simonyan and Zisserman 2015), after
the relu.  The parameters are published ones: see `published.lpips`.
"""
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.typing import Array

STAGES = (64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)
# The mean and the standard deviation of ImageNet's channels, for images in [-1, 1].
_SHIFT = -0.030, -0.088, -0.188
_SCALE = 0.458, 0.448, 0.450


def compares(shape: Sequence[int], least: int = 16) -> bool:
  """Whether LPIPS can compare examples of this shape.

  least: the least side, since four poolings halve the images.
  """
  return len(shape) == 3 and min(shape[:2]) >= least and shape[2] in (1, 3)


def require_channels(field: str | None, value: Any, shape: Sequence[int], least: int = 16) -> None:
  """Raises InputError that names `field`, unless LPIPS can compare examples of this shape.

  least: see `compares`.
  """
  require(compares(shape, least), field, value,
          f'LPIPS is of images of 1 or 3 channels with sides of {least} or more, and these are '
          f'{list(shape)}', 'choose a loss without it')


class VGG(nn.Module):
  """The features of each stage, after the last relu: [B, H, W, 3] -> five [B, H / 2^l, W / 2^l, C].

  Images are in [-1, 1].  They have 3 channels.
  """

  @nn.compact
  def __call__(self, x: Array) -> list[Array]:
    h, outs = (x - jnp.array(_SHIFT, x.dtype)) / jnp.array(_SCALE, x.dtype), []
    for stage, widths in enumerate(STAGES):
      if stage:
        h = nn.max_pool(h, (2, 2), (2, 2))
      for i, features in enumerate(widths):
        h = nn.relu(nn.Conv(features, (3, 3), name=f'conv_{stage}_{i}')(h))
      outs.append(h)
    return outs


class LPIPS(nn.Module):
  """d(x, y), [B].  x, y: images [B, H, W, C] in [-1, 1]; one channel stands for three equal ones.

  The sides are 16 or more, since four poolings halve them.  Raises InputError: no such images.
  """

  @nn.compact
  def __call__(self, x: Array, y: Array) -> Array:
    require_channels(None, None, x.shape[1:])
    both = jnp.concatenate([x, y])
    if both.shape[-1] == 1:
      both = jnp.repeat(both, 3, axis=-1)
    total = jnp.zeros(len(x), both.dtype)
    for stage, h in enumerate(VGG(name='vgg')(both)):
      # As published: 1e-10 is added to the length, and not under the root.
      squares = jnp.sum(jnp.square(h), axis=-1, keepdims=True)
      length = jnp.where(squares > 0.0, jnp.sqrt(jnp.where(squares > 0.0, squares, 1.0)), 0.0)
      a, b = jnp.split(h / (length + 1e-10), 2)
      weight = self.param(f'weight_{stage}', nn.initializers.ones, (h.shape[-1],))
      total += jnp.mean(jnp.sum(weight * jnp.square(a - b), axis=-1), axis=(1, 2))
    return total
