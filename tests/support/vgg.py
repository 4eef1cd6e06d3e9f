"""The two files of LPIPS, with random weights that are not negative."""
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.nn.lpips import LPIPS
from vdm_jax.published import fitting, lpips, readers


def parameters():
  """Random parameters of LPIPS, not negative, so that no distance is 0."""
  images = jnp.zeros((1, 16, 16, 3))
  return jax.tree.map(jnp.abs, jax.jit(LPIPS().init)(jax.random.key(0), images, images)['params'])


def write(directory, params, scale=1.0):
  """Writes the files of VGG-16 and of the layers, whose weights are times `scale`: their names."""
  flat = fitting.flat(params, lpips._published, layout=lambda name, array: (
      array[None, :, None, None] if name.startswith('weight_') else fitting.to_torch(name, array)))
  files = [directory / 'vgg.safetensors', directory / f'layers_{scale:g}.safetensors']
  of_layers = {name: np.float32(scale) * array for name, array in flat.items()
               if name.startswith('lin')}
  of_vgg = {name: array for name, array in flat.items() if name not in of_layers}
  for file, arrays in zip(files, (of_vgg, of_layers), strict=True):
    readers.write_safetensors(file, arrays, {})
  return files
