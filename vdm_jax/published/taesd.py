"""Checkpoints of madebyollin/taesd as parameters of `nn.autoencoders.taesd`.

Two files, `taesd_encoder` and `taesd_decoder`, hold the two halves.  Each is a list of layers, in
which a relu, a doubling and the layer that bounds the latents have a number too:

    encoder   0 in, 1 block, then three times: a convolution of stride 2, three blocks;  out
    decoder   1 in, 3 to 5 blocks, 7 a convolution after the doubling, ...;  a block, out

huggingface/diffusers (AutoencoderTiny) has one file with both.  There the layers are under
encoder.layers and decoder.layers, and the layer that bounds the latents has no number.
"""
import re
from collections.abc import Mapping

import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.nn.autoencoders.taesd import TinyAutoencoder
from vdm_jax.published import fitting
from vdm_jax.typing import PyTree


def _published(halvings: int):
  last = 4 * halvings + 2

  def place(part: str) -> str:
    name, _, number = part.rpartition('_')
    i = int(number) if number.isdigit() else 0
    return {
        'encode_in': 'encoder.0', 'encode_first': 'encoder.1', 'encode_out': f'encoder.{last}',
        'downsample': f'encoder.{4 * i + 2}', 'encode_blocks': f'encoder.{i // 3 * 4 + i % 3 + 3}',
        'decode_in': 'decoder.1', 'decode_blocks': f'decoder.{i // 3 * 5 + i % 3 + 3}',
        'upsample': f'decoder.{5 * i + 7}', 'decode_last': f'decoder.{5 * halvings + 3}',
        'decode_out': f'decoder.{5 * halvings + 4}',
    }[name if number.isdigit() else part]

  def published(name: str) -> str:
    part, *inner = fitting.torch_leaf(name).split('.')
    inner = re.sub(r'^conv(\d)', lambda found: f'conv.{2 * int(found[1])}', '.'.join(inner))
    return f'{place(part)}.{inner}'
  return published


def of_halves(encoder: Mapping[str, np.ndarray],
              decoder: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays of the two files as one {name: array}, for `from_flat`."""
  return {**{f'encoder.{name}': array for name, array in encoder.items()},
          **{f'decoder.{name}': array for name, array in decoder.items()}}


def of_diffusers(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The arrays of an AutoencoderTiny of diffusers by their names in the two files."""
  name = lambda name: re.sub(
      r'^(encoder|decoder)\.layers\.(\d+)', lambda found:
      f'{found[1]}.{int(found[2]) + (found[1] == "decoder")}', name)
  return {name(old): array for old, array in flat.items()}


def network(flat: Mapping[str, np.ndarray]) -> TinyAutoencoder:
  """The network of these parameters, by their names and shapes: of any width and depth.

  Raises InputError, in one line, if a half is missing.
  """
  for half, first in (('encoder', 'encoder.0.weight'), ('decoder', 'decoder.1.weight')):
    if first not in flat:
      raise InputError(problem=f'it has no {first}, so the {half} is missing',
                       remedy='give both halves: taesd_encoder and taesd_decoder in one folder')
  features, channels = flat['encoder.0.weight'].shape[:2]
  last = max(int(found[1]) for name in flat if (found := re.match(r'encoder\.(\d+)\.', name)))
  return TinyAutoencoder(channels, flat['decoder.1.weight'].shape[1], features, (last - 2) // 4)


def from_flat(flat: Mapping[str, np.ndarray], like: PyTree) -> PyTree:
  """The parameters of both files as a tree like `like`, arrays or shapes.

  flat: {'encoder.NAME' and 'decoder.NAME': array}, the names in the two files after their part.
  Raises InputError naming every parameter that is missing, left over or of another shape.
  """
  halvings = sum(name.startswith('downsample_') for name in like)
  return fitting.fit(flat, like, _published(halvings), layout=fitting.from_torch)
