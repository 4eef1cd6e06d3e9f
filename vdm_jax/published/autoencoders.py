"""Files of autoencoders of latent diffusion: the network that they belong to, and its parameters.

The arrays of a file tell which code it is from, and the size of the network:

    a file of CompVis (.ckpt, .safetensors)    a whole latent diffusion, or its autoencoder alone
    a folder of diffusers                      AutoencoderKL, VQModel or AutoencoderTiny
    a file of diffusers without its folder     the same, with 32 groups
    taesd_encoder and taesd_decoder            two files in one folder; name either, or the folder
"""
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.nn.autoencoders.compvis import KLAutoencoder, VQAutoencoder
from vdm_jax.nn.autoencoders.taesd import TinyAutoencoder
from vdm_jax.published import compvis, diffusers, readers, taesd
from vdm_jax.typing import PyTree

Flat = Mapping[str, np.ndarray]
Network = KLAutoencoder | VQAutoencoder | TinyAutoencoder


NETWORKS: dict[str, Network] = {**compvis.AUTOENCODERS, 'taesd': TinyAutoencoder()}


def name(net: Network) -> str:
  """The name of a published network; '' if `net` has another size."""
  return next((name for name, published in NETWORKS.items() if published == net), '')


def settings(net: Network) -> dict[str, Any]:
  """The fields of `systems.latent.autoencoder` for `net`: the inverse of its `network`.

  Codebooks are trained further by the loss that they were published with (`legacy`).
  """
  if isinstance(net, TinyAutoencoder):
    return {'kind': 'tiny', 'features': net.features, 'multipliers': (1,) * (net.halvings + 1),
            'latent_channels': net.latent_channels}
  own = ('features', 'multipliers', 'blocks', 'attention_levels', 'middle_attention', 'groups')
  common = {field: getattr(net.trunk, field) for field in own}
  common['latent_channels'] = net.latent_channels
  if isinstance(net, VQAutoencoder):
    return {'kind': 'vq', **common, 'entries': net.entries, 'legacy': True}
  return {'kind': 'kl', **common}


class Read(NamedTuple):
  """An autoencoder as its file has it.

  scale: s, by which a latent diffusion multiplies its latents; None: the file does not say it.
  files: which were read.
  """
  net: Network
  params: PyTree
  scale: float | None
  files: tuple[Path, ...]


def read(path: str | Path) -> Read:
  """The autoencoder in `path`, a file or a folder of the table above.

  Raises InputError: no such file; a file that holds no autoencoder, or a part of it; parameters
  that do not fit; a class or a setting of diffusers that is not here.
  """
  path = Path(path)
  if path.is_dir() and (halves := _halves(path)):
    return _tiny(*halves)
  if path.is_dir():
    flat, settings, file = diffusers.read(path)
    return _of_diffusers(flat, settings, file)
  flat = readers.read(path)
  if flat and all(name.split('.')[0].isdigit() for name in flat):  # one half
    return _tiny(*_halves_beside(path))
  if any(name.startswith(('encoder.down_blocks.', 'encoder.layers.')) for name in flat):
    return _of_diffusers(flat, {}, path)
  return of_parts(compvis.parts(flat), path)


def read_diffusion(path: str | Path) -> tuple[compvis.Parts, Read]:
  """The networks of a file of a whole latent diffusion of CompVis, and its autoencoder.

  Raises InputError as `read` does, and for a file without a U-Net.
  """
  parts = compvis.parts(readers.read(path))
  compvis.require_unet(parts)
  return parts, of_parts(parts, Path(path))


def of_parts(parts: compvis.Parts, path: Path) -> Read:
  """The autoencoder of a file of CompVis.  Raises InputError as `read` does."""
  if not parts.autoencoder:
    raise InputError(problem='it holds no autoencoder: no encoder.* and no first_stage_model.*',
                     remedy='give the file of an autoencoder, or of a whole latent diffusion')
  net = compvis.autoencoder_of(parts.autoencoder)
  params = compvis.autoencoder_from_flat(parts.autoencoder, shapes(net))
  return Read(net, params, parts.scale, (path,))


def shapes(net: Network) -> PyTree:
  """The parameters of `net` as shapes."""
  factor = 2**net.halvings if isinstance(net, TinyAutoencoder) else net.trunk.factor
  images = jax.ShapeDtypeStruct((1, factor, factor, net.channels), jnp.float32)
  return jax.eval_shape(net.init, random.key(0), images)['params']


def _of_diffusers(flat: Flat, settings: dict, file: Path) -> Read:
  kind = settings.get('_class_name')
  if kind not in (None, 'AutoencoderKL', 'VQModel', 'AutoencoderTiny'):
    raise InputError(problem=f'it is a model of the class {kind}',
                     remedy='give an AutoencoderKL, a VQModel or an AutoencoderTiny')
  tiny = any(name.startswith('encoder.layers.') for name in flat)
  activation = settings.get('act_fn', 'relu' if tiny else 'silu')
  if activation != ('relu' if tiny else 'silu') or settings.get('shift_factor'):
    what = f'act_fn={activation}, shift_factor={settings.get("shift_factor")}'
    raise InputError(problem=f'its settings are {what}, which the networks here do not have')
  scale = settings.get('scaling_factor')
  if tiny:
    flat = taesd.of_diffusers(flat)
    net = taesd.network(flat)
    return Read(net, taesd.from_flat(flat, shapes(net)), scale, (file,))
  net = diffusers.autoencoder_of(flat, settings.get('norm_num_groups', 32))
  return Read(net, diffusers.autoencoder_from_flat(flat, shapes(net)), scale, (file,))


def _tiny(encoder: Path, decoder: Path) -> Read:
  flat = taesd.of_halves(readers.read(encoder), readers.read(decoder))
  net = taesd.network(flat)
  return Read(net, taesd.from_flat(flat, shapes(net)), 1.0, (encoder, decoder))


def _halves(folder: Path) -> tuple[Path, Path] | None:
  """The files of both halves in a folder; None if it has none.  Raises InputError for several."""
  found = {half: sorted(path for path in folder.iterdir() if path.is_file()
                        and re.fullmatch(rf'tae\w*_{half}', path.stem))
           for half in ('encoder', 'decoder')}
  if not any(found.values()):
    return None
  for half, files in found.items():
    if len(files) != 1:
      raise InputError(problem=f'{folder} has {len(files)} files tae*_{half}',
                       remedy='give a folder with one encoder and one decoder')
  return found['encoder'][0], found['decoder'][0]


def _halves_beside(path: Path) -> tuple[Path, Path]:
  """The files of both halves, given one of them.  Raises InputError if the other is not there."""
  half = re.search('encoder|decoder', path.stem)
  if not half:
    raise InputError(problem='it is half of a tiny autoencoder, and its name does not say which',
                     remedy='call the two files taesd_encoder and taesd_decoder')
  other = 'decoder' if half[0] == 'encoder' else 'encoder'
  beside = path.with_name(path.name.replace(half[0], other))
  if not beside.is_file():
    raise InputError(problem=f'the {other} is missing: {beside}',
                     remedy='put both files into one folder')
  return (path, beside) if half[0] == 'encoder' else (beside, path)
