"""Pairs of noise and sample, as a trained flow makes them: a folder of named float fields.

    pairs.json   how the pairs were made, their number, the fields, and the process of the model
    x.npy        the sample, float32, as the network sees data
    z_1.npy      the noise from which the sample was made, float32
    image.npy    only for integer data: the integers nearest to x, under the data's own name
    label.npy    the model's condition, if it has one

The arrays are mapped, so memory holds only the part that is read.  A folder is written row by row,
beside its place, as PLACE.part.  It takes its final name when it is complete.  If the writing ends
early, PLACE.part is kept.  Every sixth pair is for testing.
"""
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data import fields
from vdm_jax.data.fields import AUGMENTED, Batch, Field, Spec
from vdm_jax.data.sources import Source, Store, every_sixth
from vdm_jax.errors import InputError, require
from vdm_jax.machine import files

__all__ = ['NOISE', 'SAMPLE', 'Writer', 'begun', 'conditions_of', 'cost', 'fields_of', 'is_pairs',
           'open_pairs', 'record']

RECORD = 'pairs.json'
NOISE, SAMPLE = 'z_1', 'x'
FORMAT = 1
SECONDS = 5.0  # between two writes to the disk, which cost time; a kill loses no more
_REMEDY = 'Make the pairs again (scripts/make_pairs.py)'


def conditions_of(spec: Spec, batch: Batch) -> list[Field]:
  """The fields that pairs keep of a model's conditions: of `spec`, or else real numbers.

  batch: the conditions of any samples, by name.  Pairs are not augmented, so this field is left
  out.
  """
  return [spec[name] if name in spec else fields.reals(name, value.shape[1:])
          for name, value in batch.items() if name != AUGMENTED]


def fields_of(x: Field, conditions: Sequence[Field] = ()) -> tuple[Field, ...]:
  """The fields of the pairs of a model of x.  If x holds integers, the data themselves come first.

  Raises InputError: a field has the name of one of the pairs' arrays.
  """
  kept = () if x.levels is None else (x,)
  for field in (*kept, *conditions):
    require(field.name not in (SAMPLE, NOISE), None, None, f'the data have a field {field.name!r}, '
            'and pairs add another field of this name', 'rename the field of the data')
  return (*kept, fields.reals(SAMPLE, x.shape), fields.reals(NOISE, x.shape), *conditions)


def is_pairs(path: str | Path) -> bool:
  """Whether `path` holds a complete set of pairs."""
  return os.path.isfile(os.path.join(os.path.expanduser(path), RECORD))


def begun(path: str | Path) -> bool:
  """Whether all or some pairs are written at `path`."""
  return is_pairs(path) or is_pairs(f'{path}.part')


def record(path: str | Path) -> dict[str, Any]:
  """The content of pairs.json: 'about', 'count', 'done', 'fields', and 'process' if it is known.

  Raises InputError if the file is damaged.
  """
  return files.read_json(Path(path).expanduser() / RECORD, ('about', 'count', 'done', 'fields'),
                         _REMEDY, FORMAT)


def open_pairs(path: str) -> Store:
  """The pairs in a folder, as a Store; no array is read.  Raises InputError."""
  if not is_pairs(path):
    said = record(f'{path}.part')
    raise InputError('config.data.name', path, f'only {said["done"]:,} of its {said["count"]:,} '
                     'pairs are made', 'let scripts/make_pairs.py finish; the same command '
                     'resumes it')
  said = record(path)
  declared = tuple(Field(name, tuple(shape), dtype, levels)
                   for name, shape, dtype, levels in said['fields'])
  for field in declared:
    shape = _array(path, field.name).shape
    require(shape == (said['count'], *field.shape), 'config.data.name', path,
            f'its {field.name}.npy has shape {shape}, but pairs.json says {said["count"]} pairs '
            f'of shape {field.shape}', f'{_REMEDY[0].lower()}{_REMEDY[1:]}')
  train, test = every_sixth(said['count'])
  labels = next((np.asarray(_array(path, field.name)) for field in declared
                 if field.name == fields.LABEL), None)
  source = lambda name, rows: Source(
      name, len(rows), functools.partial(_read, path, declared, rows),
      None if labels is None else labels[rows])
  return Store(source('not every sixth', train), source('every sixth', test), declared, '',
               functools.partial(_parts, path))


def _read(path: str, declared: Sequence[Field], subset: np.ndarray, rows: np.ndarray) -> Batch:
  return {field.name: _array(path, field.name)[subset[rows]] for field in declared}


@functools.lru_cache(maxsize=16)
def _array(path: str, name: str) -> np.ndarray:
  file = Path(path).expanduser() / f'{name}.npy'
  try:
    return np.load(file, mmap_mode='r')
  except (OSError, ValueError) as error:
    raise InputError('config.data.name', path, f'its {name}.npy cannot be read ({error})',
                     f'{_REMEDY[0].lower()}{_REMEDY[1:]}') from None


def _parts(path: str) -> dict[str, int | str]:
  """The parts for the fingerprint: the number of pairs, and a digest of all that made them."""
  said = record(path)
  text = json.dumps(said['about'], sort_keys=True)
  return {'pairs': said['count'], 'made by': hashlib.sha256(text.encode()).hexdigest()}


def cost(path: str | Path, most: int = 10_000) -> tuple[float, float]:
  """The mean of |x - z_1|^2, a sum over the data, and its standard error.

  It is the transport cost of Liu, Gong and Liu (2023), section 3.2, which no reflow increases.  It
  is measured on the first `most` pairs.
  """
  samples, noise = (np.load(Path(path) / f'{name}.npy', mmap_mode='r')
                    for name in (SAMPLE, NOISE))
  costs = np.concatenate([
      np.square(samples[i:i + 256].astype(np.float64) - noise[i:i + 256]).reshape(
          len(samples[i:i + 256]), -1).sum(axis=1)
      for i in range(0, min(len(samples), most), 256)])[:most]
  return float(costs.mean()), float(costs.std() / len(costs)**0.5)


class Writer:
  """Writes pairs row by row, and continues where an earlier writer stopped.

    writer = Writer(path, about, count, fields)
    writer.begin()                     # for one process at a time: see `part`
    writer.write(writer.done, batch)   # until writer.done == count
    writer.close()                     # and `keep` where the writing ends early

  about: everything on which the values depend.  Raises InputError if the place holds anything else.
  process: the noise levels of the model that makes the pairs, as numbers.  They follow from
  `about`, so they are kept and not compared.  Nothing is written before `begin`.
  """

  def __init__(self, path: Path, about: Mapping[str, Any], count: int, declared: Sequence[Field],
               field: str = 'out', process: Sequence[Sequence[float]] = ()):
    self.path, self.part = path, path.with_name(f'{path.name}.part')
    self._record = {'format': FORMAT, 'about': dict(about), 'count': count, 'done': 0,
                    'fields': [list(one) for one in declared], 'process': process}
    self._record = json.loads(json.dumps(self._record))
    for place in (self.path, self.part):
      if place.exists():
        self._check(place, field)
    self._arrays: dict[str, np.memmap] = {}
    self._kept = -math.inf
    self.complete = self.path.exists()
    if self.complete:
      self._record['done'] = count

  def begin(self) -> None:
    """Makes the arrays, or goes on with those that are there."""
    self.part.mkdir(parents=True, exist_ok=True)
    begun = (self.part / RECORD).is_file()
    if not begun:
      for name, shape, dtype, _ in self._record['fields']:
        array = np.lib.format.open_memmap(self._file(name), 'w+', dtype,
                                          (self._record['count'], *shape))
        del array
      self._save()
    self._record['done'] = record(self.part)['done']
    self._arrays = {name: np.lib.format.open_memmap(self._file(name), 'r+')
                    for name, *_ in self._record['fields']}

  def _check(self, place: Path, field: str) -> None:
    """Raises InputError unless `place` holds these pairs, or the first of them."""
    if place == self.part and not (place / RECORD).is_file():
      return  # ended before anything was said of it
    if not is_pairs(place):
      raise InputError(field, str(self.path), 'it is there already, and holds no pairs',
                       'choose another name')
    said = record(place)
    there, now = ({**of['about'], 'count': of['count'], 'fields': of['fields']}
                  for of in (said, self._record))
    other = sorted(name for name in there.keys() | now.keys() if there.get(name) != now.get(name))
    if other:
      what = 'of another teacher' if 'weights' in other else f'of another {", ".join(other)}'
      raise InputError(field, str(self.path), f'pairs {what} are there already',
                       f'choose another name, or remove {place}')

  def _file(self, name: str) -> Path:
    return self.part / f'{name}.npy'

  def _save(self) -> None:
    files.write_text(self.part / RECORD, json.dumps(self._record, indent=2))

  @property
  def done(self) -> int:
    """The number of pairs that are written."""
    return self._record['done']

  def write(self, first: int, batch: Batch) -> None:
    """Writes rows `first`, first + 1, ...; they are kept some seconds later: see `keep`."""
    n = len(batch[NOISE])
    for name, array in self._arrays.items():
      array[first:first + n] = batch[name]
    self._record['done'] = first + n
    if time.monotonic() - self._kept >= SECONDS:
      self.keep()

  def keep(self) -> None:
    """Puts all rows that are written on the disk, and then says so in pairs.json."""
    if self.complete:
      return
    for array in self._arrays.values():
      array.flush()
    self._save()
    self._kept = time.monotonic()

  def close(self) -> None:
    """Gives the folder its final name if all pairs are written."""
    if not self.complete and self.done == self._record['count']:
      self.keep()
      os.replace(self.part, self.path)
      self.complete = True
