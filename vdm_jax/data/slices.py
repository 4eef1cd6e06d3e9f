"""Pictures that are a formula: slices through a body with a texture, as of a tomograph, 32 x 32.

`textured_ellipses`: an elliptical body with up to six ellipses in it, each brighter or darker.  All
is multiplied by 1 + 0.8 times the mean of six sine waves, whose wave numbers are up to six.  A
picture is 0 outside of the body, and of the circle in the square.  The value 1.5 has the level 255.

Picture i of a split is a pure function of (split, i): 50,000 for training and 1,000 for testing.
"""
import functools

import numpy as np

from vdm_jax.data import fields, random
from vdm_jax.data.fields import IMAGE, Batch
from vdm_jax.data.sources import Source, Store

__all__ = ['NAME', 'PEAK', 'SIDE', 'draw', 'open_slices']

NAME = 'textured_ellipses'
SIDE = 32
PEAK = 1.5  # the value of the level 255
SIZES = {'train': 50_000, 'test': 1000}
_MOST, _WAVES = 6, 6


@functools.lru_cache(maxsize=2)
def _uniform(n: int, index: int) -> np.ndarray:
  """[n, 70], uniform on [0, 1): the numbers of each picture."""
  return random.uniform(0, index, random.POINTS, 70 * n).reshape(n, 70)


def _grid() -> tuple[np.ndarray, np.ndarray]:
  """Row and column of each pixel as numbers from -1 to 1, [32, 1] and [1, 32]."""
  line = (np.arange(SIDE) - SIDE // 2) / (SIDE // 2)
  return line[:, None], line[None, :]


def _inside(centre: np.ndarray, axes: np.ndarray, angle: np.ndarray) -> np.ndarray:
  """Whether pixels are inside of ellipses: [..., 2], [..., 2], [...] -> bool [..., 32, 32]."""
  wide = lambda u: u[..., None, None]
  y, x = (line - wide(centre[..., i]) for i, line in enumerate(_grid()))
  cos, sin = wide(np.cos(angle)), wide(np.sin(angle))
  along, across = cos * y + sin * x, cos * x - sin * y
  return np.square(along / wide(axes[..., 0])) + np.square(across / wide(axes[..., 1])) <= 1.0


def draw(n: int, index: int, rows: np.ndarray) -> np.ndarray:
  """Pictures `rows` of the n of a split (0: training, 1: testing): uint8 [rows, 32, 32, 1]."""
  body, texture, rest = np.split(_uniform(n, index)[rows], (6, 6 + 1 + 3 * _WAVES), axis=1)
  of = rest[:, 3:].reshape(len(rows), _MOST, 7)
  large = _inside(0.16 * (body[:, :2] - 0.5), 0.5 + 0.35 * body[:, 2:4], 0.6 * (body[:, 4] - 0.5))
  value = large * (0.2 + 0.2 * body[:, 5, None, None])
  small = _inside(1.2 * (of[..., :2] - 0.5), 0.06 + 0.24 * of[..., 2:4], np.pi * of[..., 4])
  height = np.where(of[..., 5] < 0.75, 0.1 + 0.4 * of[..., 6], -0.25 * of[..., 6])
  present = np.arange(_MOST) < np.floor((_MOST + 1) * rest[:, :1])
  value = value + large * (small * (height * present)[..., None, None]).sum(axis=1)
  scale, waves = 6.0 * np.pi * (0.15 + 0.85 * texture[:, 0]), texture[:, 1:].reshape(-1, _WAVES, 3)
  y, x = _grid()
  numbers = scale[:, None, None] * (2.0 * waves[..., :2] - 1.0)
  wide = lambda u: u[..., None, None]
  phase = wide(numbers[..., 0]) * y + wide(numbers[..., 1]) * x + wide(2 * np.pi * waves[..., 2])
  value = value * (1.0 + 0.8 * np.sin(phase).mean(axis=1)) * (np.square(y) + np.square(x) <= 1.0)
  return np.clip(255.0 / PEAK * value + 0.5, 0.0, 255.0).astype(np.uint8)[..., None]


def _read(n: int, index: int, rows: np.ndarray) -> Batch:
  return {IMAGE: draw(n, index, rows)}


def open_slices() -> Store:
  """The store of the pictures."""
  train, test = (Source(split, n, functools.partial(_read, n, index))
                 for index, (split, n) in enumerate(SIZES.items()))
  return Store(train, test, (fields.integers(IMAGE, (SIDE, SIDE, 1), 256),), '',
               lambda: {f'{NAME} {split}': n for split, n in SIZES.items()})
