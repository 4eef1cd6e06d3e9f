"""Volumes that are a formula: bodies with ellipsoids and a texture, 12 slices of 32 x 32.

`scripts/prepare_data.py phantoms` writes them below data_dir/phantoms, as `volumes.npz`: eight
volumes to reconstruct, which no training sees.

A body is an elliptical cylinder of the value 0.25, with five to nine ellipsoids in it.  Each adds
0.1 to 0.5, or takes away up to 0.25.  All is multiplied by 1 + 0.8 times the mean of six sine
waves.  A volume is 0 outside of the circle in the square, at least 0, and at most `slices.PEAK`.

Slices of a volume resemble the pictures of `slices`, but have other laws of bodies and ellipses.
Volume i is a pure function of i.
"""
import os

import numpy as np

from vdm_jax.data import random, records, slices
from vdm_jax.machine import files

__all__ = ['COUNT', 'DEPTH', 'NAME', 'draw', 'write']

NAME = 'phantoms'
COUNT, DEPTH = 8, 12  # volumes in the file, and slices of each
_INDEX = 2            # of the random numbers; 0 and 1 are the splits of `slices`
_LEAST, _MOST, _WAVES = 5, 9, 6
_NUMBERS = 2 + 9 * _MOST + 4 * _WAVES  # uniform ones that make a volume


def draw(count: int = COUNT) -> np.ndarray:
  """Volumes 0 .. count - 1: float32 [count, 12, 32, 32]."""
  numbers = random.uniform(0, _INDEX, random.POINTS, count * _NUMBERS)
  return np.stack([_one(u) for u in numbers.reshape(count, _NUMBERS)]).astype(np.float32)


def _one(u: np.ndarray) -> np.ndarray:
  """A volume [12, 32, 32] of the `_NUMBERS` numbers u, which are uniform on [0, 1)."""
  z, y, x = np.meshgrid(*(np.linspace(-1.0, 1.0, n) for n in (DEPTH, slices.SIDE, slices.SIDE)),
                        indexing='ij')
  value = 0.25 * (np.square(y / 0.8) + np.square(x / 0.65) <= 1.0)
  ellipsoids, waves = u[2:2 + 9 * _MOST].reshape(_MOST, 9), u[2 + 9 * _MOST:].reshape(_WAVES, 4)
  for each in ellipsoids[:_LEAST + int((_MOST - _LEAST + 1) * u[0])]:
    centre, axes = 1.1 * (each[:3] - 0.5), (0.15, 0.1, 0.1) + (0.35, 0.25, 0.25) * each[3:6]
    cos, sin = np.cos(np.pi * each[6]), np.sin(np.pi * each[6])
    down, right = y - centre[1], x - centre[2]
    inside = (np.square((z - centre[0]) / axes[0]) + np.square((cos * down + sin * right) / axes[1])
              + np.square((cos * right - sin * down) / axes[2])) <= 1.0
    value += inside * (0.1 + 0.4 * each[8] if each[7] < 0.75 else -0.25 * each[8])
  # Wave numbers are at most one along z and six along y and x, in units of pi.
  most = np.pi * (0.15 + 0.85 * u[1]) * np.array([1.0, 6.0, 6.0])
  numbers, phases = most * (2.0 * waves[:, :3] - 1.0), 2.0 * np.pi * waves[:, 3]
  texture = np.mean([np.sin(a * z + b * y + c * x + phase)
                     for (a, b, c), phase in zip(numbers, phases, strict=True)], axis=0)
  row, column = np.mgrid[:slices.SIDE, :slices.SIDE] - slices.SIDE // 2
  circle = np.square(row) + np.square(column) <= (slices.SIDE // 2)**2
  return np.clip(value * (1.0 + 0.8 * texture), 0.0, slices.PEAK) * circle


def write(data_dir: str) -> str:
  """Writes the file below `data_dir`, and returns its path."""
  folder = os.path.join(records.data_directory(data_dir), NAME)
  os.makedirs(folder, exist_ok=True)
  path = os.path.join(folder, 'volumes.npz')
  files.save_npz(path, volumes=draw())
  return path
