"""Images of 32 x 32 pixels for the check of an accelerator, with their source in words.

They are read without the packages of `vdm_jax.data`.  In order: the official archive of CIFAR-10;
crops of the two photographs that scikit-learn contains; sums of random waves.
"""
import importlib.util
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vdm_jax.errors import InputError

ARCHIVE = 'cifar-10-binary.tar.gz'
_SIDE, _STRIDE = 32, 8


class Images(NamedTuple):
  """uint8 [N, 32, 32, 3] each."""
  source: str
  train: np.ndarray
  test: np.ndarray

  def batches(self, size: int, seed: int = 0) -> Iterator[dict[str, np.ndarray]]:
    """Batches of training images without end: each epoch has its own order."""
    epoch, size = 0, min(size, len(self.train))
    while True:
      order = np.random.default_rng((seed, epoch)).permutation(len(self.train))
      for first in range(0, len(order) - size + 1, size):
        yield {'image': self.train[np.sort(order[first:first + size])]}
      epoch += 1

  def batch(self, size: int) -> dict[str, np.ndarray]:
    """The first training images, from the beginning again if there are too few."""
    return {'image': self.train[np.arange(size) % len(self.train)]}


class Rows(NamedTuple):
  """Images as a split: `len`, and `get(rows)` -> batch."""
  images: np.ndarray

  def __len__(self) -> int:
    return len(self.images)

  def get(self, rows: np.ndarray) -> dict[str, np.ndarray]:
    return {'image': self.images[rows]}


def read(data_dir: str = '') -> Images:
  """The images of `data_dir`; without it, photographs or random waves.

  data_dir: a folder with the archive `ARCHIVE`, or with downloads/`ARCHIVE`, where
  `scripts/prepare_data.py` leaves it.

  Raises InputError if the folder has no such archive, or if the archive is damaged.
  """
  if data_dir:
    return _cifar10(data_dir)
  if importlib.util.find_spec('sklearn') and importlib.util.find_spec('PIL'):
    return _photographs()
  return _waves()


def _cifar10(data_dir: str) -> Images:
  places = [Path(data_dir) / ARCHIVE, Path(data_dir) / 'downloads' / ARCHIVE]
  path = next((path for path in places if path.exists()), None)
  if path is None:
    raise InputError('data_dir', data_dir, f'it has no {ARCHIVE}', 'put the archive there, or '
                     'leave the flag out')
  files = {}
  try:
    with tarfile.open(path) as archive:
      for member in archive:
        if member.isfile() and member.name.endswith('.bin'):
          content = archive.extractfile(member)
          files[Path(member.name).name] = content.read() if content else b''
    pixels = lambda names: np.frombuffer(b''.join(files[name] for name in names), np.uint8).reshape(
        -1, 1 + 3 * _SIDE**2)[:, 1:].reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    train, test = pixels([f'data_batch_{i}.bin' for i in range(1, 6)]), pixels(['test_batch.bin'])
  except (tarfile.TarError, OSError, EOFError, KeyError, ValueError) as error:
    raise InputError('data_dir', data_dir, f'{path.name} cannot be read ({error})',
                     'replace the archive') from None
  return Images(f'CIFAR-10, {path.name}', np.ascontiguousarray(train), np.ascontiguousarray(test))


def _photographs() -> Images:
  """Crops of china.jpg and flower.jpg; the right fifth of each photograph is for the test."""
  from sklearn.datasets import load_sample_images
  train, test = [], []
  for photograph in load_sample_images().images:
    cut = photograph.shape[1] * 4 // 5
    for out, part in ((train, photograph[:, :cut]), (test, photograph[:, cut:])):
      windows = np.lib.stride_tricks.sliding_window_view(part, (_SIDE, _SIDE), axis=(0, 1))
      crops = windows[::_STRIDE, ::_STRIDE].transpose(0, 1, 3, 4, 2)
      out.append(crops.reshape(-1, _SIDE, _SIDE, 3))
  # Tests may take the first images alone, so both photographs come in turn.
  mixed = lambda parts: np.random.default_rng(0).permutation(np.concatenate(parts)).astype(np.uint8)
  return Images('crops of the two photographs in scikit-learn, not CIFAR-10', mixed(train),
                mixed(test))


def _waves(train: int = 1024, test: int = 256) -> Images:
  rng = np.random.default_rng(0)
  grid = np.stack(np.meshgrid(*[np.arange(_SIDE)] * 2, indexing='ij'), -1)

  def made(n):
    direction = rng.normal(0.0, 0.15, (n, 4, 2, 3))
    phase = rng.uniform(0.0, 2.0 * np.pi, (n, 1, 1, 4, 3))
    waves = np.sin(np.einsum('hwi,nkic->nhwkc', grid, direction) + phase).mean(axis=3)
    return np.clip(np.round(127.5 + 127.5 * waves), 0, 255).astype(np.uint8)
  return Images('sums of random waves, not CIFAR-10', made(train), made(test))
