"""The exact judge of samples of `shapes`: the nearest of all 9,216 pictures names a sample.

So it is known, without a classifier, whether a sample shows its caption, where its shape lies, and
which pixels are the shape.  Pictures of different captions are at least 1.5283 apart, if 0 .. 255
is coded as -1 .. 1.  Samples of 8 x 8 pixels are compared with the means of blocks of 2 x 2, where
such pictures are at least 0.3820 apart.
"""
from typing import NamedTuple

import numpy as np

from vdm_jax.data import shapes
from vdm_jax.data.images import block_means
from vdm_jax.errors import require
from vdm_jax.evaluation.distances import Estimated, share
from vdm_jax.evaluation.nearest import nearest

SIDES = 16, 8  # of the pictures that it names


class Named(NamedTuple):
  """The picture that is nearest to each of n images: all fields are [n]."""
  captions: np.ndarray   # numbers of `shapes.CAPTIONS`
  places: np.ndarray     # numbers of `shapes.PLACES`
  distances: np.ndarray  # Euclidean, where 0 .. 255 is coded as -1 .. 1


def is_asked(data_name: str, shape: tuple[int, ...], judge: bool | None) -> bool:
  """Whether pictures of this shape, by a model of these data, are judged.

  judge: what the user says; None: they are if the data are shapes.  Raises InputError if the judge
  is asked of other images.
  """
  fits = shape == shapes.images().shape[1:]
  if judge:
    require(fits, 'judge', True, f'it names pictures of shapes, {shapes.images().shape[1:]}, and '
            f'this model makes {shape}', 'leave it out')
  return fits and data_name in shapes.NAMES if judge is None else judge


def name(images: np.ndarray) -> Named:
  """The picture nearest to each image: integers 0 .. 255, or real numbers in their scale.

  images: [n, 16, 16, 3], or [n, 8, 8, 3], the first stage of a cascade.  Raises InputError for
  another shape.
  """
  pictures = shapes.images()
  if np.shape(images)[1:3] == (SIDES[1], SIDES[1]):
    pictures = block_means(pictures, SIDES[0] // SIDES[1])
  numbers, distances = nearest(images, pictures)
  return Named(*np.divmod(numbers, len(shapes.PLACES)), distances)


def accuracy(images: np.ndarray, captions: np.ndarray) -> Estimated:
  """The share of images [n, 16, 16, 3] that show their caption, and its standard error.

  captions: [n], numbers of `shapes.CAPTIONS`, as in the field 'label'.
  """
  return share(name(images).captions == captions)


def kept(images: np.ndarray, originals: np.ndarray) -> Estimated:
  """The share of edited images whose shape is where it was, and its standard error.

  images, originals: [n, 16, 16, 3], in pairs.
  """
  return share(name(images).places == name(originals).places)


def overlap(masks: np.ndarray, images: np.ndarray) -> np.ndarray:
  """Intersection over union of each mask with the shape that its image shows, float64 [n].

  masks: bool [n, 16, 16]; images: [n, 16, 16, 3].
  """
  named = name(images)
  shown, masks = shapes.masks(named.captions, named.places), np.asarray(masks, bool)
  return np.sum(masks & shown, axis=(1, 2)) / np.sum(masks | shown, axis=(1, 2))


class Judged(NamedTuple):
  """The verdicts on edited pictures, [n] each.

  The ideal edit shows the caption that is asked for, with the shape where it was.  The pixels in
  which it agrees with the original should be kept.  If there is none, `same` and `difference` are
  nan.
  """
  right: np.ndarray       # whether the caption is the one that is asked for
  in_place: np.ndarray    # whether the shape is where it was
  same: np.ndarray        # the share of the pixels to keep that are unchanged, each number of them
  difference: np.ndarray  # mean |change| of the pixels to keep, 0 .. 255
  distances: np.ndarray   # to the nearest picture, as in `Named`


def to_change(originals: np.ndarray, captions: np.ndarray) -> np.ndarray:
  """The pixels in which the ideal edit differs from the original, bool [n, 16, 16].

  originals: [n, 16, 16, 3], of which the nearest pictures are taken; captions: [n], numbers.
  """
  return _to_change(name(originals), captions)


def _to_change(found: Named, captions: np.ndarray) -> np.ndarray:
  return np.any(shapes.pictures(np.asarray(captions), found.places)
                != shapes.pictures(found.captions, found.places), axis=-1)


def judge(images: np.ndarray, originals: np.ndarray, captions: np.ndarray) -> Judged:
  """The verdicts on edits of `originals` into these captions: [n, 16, 16, 3], uint8, and [n]."""
  found, before = name(images), name(originals)
  keep = ~_to_change(before, captions)
  change = np.abs(np.asarray(images, np.float64) - originals)
  count = np.where(keep.any(axis=(1, 2)), keep.sum(axis=(1, 2)), np.nan)
  mean = lambda u: np.sum(u * keep, axis=(1, 2)) / count
  return Judged(found.captions == captions, found.places == before.places,
                mean(np.all(change == 0.0, axis=-1)), mean(np.mean(change, axis=-1)),
                found.distances)
