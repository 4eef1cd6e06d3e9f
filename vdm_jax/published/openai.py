"""Checkpoints of openai/improved-diffusion and guided-diffusion as parameters of `nn.unets.adm`.

The files of both are PyTorch state dicts with the same kind of names.  Blocks have the same numbers
as here.  The parts of a block are named by their place in a list:

    input_blocks.4.1.qkv.weight           down_4_attention/qkv/kernel
    output_blocks.2.0.out_layers.3.bias   up_2/conv2/bias
    output_blocks.2.2.conv.weight         upsample_2/kernel: the third part, or the second where no
                                          attention comes before it
"""
import re
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import numpy as np

from vdm_jax.nn.unets import adm
from vdm_jax.published import fitting
from vdm_jax.typing import Array, PyTree

_HINT = ('compare features, multipliers, blocks, attention_resolutions, scale_shift, '
         'resblock_updown, classes, heads, super_resolution, text and inpainting')

# Names here -> published names, each applied to the whole name.
_renamed = fitting.renaming(
    (r'^embedding/dense0/', r'time_embed/0/'),
    (r'^embedding/dense1/', r'time_embed/2/'),
    (r'^embedding/label/', r'label_emb/'),
    (r'^conv_in/', r'input_blocks/0/0/'),
    (r'^downsample_(\d+)/(kernel|bias)', r'input_blocks/\1/0/op/\2'),
    (r'^upsample_(\d+)/(kernel|bias)', r'upsample_\1/conv/\2'),
    (r'^(?:down|downsample)_(\d+)/', r'input_blocks/\1/0/'),
    (r'^down_(\d+)_attention/', r'input_blocks/\1/1/'),
    (r'^mid_0/', r'middle_block/0/'),
    (r'^mid_attention/', r'middle_block/1/'),
    (r'^mid_1/', r'middle_block/2/'),
    (r'^up_(\d+)/', r'output_blocks/\1/0/'),
    (r'^up_(\d+)_attention/', r'output_blocks/\1/1/'),
    (r'^norm_out/', r'out/0/'),
    (r'^conv_out/', r'out/2/'),
    (r'^pool/(positional_embedding)', r'out/2/\1'),
    (r'^pool/qkv/', r'out/2/qkv_proj/'),
    (r'^pool/out/', r'out/2/c_proj/'),
    (r'/norm1/', r'/in_layers/0/'),
    (r'/conv1/', r'/in_layers/2/'),
    (r'/embedding/', r'/emb_layers/1/'),
    (r'/norm2/', r'/out_layers/0/'),
    (r'/conv2/', r'/out_layers/3/'),
    (r'/shortcut/', r'/skip_connection/'),
    (r'/1/out/', r'/1/proj_out/'),
    (r'/1/text/', r'/1/encoder_kv/'),
)


def published(params: PyTree) -> Callable[[str], str]:
  """Name here -> published name, for such parameters: 'mid_0/norm1/scale' -> 'middle_block.0...'.

  params: the parameters of an `adm.UNet` or `adm.UNetClassifier`.
  """
  def published_name(name):
    name = _renamed(name)
    upsample = re.match(r'upsample_(\d+)', name)
    if upsample:
      n = upsample[1]
      place = 2 if f'up_{n}_attention' in params else 1
      name = name.replace(upsample[0], f'output_blocks/{n}/{place}', 1)
    return fitting.torch_leaf(name)
  return published_name


def from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The published parameters `flat`, {name: array}, as a tree like `like`, arrays or shapes.

  Raises InputError naming every parameter that is missing, left over or of another shape.
  """
  return fitting.fit(flat, like, published(like), layout=fitting.from_torch, hint=_HINT)


def to_flat(params: PyTree) -> dict[str, Array]:
  """The inverse of `from_flat`: the parameters by their published names."""
  return fitting.flat(params, published(params), layout=_to_torch)


def _to_torch(name, array):
  array = fitting.to_torch(name, array)
  # The maps of the attention are convolutions over the positions.
  return array[..., None] if re.search(r'/(qkv|out|text)/kernel$', name) else array


_MULTIPLIERS = {32: (1, 2, 2, 2), 64: (1, 2, 3, 4), 128: (1, 1, 2, 3, 4),
                256: (1, 1, 2, 2, 4, 4), 512: (0.5, 1, 1, 2, 2, 4, 4)}


def _iddpm(size: int, **settings) -> adm.UNet:
  return adm.UNet(**{'multipliers': _MULTIPLIERS[size], 'attention_resolutions': (16, 8),
                     'attention_heads': 4, 'heads': 1, **settings})


def _adm(size: int, **settings) -> adm.UNet:
  return adm.UNet(**{'multipliers': _MULTIPLIERS[size], 'features': 256, 'blocks': 2, 'heads': 1,
                     'head_features': 64, 'resblock_updown': True, **settings})


def _classifier(size: int, blocks: int = 2) -> adm.UNetClassifier:
  return adm.UNetClassifier(multipliers=_MULTIPLIERS[size], blocks=blocks, resblock_updown=True)


_cifar10 = _iddpm(32, dropout=0.3)
_bedroom = _iddpm(256, blocks=2, attention_heads=1, scale_shift=False, attention_resolutions=(16,))
_lsun = _adm(256, dropout=0.1)

# By the file's name without `.pt`.  The settings are the flags that the README of each repository
# gives to sample from the file, or else its defaults.
MODELS: dict[str, adm.UNet | adm.UNetClassifier] = {
    # openai/improved-diffusion
    'cifar10_uncond_50M_500K': _cifar10,
    'cifar10_uncond_vlb_50M_500K': _cifar10,
    'imagenet64_uncond_100M_1500K': _iddpm(64),
    'imagenet64_uncond_vlb_100M_1500K': _iddpm(64),
    'imagenet64_cond_270M_250K': _iddpm(64, features=192, classes=1000),
    'upsample_cond_500K': _iddpm(256, features=192, blocks=2, classes=1000, super_resolution=True),
    'lsun_uncond_100M_1200K_bs128': _bedroom,
    'lsun_uncond_100M_2400K_bs64': _bedroom,
    # openai/guided-diffusion
    '64x64_diffusion': _adm(64, features=192, blocks=3, classes=1000, qkv_order='new', dropout=0.1),
    '128x128_diffusion': _adm(128, attention_heads=4, head_features=0, classes=1000),
    '256x256_diffusion': _adm(256, classes=1000),
    '256x256_diffusion_uncond': _adm(256),
    '512x512_diffusion': _adm(512, classes=1000),
    '64_256_upsampler': _adm(256, features=192, attention_heads=4, head_features=0, classes=1000,
                             super_resolution=True),
    '128_512_upsampler': _adm(512, features=192, multipliers=(1, 1, 2, 2, 4, 4), classes=1000,
                              attention_resolutions=(32, 16), super_resolution=True),
    'lsun_bedroom': _lsun,
    'lsun_cat': _lsun,
    'lsun_horse': _lsun,
    'lsun_horse_nodropout': _adm(256),
    '64x64_classifier': _classifier(64, blocks=4),
    '128x128_classifier': _classifier(128),
    '256x256_classifier': _classifier(256),
    '512x512_classifier': _classifier(512),
}

def is_diffusion(net: adm.UNet | adm.UNetClassifier) -> bool:
  """Whether `net` estimates noise from z and a label alone, so is no classifier and no upsampler.
  """
  return isinstance(net, adm.UNet) and not net.super_resolution


SHAPES = dict.fromkeys(MODELS, (256, 256, 3)) | {
    'cifar10_uncond_50M_500K': (32, 32, 3),
    'cifar10_uncond_vlb_50M_500K': (32, 32, 3),
    'imagenet64_uncond_100M_1500K': (64, 64, 3),
    'imagenet64_uncond_vlb_100M_1500K': (64, 64, 3),
    'imagenet64_cond_270M_250K': (64, 64, 3),
    '64x64_diffusion': (64, 64, 3),
    '128x128_diffusion': (128, 128, 3),
    '512x512_diffusion': (512, 512, 3),
    '128_512_upsampler': (512, 512, 3),
    '64x64_classifier': (64, 64, 3),
    '128x128_classifier': (128, 128, 3),
    '512x512_classifier': (512, 512, 3),
}


class TrainedChain(NamedTuple):
  """The chain that a network was trained on: steps, schedule, and the `scale` of `inputs.chain`."""
  steps: int = 1000
  schedule: Literal['linear', 'cosine'] = 'linear'
  scale: float = 1.0


_cosine = TrainedChain(4000, 'cosine', 0.25)
CHAINS = {name: TrainedChain() for name in MODELS} | {
    'cifar10_uncond_50M_500K': _cosine,
    'cifar10_uncond_vlb_50M_500K': _cosine,
    'imagenet64_uncond_100M_1500K': _cosine,
    'imagenet64_uncond_vlb_100M_1500K': _cosine,
    'imagenet64_cond_270M_250K': TrainedChain(4000, 'cosine'),
    'upsample_cond_500K': TrainedChain(4000),
    '64x64_diffusion': TrainedChain(1000, 'cosine'),
    '64x64_classifier': TrainedChain(1000, 'cosine'),
}
