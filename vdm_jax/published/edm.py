"""Parameters of NVlabs/edm's networks as parameters here (Karras et al. 2022).

The state dict belongs to a preconditioned network, which holds the network itself as `model`:

    model.map_layer0.weight                  dense0/kernel
    model.map_noise.freqs                    fourier/frequencies    not trained
    model.enc.32x32_block0.norm0.weight      trunk/down_0_0/norm1/scale
    model.enc.16x16_block0.qkv.weight        trunk/down_1_0_attention/qkv/kernel

The public code names a block by the size of the image that the block makes.  Its filters are
constants that every block repeats (`resample_filter`), and they are left out here.  Both codes
order the outputs of `qkv` as (head, channel, which of q, k, v).
"""
import re
from collections.abc import Callable, Mapping

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.nn.unets.edm import DhariwalUNet, SongUNet
from vdm_jax.published import fitting
from vdm_jax.typing import Array, PyTree

_HINT = 'compare features, multipliers, blocks, classes, augment, embedding, encoder and decoder'

_NCSNPP = {'embedding': 'fourier', 'encoder': 'residual', 'fir': (1, 3, 3, 1)}


def _song(vp_or_ve, **settings):
  return SongUNet(**settings, **(_NCSNPP if vp_or_ve == 've' else {}))


# Checkpoint -> network, from the table of training runs in the public repository's README and what
# its train.py makes of those options.
MODELS = {
    **{f'edm-cifar10-32x32-{cond}-{kind}': _song(kind, classes=classes)
       for cond, classes in (('cond', 10), ('uncond', 0)) for kind in ('vp', 've')},
    **{f'edm-{data}-64x64-uncond-{kind}': _song(kind, multipliers=(1, 2, 2, 2), dropout=dropout)
       for data, dropout in (('ffhq', 0.05), ('afhqv2', 0.25)) for kind in ('vp', 've')},
    'edm-imagenet-64x64-cond-adm': DhariwalUNet(classes=1000),
}

_part = fitting.renaming(
    (r'/norm1/', '/norm0/'),
    (r'/norm2/', '/norm1/'),
    (r'_attention/norm/', '/norm2/'),
    (r'_attention/qkv/', '/qkv/'),
    (r'_attention/out/', '/proj/'),
    (r'/conv1/', '/conv0/'),
    (r'/conv2/', '/conv1/'),
    (r'/(embedding|scale_shift)/', '/affine/'),
    (r'/shortcut/', '/skip/'),
    (r'^mid/', 'mid_0/'),
)
_CONV1 = re.compile(r'/(shortcut|qkv|out|combine_\d+)/kernel')
_MAPPING = {'fourier': 'map_noise', 'label': 'map_label', 'augment': 'map_augment',
            'dense0': 'map_layer0', 'dense1': 'map_layer1'}


def published(params: PyTree, size: int) -> Callable[[str], str]:
  """The map from names here to published names, without `model.`.  size: the images' height."""
  trunk = params['trunk']
  last = max(int(m[1]) for m in (re.fullmatch(r'down_(\d+)_0', name) for name in trunk) if m)
  adm = 'scale_shift' in trunk['mid_0']
  side = lambda level: f'{size >> int(level)}x{size >> int(level)}'
  below = lambda level: side(int(level) + 1)
  module_of = fitting.renaming(*((f'^{pattern}$', replacement) for pattern, replacement in (
      (r'conv_in', lambda m: f'enc.{side(0)}_conv'),
      (r'down_(\d+)_resample', lambda m: f'enc.{below(m[1])}_down'),
      (r'down_(\d+)_(\d+)', lambda m: f'enc.{side(m[1])}_block{m[2]}'),
      (r'combine_(\d+)', lambda m: f'enc.{below(m[1])}_aux_skip'),
      (r'input_(\d+)', lambda m: f'enc.{below(m[1])}_aux_residual'),
      (r'mid_(\d)', lambda m: f'dec.{side(last)}_in{m[1]}'),
      (r'up_(\d+)_resample', lambda m: f'dec.{side(int(m[1]) - 1)}_up'),
      (r'up_(\d+)_(\d+)', lambda m: f'dec.{side(m[1])}_block{m[2]}'),
      (r'output_(\d+)_(norm|conv)', lambda m: f'dec.{side(m[1])}_aux_{m[2]}'),
      (r'(norm|conv)_out', lambda m: f'out_{m[1]}' if adm else f'dec.{side(0)}_aux_{m[1]}'),
  )))

  def published_name(name: str) -> str:
    module, _, rest = name.partition('/')
    if module in _MAPPING:
      return f'{_MAPPING[module]}.{"freqs" if module == "fourier" else fitting.torch_leaf(rest)}'
    module, _, rest = _part(rest).partition('/')
    return f'{module_of(module)}.{fitting.torch_leaf(rest)}'
  return published_name


def _from(name: str, array: np.ndarray) -> np.ndarray:
  return array[:, :, 0, 0].T if _CONV1.search(name) else fitting.from_torch(name, array)


def _to(name: str, array: np.ndarray) -> np.ndarray:
  return array.T[:, :, None, None] if _CONV1.search(name) else fitting.to_torch(name, array)


def from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The state dict `flat` as parameters of a `SongUNet` or `DhariwalUNet`.

  like: the network's parameters here, arrays or shapes.
  Raises InputError naming every parameter that is missing, left over or of another shape.
  """
  flat = {name.removeprefix('model.'): array for name, array in flat.items()
          if not name.endswith('resample_filter')}
  first = [m for m in (re.fullmatch(r'enc\.(\d+)x\d+_conv\.weight', name) for name in flat) if m]
  if not first:
    raise InputError(problem='no enc.{size}x{size}_conv.weight is among the parameters',
                     remedy='give the state dict of a SongUNet or DhariwalUNet, with or without '
                     'its preconditioning')
  return fitting.fit(flat, like, published(like, int(first[0][1])), layout=_from, hint=_HINT)


def to_flat(params: PyTree, size: int) -> dict[str, Array]:
  """The inverse of `from_flat`, with the prefix `model.`.  size: the height of the images."""
  published_name = published(params, size)
  return fitting.flat(params, lambda name: f'model.{published_name(name)}', layout=_to)
