"""The named fields of an example of a data set."""
import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vdm_jax.errors import InputError

Batch = dict[str, np.ndarray]

IMAGE = 'image'          # what x is called where a source gives it no name
LABEL = 'label'
CAPTION = 'caption'
AUGMENTED = 'augmented'  # whether an example was augmented, 0 or 1: see `augmentation`

MERGED = ('clip', 'gpt2', 'bert')  # the kinds of texts whose tokens a file defines


class Texts(NamedTuple):
  """How texts become the values of a field: see `tokenisers`."""
  kind: str = 'bytes'          # of the tokeniser
  words: tuple[str, ...] = ()  # of the kind `words`: all that the texts consist of
  merges: str = ''             # of the kinds `clip`, `gpt2` and `bert`: their file of merges, or
                               # of pieces of words


class Field(NamedTuple):
  """An array that every example has."""
  name: str
  shape: tuple[int, ...]  # of one example; () of a number
  dtype: str
  levels: int | None      # values are the integers 0 .. levels - 1; None: real numbers
  texts: Texts | None = None  # of a field whose values are the tokens of texts

  def __str__(self) -> str:
    what = 'real numbers' if self.levels is None else f'{self.levels} levels'
    return f'{self.name} {" x ".join(map(str, self.shape)) or "one"}, {what}'


def integers(name: str, shape: Sequence[int], levels: int) -> Field:
  """A field of the integers 0 .. levels - 1: uint8 for arrays of at most 256 levels, else int32."""
  return Field(name, tuple(shape), 'uint8' if levels <= 256 and shape else 'int32', levels)


def reals(name: str, shape: Sequence[int]) -> Field:
  """A field of real numbers, float32."""
  return Field(name, tuple(shape), 'float32', None)


def label(classes: int) -> Field:
  """The field 'label': one of `classes` classes, int32."""
  return Field(LABEL, (), 'int32', classes)


@dataclasses.dataclass(frozen=True)
class Spec:
  """The fields of one example.  The first field is x, unless a model says otherwise."""
  name: str  # of the data set
  fields: tuple[Field, ...]

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(field.name for field in self.fields)

  def __contains__(self, name: str) -> bool:
    return name in self.names

  def __getitem__(self, name: str) -> Field:
    """The field with this name.  Raises InputError if the data have no such field."""
    for field in self.fields:
      if field.name == name:
        return field
    raise InputError('config.data.name', self.name, f'it has no field {name!r}',
                     f'name one of its fields: {", ".join(self.names)}')

  @property
  def x(self) -> Field:
    return self.fields[0]

  @property
  def shape(self) -> tuple[int, ...]:
    """The shape of x: [H, W, C] of an image, [D] of a point."""
    return self.x.shape

  @property
  def levels(self) -> int:
    """The levels of x, whose values are 0 .. levels - 1.  Raises InputError for real numbers."""
    return levels(self, self.x)

  @property
  def classes(self) -> int:
    """The number of classes of the field 'label'; 0 without this field."""
    return self[LABEL].levels or 0 if LABEL in self else 0

  def zeros(self, n: int) -> Batch:
    """A batch of n examples that are all zero."""
    return {f.name: np.zeros((n, *f.shape), f.dtype) for f in self.fields}

  def random(self, n: int, seed: int = 0) -> Batch:
    """A batch of n examples of random numbers: uniform integers, standard normal reals."""
    rng = np.random.default_rng(seed)
    draw = lambda f: (rng.standard_normal((n, *f.shape)) if f.levels is None else
                      rng.integers(0, f.levels, (n, *f.shape)))
    return {f.name: np.zeros(n, f.dtype) if f.name == AUGMENTED else draw(f).astype(f.dtype)
            for f in self.fields}

  def to_config(self) -> dict:
    """The values that `config.data` keeps, so that later commands read no data: see `from_config`.
    """
    return {'shape': self.shape, 'levels': self.x.levels or 0, 'classes': self.classes,
            'found': tuple(row(f) for f in self.fields if f.name != AUGMENTED)}


def row(field: Field) -> tuple:
  """A field as configs and records keep it: without the place of its merges, which may change."""
  *own, texts = field
  return tuple(own) if texts is None else (*own, (texts.kind, texts.words))


def from_config(name: str, rows: Sequence, merges: str = '') -> Spec:
  """The Spec of the values that `Spec.to_config` put into config.data.found.

  merges: the file of merges, config.data.merges.
  """
  return Spec(name, tuple(from_row(*one, merges=merges) for one in rows))


def from_row(name: str, shape: Sequence[int], dtype: str, levels: int | None,
             texts: Sequence | None = None, *, merges: str = '') -> Field:
  """The field of these values of `row`."""
  if texts is None and len(shape) == 1 and levels == 257:  # older runs do not say that it is a text
    texts = 'bytes', ()
  if texts is None:
    return Field(name, tuple(shape), dtype, levels)
  kind, words = texts
  known = Texts(kind, tuple(words), merges if kind in MERGED else '')
  return Field(name, tuple(shape), dtype, levels, known)


def of_images(name: str, shape: Sequence[int], count: int, classes: int = 0, *, x: str = IMAGE
              ) -> Spec:
  """The Spec of images with `count` levels, and with labels if there are classes."""
  return Spec(name, (integers(x, shape, count), *[label(classes)] * bool(classes)))


def levels(spec: Spec, field: Field) -> int:
  """The number of levels of an integer field.  Raises InputError for real numbers."""
  if field.levels is None:
    raise InputError('config.data.name', spec.name, f'its field {field.name!r} holds real numbers, '
                     'and this system needs integers 0, 1, ...', 'take a system of continuous data '
                     '(configs/sequences/motion.py), or round and count the values')
  return field.levels


def of_array(name: str, array: np.ndarray, place: str) -> Field:
  """The field of an array [N, ...]: integers from 0 on, or real numbers.  Raises InputError."""
  if not array.size:
    raise InputError(problem=f'{place} has shape {array.shape} and so holds nothing',
                     remedy='give every axis a length')
  if array.dtype.kind == 'f':
    if not np.isfinite(array).all():
      raise InputError('config.data.name', place, 'it holds numbers that are not finite',
                       'leave them out, or mend them')
    return reals(name, array.shape[1:])
  if array.dtype.kind not in 'uib':
    raise InputError('config.data.name', place, f'it holds {array.dtype}',
                     'make it integers, floats or strings')
  if array.min() < 0 or array.max() >= 2**31 - 1:
    raise InputError('config.data.name', place, f'it holds integers from {array.min()} to '
                     f'{array.max()}', 'number them from 0, or save numbers as float32')
  return integers(name, array.shape[1:], max(int(array.max()) + 1, 2))


def check(spec: Spec, batch: Batch) -> None:
  """Raises InputError if a batch of a source differs from the Spec."""
  for field in spec.fields:
    if field.name == AUGMENTED:
      continue
    if field.name not in batch:
      raise InputError('config.data.name', spec.name, f'it has no field {field.name!r}',
                       f'leave it out of the config, or add it to {", ".join(batch)}')
    values = batch[field.name]
    x = field == spec.x
    if values.shape[1:] != field.shape:
      raise InputError('config.data.shape' if x else f'config.data.fields[{field.name}]',
                       field.shape, f'{spec.name} holds an example of {values.shape[1:]}',
                       'correct it, or leave it empty')
    if field.levels is None:
      if not np.isfinite(values).all():
        raise InputError('config.data.name', spec.name, f'its field {field.name!r} holds numbers '
                         'that are not finite', 'leave them out, or mend them')
    elif values.dtype.kind == 'f':
      raise InputError('config.data.levels' if x else f'config.data.fields[{field.name}]',
                       field.levels, f'{spec.name} holds real numbers', 'leave it at 0')
    elif values.size and values.max() >= field.levels:
      what = {spec.x.name: 'config.data.levels', LABEL: 'config.data.classes'}
      raise InputError(what.get(field.name, f'config.data.fields[{field.name}]'), field.levels,
                       f'{spec.name} holds the value {values.max()}',
                       f'set {values.max() + 1} or more, or 0 to find it')


def bytes_of(fields: Sequence[Field]) -> int:
  """The size of one example in bytes."""
  return sum(math.prod(f.shape) * np.dtype(f.dtype).itemsize for f in fields)
