"""An array file as a data set: each array is a field.

A .npy file holds one array.  A .npz file holds arrays of one length, or two splits of each array.
The splits are called x_train and x_test (with y_train and y_test, caption_train and caption_test,
...), or train and test.

  array                          field
  images, x_train, train         `image`
  labels, y_train                `label`: the classes 0, 1, ..., one for each example
  arr_0, x, an unnamed array     `image` if it holds integers, `x` if it holds real numbers
  any other                      its own name

x, the first field, is the first of image, images, arr_0 and x, or else the first array.  Integers
[N, H, W(, C)] are images, with grey levels 0 .. 255.  For integers of other shapes, the largest
value decides the number of levels.  Floats are real numbers, kept as they are: points [N, D],
sequences or sets of points [N, T, C], images, volumes [N, D, H, W(, C)].  Strings [N] are texts:
see `tokenisers`.
"""
import functools
import hashlib
import os
import zipfile
import zlib
from collections.abc import Sequence

import numpy as np

from vdm_jax.data import fields, images, tokenisers
from vdm_jax.data.fields import IMAGE, LABEL, Field
from vdm_jax.data.sources import Source, Store, check_lengths, every_sixth
from vdm_jax.errors import InputError

_BEGINS = {'.npy': b'\x93NUMPY', '.npz': b'PK'}


def open_arrays(path: str, texts: tokenisers.Settings = tokenisers.BYTES) -> Store:
  """The arrays of a file as a Store; no image is read.  Raises FileNotFoundError or InputError."""
  if not os.path.exists(path):
    raise FileNotFoundError(f'there is no file {path}: see --config.data.name')
  _check_begins(path)
  places, splits = _chosen(path, _keys(path))
  declared = [_field(path, name, keys, texts) for name, keys in places.items()]
  counts = [len(_array(path, key)) for key in next(iter(places.values()))]
  for keys in places.values():
    for key, count in zip(keys, counts, strict=True):
      if len(_array(path, key)) != count:
        raise InputError('config.data.name', path, f'{key} has {len(_array(path, key))} rows where '
                         f'{next(iter(places))} has {count}', 'store one row for each example in '
                         'every array')
  if splits:
    rows = [None, None]
  else:
    rows = every_sixth(counts[0])
    check_lengths(path, *map(len, rows))
    splits = 'not every sixth', 'every sixth'
  sources = []
  for i, (name, part) in enumerate(zip(splits, rows, strict=True)):
    keys = [each[min(i, len(each) - 1)] for each in places.values()]
    labels = next((_labels(path, key, len(_array(path, key)))
                   for key, field in zip(keys, declared, strict=True) if field.name == LABEL), None)
    if part is not None:
      labels = None if labels is None else labels[part]
    length = counts[i] if part is None else len(part)
    read = functools.partial(_read, path, keys, declared, part)
    sources.append(Source(name, length, read, labels))
  return Store(*sources, tuple(declared), '', functools.partial(marks, path))


def _field(path: str, name: str, keys: Sequence[str], texts: tokenisers.Settings) -> Field:
  """The field of these arrays, one array for each split.  Raises InputError."""
  arrays = [(_place(path, key), _array(path, key)) for key in keys]
  if name == LABEL:
    return fields.label(1 + max(int(_labels(path, key, len(_array(path, key))).max())
                                for key in keys))
  if all(array.dtype.kind in 'US' and array.ndim == 1 for _, array in arrays):
    return tokenisers.field(name, texts, [one for _, u in arrays for one in _strings(u)])
  each = []
  for place, array in arrays:
    if array.dtype.kind in 'uib' and (array.ndim in (3, 4) or name == IMAGE):
      _check_images(place, array)
      shape = array.shape[1:] + (1,) * (array.ndim == 3)
      each.append(Field(name, shape, 'uint8', 0))
    else:
      if name in (IMAGE, 'x'):
        _check_axes(place, array)
      each.append(fields.of_array(name, array, place))
  first, last = each[0], each[-1]
  if first.shape != last.shape:
    raise InputError('config.data.name', path, f'it holds {name} of {first.shape} for training and '
                     f'{last.shape} for test', 'bring them to one shape')
  if (first.levels is None) != (last.levels is None):
    raise InputError('config.data.name', path, f'{keys[0]} and {keys[-1]} are not both integers',
                     'save both as integers, or both as floats')
  if not first.levels:
    return first
  return fields.integers(name, first.shape, max(f.levels for f in each))


def _strings(array: np.ndarray) -> list[str]:
  return [one.decode() if isinstance(one, bytes) else str(one) for one in array]


def _place(path: str, key: str) -> str:
  return f'{path}[{key}]' if key else path


def _check_begins(path: str) -> None:
  """Raises InputError if the file is of another kind, and names that kind."""
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
      f'it holds text ({text[:24]!r}), not an array' if is_text else 'it is not a NumPy file',
      f'write it with numpy.save{"z" if ending == ".npz" else ""}')


def _keys(path: str) -> list[str]:
  if path.endswith('.npy'):
    return ['']
  try:
    with open(path, 'rb') as opened, np.load(opened) as file:
      return list(file)
  except (ValueError, EOFError, zipfile.BadZipFile) as error:
    raise images.unreadable(path, error) from error


def _chosen(path: str, keys: list[str]) -> tuple[dict[str, tuple[str, ...]], tuple[str, ...]]:
  """The arrays of each field, x first, and the splits: {name: one key, or two}, (train, test).

  A file without its own splits has one key for each field, and () in place of the splits.
  """
  def ordered(names):
    x = next(name for name in (IMAGE, 'x', *names) if name in names and name != LABEL)
    return sorted(names, key=lambda name: name != x)  # which keeps the order of the others

  ends = {key[:-len('_train')] for key in keys if key.endswith('_train')} | {
      key[:-len('_test')] for key in keys if key.endswith('_test')}
  for stem in sorted(ends):
    pair = f'{stem}_train', f'{stem}_test'
    for key, other in (pair, pair[::-1]):
      if key in keys and other not in keys:
        raise InputError('config.data.name', path, f'it holds {key} and no {other}',
                         f'add {other}, or leave out {key}')
  if ends:
    names = {_named(path, {'y': 'labels'}.get(stem, stem), f'{stem}_train'):
             (f'{stem}_train', f'{stem}_test') for stem in sorted(ends, key=_position(keys))}
    return {name: names[name] for name in ordered(names)}, names[ordered(names)[0]]
  if {'train', 'test'} <= set(keys):
    return {_named(path, 'x', 'train'): ('train', 'test')}, ('train', 'test')
  examples = [key for key in keys if _array(path, key).ndim]  # a file may say something of itself
  if not set(examples) - {'labels', LABEL}:
    raise InputError('config.data.name', path, f'it holds {sorted(keys)} and no array of examples',
                     'save x_train and x_test, or arrays of one length')
  names = {_named(path, key, key): (key,) for key in examples}
  return {name: names[name] for name in ordered(names)}, ()


def _position(keys: Sequence[str]):
  """The sort key that puts stems into their order in the file."""
  return lambda stem: min(keys.index(key) for key in (f'{stem}_train', f'{stem}_test'))


def _named(path: str, name: str, key: str) -> str:
  """The name of an array's field."""
  if name in ('', 'x', 'arr_0'):
    return 'x' if _array(path, key).dtype.kind == 'f' else IMAGE
  return {'images': IMAGE, 'labels': LABEL}.get(name, name)


@functools.lru_cache(maxsize=16)
def _array(path: str, key: str) -> np.ndarray:
  """An array of a file.  npy: mapped.  npz: read once and kept, as each indexing decompresses it.
  """
  try:
    if path.endswith('.npy'):
      return np.load(path, mmap_mode='r')
    with open(path, 'rb') as opened, np.load(opened) as file:
      return file[key]
  except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
    if 'Python objects' in str(error) or 'Object arrays' in str(error):
      raise InputError(problem=f'{_place(path, key)} holds Python objects',
                       remedy='make it one array of numbers with numpy.stack, or of strings with '
                       'numpy.array') from error
    raise images.unreadable(path, error) from error


def named(path: str, name: str) -> np.ndarray:
  """The array with this name in a .npz file, or the file's only array; of a .npy file, its array.

  Of a file of sample.py, it is the array of images.  Raises InputError about this name if there is
  no such array.
  """
  if not os.path.isfile(path):
    raise InputError(name, path, 'there is no such file', 'name a .npz or .npy file')
  keys = _keys(path)
  if name not in keys and len(keys) != 1 and not {'images', 'about'} <= set(keys):
    raise InputError(name, path, f"it has no array {name!r}, only {', '.join(keys)}",
                     'rename one of them')
  other = 'images' if 'images' in keys else keys[0]
  return np.asarray(_array(path, name if name in keys else other))


def _check_axes(place: str, array: np.ndarray) -> None:
  volumes = array.dtype.kind == 'f'  # of real numbers alone
  if not 2 <= array.ndim <= (5 if volumes else 4):
    raise InputError(problem=f'{place} has shape {array.shape}',
                     remedy='store [N, H, W, C], [N, H, W] or [N, D]'
                     + (', or volumes [N, D, H, W, C]' if volumes else ''))


def _check_images(place: str, array: np.ndarray) -> None:
  _check_axes(place, array)
  if not array.size:
    raise InputError(problem=f'{place} has shape {array.shape} and so holds nothing',
                     remedy='give every axis a length')
  if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] > 4:
    raise InputError(problem=f'{place} has shape {array.shape}: channels come last here',
                     remedy='store [N, H, W, C]')
  if array.dtype not in (np.uint8, np.bool_) and (array.min() < 0 or array.max() > 255):
    raise InputError(problem=f'{place} holds values from {array.min()} to {array.max()}',
                     remedy='store the grey levels 0 .. 255, or real numbers as floats')


def _labels(path: str, key: str, count: int) -> np.ndarray:
  """int32 [N], one label for each of `count` examples."""
  labels = _array(path, key)
  what = f'{_place(path, key)} is {labels.dtype} {labels.shape}'
  needed = f'needed is one class 0, 1, ... for each of {count} examples'
  if labels.size != count or labels.dtype.kind not in 'ui':
    raise InputError(problem=what, remedy=needed)
  if not 0 <= labels.min() <= labels.max() < 2**31:
    raise InputError(problem=f'{what} from {labels.min()} to {labels.max()}', remedy=needed)
  return labels.reshape(count).astype(np.int32)


def _read(path, keys, declared, subset, rows):
  rows = rows if subset is None else subset[rows]
  return {field.name: _values(_array(path, key)[rows], field)
          for key, field in zip(keys, declared, strict=True)}


def _values(array: np.ndarray, field: Field) -> np.ndarray:
  """Rows of an array, with the shape and the type of the field."""
  if array.dtype.kind in 'US':
    return tokenisers.of(field).encode(_strings(array), cut=True)
  return array.reshape(len(array), *field.shape).astype(field.dtype)


def marks(path: str) -> dict[str, int | str]:
  """A checksum of each array: from the directory of a .npz; for others, by `_digest`."""
  if not path.endswith('.npz'):
    return {'the array' if path.endswith('.npy') else 'the file': _digest(path)}
  with zipfile.ZipFile(path) as file:
    return {member.filename.removesuffix('.npy'): f'{member.CRC:08x}, {member.file_size} bytes'
            for member in file.infolist()}


def _digest(path: str, block: int = 2**20, blocks: int = 256) -> str:
  """SHA-256 of a file's size and of `blocks` evenly spaced blocks; a small file is read whole."""
  size = os.path.getsize(path)
  digest = hashlib.sha256(f'{size}\n'.encode())
  offsets = range(0, size, block)
  starts = offsets if len(offsets) <= blocks else np.linspace(0, size - block, blocks).astype(int)
  with open(path, 'rb') as file:
    for start in starts:
      file.seek(int(start))
      digest.update(file.read(block))
  return digest.hexdigest()
