"""The Inception v3 whose features the Fréchet inception distance compares (Heusel et al. 2017).

It is the network of Szegedy et al. (2016), section 6, as published with TensorFlow in December
2015.  It differs from other networks of that name: its average poolings leave the padding out, and
its last block pools by the maximum.  A batch normalisation and a relu follow every convolution.
The statistics of the batch normalisation are fixed, so here they are part of the convolution.
Layers have the names that the published parameters have.
"""
import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.typing import Array

SIZE = 299  # of the images that it sees


def _max_pool(h: Array, stride: int) -> Array:
  return nn.max_pool(h, (3, 3), (stride, stride), 'SAME' if stride == 1 else 'VALID')


def _mean_pool(h: Array) -> Array:
  return nn.avg_pool(h, (3, 3), (1, 1), 'SAME', count_include_pad=False)


def _chain(h: Array, *layers: tuple[str, int, tuple[int, int]], stride: int = 1,
           padding: str = 'SAME') -> Array:
  """Convolutions (name, features, kernel's size); the last one has `stride` and `padding`."""
  for i, (name, features, size) in enumerate(layers):
    last = i == len(layers) - 1
    h = nn.relu(nn.Conv(features, size, stride if last else 1,
                        padding=padding if last else 'SAME', name=name)(h))
  return h


class _A(nn.Module):
  """35 x 35 -> 35 x 35."""
  pool_features: int

  @nn.compact
  def __call__(self, h: Array) -> Array:
    return jnp.concatenate([
        _chain(h, ('branch1x1', 64, (1, 1))),
        _chain(h, ('branch5x5_1', 48, (1, 1)), ('branch5x5_2', 64, (5, 5))),
        _chain(h, ('branch3x3dbl_1', 64, (1, 1)), ('branch3x3dbl_2', 96, (3, 3)),
               ('branch3x3dbl_3', 96, (3, 3))),
        _chain(_mean_pool(h), ('branch_pool', self.pool_features, (1, 1)))], axis=-1)


class _B(nn.Module):
  """35 x 35 -> 17 x 17."""

  @nn.compact
  def __call__(self, h: Array) -> Array:
    return jnp.concatenate([
        _chain(h, ('branch3x3', 384, (3, 3)), stride=2, padding='VALID'),
        _chain(h, ('branch3x3dbl_1', 64, (1, 1)), ('branch3x3dbl_2', 96, (3, 3)),
               ('branch3x3dbl_3', 96, (3, 3)), stride=2, padding='VALID'),
        _max_pool(h, 2)], axis=-1)


class _C(nn.Module):
  """17 x 17 -> 17 x 17, with convolutions of 7 x 7 in two factors."""
  features: int

  @nn.compact
  def __call__(self, h: Array) -> Array:
    c = self.features
    return jnp.concatenate([
        _chain(h, ('branch1x1', 192, (1, 1))),
        _chain(h, ('branch7x7_1', c, (1, 1)), ('branch7x7_2', c, (1, 7)),
               ('branch7x7_3', 192, (7, 1))),
        _chain(h, ('branch7x7dbl_1', c, (1, 1)), ('branch7x7dbl_2', c, (7, 1)),
               ('branch7x7dbl_3', c, (1, 7)), ('branch7x7dbl_4', c, (7, 1)),
               ('branch7x7dbl_5', 192, (1, 7))),
        _chain(_mean_pool(h), ('branch_pool', 192, (1, 1)))], axis=-1)


class _D(nn.Module):
  """17 x 17 -> 8 x 8."""

  @nn.compact
  def __call__(self, h: Array) -> Array:
    return jnp.concatenate([
        _chain(h, ('branch3x3_1', 192, (1, 1)), ('branch3x3_2', 320, (3, 3)),
               stride=2, padding='VALID'),
        _chain(h, ('branch7x7x3_1', 192, (1, 1)), ('branch7x7x3_2', 192, (1, 7)),
               ('branch7x7x3_3', 192, (7, 1)), ('branch7x7x3_4', 192, (3, 3)),
               stride=2, padding='VALID'),
        _max_pool(h, 2)], axis=-1)


class _E(nn.Module):
  """8 x 8 -> 8 x 8, with the two factors of a convolution of 3 x 3 side by side."""
  maximum: bool  # what the pooling takes

  @nn.compact
  def __call__(self, h: Array) -> Array:
    both = lambda h, name: [_chain(h, (f'{name}a', 384, (1, 3))),
                            _chain(h, (f'{name}b', 384, (3, 1)))]
    pooled = _max_pool(h, 1) if self.maximum else _mean_pool(h)
    return jnp.concatenate([
        _chain(h, ('branch1x1', 320, (1, 1))),
        *both(_chain(h, ('branch3x3_1', 384, (1, 1))), 'branch3x3_2'),
        *both(_chain(h, ('branch3x3dbl_1', 448, (1, 1)), ('branch3x3dbl_2', 384, (3, 3))),
              'branch3x3dbl_3'),
        _chain(pooled, ('branch_pool', 192, (1, 1)))], axis=-1)


class Inception(nn.Module):
  """The mean over positions of the last layer before the classes: [B, H, W, 3] -> [B, 2048].

  Images in [0, 255], of any size, are resized to 299 x 299.  The resizing is bilinear between the
  centres of pixels, in float32, and does not average where images become smaller.  The public code
  mseitzer/pytorch-fid does the same.
  """

  @nn.compact
  def __call__(self, images: Array) -> Array:
    h = jax.image.resize(images.astype(jnp.float32), (len(images), SIZE, SIZE, 3), 'linear',
                         antialias=False)
    h = h / 127.5 - 1.0
    h = _chain(h, ('Conv2d_1a_3x3', 32, (3, 3)), stride=2, padding='VALID')
    h = _chain(h, ('Conv2d_2a_3x3', 32, (3, 3)), padding='VALID')
    h = _max_pool(_chain(h, ('Conv2d_2b_3x3', 64, (3, 3))), 2)
    h = _chain(h, ('Conv2d_3b_1x1', 80, (1, 1)))
    h = _max_pool(_chain(h, ('Conv2d_4a_3x3', 192, (3, 3)), padding='VALID'), 2)
    for block in (
        _A(32, name='Mixed_5b'), _A(64, name='Mixed_5c'), _A(64, name='Mixed_5d'),
        _B(name='Mixed_6a'), _C(128, name='Mixed_6b'), _C(160, name='Mixed_6c'),
        _C(160, name='Mixed_6d'), _C(192, name='Mixed_6e'), _D(name='Mixed_7a'),
        _E(maximum=False, name='Mixed_7b'), _E(maximum=True, name='Mixed_7c')):
      h = block(h)
    return jnp.mean(h, axis=(1, 2))
