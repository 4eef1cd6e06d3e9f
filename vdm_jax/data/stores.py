"""Which data set a name means.

  name                         what it is
  `digits`                     scikit-learn's handwritten digits, prepared when first used
  `swirl`, `swiss_roll`, ...   points in the plane, binary sequences: see `formulas`
  `./photos`, `/data/photos`   a folder of images (any name with a leading `.`, `/` or `~`):
                               see `folders`
  `x.npy`, `x.npz`             an array of images [N, H, W(, C)] or points [N, D]: see `arrays`
  anything else                a TFDS name: `cifar10`, `mnist`, `downsampled_imagenet/32x32`: see
                               `records`

Where the data do not say which images are for testing, every sixth is, from index 0.
"""
import functools
import os

from vdm_jax.data import arrays, folders, formulas, records
from vdm_jax.data.sources import Source, Store


def open_store(name: str, data_dir: str = '', image_size: int = 0) -> Store:
  """Finds the data set `name` and reads its headers, not its images (see the module's table).

  Raises NotPrepared or FileNotFoundError where it is not there, InputError where it is there and
  cannot be used, or where no data set can have that name.
  """
  path = os.path.expanduser(name)
  if name in formulas.FORMULAS:
    return _formula(name)
  if name.endswith(('.npy', '.npz')):
    return arrays.open_arrays(path)
  if is_path(name):
    return folders.open_folder(path, image_size)
  return records.open_records(name, data_dir, image_size)


def is_path(name: str) -> bool:
  """Whether `name` is that of a file or a folder."""
  return (name.endswith(('.npy', '.npz')) or name.startswith('.')
          or os.path.isabs(os.path.expanduser(name)))


def _read_formula(name, n, index, rows):
  return formulas.draw(name, n, index)[rows], None


def _formula(name: str) -> Store:
  sizes = {'train': 50_000, 'test': 10_000}
  train, test = (Source(split, n, functools.partial(_read_formula, name, n, index))
                 for index, (split, n) in enumerate(sizes.items()))
  return Store(train, test, formulas.draw(name, 1, 0).shape[1:], 0, '',
               lambda: {f'{name} {split}': n for split, n in sizes.items()})
