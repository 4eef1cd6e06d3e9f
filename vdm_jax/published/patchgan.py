"""The discriminator of taming-transformers and latent-diffusion as parameters of `nn.autoencoders`.

Its parts have their numbers in a list, in which a relu has one too:

    main.0.weight   conv_0/kernel        main.3.weight   norm_1/scale
    main.2.weight   conv_1/kernel        main.11.weight  logits/kernel, after three layers

The running statistics of the normalisations are left out, since training does not read them.
"""
from collections.abc import Mapping

import numpy as np

from vdm_jax.published import fitting
from vdm_jax.typing import PyTree


def from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The published parameters `flat`, {name: array}, as a tree like `like`, arrays or shapes.

  Raises InputError naming every parameter that is missing, left over or of another shape.
  """
  layers = sum(name.startswith('norm_') for name in like)

  def published(name):
    part, leaf = name.split('/')
    kind, _, number = part.partition('_')
    place = {'conv': 3 * int(number or 0) - 1, 'norm': 3 * int(number or 0),
             'logits': 3 * layers + 2}[kind]
    return f'main.{max(place, 0)}.{"bias" if leaf == "bias" else "weight"}'
  own = {name: array for name, array in flat.items()
         if not name.endswith(('.running_mean', '.running_var', '.num_batches_tracked'))}
  return fitting.fit(own, like, published, layout=fitting.from_torch,
                     hint='compare features and layers')
