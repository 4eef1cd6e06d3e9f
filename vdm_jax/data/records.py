"""A data set of TFDS: records with random access, which hold encoded images and other features.

Its image and its label are read, or the features that config.data.fields names.  Those may be
numbers, arrays of numbers, classes and texts.  Texts become config.data.text_length tokens: see
`tokenisers`.
"""
import difflib
import functools
import importlib
import io
import os
from collections.abc import Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np

from vdm_jax.data import expressions, fields, formulas, images, shapes, slices, tokenisers
from vdm_jax.data.fields import IMAGE, LABEL, Field
from vdm_jax.data.sources import HELD_OUT, NotPrepared, Source, Store, check_lengths
from vdm_jax.errors import InputError, require

# By scripts/prepare_data.py.
PREPARED_BY_US = ('brain', 'chorales', 'cifar10', 'digits', 'emoji', 'mnist', 'phantoms')
ARCHIVES = ('.zip', '.tar', '.gz', '.tgz', '.7z', '.rar')


class _Feature(NamedTuple):
  """A feature of TFDS and the field that it becomes."""
  key: str
  field: Field    # of an image: its shape is () where the images differ in size
  channels: int   # of an image, 0 of others


def open_records(name: str, data_dir: str, image_size: int, requested: Sequence[str] = (),
                 texts: tokenisers.Settings = tokenisers.BYTES) -> Store:
  """The data set as TFDS prepared it; the digits are prepared here.

  requested: the names of features, where 'image' means the single image.  Empty: image and label.
  Raises NotPrepared if the data set is not in `data_dir`, and InputError if it cannot be used.
  """
  builder = tfds_builder(name, data_dir)
  if name == 'digits' and not builder.info.splits:
    from vdm_jax.data import builders
    builders.generate(builder)
    builder = tfds_builder(name, data_dir)
  if not builder.info.splits:
    raise NotPrepared(f'{name} is not in {data_directory(data_dir)}: '
                      f'{how_to_prepare(name, data_directory(data_dir))}')
  file_format = builder.info.file_format
  if file_format is None or file_format.value != 'array_record':
    raise InputError(problem=f'{builder.data_path} is {file_format and file_format.value}, not '
                     'array_record, and has no random access',
                     remedy=f'for another directory, {how_to_prepare(name, "DIR")}')
  splits = builder.info.splits
  test = next((split for split in HELD_OUT if split in splits), None)
  if 'train' not in splits or test is None:
    raise InputError('config.data.name', name, f'it has the splits {sorted(splits)}',
                     f'choose one with train and one of {", ".join(HELD_OUT)}')
  check_lengths(name, splits['train'].num_examples, splits[test].num_examples)
  features = _features(builder, image_size, requested, texts)
  source = lambda split: Source(split, splits[split].num_examples, functools.partial(
      _read, os.fspath(builder.data_path), split, features, image_size))
  declared = [feature.field for feature in features]
  for i, (field, feature) in enumerate(zip(declared, features, strict=True)):
    if feature.channels and not field.shape:
      declared[i] = field._replace(shape=source(test).read(np.arange(1))[field.name].shape[1:])
  version = str(builder.version)
  if builder.name == 'downsampled_imagenet':
    version += f', {imagenet_version(splits[test].num_examples)}'
  parts: dict[str, int | str] = {
      f'{builder.info.full_name} {split}': splits[split].num_examples
      for split in ('train', test)}
  return Store(source('train'), source(test), tuple(declared), version, lambda: parts)


def declared(name: str, data_dir: str, image_size: int, requested: Sequence[str] = (),
             texts: tokenisers.Settings = tokenisers.BYTES) -> tuple[Field, ...]:
  """The fields that TFDS declares without the data.  Images of different sizes have shape ()."""
  return tuple(feature.field for feature in _features(
      tfds_builder(name, data_dir), image_size, requested, texts))


def data_directory(data_dir: str) -> str:
  """`data_dir`, or the default directory of TFDS: $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
  default = os.environ.get('TFDS_DATA_DIR') or os.path.join('~', 'tensorflow_datasets')
  return os.path.expanduser(data_dir or default)


def tfds_builder(name: str, data_dir: str):
  import tensorflow_datasets as tfds  # half a second that formulas and arrays need not pay
  data_dir = data_directory(data_dir)
  if name == 'digits':
    from vdm_jax.data import builders
    return builders.Digits(data_dir=data_dir, file_format='array_record')
  try:
    return tfds.builder(name, data_dir=data_dir)
  except OSError:
    raise
  except Exception as error:  # of many types, one for each part of a name
    raise _no_such_name(name, error) from error


def _no_such_name(name: str, error: Exception) -> InputError:
  """The error for a name that TFDS cannot use, with the name that the user perhaps meant."""
  import tensorflow_datasets as tfds
  own = ['digits', 'captioned_digits', *shapes.NAMES, expressions.NAME, slices.NAME,
         *formulas.FORMULAS]
  known = tfds.list_builders(with_community_datasets=False)
  base = name.split('/')[0].split(':')[0]
  if base in known:
    # What TFDS says after the arguments, which it repeats.
    reason = str(error).split('}": ')[-1].split('\n')[0].split('. Here are')[0].strip()
    return InputError('config.data.name', name, f'TFDS cannot use this name ({reason})',
                      f'see the configurations and versions of {base} in its catalogue')
  near = difflib.get_close_matches(base.lower().replace('-', '_'), own + known, 1)
  if os.path.isdir(name):
    remedy = f'write ./{name} for the folder of that name'
  elif name.endswith(ARCHIVES):
    remedy = 'unpack it, and name its folder, with ./ before it'
  else:
    remedy = f'write {"".join(f"{other}, or " for other in near)}./{name} for a folder'
  return InputError('config.data.name', name, 'it is not a data set of TFDS, a .npy or .npz '
                    'file, or the path of a folder', remedy)


def _features(builder, image_size: int, requested: Sequence[str], texts: tokenisers.Settings
              ) -> list[_Feature]:
  """The features to read.  Raises InputError."""
  import tensorflow_datasets as tfds
  features = dict(builder.info.features.items())
  names = [k for k, v in features.items() if isinstance(v, tfds.features.Image)]
  image = IMAGE if IMAGE in names else names[0] if len(names) == 1 else None
  if not requested and (image is None or features[image].np_dtype != np.uint8):
    raise InputError('config.data.name', builder.name,
                     f'it has no single image of 8 bits among its features, {sorted(features)}',
                     'choose another data set, or name its fields in config.data.fields')
  classes = isinstance(features.get(LABEL), tfds.features.ClassLabel)
  requested = requested or (IMAGE, *[LABEL] * bool(classes and features[LABEL].num_classes))
  return [_feature(builder.name, features, image if name == IMAGE and image else name, name,
                   image_size, texts) for name in requested]


def _array(feature) -> tuple[tuple, np.dtype]:
  """(shape, dtype) of a TFDS feature that is one array; None in the shape means any length."""
  return tuple(feature.shape), np.dtype(feature.np_dtype)


def _feature(data_set: str, features: dict, key: str, name: str, image_size: int,
             texts: tokenisers.Settings) -> _Feature:
  import tensorflow_datasets as tfds
  kind = features.get(key)
  if isinstance(kind, tfds.features.Image) and kind.np_dtype == np.uint8:
    (height, width, channels), _ = _array(kind)
    channels = channels or 3
    if channels not in images.MODES:
      raise InputError('config.data.name', data_set, f'its images have {channels} channels',
                       'choose one of 1, 3 or 4')
    size = (image_size, image_size) if image_size else (height, width)
    return _Feature(key, Field(name, (*size, channels) if all(size) else (), 'uint8', 0), channels)
  if isinstance(kind, tfds.features.ClassLabel) and kind.num_classes:
    return _Feature(key, fields.label(kind.num_classes)._replace(name=name), 0)
  if isinstance(kind, tfds.features.Text):
    require(texts.kind != 'words', 'config.data.tokeniser', texts.kind, f'the words of {key!r} of '
            f'{data_set} are not known', 'choose bytes, clip or gpt2')
    require(texts.complete, 'config.data.text_length', texts.length, f'{key!r} of {data_set} is '
            'text of any length', 'set how many bytes are kept')
    return _Feature(key, tokenisers.field(name, texts), 0)
  if isinstance(kind, tfds.features.Tensor):
    shape, dtype = _array(kind)
    if None not in shape and np.issubdtype(dtype, np.floating):
      return _Feature(key, fields.reals(name, shape), 0)
    if None not in shape and np.issubdtype(dtype, np.integer):
      return _Feature(key, Field(name, shape, 'int32', 0), 0)
  raise InputError('config.data.fields', name, 'it is not an image, class, text or array of '
                   f'numbers of one shape among the features of {data_set}',
                   f"choose one of {', '.join(sorted(features))}")


@functools.lru_cache(maxsize=8)
def _tfds_source(directory: str, split: str, encoded: tuple[str, ...]):
  import tensorflow_datasets as tfds
  builder = tfds.builder_from_directory(directory)
  return builder.as_data_source(
      split, decoders=dict.fromkeys(encoded, tfds.decode.SkipDecoding()))


def _read(directory, split, features, image_size, rows):
  try:
    records = _tfds_source(directory, split, tuple(
        feature.key for feature in features if feature.channels)).__getitems__(
            [int(i) for i in rows])
  except RuntimeError as error:  # array_record's, which does not say of which file
    raise images.unreadable(_damaged_shard(directory, split), error) from error
  place = f'{directory} ({split})'
  return {feature.field.name: _values(feature, [record[feature.key] for record in records], rows,
                                      place, image_size) for feature in features}


def _values(feature: _Feature, values: list, rows, place: str, image_size: int) -> np.ndarray:
  if feature.channels:
    return images.stack([images.decode(io.BytesIO(u), f'image {i} of {place}', feature.channels,
                                       image_size) for i, u in zip(rows, values, strict=True)],
                        place)
  if feature.field.texts is not None:
    return tokenisers.of(feature.field).encode(
        [u if isinstance(u, str) else u.decode(errors='replace') for u in values], cut=True)
  return np.array(values, feature.field.dtype)


def _damaged_shard(directory: str, split: str) -> str:
  """The first damaged file of the split, or the directory if no file is damaged."""
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


def imagenet_version(validation: int) -> str:
  """Which of the two downsampled ImageNets this is; the number of validation images tells.

  Likelihoods of the two cannot be compared, because the images were resized differently.  Old: A.
  van den Oord et al. (2016), 49,999 images.  New: P. Chrabaszcz et al. (2017), 50,000 images.
  """
  known = {49_999: 'old', 50_000: 'new'}
  return f'{known.get(validation, "neither old nor new")} ({validation:,} validation images)'


def prepared_file(data_dir: str, name: str, file: str) -> str:
  """The path data_dir/name/file.  Raises FileNotFoundError, with the command that prepares it."""
  directory = data_directory(data_dir)
  path = os.path.join(directory, name, file)
  if not os.path.exists(path):
    raise FileNotFoundError(f'there is no {path}: {how_to_prepare(name, directory)}')
  return path


def optional_module(module: str, holds: str, extra: str) -> ModuleType:
  """A module of a package that an extra installs.  Raises InputError if it is not installed.

  holds: what the package is needed for, as in 'the chorales are'.
  """
  try:
    return importlib.import_module(module)
  except ImportError as error:
    package = module.partition('.')[0]
    raise InputError(problem=f'{holds} in the package {package}, which is not installed',
                     remedy=f'pip install "vdm_jax[{extra}]"') from error


def how_to_prepare(name: str, directory: str) -> str:
  if name in PREPARED_BY_US:
    given = ' --from=NotoColorEmoji.ttf,emoji-test.txt' * (name == 'emoji')
    return f'run `python scripts/prepare_data.py {name} --data_dir={directory}{given}`'
  return (f'run `tfds build {name} --data_dir={directory} --file_format=array_record` in an '
          'environment with TensorFlow (pip install tensorflow-cpu tensorflow-datasets)')
