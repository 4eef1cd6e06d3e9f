"""Parameters of the FID's Inception v3 (mseitzer/pytorch-fid) as parameters of `nn.inception`.

A published layer is a convolution w without a bias, followed by a batch normalisation in inference
mode,

    h -> gain (w h - mean) / sqrt(variance + 1e-3) + bias.

The two together are one convolution with a bias:

    Mixed_5b.branch1x1.{conv.weight, bn.weight, bn.bias, bn.running_mean, bn.running_var}
    Mixed_5b/branch1x1/{kernel, bias}
"""
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.nn.inception import Inception
from vdm_jax.published import fitting
from vdm_jax.typing import PyTree

_PARTS = ('conv.weight', 'bn.weight', 'bn.bias', 'bn.running_mean', 'bn.running_var')


def from_flat(flat: Mapping[str, np.ndarray]) -> PyTree:
  """The published parameters `flat`, {name: array}, as parameters of `Inception`.

  The parameters of the last layer, which gives the classes, are left out: the features come before
  that layer.
  Raises InputError naming every parameter that does not fit.
  """
  layers = {}
  for name, value in flat.items():
    if name.startswith('fc.') or name.endswith('.num_batches_tracked'):
      continue
    layer, *part = name.rsplit('.', 2)
    layers.setdefault(layer, {})['.'.join(part)] = value
  wrong = [f'{layer}: has {sorted(parts)}' for layer, parts in layers.items()
           if sorted(parts) != sorted(_PARTS)]
  if wrong:
    raise InputError(problem=f'these layers do not have {sorted(_PARTS)}, as layers of the '
                     'Inception v3 of the FID do:\n  ' + '\n  '.join(wrong))
  folded = {}
  for layer, parts in layers.items():
    weight, gain, bias, mean, variance = (np.asarray(parts[part], np.float64) for part in _PARTS)
    scale = gain / np.sqrt(variance + 1e-3)
    folded[f'{layer}.weight'] = (weight * scale[:, None, None, None]).astype(np.float32)
    folded[f'{layer}.bias'] = (bias - mean * scale).astype(np.float32)
  like = jax.eval_shape(Inception().init, random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
  return fitting.fit(folded, like, fitting.torch_leaf, layout=fitting.from_torch,
                     hint='it is not the Inception v3 of the FID')
