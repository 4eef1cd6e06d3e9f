"""Parameters of U-ViT (baofff/U-ViT) as parameters of `nn.transformers.uvit.UViT`.

Blocks are stacked here (`nn.blocks.stack`):

    patch_embed.proj.weight      patches/kernel
    label_emb.weight             label/embedding
    in_blocks.3.attn.qkv.weight  shallow/attention/qkv/kernel [3]
    out_blocks.0.skip_linear     deep/skip [0]
    final_layer.weight           conv_out/kernel
"""
from collections.abc import Mapping

import numpy as np

from vdm_jax.nn.transformers.uvit import UViT
from vdm_jax.published import fitting
from vdm_jax.typing import PyTree

_STACKS = {'shallow', 'deep'}
_HINT = ('compare patch, features, depth, classes, label_dropout, conv and the size of the image')

# Bao et al. (2023), by the names of the public code's configs, whose settings these are.  Those
# for ImageNet of 64 pixels were trained with every label; those for 256 and 512 pixels see latents
# of an eighth of that, and their last class is no label.
_LARGE = {'features': 1024, 'depth': 20, 'attention_heads': 16, 'classes': 1000}
_HUGE = {**_LARGE, 'features': 1152, 'depth': 28, 'conv': False}
MODELS = {
    'cifar10_uvit': UViT(),
    'celeba64_uvit': UViT(patch=4),
    'imagenet64_uvit_mid': UViT(patch=4, features=768, depth=16, attention_heads=12, classes=1000,
                                label_dropout=0.0),
    'imagenet64_uvit_large': UViT(patch=4, **_LARGE, label_dropout=0.0),
    'imagenet256_uvit_large': UViT(patch=2, **_LARGE, label_dropout=0.15),
    'imagenet256_uvit_huge': UViT(patch=2, **_HUGE),
    'imagenet512_uvit_large': UViT(patch=4, **_LARGE, label_dropout=0.15),
    'imagenet512_uvit_huge': UViT(patch=4, **_HUGE),
}
SHAPES = {  # of z
    'cifar10_uvit': (32, 32, 3),
    'celeba64_uvit': (64, 64, 3),
    'imagenet64_uvit_mid': (64, 64, 3),
    'imagenet64_uvit_large': (64, 64, 3),
    'imagenet256_uvit_large': (32, 32, 4),
    'imagenet256_uvit_huge': (32, 32, 4),
    'imagenet512_uvit_large': (64, 64, 4),
    'imagenet512_uvit_huge': (64, 64, 4),
}

# Names here -> published names, each applied to the whole name.
_renamed = fitting.renaming(
    (r'^patches/', r'patch_embed/proj/'),
    (r'^label/', r'label_emb/'),
    (r'^positions$', r'pos_embed'),
    (r'^shallow_(\d+)/', r'in_blocks/\1/'),
    (r'^middle/', r'mid_block/'),
    (r'^deep_(\d+)/', r'out_blocks/\1/'),
    (r'/attention/qkv/', r'/attn/qkv/'),
    (r'/attention/out/', r'/attn/proj/'),
    (r'/mlp/dense0/', r'/mlp/fc1/'),
    (r'/mlp/dense1/', r'/mlp/fc2/'),
    (r'/skip/', r'/skip_linear/'),
    (r'^norm_out/', r'norm/'),
    (r'^out/', r'decoder_pred/'),
    (r'^conv_out/', r'final_layer/'),
)


def published(name: str) -> str:
  """'deep_0/attention/qkv/kernel' -> 'out_blocks.0.attn.qkv.weight'."""
  return fitting.torch_leaf(_renamed(name))


def from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The published parameters `flat`, {name: array}, as a tree like `like`, arrays or shapes.

  Raises InputError naming every parameter that does not fit.
  """
  return fitting.fit(flat, like, published, layout=fitting.from_torch, hint=_HINT, stacks=_STACKS)


def to_flat(params: PyTree) -> dict[str, np.ndarray]:
  """The inverse of `from_flat`."""
  return fitting.flat(params, published, layout=fitting.to_torch, stacks=_STACKS)
