"""A data set of TFDS: records with random access, which hold encoded images."""
import difflib
import functools
import io
import os

import numpy as np

from vdm_jax.data import formulas, images
from vdm_jax.data.sources import HELD_OUT, NotPrepared, Source, Store, check_lengths
from vdm_jax.errors import InputError

PREPARED_BY_US = ('cifar10', 'digits', 'mnist')  # by scripts/prepare_data.py
ARCHIVES = ('.zip', '.tar', '.gz', '.tgz', '.7z', '.rar')


def open_records(name: str, data_dir: str, image_size: int) -> Store:
  """The data set as TFDS prepared it; the digits are prepared here.

  Raises NotPrepared where it is not in `data_dir`, InputError where it cannot be used.
  """
  builder = tfds_builder(name, data_dir)
  if name == 'digits' and not builder.info.splits:
    from vdm_jax.data import builders
    builders.generate(builder)
    builder = tfds_builder(name, data_dir)
  if not builder.info.splits:
    raise NotPrepared(f'{name} is not in {data_directory(data_dir)}: '
                      f'{how_to_prepare(name, data_directory(data_dir))}')
  if builder.info.file_format.value != 'array_record':
    raise InputError(problem=f'{builder.data_path} is {builder.info.file_format.value}, not '
                     'array_record, and has no random access',
                     remedy=f'for another directory, {how_to_prepare(name, "DIR")}')
  splits = builder.info.splits
  test = next((split for split in HELD_OUT if split in splits), None)
  if 'train' not in splits or test is None:
    raise InputError('config.data.name', name, f'it has the splits {sorted(splits)}',
                     f'choose one with train and one of {", ".join(HELD_OUT)}')
  check_lengths(name, splits['train'].num_examples, splits[test].num_examples)
  image, channels, size, label, classes = _features(builder)
  if channels not in images.MODES:
    raise InputError('config.data.name', name, f'its images have {channels} channels',
                     'choose one of 1, 3 or 4')
  source = lambda split: Source(split, splits[split].num_examples, functools.partial(
      _read, os.fspath(builder.data_path), split, image, label, channels, image_size))
  if image_size:
    size = (image_size, image_size)
  elif size is None:
    size = source(test).read(np.arange(1))[0].shape[1:3]
  version = str(builder.version)
  if builder.name == 'downsampled_imagenet':
    version += f', {imagenet_version(splits[test].num_examples)}'
  parts = {f'{builder.info.full_name} {split}': splits[split].num_examples
           for split in ('train', test)}
  return Store(source('train'), source(test), (*size, channels), classes, version, lambda: parts)


def declared(name: str, data_dir: str, image_size: int) -> tuple[tuple[int, ...], int]:
  """Shape (empty where images differ) and classes, as TFDS declares them without the data."""
  _, channels, size, _, classes = _features(tfds_builder(name, data_dir))
  size = (image_size, image_size) if image_size else size
  return (*size, channels) if size else (), classes


def data_directory(data_dir: str) -> str:
  """`data_dir`, or where TFDS looks by itself: $TFDS_DATA_DIR, ~/tensorflow_datasets."""
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
  """The error of a name that TFDS cannot use, with the name that was perhaps meant."""
  import tensorflow_datasets as tfds
  ours = ['digits', *formulas.FORMULAS]
  theirs = tfds.list_builders(with_community_datasets=False)
  base = name.split('/')[0].split(':')[0]
  if base in theirs:
    # What TFDS says after the arguments, which it repeats.
    said = str(error).split('}": ')[-1].split('\n')[0].split('. Here are')[0].strip()
    return InputError('config.data.name', name, f'TFDS cannot use this name ({said})',
                      f'see the configurations and versions of {base} in its catalogue')
  near = difflib.get_close_matches(base.lower().replace('-', '_'), ours + theirs, 1)
  if os.path.isdir(name):
    remedy = f'write ./{name} for the folder of that name'
  elif name.endswith(ARCHIVES):
    remedy = 'unpack it, and name its folder, with ./ before it'
  else:
    remedy = f'write {"".join(f"{other}, or " for other in near)}./{name} for a folder'
  return InputError('config.data.name', name, 'it is no data set of TFDS, no .npy or .npz file '
                    'and no path of a folder', remedy)


def _features(builder):
  """The image feature's name, channels, size (None where images differ), label's name, classes."""
  import tensorflow_datasets as tfds
  features = dict(builder.info.features.items())
  names = [k for k, v in features.items() if isinstance(v, tfds.features.Image)]
  image = 'image' if 'image' in names else names[0] if len(names) == 1 else None
  if image is None or features[image].np_dtype != np.uint8:
    raise InputError('config.data.name', builder.name,
                     f'it has no single image of 8 bits among its features, {sorted(features)}',
                     'choose another data set')
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


def _read(directory, split, image, label, channels, image_size, rows):
  try:
    records = _tfds_source(directory, split, image).__getitems__([int(i) for i in rows])
  except RuntimeError as error:  # array_record's, which does not say of which file
    raise images.unreadable(_damaged_shard(directory, split), error) from error
  pictures = [images.decode(io.BytesIO(record[image]), f'image {i} of {directory} ({split})',
                            channels, image_size) for i, record in zip(rows, records, strict=True)]
  labels = np.array([record[label] for record in records], np.int32) if label else None
  return images.stack(pictures, f'{directory} ({split})'), labels


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
