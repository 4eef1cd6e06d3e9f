"""From stored images to the batch of a step.

Stream index j = k B + i (example i of the global batch of step k) is image

  perm(seed, j // N)[j mod N]

of the N training images, so every image is seen once an epoch, no remainder is dropped, and the
batch depends on neither the past nor the number of processes.  Small data sets live in RAM and are
indexed; larger ones are read by grain's worker processes, which compute the same function.
"""
import atexit
import collections
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import math
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from absl import flags, logging

from vdm_jax.data import fingerprints, random, records, sources, stores
from vdm_jax.errors import InputError

Batch = dict[str, np.ndarray]

CHUNK = 1024  # images in memory at a time where a whole split is passed over


def default_config() -> ml_collections.ConfigDict:
  """The fields of `config.data`.  shape, levels, classes: empty or 0 is read from the data."""
  return ml_collections.ConfigDict({
      'name': 'digits',    # see vdm_jax/data/stores.py for what a name may be
      'data_dir': '',      # of TFDS; empty: $TFDS_DATA_DIR, ~/tensorflow_datasets
      'shape': (),         # of one image [H, W, C], or of a point [D]
      'levels': 0,         # values are 0 .. levels - 1
      'classes': 0,
      'image_size': 0,     # crop and resize images to this square; 0: as they are
      'validation': 0,     # the last so many images of train
      'hold_out': True,    # False: they are trained on as well, as published recipes do
      'batch_size': 128,   # of all processes together
      'seed': 0,           # of the order and the augmentation
      'augment': False,    # flips and quarter turns, and a bit that says so
      'memory_gb': 1.0,    # splits up to this size live in RAM
      'workers': 4,        # processes that read the larger ones
  }).lock()


_LEAST = {'classes': 0, 'image_size': 0, 'validation': 0, 'batch_size': 1, 'memory_gb': 0,
          'workers': 0}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises InputError for a number of `config.data` that no data set could have."""
  for name, least in _LEAST.items():
    if not config[name] >= least:  # NaN is neither
      raise InputError(f'config.data.{name}', config[name], f'it must be {least} or more')
  if config.levels and not 2 <= config.levels <= 256:
    raise InputError('config.data.levels', config.levels, 'values have 2 to 256 levels',
                     'correct it, or set 0 to read it from the data')
  if any(size < 1 for size in config.shape):
    raise InputError('config.data.shape', tuple(config.shape), 'every axis must be 1 or more',
                     'correct it, or leave it empty to read it from the data')


class Spec(NamedTuple):
  """What one example is."""
  name: str
  shape: tuple[int, ...]  # [H, W, C] of an image, [D] of a point
  levels: int             # values are the integers 0 .. levels - 1
  classes: int            # 0: without labels


@dataclasses.dataclass(frozen=True)
class Split:
  """Consecutive images of a data set: 'train', 'validation' or 'test'."""
  name: str
  source_split: str        # what the data set itself calls it
  version: str             # of the data set, '' where it has none
  start: int
  length: int
  source: sources.Source
  spec: Spec
  augmented: bool          # whether batches carry the augmentation bit

  def __len__(self) -> int:
    return self.length

  def get(self, indices) -> Batch:
    """Images as they are, in a batch like those of training.

    'image' uint8 [n, ...]; 'label' int32 [n] if there are labels; 'augmented' float32 [n], all 0,
    if training augments.  Raises IndexError for an index outside of the split.
    """
    indices = np.asarray(indices, np.int64)
    if indices.size and not 0 <= indices.min() <= indices.max() < self.length:
      raise IndexError(f'the {self.name} split has {self.length} images')
    images, labels = self.source.read(self.start + indices)
    self._check(images)
    batch = {'image': images}
    if labels is not None:
      batch['label'] = labels
    if self.augmented:
      batch['augmented'] = np.zeros(len(images), np.float32)
    return batch

  def chunks(self) -> Iterator[Batch]:
    """The whole split in order, a piece at a time."""
    return map(self.get, _chunks(self.length))

  def sha256(self) -> str:
    """Of the decoded images: uint8, row-major [length, ...], in order, nothing between them."""
    digest = hashlib.sha256()
    for batch in self.chunks():
      digest.update(np.ascontiguousarray(batch['image']).data)
    return digest.hexdigest()

  def _check(self, images: np.ndarray) -> None:
    if images.shape[1:] != self.spec.shape:
      raise InputError('config.data.shape', self.spec.shape, f'{self.spec.name} holds an example '
                       f'of {images.shape[1:]}', 'correct it, or leave it empty')
    if images.size and images.max() >= self.spec.levels:
      raise InputError('config.data.levels', self.spec.levels, f'{self.spec.name} holds the value '
                       f'{images.max()}', f'set {images.max() + 1} or more, or 0 to find it')


class Data:
  """The data of an experiment.  Nothing is read until it is asked for.

  config: `config.data`, the fields of `default_config`.  Raises InputError for a number that no
  data set could have.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    check(config)
    self.config = config
    self._in_memory = {}  # split name -> its source in RAM

  @functools.cached_property
  def spec(self) -> Spec:
    """What one example is: as configured, else as found.

    With shape and levels configured nothing is read.  Levels found: 256 if any value exceeds 127,
    else the largest value plus one, over all splits.  A known TFDS data set that is not prepared
    is taken at its declaration, with 256 levels.
    """
    c = self.config
    given = Spec(c.name, tuple(c.shape), c.levels, c.classes)
    if given.shape and given.levels:
      return given
    try:
      shape, classes = self._store.shape, self._store.classes
      prepared = True
    except sources.NotPrepared:
      shape, classes = records.declared(c.name, c.data_dir, c.image_size)
      prepared = False
      if not (given.shape or shape):
        raise
    spec = Spec(c.name, given.shape or shape, given.levels or 256, given.classes or classes)
    if given.levels or not prepared:
      return spec
    largest = 0
    for split in ('test', 'train'):  # the smaller one first: it usually tells
      source = self._source(split)
      for rows in _chunks(source.length):
        largest = max(largest, int(source.read(rows)[0].max()))
        if largest > 127:
          return spec
    if not largest:
      raise InputError('config.data.name', c.name, 'all its values are 0, and so there is nothing '
                       'to learn', 'name other data, or set config.data.levels')
    if self._store.levels > largest + 1:
      logging.warning('%s: no value exceeds %d, so it is taken to have %d levels; '
                      '--config.data.levels=%d keeps all of its format.', c.name, largest,
                      largest + 1, self._store.levels)
    return spec._replace(levels=largest + 1)

  def split(self, name: str) -> Split:
    """'train', 'validation' (the last images of train) or 'test'."""
    c, store, spec = self.config, self._store, self.spec
    if name == 'test':
      start, length = 0, store.test.length
    else:
      held_out = self._validation
      start = store.train.length - held_out if name == 'validation' else 0
      length = {'validation': held_out,
                'train': store.train.length - (held_out if c.hold_out else 0)}[name]
    source = self._source('test' if name == 'test' else 'train')
    return Split(name, source.name, store.version, start, length, source, spec, c.augment)

  def batch(self, step: int, process_index: int = 0, process_count: int = 1) -> Batch:
    """This process's rows of the global batch of `step`; a pure function.

    'image' uint8 [B / process_count, ...]; 'label' int32 if there are labels; 'augmented' float32
    if the config says `augment`.  Raises InputError where the processes do not divide the batch.
    """
    return self._batches(process_index, process_count)(step)

  def stream(self, start_step: int = 0, process_index: int = 0,
             process_count: int = 1) -> Iterator[Batch]:
    """The batches of start_step, start_step + 1, ... without end, read ahead of their use."""
    batches = self._batches(process_index, process_count)
    if self._small('train') or not self.config.workers:
      return _threaded(batches, start_step)
    return _workers(batches, start_step, self.config.workers)

  def describe(self) -> str:
    """One line: what was found."""
    c, spec, store = self.config, self.spec, self._store
    return (f'{c.name}{" " * bool(store.version)}{store.version}: '
            f'{" x ".join(map(str, spec.shape))}, {spec.levels} levels, {spec.classes} classes; '
            f'{len(self.split("train")):,} to train on, {self._validation:,} for validation '
            f'({"not" if c.hold_out else "also"} trained on), {store.test.length:,} for test '
            f'({store.test.name}){"".join(f"; {note}" for note in self._notes())}')

  def fingerprint(self) -> dict[str, Any]:
    """What the data are made of, for `fingerprints.changes`.  No image is decoded."""
    return fingerprints.of(self._store.parts())

  def _notes(self) -> tuple[str, ...]:
    """What was left out or changed, and classes that cannot be learned."""
    store, length = self._store, len(self.split('train'))
    if store.train.labels is None:
      return store.notes
    seen = np.bincount(store.train.labels[:length], minlength=self.spec.classes) > 0
    absent = np.flatnonzero(~seen)
    if not absent.size:
      return store.notes
    few = ', '.join(map(str, absent[:5])) + ', ...' * (absent.size > 5)
    return (*store.notes, f'without an image to train on: class {few}')

  @functools.cached_property
  def _store(self) -> sources.Store:
    c = self.config
    store = stores.open_store(c.name, c.data_dir, c.image_size)
    if c.image_size and store.shape[:2] != (c.image_size, c.image_size):
      raise InputError('config.data.image_size', c.image_size, f'{c.name} has examples of '
                       f'{store.shape}, and only pictures of a folder or of TFDS are resized',
                       'resize the arrays, and leave it 0')
    if c.shape and tuple(c.shape) != store.shape:
      raise InputError('config.data.shape', tuple(c.shape), f'{c.name} has examples of '
                       f'{store.shape}', 'correct it, or leave it empty')
    if 0 < c.classes < store.classes:
      raise InputError('config.data.classes', c.classes, f'{c.name} has {store.classes} classes',
                       'correct it, or leave it 0')
    if not c.classes:
      _check_numbering(c.name, store)
    logging.info('%s: %s, %d classes, %d images for training, %d for test (%s)', c.name,
                 ' x '.join(map(str, store.shape)), store.classes, store.train.length,
                 store.test.length, store.test.name)
    return store

  @property
  def _validation(self) -> int:
    n, total = self.config.validation, self._store.train.length
    if not 0 <= n < total:
      raise InputError('config.data.validation', n, f'{self.config.name} has {total} images for '
                       'training, of which one at least must be left',
                       f'choose {total - 1} at most' if total > 1 else 'add images')
    return n

  def _small(self, split: str) -> bool:
    size = getattr(self._store, split).length * math.prod(self._store.shape)
    return size <= self.config.memory_gb * 1e9

  def _source(self, split: str) -> sources.Source:
    """The stored split, decoded once and kept if it is small enough."""
    if not self._small(split):
      return getattr(self._store, split)
    if split not in self._in_memory:
      self._in_memory[split] = _kept(getattr(self._store, split))
    return self._in_memory[split]

  def _batches(self, process_index: int, process_count: int):
    c, split = self.config, self.split('train')
    if c.batch_size % process_count:
      raise InputError('config.data.batch_size', c.batch_size, f'it is no multiple of the '
                       f'{process_count} processes', 'choose one')
    if c.augment and (len(split.spec.shape) != 3 or split.spec.shape[0] != split.spec.shape[1]):
      raise InputError('config.data.augment', True, 'it turns images, which must be square; these '
                       f'are {split.spec.shape}', 'set it to False, or config.data.image_size')
    rows = np.arange(c.batch_size).reshape(process_count, -1)[process_index]
    return functools.partial(make_batch, split, c.seed, c.batch_size, c.augment, rows)


def _check_numbering(name: str, store: sources.Store) -> None:
  """Raises InputError where a class below the largest has no image at all."""
  labels = [source.labels for source in (store.train, store.test) if source.labels is not None]
  if not labels:
    return
  found = np.unique(np.concatenate(labels))
  if len(found) < store.classes:
    absent = int(np.flatnonzero(found != np.arange(len(found)))[0])
    raise InputError('config.data.name', name, f'its labels are {found[0]} to {found[-1]}, and '
                     f'class {absent} has no image', 'number them from 0 without a gap, or set '
                     f'config.data.classes={store.classes}')


def make_batch(split: Split, seed: int, batch_size: int, augmented: bool, rows: np.ndarray,
               step: int) -> Batch:
  """Rows [n] of the global batch of `step`; the module's equation."""
  epochs, offsets = np.divmod(step * batch_size + rows, len(split))
  indices = np.empty_like(rows)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    indices[here] = random.permutation(seed, int(epoch), len(split))[offsets[here]]
  batch = split.get(indices)
  if augmented:
    # Drawn for the whole batch: what row i gets does not depend on who asks for it.
    u = random.uniform(seed, step, random.AUGMENT, 3 * batch_size).reshape(3, batch_size)
    batch['image'], batch['augmented'] = augment(batch['image'], *u[:, rows])
  return batch


def augment(images: np.ndarray, flip: np.ndarray, turn: np.ndarray,
            angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Flips left-right with probability 1/2; by 90, 180 or 270 degrees with probability 1/2.

  images: [n, H, H, C].  flip, turn, angle: [n], uniform on [0, 1).  Returns the images and
  float32 [n], 1 where anything was done.  Source: the augmented CIFAR-10 of the official VDM
  repository (google-research/vdm, `dataset.py`).
  """
  flipped = flip < 0.5
  quarters = np.where(turn < 0.5, 1 + np.floor(3 * angle), 0).astype(int)
  out = np.where(flipped[:, None, None, None], images[:, :, ::-1], images)
  for k in (1, 2, 3):
    out[quarters == k] = np.rot90(out[quarters == k], k, axes=(1, 2))
  return out, (flipped | (quarters > 0)).astype(np.float32)


def _kept(source: sources.Source) -> sources.Source:
  """The same source, read as a whole at the first reading and kept."""

  @functools.cache
  def arrays():
    logging.info('reading %d images (%s) into memory', source.length, source.name)
    chunks = [source.read(rows) for rows in _chunks(source.length)]
    images, labels = zip(*chunks, strict=True)
    return np.concatenate(images), None if labels[0] is None else np.concatenate(labels)

  def read(rows):
    images, labels = arrays()
    return images[rows], None if labels is None else labels[rows]

  return source._replace(read=read)


def _chunks(length: int) -> Iterator[np.ndarray]:
  for start in range(0, length, CHUNK):
    yield np.arange(start, min(start + CHUNK, length))


def _threaded(batches, start_step: int, ahead: int = 2) -> Iterator[Batch]:
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    steps = itertools.count(start_step)
    waiting = collections.deque(pool.submit(batches, next(steps)) for _ in range(ahead))
    while True:
      yield waiting.popleft().result()
      waiting.append(pool.submit(batches, next(steps)))


def _leave_to_parent(*_) -> None:
  """A worker outlives a Ctrl-C, which its terminal sends to all: the training ends it."""
  for each in (signal.SIGINT, signal.SIGHUP):
    signal.signal(each, signal.SIG_IGN)


def _workers(batches, start_step: int, workers: int) -> Iterator[Batch]:
  import grain  # only the large data sets need it

  if not flags.FLAGS.is_parsed():  # in a notebook; grain reads its own flags
    flags.FLAGS.mark_as_parsed()
  # One element is a whole batch, so each worker makes every workers-th step and none waits.
  steps = grain.MapDataset.range(start_step, 2**62).map(batches)
  running = [iter(
      steps.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=2))
      .mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _leave_to_parent))]

  def stop():
    while running:
      running.pop().close()

  atexit.register(stop)  # grain's iterator cannot be dropped after the modules it needs
  try:
    while running:
      # Copied, as grain's arrays are shared memory that must be gone before the interpreter is.
      yield {name: np.array(value) for name, value in next(running[0]).items()}
  finally:
    atexit.unregister(stop)
    stop()


def resolve(config: ml_collections.ConfigDict) -> Spec:
  """The Spec of `config.data`: `Data(config).spec`."""
  return Data(config).spec
