"""A network of points, applied to data of any shape."""
from flax import linen as nn

from vdm_jax.typing import Array, PyTree


class Flattened(nn.Module):
  """`net` of [B, D], on data [B, ...] of D numbers, such as sequences of vectors [B, T, C].

  The network does not know the order of the numbers: neighbours are numbers like all others.

  net      takes and returns [B, D], e.g. `mlp.MLP`
  """
  net: nn.Module

  @nn.compact
  def __call__(self, z: Array, logsnr: Array, cond: PyTree = None,
               keys: Array | None = None) -> Array:
    """y, with the shape of z: [B, ...].  logsnr, keys: [B]; cond: as `net` takes it."""
    return self.net(z.reshape(len(z), -1), logsnr, cond, keys).reshape(z.shape)
