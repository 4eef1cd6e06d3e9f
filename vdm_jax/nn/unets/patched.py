"""A U-Net on patches: the pixels of a patch are channels, as in Luhman and Luhman (2022).

A U-Net that reads patches of 2 x 2 pixels has no convolution at the full resolution, where a small
network spends most of its time.  Nothing of the image is lost.
"""
from flax import linen as nn

from vdm_jax.nn.blocks.layers import require_patches
from vdm_jax.nn.blocks.transformer import patchify, unpatchify
from vdm_jax.typing import Array, PyTree


class Patched(nn.Module):
  """`net`, which reads z as [B, H / patch, W / patch, patch^2 C]; params['net']."""
  net: nn.Module
  patch: int = 2

  def __call__(self, z: Array, time: Array, cond: PyTree = None,
               keys: Array | None = None) -> Array:
    """y: [B, H, W, C], as z.  Raises InputError unless patches fill the sides."""
    require_patches(z, self.patch)
    count, height, width, _ = z.shape
    h = patchify(z, self.patch).reshape(count, height // self.patch, width // self.patch, -1)
    return unpatchify(self.net(h, time, cond, keys), self.patch, height, width)
