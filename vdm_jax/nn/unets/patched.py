"""A U-Net on patches: the pixels of a patch are channels, as in Luhman and Luhman (2022).

A U-Net that reads patches of 2 x 2 pixels has no convolution at the full resolution, where a small
network spends most of its time.  Nothing of the image is lost.
"""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.layers import require_patches
from vdm_jax.nn.blocks.transformer import patchify, unpatchify
from vdm_jax.typing import Array, PyTree


class Patched(nn.Module):
  """`net`, which reads z as [B, H / patch, W / patch, patch^2 C]; params['net'].

  If cond is a dict, `net` reads the images in it that are as high and wide as z in the same form.
  An image of one channel is repeated for each channel of z.
  """
  net: nn.Module
  patch: int = 2

  def __call__(self, z: Array, time: Array, cond: PyTree = None,
               keys: Array | None = None) -> Array:
    """y: [B, H, W, C], as z.  Raises InputError unless patches fill the sides."""
    require_patches(z, self.patch)
    count, height, width, _ = z.shape
    cut = lambda u: patchify(u, self.patch).reshape(
        count, height // self.patch, width // self.patch, -1)
    if isinstance(cond, dict):
      large = lambda u: getattr(u, 'shape', ())[:3] == z.shape[:3]
      cond = {name: cut(jnp.broadcast_to(u, z.shape)) if large(u) else u
              for name, u in cond.items()}
    return unpatchify(self.net(cut(z), time, cond, keys), self.patch, height, width)
