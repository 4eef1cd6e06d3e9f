"""Latents of the training images, kept so that training need not encode: a folder of named fields.

    latents.json              how they were made, their number, and the fields
    latent_mean.npy           m of the autoencoder's q(y | image) = N(m, v), float32
    latent_log_variance.npy   log v, float32; not there if y is a function of the image
    label.npy, ...            the other fields of the data

Both moments are kept, and no draw of y.  So training draws a fresh y at each visit of an image, as
it does from the images themselves.

A row is an image of the training split, in its order, with the held-out images.  With flips, each
image has two rows one after the other: as it is, and flipped left-right.  The latent of a flipped
image is not the flipped latent, so a flip cannot be made later.

`data.writers` writes the folder.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.data import fields, writers
from vdm_jax.data.fields import AUGMENTED, Batch, Field, Spec
from vdm_jax.data.writers import Kind, Writer
from vdm_jax.errors import InputError, require

__all__ = ['LOG_VARIANCE', 'MEAN', 'Latents', 'begun', 'fields_of', 'open_latents', 'writer']

MEAN, LOG_VARIANCE = 'latent_mean', 'latent_log_variance'
FIELD = 'config.data.latents'
LATENTS = Kind('latents', 'latents.json', 'scripts/encode_latents.py',
               ('autoencoder', 'autoencoder'), FIELD)


class Latents(NamedTuple):
  """The latents of a folder."""
  path: str
  about: dict[str, Any]       # all that the values depend on
  images: int                 # of the training split
  flips: bool                 # whether each image has a second row, for the flipped image
  fields: tuple[Field, ...]

  def get(self, rows: np.ndarray, flipped: np.ndarray | None, names: Sequence[str]) -> Batch:
    """The moments of images, and their other fields of these names: {field: array [n, ...]}.

    rows: numbers of images [n] in the training split; flipped: bool [n], or None without
    augmentation.
    """
    at = 2 * rows + (0 if flipped is None else flipped) if self.flips else rows
    batch = {field.name: np.asarray(writers.array(LATENTS, self.path, field.name)[at])
             for field in self.fields if field.name in (MEAN, LOG_VARIANCE, *names)}
    return batch if flipped is None else batch | {AUGMENTED: flipped.astype(np.float32)}

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of the latent of an image."""
    return self.fields[0].shape

  @property
  def bytes(self) -> int:
    """The size of all arrays."""
    return (1 + self.flips) * self.images * fields.bytes_of(self.fields)


def begun(path: str | Path) -> bool:
  """Whether all or some latents are written at `path`."""
  return writers.begun(LATENTS, path)


def fields_of(spec: Spec, shape: Sequence[int], random: bool) -> tuple[Field, ...]:
  """The fields of the latents of data with the fields `spec`.

  shape: of a latent; random: whether q(y | image) has a variance.  Raises InputError: a field has
  the name of a moment.
  """
  others = tuple(field for field in spec.fields[1:] if field.name != AUGMENTED)
  for field in others:
    require(field.name not in (MEAN, LOG_VARIANCE), None, None, f'the data have a field '
            f'{field.name!r}, and latents add another field of this name',
            'rename the field of the data')
  names = (MEAN, LOG_VARIANCE) if random else (MEAN,)
  return (*(fields.reals(name, shape) for name in names), *others)


def writer(path: Path, about: dict[str, Any], images: int, declared: Sequence[Field], flips: bool,
           **more: Any) -> Writer:
  """The writer of the latents of so many images.  Raises InputError as `Writer` does."""
  return Writer(LATENTS, path, {**about, 'flips': flips}, (1 + flips) * images, declared, **more)


def open_latents(path: str, spec: Spec) -> Latents:
  """The latents in a folder, for training on data with the fields `spec`; no array is read.

  Raises InputError if they are not all made, or if they lack a field of the data.
  """
  if not begun(path):
    raise InputError(FIELD, path, 'it holds no latents', f'make them ({LATENTS.command})')
  said, declared = writers.open_fields(LATENTS, path)
  stored = {field.name: field for field in declared}
  for field in spec.fields[1:]:
    if field.name == AUGMENTED:
      continue
    own = stored.get(field.name)
    if (own is None or own.shape != field.shape or (own.levels or 0) > (field.levels or 0)
        or fields.row(own)[4:] != fields.row(field)[4:]):  # a text of another tokeniser
      raise InputError(FIELD, path, f'the data have the field {field}, and the latents '
                       f'{own or "have none"}', LATENTS.remedy)
  flips = bool(said['about']['flips'])
  return Latents(path, said['about'], said['count'] // (1 + flips), flips, declared)
