"""Weights of LPIPS (richzhang/PerceptualSimilarity) and of its VGG-16 as parameters of `nn.lpips`.

Two files hold them: torchvision's VGG-16, `vgg16-397923af.pth`, and the weights of the layers,
`vgg.pth`.  A convolution of VGG-16 has its number in a list:

    features.0.weight, net.slice1.0.weight   vgg/conv_0_0/kernel
    lin0.model.1.weight                      weight_0
"""
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from vdm_jax import random
from vdm_jax.errors import InputError, require
from vdm_jax.machine import files
from vdm_jax.nn.lpips import LPIPS, STAGES, require_channels
from vdm_jax.published import fitting, readers
from vdm_jax.typing import Array, PyTree


def _numbers() -> dict[str, int]:
  """The place of each convolution in torchvision's list, which holds relus and poolings too."""
  out, number = {}, 0
  for stage, widths in enumerate(STAGES):
    for i in range(len(widths)):
      out[f'conv_{stage}_{i}'] = number
      number += 2
    number += 1
  return out


def _published(name: str) -> str:
  if name.startswith('weight_'):
    return f'lin{name.removeprefix("weight_")}.model.1.weight'
  _, layer, leaf = name.split('/')
  return f'features.{_numbers()[layer]}.{"weight" if leaf == "kernel" else leaf}'


def _layout(name: str, array: np.ndarray) -> np.ndarray:
  return array.reshape(-1) if name.startswith('weight_') else fitting.from_torch(name, array)


def from_flat(flat: Mapping[str, np.ndarray]) -> PyTree:
  """The arrays of both files, {name: array}, as parameters of `LPIPS`.

  The classifier of VGG-16 is left out.  The names may be those of the public LPIPS too, where
  features.N is net.sliceK.N.  Its fixed scaling and its second copy of the weights, under `lins`,
  are left out.
  Raises InputError naming every parameter that is missing, left over or of another shape.
  """
  known = {}
  for name, array in flat.items():
    if name.startswith(('classifier.', 'scaling_layer.', 'lins.')):
      continue
    if name.startswith('net.slice'):
      name = 'features.' + name.split('.', 2)[2]
    known[name] = array
  images = jnp.zeros((1, 16, 16, 3))
  like = jax.eval_shape(LPIPS().init, random.key(0), images, images)['params']
  return fitting.fit(known, like, _published, layout=_layout,
                     hint='they are not VGG-16 and the layers of LPIPS')


def reader(names: str, field: str = 'config.model.vgg') -> Callable[[], PyTree]:
  """A function that reads the parameters of `LPIPS` from these files, with a comma between them.

  field: the name of `names` in an error.  The function raises InputError for a file that is not
  there, and as `from_flat` does.
  """
  def read():
    flat: dict[str, np.ndarray] = {}
    try:
      for name in names.split(','):
        file = files.user_path(field, name)
        require(file.is_file(), field, names, f'there is no file {file}', "give torchvision's "
                "vgg16-397923af.pth and the layers' vgg.pth, with a comma between them")
        flat |= readers.read(file)
      return from_flat(flat)
    except InputError as error:
      raise InputError(field, names, error.problem, error.remedy) from None
  return read


def distance(names: str, field: str = 'config.model.lpips', size: int = 224
             ) -> Callable[[Array, Array], Array]:
  """LPIPS of images [B, H, W, C] in [-1, 1], twice -> [B], with the weights in the files `names`.

  The files are read at the first call, which raises InputError as `reader` says, and for examples
  that are no images of 1 or 3 channels.

  size: the least side.  Smaller images are enlarged, bilinearly.  The public code of consistency
  models (Song et al. 2023) enlarges to 224.  That of rectified flow (Liu et al. 2023) does not
  enlarge CIFAR-10.
  """
  def of(x: Array, y: Array) -> Array:
    require_channels(field, names, x.shape[1:], least=1)
    shape = (len(x), *(max(side, size) for side in x.shape[1:3]), x.shape[3])
    x, y = (jax.image.resize(u, shape, 'bilinear') for u in (x, y))
    apply: Callable[..., Any] = LPIPS().apply
    return apply({'params': _read(names, field)}, x, y)
  return of


def of_config(config: ml_collections.ConfigDict, size: int = 224
              ) -> Callable[[Array, Array], Array] | None:
  """`distance` with the weights in the files config.model.lpips; None if it names none."""
  files = config.model.get('lpips', '')  # a run's config may be older than the field
  return distance(files, size=size) if files else None


@functools.lru_cache(maxsize=1)
def _read(names: str, field: str) -> PyTree:
  with jax.ensure_compile_time_eval():  # the first call may be inside jit
    return jax.tree.map(np.asarray, reader(names, field)())
