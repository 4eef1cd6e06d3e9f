"""Folders of named arrays, written row by row: an array for each field, and a record of them.

    RECORD      JSON: how the rows were made, their number, and their fields
    NAME.npy    the field NAME of all rows

The arrays are mapped, so memory holds only the part that is read or written.  A folder is written
beside its place, as PLACE.part, and takes its final name when it is complete.  If the writing ends
early, PLACE.part is kept, and the same call goes on from there.
"""
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vdm_jax.data import fields
from vdm_jax.data.fields import Batch, Field
from vdm_jax.errors import InputError, require
from vdm_jax.machine import files

__all__ = ['Kind', 'Writer', 'array', 'begun', 'is_complete', 'open_fields', 'parts', 'record']

FORMAT = 1
SECONDS = 5.0  # between two writes to the disk, which cost time; a kill loses no more


class Kind(NamedTuple):
  """The meaning of the rows of a folder."""
  rows: str                # 'pairs'
  record: str              # the name of the record, 'pairs.json'
  command: str             # makes the folder, 'scripts/make_pairs.py'
  maker: tuple[str, str]   # the entry of 'about' that names the maker of the values, and a noun for
                           # the maker
  field: str = 'config.data.name'  # names the folder where it is read

  @property
  def remedy(self) -> str:
    return f'make the {self.rows} again ({self.command})'


def is_complete(kind: Kind, path: str | Path) -> bool:
  """Whether `path` holds all rows of a folder of this kind."""
  return os.path.isfile(os.path.join(os.path.expanduser(path), kind.record))


def begun(kind: Kind, path: str | Path) -> bool:
  """Whether all or some rows are written at `path`."""
  return is_complete(kind, path) or is_complete(kind, f'{path}.part')


def record(kind: Kind, path: str | Path) -> dict[str, Any]:
  """The content of the record: 'about', 'count', 'done', 'fields', and what else is known.

  Raises InputError if the file is damaged.
  """
  remedy = kind.remedy[0].upper() + kind.remedy[1:]
  return files.read_json(Path(path).expanduser() / kind.record,
                         ('about', 'count', 'done', 'fields'), remedy, FORMAT)


def open_fields(kind: Kind, path: str) -> tuple[dict[str, Any], tuple[Field, ...]]:
  """The record and the fields of a complete folder; no array is read.

  Raises InputError if rows are missing, or if an array has another shape.
  """
  if not is_complete(kind, path):
    said = record(kind, f'{path}.part')
    raise InputError(kind.field, path, f'only {said["done"]:,} of its {said["count"]:,} '
                     f'{kind.rows} are made', f'let {kind.command} finish; the same command '
                     'resumes it')
  said = record(kind, path)
  declared = tuple(fields.from_row(*one) for one in said['fields'])
  for field in declared:
    shape = array(kind, path, field.name).shape
    require(shape == (said['count'], *field.shape), kind.field, path,
            f'its {field.name}.npy has shape {shape}, but {kind.record} says {said["count"]} '
            f'{kind.rows} of shape {field.shape}', kind.remedy)
  return said, declared


@functools.lru_cache(maxsize=16)
def array(kind: Kind, path: str, name: str) -> np.ndarray:
  """The mapped array of a field.  Raises InputError if it cannot be read."""
  file = Path(path).expanduser() / f'{name}.npy'
  try:
    return np.load(file, mmap_mode='r')
  except (OSError, ValueError) as error:
    raise InputError(kind.field, path, f'its {name}.npy cannot be read ({error})', kind.remedy
                     ) from None


def parts(kind: Kind, path: str) -> dict[str, int | str]:
  """The parts for a fingerprint: the number of rows, and a digest of all that made them."""
  said = record(kind, path)
  text = json.dumps(said['about'], sort_keys=True)
  return {kind.rows: said['count'], 'made by': hashlib.sha256(text.encode()).hexdigest()}


class Writer:
  """Writes rows, and continues where an earlier writer stopped.

    writer = Writer(kind, path, about, count, fields)
    writer.begin()                     # for one process at a time: see `part`
    writer.write(writer.done, batch)   # until writer.done == count
    writer.close()                     # and `keep` where the writing ends early

  about: everything on which the values depend.  Raises InputError if the place holds anything else.
  more: further entries of the record, which follow from `about`: they are kept and not compared.
  Nothing is written before `begin`.
  """

  def __init__(self, kind: Kind, path: Path, about: Mapping[str, Any], count: int,
               declared: Sequence[Field], field: str = 'out', **more: Any):
    self.kind, self.path, self.part = kind, path, path.with_name(f'{path.name}.part')
    self._record = {'format': FORMAT, 'about': dict(about), 'count': count, 'done': 0,
                    'fields': [list(fields.row(one)) for one in declared], **more}
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
    if not is_complete(self.kind, self.part):
      for name, shape, dtype, *_ in self._record['fields']:
        made = np.lib.format.open_memmap(self._file(name), 'w+', dtype,
                                         (self._record['count'], *shape))
        del made
      self._save()
    self._record['done'] = record(self.kind, self.part)['done']
    self._arrays = {name: np.lib.format.open_memmap(self._file(name), 'r+')
                    for name, *_ in self._record['fields']}

  def _check(self, place: Path, field: str) -> None:
    """Raises InputError unless `place` holds these rows, or the first of them."""
    kind = self.kind
    if place == self.part and not is_complete(kind, place):
      return  # ended before anything was said of it
    if not is_complete(kind, place):
      raise InputError(field, str(self.path), f'it is there already, and holds no {kind.rows}',
                       'choose another name')
    said = record(kind, place)
    there, now = ({**of['about'], 'count': of['count'], 'fields': of['fields']}
                  for of in (said, self._record))
    other = sorted(name for name in there.keys() | now.keys() if there.get(name) != now.get(name))
    if other:
      key, maker = kind.maker
      what = f'of another {maker if key in other else ", ".join(other)}'
      raise InputError(field, str(self.path), f'{kind.rows} {what} are there already',
                       f'choose another name, or remove {place}')

  def _file(self, name: str) -> Path:
    return self.part / f'{name}.npy'

  def _save(self) -> None:
    files.write_text(self.part / self.kind.record, json.dumps(self._record, indent=2))

  @property
  def done(self) -> int:
    """The number of rows that are written."""
    return self._record['done']

  @property
  def count(self) -> int:
    """The number of rows of the complete folder."""
    return self._record['count']

  def write(self, first: int, batch: Batch) -> None:
    """Writes rows `first`, first + 1, ...; they are kept some seconds later: see `keep`."""
    n = len(batch[next(iter(self._arrays))])
    for name, values in self._arrays.items():
      values[first:first + n] = batch[name]
    self._record['done'] = first + n
    if time.monotonic() - self._kept >= SECONDS:
      self.keep()

  def keep(self) -> None:
    """Puts all rows that are written on the disk, and then says so in the record."""
    if self.complete:
      return
    for values in self._arrays.values():
      values.flush()
    self._save()
    self._kept = time.monotonic()

  def close(self) -> None:
    """Gives the folder its final name if all rows are written."""
    if not self.complete and self.done == self.count:
      self.keep()
      os.replace(self.part, self.path)
      self.complete = True
