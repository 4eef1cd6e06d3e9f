"""Pairs of noise and sample, as a trained flow makes them: a folder of named float fields.

    pairs.json   how the pairs were made, their number, the fields, and the process of the model
    x.npy        the sample, float32, as the network sees data
    z_1.npy      the noise from which the sample was made, float32
    image.npy    only for integer data: the integers nearest to x, under the data's own name
    label.npy    the model's condition, if it has one

`data.writers` writes the folder.  Every sixth pair is for testing.
"""
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data import fields, writers
from vdm_jax.data.fields import AUGMENTED, Batch, Field, Spec
from vdm_jax.data.sources import Source, Store, every_sixth
from vdm_jax.data.writers import Kind, Writer
from vdm_jax.errors import require

__all__ = ['NOISE', 'SAMPLE', 'begun', 'conditions_of', 'cost', 'fields_of', 'is_pairs',
           'open_pairs', 'record', 'writer']

NOISE, SAMPLE = 'z_1', 'x'
PAIRS = Kind('pairs', 'pairs.json', 'scripts/make_pairs.py', ('weights', 'teacher'))


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
  return writers.is_complete(PAIRS, path)


def begun(path: str | Path) -> bool:
  """Whether all or some pairs are written at `path`."""
  return writers.begun(PAIRS, path)


def record(path: str | Path) -> dict[str, Any]:
  """The content of pairs.json: 'about', 'count', 'done', 'fields', and 'process' if it is known.

  Raises InputError if the file is damaged.
  """
  return writers.record(PAIRS, path)


def writer(path: Path, about: Mapping[str, Any], count: int, declared: Sequence[Field],
           process: Sequence[Sequence[float]] = ()) -> Writer:
  """The writer of `count` pairs with the fields `declared`, as from `fields_of`.

  process: the noise levels of the model that makes the pairs, as numbers.  Raises InputError as
  `Writer` does.
  """
  return Writer(PAIRS, path, about, count, declared, process=process)


def open_pairs(path: str) -> Store:
  """The pairs in a folder, as a Store; no array is read.  Raises InputError."""
  said, declared = writers.open_fields(PAIRS, path)
  train, test = every_sixth(said['count'])
  labels = next((np.asarray(_array(path, field.name)) for field in declared
                 if field.name == fields.LABEL), None)
  source = lambda name, rows: Source(
      name, len(rows), functools.partial(_read, path, declared, rows),
      None if labels is None else labels[rows])
  return Store(source('not every sixth', train), source('every sixth', test), declared, '',
               functools.partial(writers.parts, PAIRS, path))


def _read(path: str, declared: Sequence[Field], subset: np.ndarray, rows: np.ndarray) -> Batch:
  return {field.name: _array(path, field.name)[subset[rows]] for field in declared}


def _array(path: str, name: str) -> np.ndarray:
  return writers.array(PAIRS, path, name)


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
