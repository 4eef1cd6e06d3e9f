"""An array file as a data set.

A .npz holds x_train and x_test (with y_train and y_test), train and test, images (with labels), or
one array alone; a .npy is one array.  Images are integers 0 .. 255, [N, H, W, C], [N, H, W] or
[N, D]; labels are the classes 0, 1, ..., one for each image.
"""
import functools
import hashlib
import os
import zipfile
import zlib

import numpy as np

from vdm_jax.data import images
from vdm_jax.data.sources import Source, Store, check_lengths, every_sixth
from vdm_jax.errors import InputError

_BEGINS = {'.npy': b'\x93NUMPY', '.npz': b'PK'}


def open_arrays(path: str) -> Store:
  """The arrays of a file, of which no image is read.  Raises FileNotFoundError or InputError."""
  if not os.path.exists(path):
    raise FileNotFoundError(f'there is no file {path}: see --config.data.name')
  _check_begins(path)
  chosen = _chosen(path, _keys(path))
  for key, _ in chosen:
    _check_images(_place(path, key), _array(path, key))
  labels = [_labels(path, key, label) for key, label in chosen]
  shapes = [_images(_array(path, key)[:1]).shape[1:] for key, _ in chosen]
  if shapes[0] != shapes[-1]:
    raise InputError(problem=f'{path} holds images of {shapes[0]} for training and {shapes[-1]} '
                     'for test', remedy='bring them to one shape')
  if len(chosen) == 2:
    rows = [slice(None)] * 2
    names = [key for key, _ in chosen]
  else:
    rows = every_sixth(len(_array(path, chosen[0][0])))
    check_lengths(path, *map(len, rows))
    names, chosen, labels = ('not every sixth', 'every sixth'), chosen * 2, labels * 2
  sources = []
  for name, (key, _), label, part in zip(names, chosen, labels, rows, strict=True):
    subset = None if isinstance(part, slice) else part
    length = len(_array(path, key)) if subset is None else len(subset)
    label = None if label is None else label[part]
    sources.append(Source(name, length, functools.partial(_read, path, key, label, subset), label))
  classes = 0 if labels[0] is None else 1 + max(int(label.max()) for label in labels)
  return Store(*sources, shapes[0], classes, '', functools.partial(_marks, path))


def _place(path: str, key: str) -> str:
  return f'{path}[{key}]' if key else path


def _check_begins(path: str) -> None:
  """A file that is something else is said to be that, and not to be damaged."""
  with open(path, 'rb') as file:
    start = file.read(64)
  ending = path[-4:]
  if not start or start.startswith(_BEGINS[ending]):
    return  # an empty one is damaged
  what = next((f'a {kind} file by what it holds' for kind, begins in _BEGINS.items()
               if start.startswith(begins)), '')
  if what:
    raise InputError('config.data.name', path, f'it is {what}', 'rename it')
  try:
    text = start.decode().split('\n')[0]
  except UnicodeDecodeError:
    text = ''
  is_text = text.isprintable() and text
  raise InputError(
      'config.data.name', path,
      f'it holds text ({text[:24]!r}), not an array' if is_text else 'it is no file of NumPy',
      f'write it with numpy.save{"z" if ending == ".npz" else ""}')


def _keys(path: str) -> list[str]:
  if path.endswith('.npy'):
    return ['']
  try:
    with open(path, 'rb') as opened, np.load(opened) as file:
      return list(file)
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    raise images.unreadable(path, error) from error


def _chosen(path: str, keys: list[str]) -> list[tuple[str, str]]:
  """The names of images and labels ('' where there are none), by split or of all."""
  if {'x_train', 'x_test'} <= set(keys):
    chosen = [('x_train', 'y_train'), ('x_test', 'y_test')]
  elif {'train', 'test'} <= set(keys):
    chosen = [('train', ''), ('test', '')]
  elif 'images' in keys:
    chosen = [('images', 'labels')]
  elif len(keys) == 1:
    chosen = [(keys[0], '')]
  else:
    raise InputError(problem=f'{path} holds {sorted(keys)}', remedy='store x_train and x_test '
                     '(with y_train and y_test), train and test, images (with labels), or one '
                     'array alone')
  labelled = [label for _, label in chosen if label in keys and label]
  if labelled and len(labelled) < len(chosen):
    [absent] = {'y_train', 'y_test'} - set(labelled)
    raise InputError('config.data.name', path, f'it holds {labelled[0]} and no {absent}',
                     f'add {absent}, or leave out {labelled[0]}')
  return [(key, label if labelled else '') for key, label in chosen]


@functools.lru_cache(maxsize=4)
def _array(path: str, key: str) -> np.ndarray:
  """An array of a file.  npy: mapped.  npz: taken out once, as each indexing decompresses it."""
  try:
    if path.endswith('.npy'):
      return np.load(path, mmap_mode='r')
    with open(path, 'rb') as opened, np.load(opened) as file:
      return file[key]
  except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    if 'Python objects' in str(error) or 'Object arrays' in str(error):
      raise InputError(problem=f'{_place(path, key)} holds Python objects',
                       remedy='make it one array of integers with numpy.stack') from error
    raise images.unreadable(path, error) from error


def _images(array: np.ndarray) -> np.ndarray:
  """[n, H, W] -> [n, H, W, 1]; others as they are.  uint8."""
  return (array[..., None] if array.ndim == 3 else array).astype(np.uint8)


def _check_images(place: str, array: np.ndarray) -> None:
  if array.ndim not in (2, 3, 4):
    raise InputError(problem=f'{place} has shape {array.shape}',
                     remedy='store [N, H, W, C], [N, H, W] or [N, D]')
  if not array.size:
    raise InputError(problem=f'{place} has shape {array.shape} and so holds nothing',
                     remedy='give every axis a length')
  if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] > 4:
    raise InputError(problem=f'{place} has shape {array.shape}: channels come last here',
                     remedy='store [N, H, W, C]')
  if array.dtype.kind not in 'uib':
    raise InputError(problem=f'{place} holds {array.dtype}',
                     remedy='store integers, the grey levels 0 .. 255')
  if array.dtype not in (np.uint8, np.bool_) and (array.min() < 0 or array.max() > 255):
    raise InputError(problem=f'{place} holds values from {array.min()} to {array.max()}',
                     remedy='store the grey levels 0 .. 255')


def _labels(path: str, key: str, label: str) -> np.ndarray | None:
  """int32 [N], one for each image of `key`; None where there are none."""
  if not label:
    return None
  count, labels = len(_array(path, key)), _array(path, label)
  what = f'{_place(path, label)} is {labels.dtype} {labels.shape}'
  needed = f'needed is one class 0, 1, ... for each of {count} images'
  if labels.size != count or labels.dtype.kind not in 'ui':
    raise InputError(problem=what, remedy=needed)
  if not 0 <= labels.min() <= labels.max() < 2**31:
    raise InputError(problem=f'{what} from {labels.min()} to {labels.max()}', remedy=needed)
  return labels.reshape(count).astype(np.int32)


def _read(path, key, labels, subset, rows):
  pictures = _images(_array(path, key)[rows if subset is None else subset[rows]])
  return pictures, None if labels is None else labels[rows]


def _marks(path: str) -> dict[str, int | str]:
  """A checksum of each array: of a .npz, what its directory holds; of a .npy, `_digest`."""
  if path.endswith('.npy'):
    return {'the array': _digest(path)}
  with zipfile.ZipFile(path) as file:
    return {member.filename.removesuffix('.npy'): f'{member.CRC:08x}, {member.file_size} bytes'
            for member in file.infolist()}


def _digest(path: str, block: int = 2**20, blocks: int = 256) -> str:
  """SHA-256 of a file's size and of so many blocks that lie evenly: of all of it if it is small."""
  size = os.path.getsize(path)
  digest = hashlib.sha256(f'{size}\n'.encode())
  whole = range(0, size, block)
  starts = whole if len(whole) <= blocks else np.linspace(0, size - block, blocks).astype(int)
  with open(path, 'rb') as file:
    for start in starts:
      file.seek(int(start))
      digest.update(file.read(block))
  return digest.hexdigest()
