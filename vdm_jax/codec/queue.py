"""A queue of symbols: the first written is the first read, and a prefix can be read by itself.

The queue is a range coder of the library constriction (Bamler 2022).  Symbols are coded under
tables of the file's header, which both sides have, and never under outputs of a network.  So a file
can be read on a machine that rounds differently.
"""
import math
from typing import Any

import constriction
import numpy as np

from vdm_jax.codec.channel import cell_of, number_of, place_bits, zipf

__all__ = ['Reader', 'Writer', 'sample_words']

_stream: Any = constriction.stream  # type: ignore[attr-defined]  # a module of Rust
_model = _stream.model
_categorical = _model.Categorical(perfect=False)
_PIECE = 16       # bits of a uniform number that are coded together
_BEYOND = 4.0     # scale of the law of the distance beyond a window
_SAFE = 8.0       # standard deviations in a window


def _int32(values) -> np.ndarray:
  return np.ascontiguousarray(np.atleast_1d(values), np.int32)


def _window(std: np.ndarray) -> int:
  """Half the window.  A wider one would cost more than an escape: each symbol has at least 2^-24.
  """
  return int(np.ceil(_SAFE * std.max())) + 2


class Writer:
  """Codes symbols into words, uint32."""

  def __init__(self):
    self._coder = _stream.queue.RangeEncoder()

  def words(self) -> np.ndarray:
    return np.asarray(self._coder.get_compressed(), np.uint32)

  def needed(self) -> int:
    """The number of words that hold all symbols so far: two more than have left the state."""
    return self._coder.pos()[0] + 2

  @property
  def bits(self) -> float:
    """The number of bits of information so far."""
    words, (_, width) = self._coder.pos()
    return 32.0 * words + 64.0 - math.log2(width)

  def number(self, number: int, scale: float) -> None:
    """Writes a number, 1 or more, under Zipf's law with this scale."""
    cell, place, size = cell_of(number)
    self._coder.encode(_int32(cell), _categorical, zipf(scale)[None])
    for start in range(0, size, _PIECE):
      width = min(_PIECE, size - start)
      self._coder.encode(_int32(place >> start & ((1 << width) - 1)), _model.Uniform(1 << width))

  def integers(self, values: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    """Writes any integers [D] under Gaussians of these means, in [-1/2, 1/2], and deviations."""
    half = _window(std)
    self._coder.encode(_int32(np.clip(values, -half, half)),
                       _model.QuantizedGaussian(-half, half), mean, std)
    for value in values[np.abs(values) >= half]:
      self.number(abs(int(value)) - half + 1, _BEYOND)


class Reader:
  """Reads the symbols of a `Writer`, in the same order; the words may be a prefix."""

  def __init__(self, words: np.ndarray):
    self._coder = _stream.queue.RangeDecoder(np.ascontiguousarray(words, np.uint32))

  def number(self, scale: float) -> int:
    cell = int(self._coder.decode(_categorical, zipf(scale)[None])[0])
    size, place = place_bits(cell), 0
    for start in range(0, size, _PIECE):
      width = min(_PIECE, size - start)
      place |= int(self._coder.decode(_model.Uniform(1 << width), 1)[0]) << start
    return number_of(cell, place)

  def integers(self, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    half = _window(std)
    values = np.asarray(self._coder.decode(_model.QuantizedGaussian(-half, half), mean, std),
                        np.int64)
    for i in np.flatnonzero(np.abs(values) == half):
      values[i] += np.sign(values[i]) * (self.number(_BEYOND) - 1)
    return values


def sample_words() -> np.ndarray:
  """The words, uint32, of a few symbols of every kind: equal where the libraries code alike."""
  writer = Writer()
  for number in (1, 2, 5, 9, 100, 3000, 1 << 20):
    for scale in (0.5, 2.0, 20.0):
      writer.number(number, scale)
  writer.integers(np.arange(-64, 64, 8), np.arange(-8, 8) / 16.0, 0.3 * 1.5**np.arange(16))
  return writer.words()
