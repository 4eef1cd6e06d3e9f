"""Latent diffusions that are told a text: Stable Diffusion v1, and latent diffusion's own.

    a file of CompVis (.ckpt, .safetensors)   `compvis.parts` takes its three networks apart
    a folder of diffusers                     unet, vae and text_encoder, a folder each with
                                              config.json; scheduler/scheduler_config.json and
                                              tokenizer/merges.txt, if they are there

The arrays tell the sizes of all three networks.  They do not tell how many heads an attention has,
and how many groups a normalisation: these are as published, or as config.json says.
"""
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.nn.text.bert import LatentBERT
from vdm_jax.nn.text.clip import TextTower
from vdm_jax.nn.unets.latent import LatentUNet
from vdm_jax.published import autoencoders, clip, compvis, diffusers
from vdm_jax.typing import PyTree

Flat = Mapping[str, np.ndarray]


class Read(NamedTuple):
  """A latent diffusion as its file or its folder has it.

  params: shapes {'net': ..., 'encoder': ...} of the parameters here -> the parameters.
  scale, betas, side: s, the ends of the chain and the side of the images; None: as published.
  merges: the file of the tokeniser; None: there is none.
  """
  autoencoder: autoencoders.Read
  unet: LatentUNet
  encoder: TextTower | LatentBERT
  params: Callable[[PyTree], PyTree]
  scale: float | None
  betas: tuple[float, float] | None
  side: int | None
  merges: Path | None
  files: tuple[Path, ...]


def read(path: str | Path, model: str) -> Read:
  """The latent diffusion in `path`.  model: a name of `compvis.TEXT_ENCODERS`, which it resembles.

  Raises InputError: a file or a folder that lacks a part; arrays that belong to no part; settings
  that no network here has.
  """
  path, net = Path(path), compvis.UNETS[model][0]
  assert isinstance(net, LatentUNet)
  return _of_folder(path, net) if path.is_dir() else _of_file(path, net)


def _of_file(path: Path, net: LatentUNet) -> Read:
  parts, autoencoder = autoencoders.read_diffusion(path)
  if not parts.condition:
    raise InputError(problem='it has no text encoder: no cond_stage_model.*',
                     remedy='give the file of a whole Stable Diffusion')
  unet = compvis.unet_of(parts.unet, net)
  encoder = compvis.text_encoder_of(parts.condition)

  def params(like):
    return {'net': compvis.unet_from_flat(parts.unet, like['net']),
            'encoder': compvis.text_encoder_from_flat(parts.condition, like['encoder'])}
  return Read(autoencoder, unet, encoder, params, parts.scale, None, None, None, (path,))


def _of_folder(folder: Path, net: LatentUNet) -> Read:
  for part in ('unet', 'vae', 'text_encoder'):
    if not (folder / part).is_dir():
      raise InputError(problem=f'it has no folder {part}', remedy='give the folder of a whole '
                       'Stable Diffusion: unet, vae and text_encoder')
  flat, settings, of_unet = diffusers.read(folder / 'unet')
  text, own, of_text = diffusers.read(folder / 'text_encoder', diffusers.TEXT_WEIGHTS)
  autoencoder = autoencoders.read(folder / 'vae')
  unet = diffusers.unet_of(flat, _with_heads(net, settings))
  named = clip.of_transformers(text)
  clip.require_text_alone(named)
  encoder = clip.text_of(named, own.get('num_attention_heads', 0)).clone(
      gelu=_choice('hidden_act', own.get('hidden_act', 'quick_gelu'),
                   {'quick_gelu': 'quick', 'gelu': 'exact'}))

  def params(like):
    return {'net': diffusers.unet_from_flat(flat, like['net']),
            'encoder': clip.text_from_flat(named, like['encoder'])}
  side = settings.get('sample_size')
  merges = folder / 'tokenizer' / 'merges.txt'
  factor = 2 ** (len(autoencoders.settings(autoencoder.net)['multipliers']) - 1)
  return Read(autoencoder, unet, encoder, params, autoencoder.scale, _betas(folder),
              side * factor if isinstance(side, int) else None,
              merges if merges.is_file() else None,
              (of_unet, *autoencoder.files, of_text))


def _with_heads(net: LatentUNet, settings: Mapping[str, Any]) -> LatentUNet:
  """`net` with the heads and the groups of a U-Net's config.json.

  Its attention_head_dim is the number of heads, not their size.
  """
  for name, value in settings.items():
    if name in ('class_embed_type', 'addition_embed_type', 'encoder_hid_dim_type') and value:
      raise InputError(problem=f'its U-Net has {name}={value}, which the network here lacks',
                       remedy='give a Stable Diffusion of version 1')
  heads = settings.get('num_attention_heads') or settings.get('attention_head_dim', 8)
  if not isinstance(heads, int):
    raise InputError(problem=f'its U-Net has attention_head_dim={heads}, another number at each '
                     'resolution', remedy='give a Stable Diffusion of version 1')
  return net.clone(attention_heads=heads, head_features=0,
                   groups=settings.get('norm_num_groups') or 32)


def _betas(folder: Path) -> tuple[float, float] | None:
  """The ends of the chain in the folder of its sampler; None without one."""
  file = folder / 'scheduler' / 'scheduler_config.json'
  if not file.is_file():
    return None
  try:
    settings = json.loads(file.read_text())
    ends = float(settings['beta_start']), float(settings['beta_end'])
  except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
    raise InputError(problem=f'{file} is damaged: {error!r}') from None
  for name, value in (('beta_schedule', 'scaled_linear'), ('prediction_type', 'epsilon'),
                      ('num_train_timesteps', 1000)):
    _choice(name, settings.get(name, value), {value: None})
  return ends


def _choice(name: str, value: Any, choices: Mapping[Any, Any]) -> Any:
  if value not in choices:
    raise InputError(problem=f'its settings have {name}={value}, and the model here needs '
                     f'{" or ".join(map(str, choices))}',
                     remedy='give a Stable Diffusion of version 1')
  return choices[value]
