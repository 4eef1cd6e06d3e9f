"""Where images come from: TFDS, a folder, an array file, or a formula.

A `Store` is a data set as found, two `Source`s and what was read off them.  A source reads any
rows by number and is picklable, so that worker processes can read for us.

  name                         what it is
  `digits`                     scikit-learn's handwritten digits, prepared when first used
  `swirl`, `swiss_roll`, ...   points in the plane, binary sequences: see `formulas`
  `./photos`, `/data/photos`   a folder of images (any name with a leading `.`, `/` or `~`)
  `x.npy`, `x.npz`             an array of images [N, H, W(, C)] or points [N, D]
  anything else                a TFDS name: `cifar10`, `mnist`, `downsampled_imagenet/32x32`

Where the data do not say which images are for testing, every sixth is, from index 0.
"""
import functools
import io
import os
import zipfile
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from vdm_jax.data import formulas
from vdm_jax.errors import InputError

IMAGE_FILES = ('.png', '.jpg', '.jpeg', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
HELD_OUT = ('test', 'validation', 'valid', 'val')  # which split is our test, by preference
PREPARED_BY_US = ('cifar10', 'digits', 'mnist')    # by scripts/prepare_data.py
MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}              # channels -> Pillow's name

Read = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


class NotPrepared(FileNotFoundError):
  """TFDS knows the data set and it is not on this disk; the message says what to run."""


class Source(NamedTuple):
  """One split as it is stored."""
  name: str     # the split's name where it came from
  length: int
  read: Read    # rows [n] -> images uint8 [n, ...], labels int32 [n] or None


class Store(NamedTuple):
  """A data set as found."""
  train: Source
  test: Source
  shape: tuple[int, ...]  # of one image
  classes: int            # 0 where there are no labels
  version: str            # '' where there is none


def open_store(name: str, data_dir: str = '', image_size: int = 0) -> Store:
  """Finds the data set `name` and reads its headers, not its images (see the module's table).

  Raises NotPrepared or FileNotFoundError where it is not there, InputError where it is there and
  cannot be used.
  """
  path = os.path.expanduser(name)
  if name in formulas.FORMULAS:
    return _formula(name)
  if name.endswith(('.npy', '.npz')):
    return _arrays(path)
  if os.path.isabs(path) or name.startswith('.'):
    return _folder(path, image_size)
  return _tfds(name, data_dir, image_size)


def declared(name: str, data_dir: str, image_size: int) -> tuple[tuple[int, ...], int]:
  """Shape (empty where images differ) and classes, as TFDS declares them without the data."""
  _, channels, size, _, classes = _features(tfds_builder(name, data_dir))
  size = (image_size, image_size) if image_size else size
  return (*size, channels) if size else (), classes


def data_directory(data_dir: str) -> str:
  """`data_dir`, or where TFDS looks by itself: $TFDS_DATA_DIR, ~/tensorflow_datasets."""
  default = os.environ.get('TFDS_DATA_DIR') or os.path.join('~', 'tensorflow_datasets')
  return os.path.expanduser(data_dir or default)


# Pixels.


def _decode(file, place: str, mode: str, image_size: int) -> np.ndarray:
  """An encoded image, a path or a stream -> uint8 [H, W, C].  Raises InputError, naming `place`.

  With `image_size`, the largest centred square, resampled to that size (Lanczos).
  """
  try:
    with Image.open(file) as image:
      ImageOps.exif_transpose(image, in_place=True)  # cameras store the rotation beside the pixels
      if image.mode != mode:
        image = image.convert(mode)
      if image_size and image.size != (image_size, image_size):
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.LANCZOS)
      pixels = np.asarray(image)
  except Exception as error:  # of many types, most of which do not name the file
    raise _unreadable(place, error) from error
  return pixels.reshape(*pixels.shape[:2], -1)


def _unreadable(place, error) -> InputError:
  return InputError(f'{place} cannot be read ({error}): it is damaged, or no such file; replace it')


def _stack(images: list[np.ndarray], place: str) -> np.ndarray:
  sizes = sorted({image.shape for image in images})
  if len(sizes) > 1:
    raise _sizes_differ(place, sizes[0], sizes[-1])
  return np.stack(images)


def _sizes_differ(place, one, other) -> InputError:
  by = lambda size: ' x '.join(map(str, size[:2]))
  return InputError(f'the images of {place} differ in size ({by(one)} and {by(other)}): '
                    'set --config.data.image_size to resize and crop them all')


def every_sixth(n: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows for training and for testing, where the data do not say."""
  test = np.arange(n) % 6 == 0
  return np.flatnonzero(~test), np.flatnonzero(test)


# TFDS.


def tfds_builder(name: str, data_dir: str):
  import tensorflow_datasets as tfds  # half a second that formulas and arrays need not pay
  data_dir = data_directory(data_dir)
  if name == 'digits':
    from vdm_jax.data import builders
    return builders.Digits(data_dir=data_dir, file_format='array_record')
  try:
    return tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError:
    hint = f'; for the folder of that name write ./{name}' if os.path.isdir(name) else ''
    raise FileNotFoundError(
        f'--config.data.name={name!r} is no TFDS data set, no .npy or .npz file and no path of a '
        f'folder{hint}') from None


def _features(builder):
  """The image feature's name, channels, size (None where images differ), label's name, classes."""
  import tensorflow_datasets as tfds
  features = dict(builder.info.features.items())
  names = [k for k, v in features.items() if isinstance(v, tfds.features.Image)]
  image = 'image' if 'image' in names else names[0] if len(names) == 1 else None
  if image is None or features[image].np_dtype != np.uint8:
    raise InputError(f'--config.data.name={builder.name!r} has no single image of 8 bits among '
                     f'its features: {sorted(features)}')
  height, width, channels = features[image].shape
  label = features.get('label')
  classes = label.num_classes if isinstance(label, tfds.features.ClassLabel) else 0
  size = (height, width) if height and width else None
  return image, channels or 3, size, 'label' if classes else '', classes or 0


@functools.lru_cache(maxsize=8)
def _tfds_source(directory: str, split: str, image: str):
  import tensorflow_datasets as tfds
  builder = tfds.builder_from_directory(directory)
  return builder.as_data_source(split, decoders={image: tfds.decode.SkipDecoding()})


def _read_tfds(directory, split, image, label, mode, image_size, rows):
  try:
    records = _tfds_source(directory, split, image).__getitems__([int(i) for i in rows])
  except RuntimeError as error:  # array_record's, which does not say of which file
    raise _unreadable(_damaged_shard(directory, split), error) from error
  images = [_decode(io.BytesIO(record[image]), f'image {i} of {directory} ({split})', mode,
                    image_size) for i, record in zip(rows, records, strict=True)]
  labels = np.array([record[label] for record in records], np.int32) if label else None
  return _stack(images, f'{directory} ({split})'), labels


def _damaged_shard(directory: str, split: str) -> str:
  """The first file of the split that is not whole; the directory if all are."""
  import tensorflow_datasets as tfds
  from array_record.python import array_record_module
  for path in tfds.builder_from_directory(directory).info.splits[split].filepaths:
    try:
      reader = array_record_module.ArrayRecordReader(os.fspath(path))
      n = reader.num_records()
      for first in range(0, n, 1024):
        reader.read(first, min(first + 1024, n))
      reader.close()
    except RuntimeError:
      return os.fspath(path)
  return directory


def _tfds(name: str, data_dir: str, image_size: int) -> Store:
  builder = tfds_builder(name, data_dir)
  if name == 'digits' and not builder.info.splits:
    from vdm_jax.data import builders
    builders.generate(builder)
    builder = tfds_builder(name, data_dir)
  if not builder.info.splits:
    raise NotPrepared(f'{name} is not in {data_directory(data_dir)}: '
                      f'{how_to_prepare(name, data_directory(data_dir))}')
  if builder.info.file_format.value != 'array_record':
    raise InputError(
        f'{builder.data_path} is {builder.info.file_format.value}, not array_record, and has no '
        f'random access; for another directory, {how_to_prepare(name, "DIR")}')
  splits = builder.info.splits
  test = next((split for split in HELD_OUT if split in splits), None)
  if 'train' not in splits or test is None:
    raise InputError(f'--config.data.name={name!r} has the splits {sorted(splits)}; needed are '
                     f'train and one of {", ".join(HELD_OUT)}')
  image, channels, size, label, classes = _features(builder)
  if channels not in MODES:
    raise InputError(f'--config.data.name={name!r} has {channels} channels; 1, 3 or 4 are read')
  source = lambda split: Source(split, splits[split].num_examples, functools.partial(
      _read_tfds, os.fspath(builder.data_path), split, image, label, MODES[channels], image_size))
  if image_size:
    size = (image_size, image_size)
  elif size is None:
    size = source(test).read(np.arange(1))[0].shape[1:3]
  version = str(builder.version)
  if builder.name == 'downsampled_imagenet':
    version += f', {imagenet_version(splits[test].num_examples)}'
  return Store(source('train'), source(test), (*size, channels), classes, version)


def imagenet_version(validation: int) -> str:
  """Which of the two downsampled ImageNets this is, told apart by their validation count.

  The likelihoods of one cannot be compared with those of the other: they were resized
  differently.  Old: A. van den Oord et al. (2016), 49,999 images.  New: P. Chrabaszcz et al.
  (2017), 50,000 images.
  """
  known = {49_999: 'old', 50_000: 'new'}
  return f'{known.get(validation, "neither old nor new")} ({validation:,} validation images)'


def how_to_prepare(name: str, directory: str) -> str:
  if name in PREPARED_BY_US:
    return f'run `python scripts/prepare_data.py {name} --data_dir={directory}`'
  return (f'run `tfds build {name} --data_dir={directory} --file_format=array_record` in an '
          'environment with TensorFlow (pip install tensorflow-cpu tensorflow-datasets)')


# Array files.


@functools.lru_cache(maxsize=4)
def _array(path: str, key: str) -> np.ndarray:
  """An array of a file.  npy: mapped.  npz: taken out once, as each indexing decompresses it."""
  try:
    if path.endswith('.npy'):
      return np.load(path, mmap_mode='r')
    with open(path, 'rb') as opened, np.load(opened) as file:
      return file[key]
  except (ValueError, zipfile.BadZipFile, zlib.error) as error:
    raise _unreadable(path, error) from error


def _read_array(path, key, label, subset, rows):
  rows = rows if subset is None else subset[rows]
  images = _images(_array(path, key)[rows])
  labels = _array(path, label)[rows].reshape(len(rows)).astype(np.int32) if label else None
  return images, labels


def _images(array: np.ndarray) -> np.ndarray:
  """[n, H, W] -> [n, H, W, 1]; others as they are.  uint8."""
  return (array[..., None] if array.ndim == 3 else array).astype(np.uint8)


def _check_images(place: str, array: np.ndarray) -> None:
  if array.ndim not in (2, 3, 4):
    raise InputError(f'{place} has shape {array.shape}; needed is [N, H, W, C], [N, H, W] or '
                     '[N, D]')
  if array.ndim == 4 and array.shape[1] in (1, 3) and array.shape[3] > 4:
    raise InputError(f'{place} has shape {array.shape}: channels come last here, [N, H, W, C]')
  if array.dtype.kind not in 'uib':
    raise InputError(f'{place} holds {array.dtype}; needed are integers, the grey levels 0 .. 255')
  if array.dtype not in (np.uint8, np.bool_) and (array.min() < 0 or array.max() > 255):
    raise InputError(f'{place} holds values from {array.min()} to {array.max()}; needed are the '
                     'grey levels 0 .. 255')


def _arrays(path: str) -> Store:
  if not os.path.exists(path):
    raise FileNotFoundError(f'there is no file {path}: see --config.data.name')
  keys = ['']
  if path.endswith('.npz'):
    try:
      with open(path, 'rb') as opened, np.load(opened) as file:
        keys = list(file)
    except (ValueError, zipfile.BadZipFile) as error:
      raise _unreadable(path, error) from error
  if {'x_train', 'x_test'} <= set(keys):
    chosen = [('x_train', 'y_train'), ('x_test', 'y_test')]
  elif {'train', 'test'} <= set(keys):
    chosen = [('train', ''), ('test', '')]
  elif 'images' in keys:
    chosen = [('images', 'labels')]
  elif len(keys) == 1:
    chosen = [(keys[0], '')]
  else:
    raise InputError(f'{path} holds {sorted(keys)}; needed are x_train and x_test (with y_train '
                     'and y_test), train and test, images (with labels), or one array alone')
  chosen = [(key, label if label in keys else '') for key, label in chosen]
  classes = 0
  for key, label in chosen:
    place = f'{path}[{key}]' if key else path
    images = _array(path, key)
    _check_images(place, images)
    if label:
      labels = _array(path, label)
      if labels.size != len(images) or labels.dtype.kind not in 'ui' or labels.min() < 0:
        raise InputError(f'{path}[{label}] is {labels.dtype} {labels.shape}; needed is one '
                         f'class 0, 1, ... for each of {len(images)} images')
      classes = max(classes, int(labels.max()) + 1)
  shapes = [_images(_array(path, key)[:1]).shape[1:] for key, _ in chosen]
  if shapes[0] != shapes[-1]:
    raise InputError(f'{path} holds images of {shapes[0]} for training and {shapes[-1]} for test')
  if len(chosen) == 2:
    sources = [Source(key, len(_array(path, key)),
                      functools.partial(_read_array, path, key, label, None))
               for key, label in chosen]
  else:
    key, label = chosen[0]
    sources = [Source(name, len(rows), functools.partial(_read_array, path, key, label, rows))
               for name, rows in zip(('not every sixth', 'every sixth'),
                                     every_sixth(len(_array(path, key))), strict=True)]
  return Store(*sources, shapes[0], classes, '')


# Folders of images.


def _read_files(paths, labels, mode, image_size, rows):
  images = [_decode(paths[i], paths[i], mode, image_size) for i in rows]
  place = os.path.dirname(paths[0])
  return _stack(images, place), None if labels is None else labels[rows]


def _list_images(root: str) -> list[str]:
  """Paths below `root`, relative to it, in order."""
  found = [os.path.relpath(os.path.join(folder, file), root)
           for folder, _, files in os.walk(root) for file in files
           if file.lower().endswith(IMAGE_FILES)]
  return sorted(found)


def _header(path: str) -> tuple[str, tuple[int, int]]:
  """Pillow's mode, and (height, width) as seen."""
  try:
    with Image.open(path) as image:
      turned = image.getexif().get(0x0112, 1) >= 5  # orientation: 5 to 8 swap the sides
      return image.mode, image.size if turned else image.size[::-1]
  except Exception as error:
    raise _unreadable(path, error) from error


def _folder(root: str, image_size: int) -> Store:
  if not os.path.isdir(root):
    raise FileNotFoundError(f'there is no folder {root}: see --config.data.name')
  test = next((name for name in HELD_OUT if os.path.isdir(os.path.join(root, name))), None)
  if test and os.path.isdir(os.path.join(root, 'train')):
    names = ['train', test]
    lists = [_list_images(os.path.join(root, name)) for name in names]
    paths = [[os.path.join(root, name, file) for file in files]
             for name, files in zip(names, lists, strict=True)]
  else:
    names = ['not every sixth', 'every sixth']
    files = _list_images(root)
    lists = [[files[i] for i in rows] for rows in every_sixth(len(files))]
    paths = [[os.path.join(root, file) for file in part] for part in lists]
  if not all(lists):
    raise InputError(f'{root} holds too few images: {len(lists[0])} for training, '
                     f'{len(lists[1])} for test (files ending in {" ".join(IMAGE_FILES)})')
  # A class is the first folder below the split's, if every image has one.
  folders = [[file.split(os.sep)[0] if os.sep in file else '' for file in part] for part in lists]
  classes = sorted({folder for part in folders for folder in part})
  if '' in classes:
    classes = []
  labels = [np.array([classes.index(folder) for folder in part], np.int32) if classes else None
            for part in folders]
  headers = {_header(path) for part in paths for path in part}
  deep = sorted({mode for mode, _ in headers if mode.startswith(('I', 'F'))})
  if deep:
    raise InputError(f'{root} holds images of more than 8 bits ({", ".join(deep)}): convert them')
  mode = 'L' if all(m in ('L', '1') for m, _ in headers) else 'RGB'
  sizes = sorted({size for _, size in headers})
  if image_size:
    sizes = [(image_size, image_size)]
  elif len(sizes) > 1:
    raise _sizes_differ(root, sizes[0], sizes[-1])
  train, test = (Source(name, len(part), functools.partial(
      _read_files, part, label, mode, image_size))
                 for name, part, label in zip(names, paths, labels, strict=True))
  return Store(train, test, (*sizes[0], 1 if mode == 'L' else 3), len(classes), '')


# A formula.


def _read_formula(name, n, index, rows):
  return formulas.draw(name, n, index)[rows], None


def _formula(name: str) -> Store:
  source = lambda split, n, index: Source(split, n, functools.partial(
      _read_formula, name, n, index))
  return Store(source('train', 50_000, 0), source('test', 10_000, 1),
               formulas.draw(name, 1, 0).shape[1:], 0, '')
