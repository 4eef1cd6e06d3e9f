"""A residual MLP for data without spatial structure: points in the plane, vectors.

The MLP is called like the image networks and is conditioned like them.  As in those networks, the
output starts at zero and z is added to it.
"""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.layers import (
    Dropout,
    Embedding,
    fourier_features,
    require_points,
    require_sizes,
    zeros,
)
from vdm_jax.typing import Array, PyTree


class MLP(nn.Module):
  """`blocks` residual blocks of `features` on z and its Fourier features: [B, D] -> [B, D].

  A block is h + dense(dropout(swish(dense(norm(h)) + W cond))).  The fields are described in
  `unets.vdm.UNet`.
  """
  features: int = 128
  blocks: int = 4
  dropout: float = 0.0
  fourier: tuple[float, ...] = ()
  classes: int = 0
  guided: bool = False
  adds_z: bool = True
  logsnr_max: float = 13.3
  logsnr_min: float = -5.0

  @nn.compact
  def __call__(self, z: Array, logsnr: Array, cond: PyTree = None,
               keys: Array | None = None) -> Array:
    """y: [B, D].  z: [B, D]; logsnr, keys: [B]; cond: see `layers.Embedding`.

    Raises InputError: data of another shape; impossible numbers of features or blocks.
    """
    require_points(z)
    require_sizes(self, features=1, blocks=0)
    embedding = Embedding(self.features, self.classes, self.logsnr_max, self.logsnr_min,
                          self.guided, name='embedding')(logsnr, cond)
    h = jnp.concatenate([z, fourier_features(z, self.fourier)], axis=-1)
    h = nn.Dense(self.features, name='dense_in')(h)
    for i in range(self.blocks):
      x = nn.Dense(self.features, name=f'block_{i}_dense1')(
          nn.LayerNorm(name=f'block_{i}_norm')(h))
      x += nn.Dense(self.features, use_bias=False, name=f'block_{i}_embedding')(embedding)
      x = Dropout(self.dropout, name=f'block_{i}_dropout')(nn.swish(x), keys)
      h += nn.Dense(self.features, kernel_init=zeros, name=f'block_{i}_dense2')(x)
    h = nn.swish(nn.LayerNorm(name='norm_out')(h))
    y = nn.Dense(z.shape[-1], kernel_init=zeros, name='dense_out')(h)
    return z + y if self.adds_z else y
