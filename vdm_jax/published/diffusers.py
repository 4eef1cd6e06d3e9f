"""Names of huggingface/diffusers for the networks of latent diffusion: see `compvis`.

The arrays are those of CompVis under other names, so each name is made from the name there:

    encoder.down.0.block.1.norm1     encoder.down_blocks.0.resnets.1.norm1
    decoder.up.3.upsample.conv       decoder.up_blocks.0.upsamplers.0.conv: levels count from z
    input_blocks.4.1.proj_in         down_blocks.1.attentions.0.proj_in
    output_blocks.2.2.conv           up_blocks.0.upsamplers.0.conv

Older names of the maps of an autoencoder's attention are read too, as in `ddpm`.

A model is a folder: config.json with its class and settings, and its arrays.  `read` reads both.
"""
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.nn.autoencoders.compvis import KLAutoencoder, VQAutoencoder
from vdm_jax.nn.unets.latent import LatentUNet
from vdm_jax.published import compvis, ddpm, fitting, readers
from vdm_jax.typing import PyTree

WEIGHTS = 'diffusion_pytorch_model.safetensors', 'diffusion_pytorch_model.bin'
TEXT_WEIGHTS = 'model.safetensors', 'pytorch_model.bin'  # of a text encoder, which is transformers'
_PLACES = compvis.Places('encoder.down_blocks.{level}.resnets.{i}.',
                         'encoder.down_blocks.{level}.attentions.',
                         'encoder.mid_block.attentions.0.')

_ATTENTION = (('.norm.', '.group_norm.'), ('.q.', '.to_q.'), ('.k.', '.to_k.'), ('.v.', '.to_v.'),
              ('.proj_out.', '.to_out.0.'))
_BLOCK = (('.in_layers.0.', '.norm1.'), ('.in_layers.2.', '.conv1.'),
          ('.emb_layers.1.', '.time_emb_proj.'), ('.out_layers.0.', '.norm2.'),
          ('.out_layers.3.', '.conv2.'), ('.skip_connection.', '.conv_shortcut.'))
_ENDS = (('time_embed.0.', 'time_embedding.linear_1.'),
         ('time_embed.2.', 'time_embedding.linear_2.'),
         ('input_blocks.0.0.', 'conv_in.'), ('out.0.', 'conv_norm_out.'), ('out.2.', 'conv_out.'))


def _replaced(name: str, pairs: tuple[tuple[str, str], ...]) -> str:
  for old, new in pairs:
    name = name.replace(old, new)
  return name


def read(folder: str | Path, weights: tuple[str, ...] = WEIGHTS
         ) -> tuple[dict[str, np.ndarray], dict[str, Any], Path]:
  """The arrays of a model's folder by name, its settings (config.json), and the file of the arrays.

  The folder of a whole pipeline is read as its autoencoder, in the folder vae or vqvae.
  weights: the names that the file of the arrays may have.
  Raises InputError for a folder without these files.
  """
  folder = Path(folder)
  if (folder / 'model_index.json').is_file():
    folder = next((folder / part for part in ('vae', 'vqvae') if (folder / part).is_dir()), folder)
  file = next((folder / name for name in weights if (folder / name).is_file()), None)
  if file is None or not (folder / 'config.json').is_file():
    lacks = 'config.json' if file else weights[0]
    raise InputError(problem=f'{folder} has no {lacks}',
                     remedy=f'give a folder of diffusers: config.json and {weights[0]}')
  try:
    settings = json.loads((folder / 'config.json').read_text())
    if not isinstance(settings, dict):
      raise ValueError('it holds no settings')
  except (ValueError, UnicodeDecodeError) as error:
    raise InputError(problem=f'{folder / "config.json"} is damaged: {error}') from None
  return readers.read(file), settings, file


def autoencoder_of(flat: Mapping[str, np.ndarray],
                   groups: int = 32) -> KLAutoencoder | VQAutoencoder:
  """The same as `compvis.autoencoder_of`, but for diffusers' names."""
  return compvis.autoencoder_of(flat, _PLACES, groups)


def unet_of(flat: Mapping[str, np.ndarray], net: LatentUNet) -> LatentUNet:
  """The same as `compvis.unet_of`, but for diffusers' names."""
  for name in ('conv_in.weight', 'conv_out.weight'):
    if name not in flat:
      raise InputError(problem=f'its U-Net has no {name}', remedy='give a whole file')
  features, channels = flat['conv_in.weight'].shape[:2]
  compvis.require_same_channels(channels, len(flat['conv_out.weight']))
  rows: list[list[compvis.Row]] = []
  for level in range(fitting.depth(flat, r'down_blocks\.(\d+)\.')):
    start = f'down_blocks.{level}.'
    rows.append([compvis.Row(len(flat[f'{start}resnets.{i}.conv1.weight']),
                             f'{start}attentions.{i}.norm.weight' in flat)
                 for i in range(fitting.depth(flat, rf'down_blocks\.{level}\.resnets\.(\d+)\.'))
                 if f'{start}resnets.{i}.conv1.weight' in flat])
  return compvis.sized(net, features, rows, fitting.depth(
      flat, r'mid_block\.attentions\.0\.transformer_blocks\.(\d+)\.'))


def autoencoder_name(params: PyTree) -> Callable[[str], str]:
  """Name here -> name in diffusers, of the parameters of an autoencoder."""
  last = max(int(name.split('_')[1]) for name in params['decoder'] if name.startswith('up_'))

  def diffusers_name(name):
    name = compvis.autoencoder_name(name)
    if '.attn' in name:
      name = _replaced(name, _ATTENTION)
    name = re.sub(r'\.down\.(\d+)\.', r'.down_blocks.\1.', name)
    name = re.sub(r'\.up\.(\d+)\.', lambda found: f'.up_blocks.{last - int(found[1])}.', name)
    return _replaced(name, (
        ('.mid.block_1.', '.mid_block.resnets.0.'), ('.mid.block_2.', '.mid_block.resnets.1.'),
        ('.mid.attn_1.', '.mid_block.attentions.0.'), ('.block.', '.resnets.'),
        ('.attn.', '.attentions.'), ('.downsample.', '.downsamplers.0.'),
        ('.upsample.', '.upsamplers.0.'), ('.nin_shortcut.', '.conv_shortcut.'),
        ('.norm_out.', '.conv_norm_out.')))
  return diffusers_name


def unet_name(params: PyTree) -> Callable[[str], str]:
  """Name here -> name in diffusers, of the parameters of a `LatentUNet`."""
  compvis_name = compvis.unet_name(params)
  # At each resolution, which ends where the next one begins.
  blocks = 0
  while f'down_{blocks + 1}' in params:
    blocks += 1

  def place(found):
    side, number, part = found[1], int(found[2]), int(found[3])
    if side == 'input':
      level, i = divmod(number - 1, blocks + 1)
      what = 'downsamplers.0.conv' if i == blocks else ('resnets', 'attentions')[part] + f'.{i}'
      return f'down_blocks.{level}.{what}.'
    level, i = divmod(number, blocks + 1)
    return f'up_blocks.{level}.{("resnets", "attentions")[part]}.{i}.'

  def diffusers_name(name):
    name = compvis_name(name)
    for old, new in _ENDS:
      if name.startswith(old):
        return new + name.removeprefix(old)
    name = re.sub(r'^output_blocks\.(\d+)\.\d\.conv\.',
                  lambda found: f'up_blocks.{int(found[1]) // (blocks + 1)}.upsamplers.0.conv.',
                  name)
    name = re.sub(r'^(input|output)_blocks\.(\d+)\.(\d)\.(?:op\.)?', place, name)
    name = re.sub(r'^middle_block\.([02])\.',
                  lambda found: f'mid_block.resnets.{int(found[1]) // 2}.', name)
    return _replaced(name.replace('middle_block.1.', 'mid_block.attentions.0.'), _BLOCK)
  return diffusers_name


def autoencoder_from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The parameters `flat`, {name in diffusers: array}, as a tree like `like`, arrays or shapes.

  Raises InputError naming every parameter that is missing, left over or of another shape.
  """
  return fitting.fit(ddpm.with_newer_names(flat), like, autoencoder_name(like),
                     layout=compvis.from_torch)


def unet_from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The same as `autoencoder_from_flat`, but for a `LatentUNet`."""
  return fitting.fit(flat, like, unet_name(like), layout=compvis.from_torch)
