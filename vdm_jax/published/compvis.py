"""Checkpoints of CompVis/latent-diffusion and stable-diffusion as parameters of networks here.

The file of a latent diffusion holds several networks, each under a prefix, which `readers.subtree`
takes off:

    first_stage_model       an autoencoder, of `nn.autoencoders.compvis`
    model.diffusion_model   a U-Net, of `nn.unets.latent` or, without a context, of `nn.unets.adm`

The file of an autoencoder alone has no prefix.  Beside the autoencoder it holds the networks of its
loss, under `loss`, and sometimes averages, under `model_ema`.  Both are left out here.

Some names of an autoencoder, and of a transformer in a U-Net:

    encoder.down.0.block.1.norm1.weight                         encoder/down_0_1/norm1/scale
    decoder.up.3.upsample.conv.bias                             decoder/upsample_3/bias
    encoder.mid.attn_1.q.weight                                 encoder/mid_attention/query/kernel
    input_blocks.1.1.transformer_blocks.0.attn2.to_q.weight     down_1_attention/block_0/cross/...
"""
import re
from collections.abc import Callable, Mapping

import numpy as np

from vdm_jax.nn.autoencoders.compvis import KLAutoencoder, Trunk, VQAutoencoder
from vdm_jax.nn.unets import adm
from vdm_jax.nn.unets.latent import LatentUNet
from vdm_jax.published import fitting, openai
from vdm_jax.typing import Array, PyTree

_HINT_AUTOENCODER = ('compare features, multipliers, blocks, attention_levels, middle_attention, '
                     'channels, latent_channels and entries')
_HINT_UNET = ('compare features, multipliers, blocks, attention_levels, depth, heads and the '
              'channels')

# Names here -> published names, each applied to the whole name.
_of_autoencoder = fitting.renaming(
    (r'/(down|up)_(\d+)_(\d+)_attention/', r'/\1/\2/attn/\3/'),
    (r'/(down|up)_(\d+)_(\d+)/', r'/\1/\2/block/\3/'),
    (r'/downsample_(\d+)/', r'/down/\1/downsample/conv/'),
    (r'/upsample_(\d+)/', r'/up/\1/upsample/conv/'),
    (r'/mid_attention/', r'/mid/attn_1/'),
    (r'/mid_0/', r'/mid/block_1/'),
    (r'/mid_1/', r'/mid/block_2/'),
    (r'/shortcut/', r'/nin_shortcut/'),
    (r'/query/', r'/q/'),
    (r'/key/', r'/k/'),
    (r'/value/', r'/v/'),
    (r'/out/', r'/proj_out/'),
    (r'^moments/', r'quant_conv/'),
    (r'^latent/', r'post_quant_conv/'),
    (r'^codebook$', r'quantize/embedding/embedding'),
)
# Of a transformer, after the names of `openai`, where parts are joined by points.
_of_transformer = fitting.renaming(
    (r'\.1\.in\.', r'.1.proj_in.'),
    (r'\.block_(\d+)\.', r'.transformer_blocks.\1.'),
    (r'\.norm_self\.', r'.norm1.'),
    (r'\.norm_cross\.', r'.norm2.'),
    (r'\.norm_mlp\.', r'.norm3.'),
    (r'\.self\.', r'.attn1.'),
    (r'\.cross\.', r'.attn2.'),
    (r'\.(attn[12])\.query\.', r'.\1.to_q.'),
    (r'\.(attn[12])\.key\.', r'.\1.to_k.'),
    (r'\.(attn[12])\.value\.', r'.\1.to_v.'),
    (r'\.(attn[12])\.out\.', r'.\1.to_out.0.'),
    (r'\.mlp_in\.', r'.ff.net.0.proj.'),
    (r'\.mlp_out\.', r'.ff.net.2.'),
)
_MAPS = re.compile(r'attention/(query|key|value|in|out)/kernel$')  # 1x1 convolutions there


def autoencoder_name(name: str) -> str:
  """Name here -> published name, without its prefix."""
  return fitting.torch_leaf(_of_autoencoder(name))


def unet_name(params: PyTree) -> Callable[[str], str]:
  """Name here -> published name, without its prefix, of such parameters."""
  adm_name = openai.published(params)

  return lambda name: _of_transformer(adm_name(name))


def from_torch(name: str, array: np.ndarray) -> np.ndarray:
  """A published array in the layout here.  The maps of an attention may be 1x1 convolutions."""
  if _MAPS.search(name):
    array = array.reshape(array.shape[:2])
  return fitting.from_torch(name, array)


def to_torch(name: str, array: np.ndarray) -> np.ndarray:
  """The inverse of `from_torch`: the maps of an attention are [out, in, 1, 1]."""
  array = fitting.to_torch(name, array)
  return array[..., None, None] if _MAPS.search(name) else array


def autoencoder_from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The published parameters `flat`, {name: array}, as a tree like `like`, arrays or shapes.

  Names under `loss` and `model_ema` are left out.  Raises InputError naming every other parameter
  that is missing, left over or of another shape.
  """
  own = {name: array for name, array in flat.items()
         if not name.startswith(('loss.', 'model_ema.'))}
  return fitting.fit(own, like, autoencoder_name, layout=from_torch, hint=_HINT_AUTOENCODER)


def unet_from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """As `autoencoder_from_flat`, of a `LatentUNet`."""
  return fitting.fit(flat, like, unet_name(like), layout=from_torch, hint=_HINT_UNET)


def autoencoder_to_flat(params: PyTree) -> dict[str, Array]:
  """The inverse of `autoencoder_from_flat`: the parameters by their published names."""
  return fitting.flat(params, autoencoder_name, layout=to_torch)


def unet_to_flat(params: PyTree) -> dict[str, Array]:
  """The inverse of `unet_from_flat`."""
  return fitting.flat(params, unet_name(params), layout=to_torch)


def _kl(latent_channels: int, *multipliers: int, attention_levels=()) -> KLAutoencoder:
  return KLAutoencoder(latent_channels=latent_channels, trunk=Trunk(
      multipliers=multipliers, attention_levels=attention_levels))


def _vq(latent_channels: int, entries: int, *multipliers: int, **trunk) -> VQAutoencoder:
  return VQAutoencoder(latent_channels=latent_channels, entries=entries,
                       trunk=Trunk(multipliers=multipliers, **trunk))


# By the folder's name in latent-diffusion's models/first_stage_models.  kl-f8 is Stable
# Diffusion's too.
AUTOENCODERS: dict[str, KLAutoencoder | VQAutoencoder] = {
    'kl-f4': _kl(3, 1, 2, 4),
    'kl-f8': _kl(4, 1, 2, 4, 4),
    'kl-f16': _kl(16, 1, 1, 2, 2, 4, attention_levels=(4,)),
    'kl-f32': _kl(64, 1, 1, 2, 2, 4, 4, attention_levels=(4, 5)),
    'vq-f4': _vq(3, 8192, 1, 2, 4),
    'vq-f4-noattn': _vq(3, 8192, 1, 2, 4, middle_attention=False),
    'vq-f8': _vq(4, 16384, 1, 2, 2, 4, attention_levels=(3,)),
    'vq-f8-n256': _vq(4, 256, 1, 2, 2, 4, attention_levels=(3,)),
    'vq-f16': _vq(8, 16384, 1, 1, 2, 2, 4, attention_levels=(4,)),
}

_lsun = adm.UNet(features=224, blocks=2, head_features=32, scale_shift=False)
_images = {'features': 192, 'multipliers': (1, 2, 3, 5), 'attention_levels': (1, 2, 3)}

# Name -> network, the shape of its z and that of its context, if it reads one.  The settings are in
# the files of latent-diffusion's models/ldm and configs, and of stable-diffusion's configs.
UNETS: dict[str, tuple[adm.UNet | LatentUNet, tuple[int, int, int], tuple[int, int] | None]] = {
    'celeba256': (_lsun, (64, 64, 3), None),
    'ffhq256': (_lsun, (64, 64, 3), None),
    'lsun_beds256': (_lsun, (64, 64, 3), None),
    'lsun_churches256': (
        adm.UNet(features=192, multipliers=(1, 2, 2, 4, 4), blocks=2, attention_heads=8,
                 attention_resolutions=(32, 16, 8, 4), resblock_updown=True), (32, 32, 4), None),
    'inpainting_big': (
        adm.UNet(features=256, blocks=2, attention_heads=8, scale_shift=False,
                 resblock_updown=True, outputs=3), (64, 64, 7), None),
    'cin256-v2': (LatentUNet(**_images, attention_heads=1), (64, 64, 3), (1, 512)),
    'cin256': (LatentUNet(features=256, multipliers=(1, 2, 4), head_features=32),
               (32, 32, 4), (1, 512)),
    'text2img256': (LatentUNet(**_images, head_features=32), (64, 64, 3), (77, 640)),
    'txt2img-f8-large': (LatentUNet(), (32, 32, 4), (77, 1280)),
    'stable-diffusion-v1': (LatentUNet(), (64, 64, 4), (77, 768)),
    'stable-diffusion-v1-inpainting': (LatentUNet(outputs=4), (64, 64, 9), (77, 768)),
}
