"""Parameters of DiT (facebookresearch/DiT) as parameters of `nn.transformers.dit.DiT`.

Here blocks are stacked (`nn.blocks.stack`), and the table of positions is computed, not stored:

    x_embedder.proj.weight             patches/kernel
    y_embedder.embedding_table.weight  label/embedding           the last row is "no label"
    blocks.3.adaLN_modulation.1.bias   blocks/modulation/bias [3]
    final_layer.linear.weight          out/kernel
    pos_embed                          nn.transformers.dit.positions
"""
import math
from collections.abc import Mapping

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.nn.transformers.dit import DiT, positions
from vdm_jax.published import fitting
from vdm_jax.typing import PyTree

_STACKS = {'blocks'}
_HINT = 'compare patch, features, depth, classes, label_dropout and heads'


def _sizes() -> dict[str, DiT]:
  """The networks of Peebles and Xie (2023), table 1, with patches of 2, 4 and 8 and 1000 classes.
  """
  sizes = {'S': (12, 384, 6), 'B': (12, 768, 12), 'L': (24, 1024, 16), 'XL': (28, 1152, 16)}
  return {f'DiT-{size}/{patch}': DiT(patch, features, depth, heads, classes=1000, heads=1)
          for size, (depth, features, heads) in sizes.items() for patch in (2, 4, 8)}


# DiT-XL/2 is the one whose parameters are public, for ImageNet of 256 and of 512 pixels; it sees
# latents of an eighth of that, with four channels, and steps 0 .. 999 of a chain.
SIZES = _sizes()
MODELS = SIZES | dict.fromkeys(('DiT-XL-2-256x256', 'DiT-XL-2-512x512'), SIZES['DiT-XL/2'])
SHAPES = {'DiT-XL-2-256x256': (32, 32, 4), 'DiT-XL-2-512x512': (64, 64, 4)}  # of z

SCALE = 0.18215  # z = SCALE y, for y of the autoencoder of Stable Diffusion

# Names here -> published names, each applied to the whole name.
_renamed = fitting.renaming(
    (r'^patches/', r'x_embedder/proj/'),
    (r'^time/dense0/', r't_embedder/mlp/0/'),
    (r'^time/dense1/', r't_embedder/mlp/2/'),
    (r'^label/', r'y_embedder/embedding_table/'),
    (r'^blocks_(\d+)/', r'blocks/\1/'),
    (r'/attention/qkv/', r'/attn/qkv/'),
    (r'/attention/out/', r'/attn/proj/'),
    (r'/mlp/dense0/', r'/mlp/fc1/'),
    (r'/mlp/dense1/', r'/mlp/fc2/'),
    (r'/modulation/', r'/adaLN_modulation/1/'),
    (r'^modulation_out/', r'final_layer/adaLN_modulation/1/'),
    (r'^out/', r'final_layer/linear/'),
)


def published(name: str) -> str:
  """'blocks_0/attention/qkv/kernel' -> 'blocks.0.attn.qkv.weight'."""
  return fitting.torch_leaf(_renamed(name))


def from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The published parameters `flat`, {name: array}, as a tree like `like`, arrays or shapes.

  Raises InputError naming every parameter that does not fit, or if `pos_embed` differs from the
  table that is computed here.  Raises InputError also for names of diffusers.
  """
  flat = dict(flat)
  if any(name.startswith('transformer_blocks.') for name in flat):
    raise InputError(problem='its names are those of diffusers, which are not read for DiT',
                     remedy='give the file of facebookresearch/DiT')
  if 'pos_embed' in flat:  # [1, tokens, features], of a square image
    table = flat.pop('pos_embed')
    side = math.isqrt(table.shape[-2])
    # A moving average of the table, as published, drifts by rounding.
    if side**2 != table.shape[-2] or table.shape[-1] % 4 or np.abs(
        table - positions(side, side, table.shape[-1])).max() > 1e-4:
      raise InputError(problem=f'pos_embed {table.shape} is not the fixed table of sines and '
                       'cosines that nn.transformers.dit.DiT computes',
                       remedy='give weights of it: a network with learned positions does not fit')
  return fitting.fit(flat, like, published, layout=fitting.from_torch, hint=_HINT, stacks=_STACKS)


def to_flat(params: PyTree) -> dict[str, np.ndarray]:
  """The inverse of `from_flat`, without `pos_embed`."""
  return fitting.flat(params, published, layout=fitting.to_torch, stacks=_STACKS)
