"""GLIDE's U-Nets as the network of a system: its condition has the fields of the data.

Nichol et al. (2021).  The network itself is `adm.UNet`.
"""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.unets import adm
from vdm_jax.typing import Array, PyTree

CAPTION, LOW_RES, KNOWN, MASK = 'caption', 'low_res', 'known', 'mask'
LOW_RES_NOISE = 'low_res_noise'
TIMES = 1000.0  # the time that means pure noise


class GLIDEUNet(nn.Module):
  """`net`, which is told a text by `Encoded`, and images by the integers 0 .. 255.

  Its parameters are those of `net`.  cond is the text; or a dict {'caption': text} with the images
  that `net` reads: 'low_res'; 'known' and 'mask', see `adm.UNet`.  Images may also be real numbers
  from -1 to 1.  'low_res_noise' is the noise of the small image, a time [B] from 0 to 1.
  """
  net: adm.UNet

  def setup(self):
    nn.share_scope(self, self.net)

  def __call__(self, z: Array, time: Array, cond: PyTree = None,
               keys: Array | None = None) -> Array:
    """y, as from `net`.  Raises InputError as `net` does."""
    told = dict(cond) if isinstance(cond, dict) else {CAPTION: cond}
    parts = {'text': told.pop(CAPTION, None)}
    for name, image in told.items():
      if name == LOW_RES_NOISE:
        parts['low_res_time'] = TIMES * image
        continue
      real = name == MASK or jnp.issubdtype(jnp.result_type(image), jnp.floating)
      image = jnp.asarray(image, jnp.float32)
      parts[name] = image if real else image / 127.5 - 1.0
    return self.net(z, time, parts, keys)


def images_of(net: adm.UNet) -> tuple[str, ...]:
  """The names of the images that `net` reads beside z."""
  return (LOW_RES,) * net.super_resolution + (KNOWN, MASK) * net.inpainting
