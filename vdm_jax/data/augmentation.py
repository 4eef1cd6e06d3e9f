"""Changes of the training examples: pure functions of a batch and of uniform numbers.

An augmentation is given the name of the field that it changes, and the other fields stay as they
are.  The field 'augmented', float32 [n], is 1 where an image was changed and else 0.  A network may
be conditioned on it.  In evaluation and sampling the field is 0.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vdm_jax.data.fields import AUGMENTED, Batch, Field, Spec
from vdm_jax.errors import InputError

FIELD = Field(AUGMENTED, (), 'float32', None)


class Augmentation(NamedTuple):
  """apply: (batch, u [draws, n], field) -> batch; u is uniform on [0, 1)."""
  apply: Callable[[Batch, np.ndarray, str], Batch]
  draws: int                        # uniform numbers for each example
  check: Callable[[Field], str]     # what is wrong with this field, '' if nothing is


def flips_and_turns(batch: Batch, u: np.ndarray, field: str) -> Batch:
  """Flips left-right with probability 1/2; turns by 90, 180 or 270 degrees with probability 1/2.

  The field is [n, H, H, C].  u [3, n] are the flip, whether to turn, and the angle.  Source: the
  augmented CIFAR-10 of the official VDM repository (google-research/vdm, `dataset.py`).
  """
  left_right, turn, angle = u
  images, changed = batch[field], left_right < 0.5
  quarters = np.where(turn < 0.5, 1 + np.floor(3 * angle), 0).astype(int)
  out = np.where(changed[:, None, None, None], flip(images), images)
  for k in (1, 2, 3):
    out[quarters == k] = np.rot90(out[quarters == k], k, axes=(1, 2))
  return batch | {field: out, AUGMENTED: (changed | (quarters > 0)).astype(np.float32)}


def flipped(u: np.ndarray) -> np.ndarray:
  """Which images `flips` flips, bool [n]; u: [1, n]."""
  return u[0] < 0.5


def flip(images: np.ndarray) -> np.ndarray:
  """Images [n, H, W, C], each flipped left-right."""
  return images[:, :, ::-1]


def flips(batch: Batch, u: np.ndarray, field: str) -> Batch:
  """Flips left-right with probability 1/2.  The field is [n, H, W, C]; u: [1, n]."""
  which = flipped(u)
  out = np.where(which[:, None, None, None], flip(batch[field]), batch[field])
  return batch | {field: out, AUGMENTED: which.astype(np.float32)}


def _images(square: bool) -> Callable[[Field], str]:
  def problem(field: Field) -> str:
    if len(field.shape) == 3 and (field.shape[0] == field.shape[1] or not square):
      return ''
    return ('it turns images, which must be square; these are '
            if square else 'it flips images; these are ') + str(field.shape)
  return problem


# By the name that config.data.augmentation gives.
NAMED = {'flips_and_turns': Augmentation(flips_and_turns, 3, _images(square=True)),
         'flips': Augmentation(flips, 1, _images(square=False))}


def named(name: str, spec: Spec) -> Augmentation:
  """The augmentation of this name, for the data's x.  Raises InputError."""
  if name not in NAMED:
    raise InputError('config.data.augmentation', name, 'there is no such augmentation',
                     f'choose one of {", ".join(NAMED)}')
  problem = NAMED[name].check(spec.x)
  if problem:
    raise InputError('config.data.augment', True, problem,
                     'set it to False, or config.data.image_size')
  return NAMED[name]
