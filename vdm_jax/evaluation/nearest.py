"""The nearest of all pictures that data can have: an exact judge of samples of a formula."""
from typing import NamedTuple

import numpy as np

from vdm_jax.errors import require

BLOCK = 512  # images at a time


class Nearest(NamedTuple):
  """The nearest pictures to images, [n] each."""
  numbers: np.ndarray    # rows of the pictures
  distances: np.ndarray  # Euclidean, where 0 .. 255 is coded as -1 .. 1


def nearest(images: np.ndarray, pictures: np.ndarray) -> Nearest:
  """The picture nearest to each image: integers 0 .. 255, or real numbers in their scale.

  images: [n, H, W, C]; pictures: [m, H, W, C].  Raises InputError for images of another shape.
  """
  images = np.asarray(images)
  size = ' x '.join(map(str, pictures.shape[1:]))
  require(images.shape[1:] == pictures.shape[1:], 'images', images.shape,
          f'the pictures of these data are {size}', 'give images of this shape')
  known = pictures.reshape(len(pictures), -1) / 127.5 - 1.0
  halves = np.sum(known**2, axis=1) / 2.0
  numbers, distances = np.zeros(len(images), np.int64), np.zeros(len(images))
  for start in range(0, len(images), BLOCK):
    rows = slice(start, start + BLOCK)
    x = images[rows].reshape(-1, known.shape[1]) / 127.5 - 1.0
    numbers[rows] = np.argmin(halves - x @ known.T, axis=1)
    distances[rows] = np.linalg.norm(x - known[numbers[rows]], axis=1)
  return Nearest(numbers, distances)
