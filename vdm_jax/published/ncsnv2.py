"""Parameters of NCSN and NCSNv2 (ermongroup/ncsn, ncsnv2) as parameters of `nn.unets.refinenet`.

The published files are lists, [parameters, optimiser, epoch, step, averages].  The files of NCSN
have only the first two.  A flat view of such a list begins each name with the place in the list:
`0.module.begin_conv.weight`.  The averages, where there are any, have no `module.`:

    begin_conv.weight                    conv_in/kernel
    res2.0.normalize1.alpha              stage_1_0/norm1/alpha
    res2.0.conv2.conv.weight             stage_1_0/conv2/kernel        at half the size
    refine3.msf.convs.0.bias             refine_1/fuse_0_conv/bias     of four stages, from below
    refine3.adapt_convs.0.1_2_conv.weight    refine_1/adapt_0_0_1_conv/kernel
    sigmas                               not a parameter
"""
from collections.abc import Callable, Mapping

import numpy as np

from vdm_jax.nn.unets.refinenet import RefineNet
from vdm_jax.published import fitting
from vdm_jax.typing import PyTree

_DEEPER = RefineNet(multipliers=(1, 2, 2, 4, 4), dilations=(1, 1, 1, 2, 4))
_DEEPEST = RefineNet(multipliers=(1, 2, 2, 2, 4, 4), dilations=(1, 1, 1, 1, 2, 4))

# configs/ of the two repositories, and `get_model` of the second one's runner.
MODELS = {
    'ncsn-mnist': RefineNet(features=64, levels=10),
    'ncsn-cifar10': RefineNet(levels=10),
    'ncsn-celeba': RefineNet(levels=10),
    'ncsnv2-cifar10': RefineNet(),
    'ncsnv2-celeba': RefineNet(),
    'ncsnv2-church': _DEEPER,
    'ncsnv2-bedroom': _DEEPER,
    'ncsnv2-tower': _DEEPER,
    'ncsnv2-ffhq': _DEEPEST,
}
# The largest and the smallest sigma, of images in [0, 1], and how many there are from one to the
# other, in geometric progression: the configs again.
LEVELS = {
    'ncsn-mnist': (1.0, 0.01, 10),
    'ncsn-cifar10': (1.0, 0.01, 10),
    'ncsn-celeba': (1.0, 0.01, 10),
    'ncsnv2-cifar10': (50.0, 0.01, 232),
    'ncsnv2-celeba': (90.0, 0.01, 500),
    'ncsnv2-church': (140.0, 0.01, 788),
    'ncsnv2-bedroom': (190.0, 0.01, 1086),
    'ncsnv2-tower': (190.0, 0.01, 1086),
    'ncsnv2-ffhq': (348.0, 0.01, 2311),
}
# Of images.  Those of churches are 96 pixels wide in the paper and in what the repository shows.
SHAPES = {
    'ncsn-mnist': (28, 28, 1),
    'ncsn-cifar10': (32, 32, 3),
    'ncsn-celeba': (32, 32, 3),
    'ncsnv2-cifar10': (32, 32, 3),
    'ncsnv2-celeba': (64, 64, 3),
    'ncsnv2-church': (96, 96, 3),
    'ncsnv2-bedroom': (128, 128, 3),
    'ncsnv2-tower': (128, 128, 3),
    'ncsnv2-ffhq': (256, 256, 3),
}

_HINT = 'compare features, multipliers, dilations and levels'


def _stage_names(stages: int) -> list[str]:
  """The numbers that follow `res` and, from below, `refine`."""
  return ['1', '2', '3', '31', '4', '5'] if stages == 6 else [str(k + 1) for k in range(stages)]


def published(net: RefineNet) -> Callable[[str], str]:
  """Name here -> published name: 'stage_1_0/norm1/alpha' -> 'res2.0.normalize1.alpha'."""
  stages = len(net.dilations)
  names = _stage_names(stages)
  # The deepest has its `refine31` before `refine3`.
  refine = sorted(names, key=lambda name: (int(name[0]), -len(name)))
  unit = lambda m: f'{int(m[1]) + 1}_{int(m[2]) + 1}_{m[3]}'
  renamed = fitting.renaming(
      (r'^conv_in/', 'begin_conv/'),
      (r'^conv_out/', 'end_conv/'),
      (r'^norm_out/', 'normalizer/'),
      (r'^stage_(\d+)_(\d)/(conv2|shortcut)/', lambda m: (
          f'stage_{m[1]}_{m[2]}/{m[3]}/'
          + ('conv/' if int(m[1]) and m[2] == '0' and net.dilations[int(m[1])] == 1 else ''))),
      (r'^stage_(\d+)_(\d)/', lambda m: f'res{names[int(m[1])]}/{m[2]}/'),
      (r'^refine_(\d+)/', lambda m: f'refine{refine[stages - 1 - int(m[1])]}/'),
      (r'/norm(\d)/', r'/normalize\1/'),
      (r'/adapt_(\d)_', r'/adapt_convs/\1/'),
      (r'/out_', r'/output_convs/'),
      (r'/(\d)_(\d)_(conv|norm)/', lambda m: f'/{unit(m)}/'),
      (r'/fuse_(\d)_(conv|norm)/', r'/msf/\2s/\1/'),
      (r'/pool_(\d)_(conv|norm)/', r'/crp/\2s/\1/'),
      (r'/embedding$', r'/embed/embedding'),
  )

  return lambda name: fitting.torch_leaf(renamed(name))


def from_flat(flat: Mapping[str, np.ndarray], like: PyTree, net: RefineNet) -> PyTree:
  """The published parameters `flat`, {name: array}, as parameters of `net`, in a tree like `like`.

  flat: one part of the file's list (see the module), with `module.` or without.  Raises InputError
  naming every parameter that does not fit.
  """
  flat = {name.removeprefix('module.'): array for name, array in flat.items()}
  flat.pop('sigmas', None)
  return fitting.fit(flat, like, published(net), layout=fitting.from_torch, hint=_HINT)


def to_flat(params: PyTree, net: RefineNet) -> dict[str, np.ndarray]:
  """The inverse of `from_flat`, without `module.` and `sigmas`."""
  return fitting.flat(params, published(net), layout=fitting.to_torch)
