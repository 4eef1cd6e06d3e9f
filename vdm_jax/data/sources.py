"""A data set once it is found: a `Store` of two `Source`s.

A source reads any rows by their numbers.  It is picklable, so worker processes can read.
"""
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vdm_jax.data.fields import LABEL, Batch, Field
from vdm_jax.errors import InputError

HELD_OUT = ('test', 'validation', 'valid', 'val')  # which split is our test, by preference

Read = Callable[[np.ndarray], Batch]


class NotPrepared(FileNotFoundError):
  """TFDS knows the data set, but it is not on this disk.  The message says which command to run."""


class Source(NamedTuple):
  """One split as it is stored."""
  name: str     # the split's name where it came from
  length: int
  read: Read    # rows [n] -> {field: array [n, ...]}
  labels: np.ndarray | None = None  # of all rows, where they are known without reading x


class Store(NamedTuple):
  """A data set, as it was found."""
  train: Source
  test: Source
  fields: tuple[Field, ...]  # x first; levels 0: to be found from the values
  version: str            # '' where there is none
  parts: Callable[[], dict[str, int | str]]  # what it is made of: name -> size or checksum
  notes: tuple[str, ...] = ()  # what was left out or changed when it was read
  levels: int = 0         # of x in its format; 0 where the format does not say

  @property
  def classes(self) -> int:
    """The number of classes of the field 'label'; 0 without this field."""
    return next((field.levels for field in self.fields if field.name == LABEL), 0) or 0


def every_sixth(n: int) -> tuple[np.ndarray, np.ndarray]:
  """Rows for training and rows for testing, if the data have no splits: every sixth is for testing.
  """
  test = np.arange(n) % 6 == 0
  return np.flatnonzero(~test), np.flatnonzero(test)


def check_lengths(name: str, train: int, test: int) -> None:
  """Raises InputError if a split has no example."""
  if not train or not test:
    raise InputError('config.data.name', name, f'it has {train} examples for training and {test} '
                     'for test', 'give each at least one')
