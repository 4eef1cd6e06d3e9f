"""Slices of a head: the template MNI152 (T1), from the user's own copy of the package nilearn.

`scripts/prepare_data.py brain` writes below data_dir/brain

  slices.npz              pictures for training and for testing: the data set `brain`
  volume.npz              the volume to reconstruct: 16 slices, z = 32, 40, ..., 152
  validation_volume.npz   a volume to choose settings on: 15 slices, z = 36, 44, ..., 148

Pixels are 4 mm apart, and a picture has 48 x 48 of them.  Of a slice there are 16 pictures, one for
each place of the grid of pixels in steps of 1 mm.  The template is the same left and right, so
flips would add no picture.  Slices are 1 mm apart, and z mod 8 decides what a slice is for:

  z mod 8      use
  2, 3, 5, 6   training
  4            validation: the last `VALIDATION` pictures of the training split
  0            testing, and the volume: from z = 32 on
  1, 7         none: these are next to slices of the volume

So a slice of the volume is 2 mm or more from every slice of training, in the same head.  The
brightest number of the volume has the level 255, and brighter ones are clipped.

The template is Copyright (C) 1993-2004 Louis Collins, McConnell Brain Imaging Centre, Montreal
Neurological Institute, McGill University: it may be used, copied, modified and distributed for any
purpose without fee, if this notice is kept.  It comes as is, without a warranty.
"""
import hashlib
import os
from typing import NamedTuple

import numpy as np

from vdm_jax.data import arrays, records
from vdm_jax.data.sources import Store
from vdm_jax.errors import require
from vdm_jax.machine import files

NAME = 'brain'
SIDE, STEP = 48, 4       # pixels of a picture, and mm between them
FIRST, LAST = 8, 152     # the slices that have enough of the head
VOLUME = range(32, LAST + 1, 8)
_TRAIN, _VALIDATION = (2, 3, 5, 6), (4,)  # z mod 8
VALIDATION = STEP**2 * sum(z % 8 in _VALIDATION for z in range(FIRST, LAST + 1))  # pictures
FILES = 'slices.npz', 'volume.npz', 'validation_volume.npz'
# The first 16 letters of the SHA-256 of each array, for version 0.14.1 of the package.
KNOWN = {'volume': '2ca89e3e5bafb55f', 'training': '1e7a8e374b4459f2'}


class Brain(NamedTuple):
  """What is written: levels 0 .. 255, uint8."""
  train: np.ndarray              # [n, 48, 48, 1], in the order of z; the last ones: for validation
  test: np.ndarray               # [n, 48, 48, 1]
  volume: np.ndarray             # [16, 48, 48]
  validation_volume: np.ndarray  # [15, 48, 48]


def read() -> Brain:
  """The slices of nilearn's template.  Raises InputError if the package is not installed."""
  datasets = records.optional_module('nilearn.datasets', 'the head is', 'brain')
  return collect(np.asarray(datasets.load_mni152_template(resolution=1).dataobj))


def collect(template: np.ndarray) -> Brain:
  """The slices of a head [X, Y, Z], whose numbers are 1 mm apart, and 0 outside of it.

  Raises InputError for a head that is too small, and for one whose volume is 0.
  """
  least = STEP * SIDE, STEP * SIDE, LAST + 1
  require(template.ndim == 3 and all(np.greater_equal(template.shape, least)), None, None,
          f'the head has the shape {template.shape}', f'give one of {least} or more')
  picture = lambda z, i, j: template[i::STEP, j::STEP, z][:SIDE, :SIDE].astype(np.float64)
  largest = max(picture(z, 0, 0).max() for z in VOLUME)
  require(largest > 0, None, None, 'the volume is 0 everywhere', 'give a head in its middle')

  def levels(z, i=0, j=0):
    return np.clip(np.round(255.0 * picture(z, i, j) / largest), 0.0, 255.0).astype(np.uint8)

  def every(slices):
    return np.stack([levels(z, i, j) for z in slices for i, j in np.ndindex(STEP, STEP)])[..., None]

  of = lambda rests: [z for z in range(FIRST, LAST + 1) if z % 8 in rests]
  between = [z for z in of(_VALIDATION) if z in range(VOLUME[0], LAST)]
  return Brain(np.concatenate([every(of(_TRAIN)), every(of(_VALIDATION))]), every(VOLUME),
               np.stack([levels(z) for z in VOLUME]), np.stack([levels(z) for z in between]))


def nearest(brain: Brain) -> float:
  """The PSNR in dB of the volume if each slice is replaced by the nearest picture of training.

  The peak is the largest number of the volume.
  """
  flat = lambda u: u.reshape(len(u), -1).astype(np.float64)
  x, others = flat(brain.volume), flat(brain.train[:-VALIDATION])
  squares = np.sum(x**2, 1)[:, None] - 2.0 * x @ others.T + np.sum(others**2, 1)
  return float(10.0 * np.log10(x.max()**2 / (squares.min(axis=1).mean() / x.shape[1])))


def checksums(brain: Brain) -> dict[str, str]:
  """The first 16 letters of the SHA-256 of the arrays, with the names of `KNOWN`."""
  given = {'volume': brain.volume, 'training': brain.train}
  return {name: hashlib.sha256(u.tobytes()).hexdigest()[:16] for name, u in given.items()}


def write(brain: Brain, data_dir: str) -> str:
  """Writes the three files below `data_dir`, and returns their folder.

  The two volumes are float32, from 0 to 1, as `scripts/reconstruct.py` reads them.
  """
  folder = os.path.join(records.data_directory(data_dir), NAME)
  os.makedirs(folder, exist_ok=True)
  share = lambda u: (u / 255.0).astype(np.float32)
  for file, found in zip(FILES, (
      {'image_train': brain.train, 'image_test': brain.test}, {'volume': share(brain.volume)},
      {'volume': share(brain.validation_volume)}), strict=True):
    files.save_npz(os.path.join(folder, file), **found)
  return folder


def open_brain(data_dir: str) -> Store:
  """The store of the pictures.  Raises FileNotFoundError, with the command that prepares it."""
  return arrays.open_arrays(records.prepared_file(data_dir, NAME, FILES[0]))
