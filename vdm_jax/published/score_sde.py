"""Parameters of NCSN++ and DDPM++ of yang-song/score_sde_pytorch (Song et al. 2021), read here.

A checkpoint there is a dict.  `model` is the state dict of the network.  `ema` has the averages as
`shadow_params`, a list in the order of the trained parameters of `model`.  Publications report the
averages: `averaged(model, shadow_params)` is a state dict that has them.

    module.all_modules.0.W                    fourier/frequencies   not trained, so not averaged
    module.all_modules.1.weight               dense0/kernel
    module.all_modules.4.GroupNorm_0.weight   trunk/down_0_0/norm1/scale

Modules are numbered in the order of their calls, and modules without parameters count too:
`published` counts them.  `sigmas`, the noise levels of discrete training, is left out.

The networks of the VE SDE were trained on data in [0, 1], and map their input to [-1, 1].  For data
in [-1, 1], `inputs.sigma()` and `targets.half_score` make them denoisers.  The networks of the VP
and sub-VP SDEs were trained on data in [-1, 1] and return eps, at time 999 t: `inputs.sde` and
`targets.eps`.
"""
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.nn.unets.ncsnpp import NCSNpp
from vdm_jax.published import fitting
from vdm_jax.typing import Array, PyTree

_HINT = ('compare features, multipliers, blocks, block, fir, embedding, progressive and '
         'progressive_input')

_DDPMPP = {'embedding': 'positional', 'fir': (), 'progressive_input': 'none',
           'scale_by_sigma': False}

# Checkpoint -> network, from the config of that name in the public repository.
MODELS = {
    've/cifar10_ncsnpp_continuous': NCSNpp(),
    've/cifar10_ncsnpp_deep_continuous': NCSNpp(blocks=8),
    'vp/cifar10_ddpmpp_continuous': NCSNpp(**_DDPMPP),
    'vp/cifar10_ddpmpp_deep_continuous': NCSNpp(blocks=8, **_DDPMPP),
    'subvp/cifar10_ddpmpp_continuous': NCSNpp(**_DDPMPP),
    'subvp/cifar10_ddpmpp_deep_continuous': NCSNpp(blocks=8, **_DDPMPP),
    've/ffhq_256_ncsnpp_continuous': NCSNpp(
        multipliers=(1, 1, 2, 2, 2, 2, 2), blocks=2, dropout=0.0, progressive='output_skip',
        progressive_input='input_skip'),
}


_part = fitting.renaming(
    (r'^(norm1|norm)$', 'GroupNorm_0'),
    (r'^norm2$', 'GroupNorm_1'),
    (r'^conv1$', 'Conv_0'),
    (r'^conv2$', 'Conv_1'),
    (r'^embedding$', 'Dense_0'),
    (r'^shortcut$', 'Conv_2'),
    (r'^(shortcut_nin|query)$', 'NIN_0'),
    (r'^key$', 'NIN_1'),
    (r'^value$', 'NIN_2'),
    (r'^out$', 'NIN_3'),
    (r'^conv$', 'Conv_0'),
)
_NIN = re.compile(r'/(shortcut_nin|query|key|value|out)/')
_CONV1 = re.compile(r'/(shortcut|combine_\d+)/kernel')


def _modules(have: set[str]) -> Iterable[str | None]:
  """Names of the modules here in the order of `all_modules`; None for a module without parameters.
  """
  def if_there(*names):
    return [name for name in names if name in have]

  def counts(pattern):
    return 1 + max(int(m[1]) for m in (re.fullmatch(pattern, name) for name in have) if m)

  yield from if_there('fourier', 'dense0', 'dense1')
  levels, blocks = counts(r'down_(\d+)_\d+'), counts(r'down_\d+_(\d+)')
  yield 'conv_in'
  for l in range(levels):
    for i in range(blocks):
      yield from if_there(f'down_{l}_{i}', f'down_{l}_{i}_attention')
    if l < levels - 1:
      yield f'down_{l}_resample' if f'down_{l}_resample' in have else None
      if f'combine_{l}' in have:
        yield None
      yield from if_there(f'combine_{l}', f'input_{l}')
  yield from ('mid_0', 'mid_attention', 'mid_1')
  for l in reversed(range(levels)):
    for i in range(blocks + 1):
      yield from if_there(f'up_{l}_{i}', f'up_{l}_{i}_attention')
    if f'output_{l}_norm' in have and l < levels - 1:
      yield None
    yield from if_there(f'output_{l}_norm', f'output_{l}_conv', f'output_{l}')
    if l > 0:
      yield f'up_{l}_resample' if f'up_{l}_resample' in have else None
  yield from if_there('norm_out', 'conv_out')


def published(params: PyTree) -> Callable[[str], str]:
  """The map from names here to published names, without `module.`.  params: arrays or shapes."""
  modules = {'fourier', 'dense0', 'dense1'} & params.keys() | params['trunk'].keys()
  number = {name: i for i, name in enumerate(_modules(modules)) if name}

  def published_name(name: str) -> str:
    module, *parts = name.removeprefix('trunk/').split('/')
    leaf = parts.pop()
    if module == 'fourier':
      leaf = 'W'
    elif _NIN.search(name):
      leaf = {'kernel': 'W', 'bias': 'b'}[leaf]
    else:
      leaf = fitting.torch_leaf(leaf)
    parts = [_part(part) for part in parts]
    if module.startswith('combine_'):
      parts = ['Conv']
    elif re.fullmatch(r'(down_\d+_resample|up_\d+_resample|input_\d+|output_\d+)', module):
      parts = parts or ['Conv2d_0']
    return '.'.join(['all_modules', str(number[module]), *parts, leaf])
  return published_name


def _from(name: str, array: np.ndarray) -> np.ndarray:
  if _NIN.search(name):  # written [in, out] there
    return array
  return array[:, :, 0, 0].T if _CONV1.search(name) else fitting.from_torch(name, array)


def _to(name: str, array: np.ndarray) -> np.ndarray:
  if _NIN.search(name):
    return array
  return array.T[:, :, None, None] if _CONV1.search(name) else fitting.to_torch(name, array)


def averaged(model: Mapping[str, np.ndarray],
             shadow_params: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
  """The state dict `model`, in its own order, with the averages in place of the trained parameters.

  Raises InputError: the number of averages is not the number of trained parameters.
  """
  fixed = re.compile(r'(module\.)?(sigmas|all_modules\.0\.W)')
  trained = [name for name in model if not fixed.fullmatch(name)]
  if len(trained) != len(shadow_params):
    raise InputError(problem=f'there are {len(shadow_params)} averages for {len(trained)} trained '
                     'parameters', remedy='take model and ema from the same checkpoint')
  return {**model, **dict(zip(trained, shadow_params, strict=True))}


def from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The state dict `flat` as parameters of an `NCSNpp`.

  like: the network's parameters here, arrays or shapes.
  Raises InputError naming every parameter that is missing, left over or of another shape.
  """
  flat = {name.removeprefix('module.'): array for name, array in flat.items()}
  flat.pop('sigmas', None)
  return fitting.fit(flat, like, published(like), layout=_from, hint=_HINT)


def to_flat(params: PyTree) -> dict[str, Array]:
  """The inverse of `from_flat`: names have the prefix `module.`, and `sigmas` is left out."""
  published_name = published(params)
  return fitting.flat(params, lambda name: f'module.{published_name(name)}', layout=_to)
