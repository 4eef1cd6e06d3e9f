"""From stored examples to the batch of a step.

Stream index j = k B + i (example i of the global batch of step k) is example

  perm(seed, j // N)[j mod N]

of the N for training.  So every example is seen once an epoch, and no remainder is dropped.  The
batch depends neither on the past nor on the number of processes.  Small data sets live in RAM and
are indexed.  Larger ones are read by grain's worker processes, which compute the same function.
"""
import atexit
import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import signal
from collections.abc import Generator, Iterator
from typing import Any

import ml_collections
import numpy as np
from absl import flags, logging

from vdm_jax.data import (
  augmentation,
  episodes,
  fields,
  fingerprints,
  images,
  latents,
  random,
  records,
  series,
  sources,
  stores,
  tokenisers,
)
from vdm_jax.data.fields import Batch, Spec
from vdm_jax.errors import InputError

CHUNK = 1024  # examples in memory at a time where a whole split is passed over


def default_config() -> ml_collections.ConfigDict:
  """The fields of `config.data`.  An empty or zero shape, levels or classes is read from the data.

  shape and levels belong to x.  `found` is the whole Spec, and is never given by hand.
  """
  return ml_collections.ConfigDict({
      'name': 'digits',    # see vdm_jax/data/stores.py for what a name may be
      'data_dir': '',      # of TFDS; empty: $TFDS_DATA_DIR, ~/tensorflow_datasets
      'shape': (),         # of one image [H, W, C], or of a point [D]
      'levels': 0,         # values are 0 .. levels - 1
      'classes': 0,        # of the field 'label'
      'fields': (),        # which fields, x first; empty: all (of TFDS image and label)
      'found': (),         # the fields that were found, kept with the run
      'tokeniser': 'bytes',  # of texts; or 'words' (of the data), 'clip', 'gpt2', 'bert'
      'text_length': 0,    # tokens that are kept of a text; 0: of the longest, or as published
      'merges': '',        # the file of 'clip', 'gpt2' or 'bert'; the run keeps a copy
      'image_size': 0,     # crop and resize images to this square; 0: as they are.  Arrays become
                           # means of blocks of pixels, if the blocks fill the sides
      'validation': 0,     # the last so many images of train
      'hold_out': True,    # False: they are trained on as well, as published recipes do
      'left_out': -1,      # a class of the field 'label' that only the test images have; -1: none
      'batch_size': 128,   # of all processes together
      'seed': 0,           # of the order and the augmentation
      'series': series.default_config(),  # windows of time series: see vdm_jax/data/series.py
      'episodes': episodes.default_config(),  # windows of episodes: see vdm_jax/data/episodes.py
      'augment': False,    # changes of x, and the field 'augmented' that says so
      'augmentation': 'flips_and_turns',  # which ones: see vdm_jax/data/augmentation.py
      'latents': '',       # a folder of the training images' latents, which a diffusion of latents
                           # reads in training: see scripts/encode_latents.py
      'memory_gb': 1.0,    # splits up to this size live in RAM
      'workers': 4,        # processes that read the larger ones
  }).lock()


_LEAST = {'classes': 0, 'image_size': 0, 'text_length': 0, 'validation': 0, 'batch_size': 1,
          'memory_gb': 0, 'workers': 0}


def check(config: ml_collections.ConfigDict) -> None:
  """Raises InputError for a number of `config.data` that no data set could have."""
  for name, least in _LEAST.items():
    if not config.get(name, least) >= least:  # NaN is neither
      raise InputError(f'config.data.{name}', config[name], f'it must be {least} or more')
  if config.levels and not 2 <= config.levels < 2**31:
    raise InputError('config.data.levels', config.levels, 'values have 2 levels or more',
                     'correct it, or set 0 to read it from the data')
  if any(size < 1 for size in config.shape):
    raise InputError('config.data.shape', tuple(config.shape), 'every axis must be 1 or more',
                     'correct it, or leave it empty to read it from the data')


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

  def __len__(self) -> int:
    return self.length

  def get(self, indices) -> Batch:
    """Examples as they are, in a batch as in training: {field: array [n, ...]}.

    If training augments, 'augmented' is all 0 here.  Raises IndexError for an index outside of the
    split, and InputError for an example that differs from the Spec.
    """
    indices = np.asarray(indices, np.int64)
    if indices.size and not 0 <= indices.min() <= indices.max() < self.length:
      raise IndexError(f'the {self.name} split has {self.length} examples')
    batch = self.source.read(self.start + indices)
    fields.check(self.spec, batch)
    if fields.AUGMENTED in self.spec:
      batch = batch | {fields.AUGMENTED: np.zeros(len(indices), np.float32)}
    return {name: batch[name] for name in self.spec.names}

  def chunks(self) -> Iterator[Batch]:
    """The whole split in order, in pieces."""
    return map(self.get, _chunks(self.length))

  def sha256(self, field: str = '') -> str:
    """SHA-256 of the values of a field, x by default.

    The values are hashed as a batch stores them: images as uint8.  They are row-major
    [length, ...], in order, with nothing between.
    """
    digest = hashlib.sha256()
    for batch in self.chunks():
      digest.update(np.ascontiguousarray(batch[field or self.spec.x.name]).data)
    return digest.hexdigest()


class Data:
  """The data of an experiment.  Nothing is read before it is needed.

  config: `config.data`, the fields of `default_config`.  Raises InputError for a number that no
  data set could have.
  """

  def __init__(self, config: ml_collections.ConfigDict):
    check(config)
    self.config = config
    self._in_memory = {}  # split name -> its source in RAM

  @functools.cached_property
  def spec(self) -> Spec:
    """The fields of one example, as configured, or else as found in the data.

    If shape and levels are configured, nothing is read.  The Spec then has an image, a label if
    there are classes, and a text for each further name in `fields` if the settings of texts are
    complete.  Nothing is read for time series either, if their columns are configured, nor for
    episodes if their maps are.

    Found levels are 256 for pixels if any pixel exceeds 127.  Otherwise they are the largest value
    plus one, over all splits.  For a known TFDS data set that is not prepared, TFDS's declaration
    is used, with 256 levels.
    """
    c = self.config
    if c.get('found', ()):
      spec = fields.from_config(c.name, c.found, c.get('merges', ''))
    elif (windows := series.settings(c)).columns:
      spec = Spec(c.name, series.declared(windows, len(windows.columns)))
    elif (plans := episodes.settings(c)).observations and plans.actions and (
        len(plans.widths) == len(plans.told)):
      sizes = len(plans.observations), len(plans.actions)
      spec = Spec(c.name, episodes.declared(plans, sizes, plans.widths))
    elif c.shape and c.levels:
      spec = fields.of_images(c.name, c.shape, c.levels, c.classes, x=self._x_name)
      texts = [name for name in c.get('fields', ()) if name not in (spec.x.name, fields.LABEL)
               and self._texts.complete]
      spec = Spec(c.name, (*spec.fields, *(tokenisers.field(name, self._texts)
                                           for name in texts)))
    else:
      spec = Spec(c.name, tuple(self._declared()))
    if c.augment:
      spec = Spec(c.name, (*spec.fields, augmentation.FIELD))
    return spec

  @property
  def _texts(self) -> tokenisers.Settings:
    """How texts become tokens.  A run's config may be older than a field."""
    c = self.config
    return tokenisers.Settings(c.get('tokeniser', 'bytes'), c.get('text_length', 0),
                               c.get('merges', ''))

  @property
  def _x_name(self) -> str:
    """The name of x if nothing is read from the data."""
    return next(iter(self.config.get('fields', ())), fields.IMAGE)

  def _declared(self) -> list[fields.Field]:
    """The fields as they are in the data, with the configured settings of x and of the labels."""
    c = self.config
    try:
      declared = list(self._store.fields)
      prepared = True
    except sources.NotPrepared:
      declared = list(records.declared(c.name, c.data_dir, c.image_size, c.get('fields', ()),
                                       self._texts))
      prepared = False
      if not (c.shape or declared[0].shape):
        raise
    x = declared[0]
    if c.levels and x.levels is None:
      raise InputError('config.data.levels', c.levels, f'{x.name} of {c.name} holds real numbers',
                       'leave it at 0, or round and count the values')
    declared[0] = x._replace(shape=tuple(c.shape) or x.shape,
                             levels=c.levels or x.levels)
    if c.classes:
      declared = [fields.label(c.classes) if f.name == fields.LABEL else f for f in declared]
    unknown = {f.name: 0 for f in declared if f.levels == 0}
    if prepared:
      self._find_levels(unknown)
    else:
      unknown = dict.fromkeys(unknown, 256)
    return [f._replace(levels=unknown.get(f.name, f.levels)) for f in declared]

  def _find_levels(self, unknown: dict[str, int]) -> None:
    """Sets the levels of these fields: 256 for pixels if any exceeds 127, else the largest + 1."""
    pictures = [f.name for f in self._store.fields if f.dtype == 'uint8']
    largest = dict.fromkeys(unknown, 0)
    for split in ('test', 'train') if unknown else ():  # the smaller one first: it usually tells
      source = self._source(split)
      for rows in _chunks(source.length):
        batch = source.read(rows)
        for name in largest:
          largest[name] = max(largest[name], int(batch[name].max()))
        if all(name in pictures and u > 127 for name, u in largest.items()):
          break
      else:
        continue
      break
    for name, u in largest.items():
      if not u:
        raise InputError('config.data.name', self.config.name, 'all its values are 0, and so there '
                         'is nothing to learn', 'name other data, or set config.data.levels')
      unknown[name] = 256 if name in pictures and u > 127 else u + 1
      if name in pictures and self._store.levels > unknown[name]:
        logging.warning('%s: no value exceeds %d, so it is taken to have %d levels; '
                        '--config.data.levels=%d keeps all of its format.', self.config.name, u,
                        u + 1, self._store.levels)

  def split(self, name: str) -> Split:
    """The split 'train', 'validation' (the last images of train) or 'test'."""
    c, store, spec = self.config, self._store, self.spec
    if name == 'test':
      start, length = 0, store.test.length
    else:
      held_out = self._validation
      start = store.train.length - held_out if name == 'validation' else 0
      length = {'validation': held_out,
                'train': store.train.length - (held_out if c.hold_out else 0)}[name]
    source = self._source('test' if name == 'test' else 'train')
    return Split(name, source.name, store.version, start, length, source, spec)

  def batch(self, step: int, process_index: int = 0, process_count: int = 1) -> Batch:
    """This process's rows of the global batch of `step`; a pure function.

    {field: array [B / process_count, ...]}, with the fields of `spec`.  Raises InputError if the
    number of processes does not divide the batch.
    """
    return self._batches(process_index, process_count)(step)

  def stream(self, start_step: int = 0, process_index: int = 0,
             process_count: int = 1) -> Iterator[Batch]:
    """The batches of start_step, start_step + 1, ... without end, read before they are needed."""
    small = (self._small('train') if self.latents is None else
             self.latents.bytes <= self.config.memory_gb * 1e9)
    return self._ahead(self._batches(process_index, process_count), start_step, small)

  def in_order(self, name: str, batch_size: int, start: int = 0) -> Iterator[Batch]:
    """A split in its order, read ahead: the batches start, start + 1, ... of `batch_size` examples.

    The last batch repeats the last example until it is full.
    """
    split = self.split(name)
    batches = self._ahead(functools.partial(_consecutive, split, batch_size), start,
                          self._small('test' if name == 'test' else 'train'))
    with contextlib.closing(batches):
      yield from itertools.islice(batches, max(-(-len(split) // batch_size) - start, 0))

  def _ahead(self, batches, start_step: int, small: bool) -> Generator[Batch, None, None]:
    if small or not self.config.workers:
      return _threaded(batches, start_step)
    return _workers(batches, start_step, self.config.workers)

  @functools.cached_property
  def latents(self) -> latents.Latents | None:
    """The latents that training reads in the place of images, or None.

    Raises InputError if the folder holds no latents of so many images with these fields, or no
    flipped images where training flips.
    """
    c = self.config
    if not c.get('latents', ''):
      return None
    found = latents.open_latents(c.latents, self.spec)
    length = self._store.train.length
    if found.images != length:
      raise InputError('config.data.latents', c.latents, f'it has latents of {found.images:,} '
                       f'images, and {c.name} has {length:,}', latents.LATENTS.remedy)
    if c.augment and c.augmentation != 'flips':
      raise InputError('config.data.augmentation', c.augmentation, 'the only augmentation '
                       'of latents is flips', 'set it to flips, or config.data.augment to False')
    if c.augment and not found.flips:
      raise InputError('config.data.latents', c.latents, 'it has no flipped images, and training '
                       'flips them', f'make them ({latents.LATENTS.command} --flips)')
    return found

  def describe(self) -> str:
    """One line that describes the data that were found."""
    c, spec, store = self.config, self.spec, self._store
    of_x = 'real numbers' if spec.x.levels is None else f'{spec.levels} levels'
    others = ''.join(f'; {field}' for field in spec.fields[1:]
                     if field.name not in (fields.LABEL, fields.AUGMENTED))
    return (f'{c.name}{" " * bool(store.version)}{store.version}: '
            f'{" x ".join(map(str, spec.shape))}, {of_x}, {spec.classes} classes{others}; '
            f'{len(self.split("train")):,} to train on, {self._validation:,} for validation '
            f'({"not" if c.hold_out else "also"} trained on), {store.test.length:,} for test '
            f'({store.test.name}){"".join(f"; {note}" for note in self._notes())}'
            f'{"; training reads the latents in " if c.get("latents") else ""}'
            f'{c.get("latents", "")}')

  def fingerprint(self) -> dict[str, Any]:
    """The content of the data, for `fingerprints.changes`.  No image is decoded."""
    return fingerprints.of(self._store.parts())

  def _notes(self) -> tuple[str, ...]:
    """Notes on data that were left out or changed, and on classes that cannot be learned."""
    store, length = self._store, len(self.split('train'))
    if store.train.labels is None or not self.spec.classes:
      return store.notes
    present = np.bincount(store.train.labels[:length], minlength=self.spec.classes) > 0
    absent = np.flatnonzero(~present)
    if not absent.size:
      return store.notes
    few = ', '.join(map(str, absent[:5])) + ', ...' * (absent.size > 5)
    return (*store.notes, f'without an image to train on: class {few}')

  @functools.cached_property
  def _store(self) -> sources.Store:
    c = self.config
    store = self._chosen(stores.open_store(
        c.name, c.data_dir, c.image_size, c.get('fields', ()), self._texts,
        series.settings(c), episodes.settings(c)))
    shape = store.fields[0].shape
    if not shape:
      raise InputError('config.data.name', c.name, f'its first field, {store.fields[0].name}, has '
                       'one number per example and cannot be x', 'name another field first in '
                       'config.data.fields, or give this field an axis')
    if c.image_size and shape[:2] != (c.image_size, c.image_size):
      store = _shrunk(store, c.name, c.image_size)
      shape = store.fields[0].shape
    if c.shape and tuple(c.shape) != shape:
      raise InputError('config.data.shape', tuple(c.shape), f'{c.name} has examples of '
                       f'{shape}', 'correct it, or leave it empty')
    if 0 < c.classes < store.classes:
      raise InputError('config.data.classes', c.classes, f'{c.name} has {store.classes} classes',
                       'correct it, or leave it at 0')
    if not c.classes:
      _check_numbering(c.name, store)
    if c.get('left_out', -1) >= 0:
      store = store._replace(train=_without(c.left_out, store))
    logging.info('%s: %s, %d classes, %d examples for training, %d for test (%s)', c.name,
                 ' x '.join(map(str, shape)), store.classes, store.train.length,
                 store.test.length, store.test.name)
    return store

  def _chosen(self, store: sources.Store) -> sources.Store:
    """The store with the fields of the config, in their order."""
    c, stored = self.config, {field.name: field for field in store.fields}
    requested = c.get('fields', ())
    absent = [name for name in requested if name not in stored]
    if absent:
      raise InputError('config.data.fields', tuple(requested),
                       f'{c.name} has no field {absent[0]!r}', f"choose one of {', '.join(stored)}")
    if requested:
      return store._replace(fields=tuple(stored[name] for name in requested))
    x = store.fields[0]
    names = [name for name, *_ in c.get('found', ())] or (
        [self._x_name] if c.shape and c.levels else [x.name])
    if names[0] in stored:
      return store
    # In runs of before the fields had names, and where nothing was read, x is the image.
    renamed = lambda source: source._replace(read=functools.partial(
        _renamed, source.read, x.name, names[0]))
    return store._replace(fields=(x._replace(name=names[0]), *store.fields[1:]),
                          train=renamed(store.train), test=renamed(store.test))

  @property
  def _validation(self) -> int:
    n, total = self.config.validation, self._store.train.length
    if not 0 <= n < total:
      raise InputError('config.data.validation', n, f'{self.config.name} has {total} examples for '
                       'training, and one at least must be left',
                       f'choose {total - 1} at most' if total > 1 else 'add examples')
    return n

  def _small(self, split: str) -> bool:
    size = getattr(self._store, split).length * fields.bytes_of(self._store.fields)
    return size <= self.config.memory_gb * 1e9

  def _source(self, split: str) -> sources.Source:
    """The stored split, which is decoded once and kept if it is small enough."""
    if not self._small(split):
      return getattr(self._store, split)
    if split not in self._in_memory:
      self._in_memory[split] = _in_ram(getattr(self._store, split))
    return self._in_memory[split]

  def _batches(self, process_index: int, process_count: int):
    c, split = self.config, self.split('train')
    if c.batch_size % process_count:
      raise InputError('config.data.batch_size', c.batch_size, 'it cannot be divided over '
                       f'{process_count} processes', f'choose a multiple of {process_count}')
    change = augmentation.named(c.get('augmentation', 'flips_and_turns'), split.spec
                                ) if c.augment else None
    rows = np.arange(c.batch_size).reshape(process_count, -1)[process_index]
    return functools.partial(make_batch, split, c.seed, c.batch_size, change, rows,
                             kept=self.latents)


def _check_numbering(name: str, store: sources.Store) -> None:
  """Raises InputError if a class below the largest has no image at all."""
  labels = [source.labels for source in (store.train, store.test) if source.labels is not None]
  if not labels:
    return
  values = np.unique(np.concatenate(labels))
  if len(values) < store.classes:
    absent = int(np.flatnonzero(values != np.arange(len(values)))[0])
    raise InputError('config.data.name', name, f'its labels are {values[0]} to {values[-1]}, and '
                     f'class {absent} has no image', 'number them from 0 without a gap, or set '
                     f'config.data.classes={store.classes}')


def _without(label: int, store: sources.Store) -> sources.Source:
  """The training images without a class.  Raises InputError."""
  train = store.train
  if not 0 <= label < store.classes:
    there = f'the classes are 0 .. {store.classes - 1}' if store.classes else 'there are no labels'
    raise InputError('config.data.left_out', label, there, 'give a class, or -1 for none')
  labels = train.labels
  if labels is None:
    labels = np.concatenate([train.read(rows)[fields.LABEL] for rows in _chunks(train.length)])
  rows = np.flatnonzero(labels != label)
  return train._replace(length=len(rows), labels=labels[rows],
                        read=functools.partial(_of_rows, train.read, rows))


def _of_rows(read, chosen: np.ndarray, rows: np.ndarray) -> Batch:
  return read(chosen[rows])


def _shrunk(store: sources.Store, name: str, side: int) -> sources.Store:
  """The store with means of blocks of pixels as x, side x side of them.

  Raises InputError unless x are square images of integers, whose sides are multiples of `side`.
  """
  x = store.fields[0]
  height, *others = x.shape
  if len(x.shape) != 3 or others[0] != height or height % side or x.levels is None:
    raise InputError('config.data.image_size', side, f'{name} has examples of {x.shape}, and '
                     'arrays become smaller only if blocks of pixels fill their sides',
                     'choose a divisor of the side, or resize the arrays and leave it at 0')
  read = lambda source: source._replace(read=functools.partial(
      _block_means, source.read, x.name, height // side))
  return store._replace(fields=(x._replace(shape=(side, side, x.shape[2])), *store.fields[1:]),
                        train=read(store.train), test=read(store.test))


def _block_means(read, name: str, factor: int, rows: np.ndarray) -> Batch:
  batch = read(rows)
  return {**batch, name: images.block_means(batch[name], factor)}


def _renamed(read, old: str, new: str, rows: np.ndarray) -> Batch:
  batch = read(rows)
  return {new if name == old else name: values for name, values in batch.items()}


def make_batch(split: Split, seed: int, batch_size: int,
               augment: augmentation.Augmentation | None, rows: np.ndarray, step: int,
               kept: latents.Latents | None = None) -> Batch:
  """Rows [n] of the global batch of `step`, by the module's equation.

  kept: the latents whose moments take the place of the images in the batch.
  """
  epochs, offsets = np.divmod(step * batch_size + rows, len(split))
  indices = np.empty_like(rows)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    indices[here] = random.permutation(seed, int(epoch), len(split))[offsets[here]]
  u = None
  if augment is not None:
    # Drawn for the whole batch: what row i gets does not depend on who asks for it.
    u = random.uniform(seed, step, random.AUGMENT, augment.draws * batch_size)
    u = u.reshape(augment.draws, batch_size)[:, rows]
  if kept is not None:
    return kept.get(split.start + indices, None if u is None else augmentation.flipped(u),
                    split.spec.names[1:])
  batch = split.get(indices)
  if augment is not None and u is not None:
    batch = augment.apply(batch, u, split.spec.x.name)
  return batch


def _consecutive(split: Split, batch_size: int, step: int) -> Batch:
  rows = np.arange(step * batch_size, (step + 1) * batch_size)
  return split.get(np.minimum(rows, len(split) - 1))


def _in_ram(source: sources.Source) -> sources.Source:
  """The same source; its first read loads the whole split, which is then kept."""

  @functools.cache
  def arrays():
    logging.info('reading %d examples (%s) into memory', source.length, source.name)
    chunks = [source.read(rows) for rows in _chunks(source.length)]
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

  def read(rows):
    return {name: values[rows] for name, values in arrays().items()}

  return source._replace(read=read)


def _chunks(length: int) -> Iterator[np.ndarray]:
  for start in range(0, length, CHUNK):
    yield np.arange(start, min(start + CHUNK, length))


def _threaded(batches, start_step: int, ahead: int = 2) -> Generator[Batch, None, None]:
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    steps = itertools.count(start_step)
    waiting = collections.deque(pool.submit(batches, next(steps)) for _ in range(ahead))
    while True:
      yield waiting.popleft().result()
      waiting.append(pool.submit(batches, next(steps)))


def _leave_to_parent(*_) -> None:
  """Makes a worker ignore Ctrl-C, which its terminal sends to all processes: the training ends it.
  """
  for each in (signal.SIGINT, signal.SIGHUP):
    signal.signal(each, signal.SIG_IGN)


def _workers(batches, start_step: int, workers: int) -> Generator[Batch, None, None]:
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
