"""Bach's chorales as grids of pitches, read from the user's own copy of the package music21.

`scripts/prepare_data.py chorales` writes one file of arrays below data_dir/chorales.  A piece is a
grid: a row for each sixteenth, a column for each voice (soprano, alto, tenor, bass).  A number is a
MIDI pitch, and 0 is a rest.  A note that is held is the same number in the next row.

  name                    one step
  `chorales`              an eighth: every second row
  `chorales:quarters`     a quarter: every fourth row
  `chorales:sixteenths`   a sixteenth

An example is a window of 32 steps, [32, 4, 1], and windows begin every 8 steps.  All pieces are
transposed to C major or A minor.  Every sixth piece is for testing, from piece 0 on.  All windows
of a piece belong to one split.
"""
import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from vdm_jax.data import arrays, records
from vdm_jax.data.fields import Field
from vdm_jax.data.sources import Source, Store, every_sixth
from vdm_jax.errors import require
from vdm_jax.machine import files

LEVELS = 128
VOICES = 4
LENGTH, HOP = 32, 8  # of windows, in steps
PITCHES = 'pitches'  # the field
STEPS = {'chorales': 2, 'chorales:quarters': 4, 'chorales:sixteenths': 1}  # in sixteenths, by name
FILE = 'grids.npz'
# The first 16 letters of the SHA-256 of all grids, for version 10.5.1 of the package.
KNOWN = {'untransposed, sixteenths': 'f7a195546407b095', 'transposed, eighths': '6b5f27126c989777'}


class Pieces(NamedTuple):
  """All pieces: the rows of their grids one after another."""
  grids: np.ndarray    # int16 [rows, 4], as written
  lengths: np.ndarray  # int32 [pieces], rows of each piece
  shifts: np.ndarray   # int16 [pieces], semitones to C major or A minor

  def each(self, transposed: bool = True, step: int = 1) -> list[np.ndarray]:
    """The grids of the pieces, int16 [T, 4] each: every `step`-th row."""
    ends = np.cumsum(self.lengths)
    return [shifted(self.grids[end - length:end:step], shift if transposed else 0)
            for end, length, shift in zip(ends, self.lengths, self.shifts, strict=True)]


def shifted(grid: np.ndarray, semitones: int) -> np.ndarray:
  """The grid, so many semitones higher.  Rests stay rests."""
  return np.where(grid > 0, grid + semitones, 0).astype(np.int16)


# -------------------------------------------------------------------- from music21


def grid(score: Any) -> np.ndarray:
  """A score of music21 with four parts -> int16 [T, 4], a row for each sixteenth.

  Of two notes in one row, the later one counts.  Of a chord, the highest pitch counts.
  """
  rows = int(round(4 * float(score.highestTime)))
  out = np.zeros((rows, VOICES), np.int16)
  for voice, part in enumerate(score.parts):
    for note in part.flatten().notes:
      first = int(round(4 * float(note.offset)))
      last = int(round(4 * float(note.offset + note.quarterLength)))
      out[first:last, voice] = max(pitch.midi for pitch in note.pitches)
  return out


def semitones(tonic: int, mode: str) -> int:
  """The smallest shift of a key to C major or A minor: -5 .. 6.  tonic: 0 (C) .. 11 (B)."""
  home = 9 if mode == 'minor' else 0
  return (home - tonic + 5) % 12 - 5


def read() -> Pieces:
  """The pieces of four parts in music21's corpus, each once.  It takes some minutes.

  Raises InputError if the package is not installed, or if its corpus has no such piece.
  """
  chorales = records.optional_module('music21.corpus.chorales', 'the chorales are', 'music')
  scores = chorales.Iterator(1, 371, numberingSystem='riemenschneider', returnType='stream')
  return collect(tqdm(scores, desc='chorales', total=371))


def collect(scores: Iterable[Any]) -> Pieces:
  """The scores of four parts as `Pieces`.  A grid that occurred before is left out.

  Raises InputError if there is no score of four parts.
  """
  seen: dict[bytes, tuple[np.ndarray, int]] = {}
  for score in scores:
    if len(score.parts) != VOICES:
      continue
    one = grid(score)
    if one.tobytes() not in seen:
      key = score.analyze('key')
      seen[one.tobytes()] = one, semitones(key.tonic.pitchClass, key.mode)
  require(bool(seen), None, None, 'the corpus has no piece of four parts',
          'install the whole package: pip install "vdm_jax[music]"')
  grids, shifts = zip(*seen.values(), strict=True)
  return Pieces(np.concatenate(grids), np.array([len(u) for u in grids], np.int32),
                np.array(shifts, np.int16))


# --------------------------------------------------------------------------- files


def checksums(pieces: Pieces) -> dict[str, str]:
  """The first 16 letters of the SHA-256 of all grids, voice by voice, with the names of `KNOWN`."""
  def digest(grids):
    sha = hashlib.sha256()
    for one in grids:
      sha.update(np.ascontiguousarray(one.T).tobytes())
    return sha.hexdigest()[:16]
  return dict(zip(KNOWN, (digest(pieces.each(False)), digest(pieces.each(True, 2))), strict=True))


def write(pieces: Pieces, data_dir: str) -> str:
  """Writes the file of arrays below `data_dir`, and returns its path."""
  path = _path(data_dir)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  files.save_npz(path, **pieces._asdict())
  return path


def load(data_dir: str) -> Pieces:
  """What `write` wrote.  Raises FileNotFoundError, with the command that prepares the file."""
  path = records.prepared_file(data_dir, 'chorales', FILE)
  return Pieces(*(arrays.named(path, name) for name in Pieces._fields))


def _path(data_dir: str) -> str:
  return os.path.join(records.data_directory(data_dir), 'chorales', FILE)


# ------------------------------------------------------------------------- windows


def splits(pieces: Pieces, step: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
  """The transposed grids for training and for testing, every `step`-th row."""
  each = pieces.each(True, step)
  train, test = every_sixth(len(each))
  return [each[i] for i in train], [each[i] for i in test]


def windows(grids: Sequence[np.ndarray], length: int = LENGTH, hop: int = HOP) -> np.ndarray:
  """All windows of grids [T, 4], which begin every `hop` rows: uint8 [N, length, 4, 1].

  Raises InputError if every grid is shorter than a window.
  """
  found = [one[first:first + length] for one in grids
           for first in range(0, len(one) - length + 1, hop)]
  require(bool(found), 'length', length, f'the longest piece has {max(map(len, grids), default=0)} '
          'steps', 'take shorter windows, or a finer grid')
  return np.stack(found).astype(np.uint8)[..., None]


def open_chorales(name: str, data_dir: str) -> Store:
  """The windows of one of `STEPS` as a Store.  Raises FileNotFoundError, as `load` does."""
  pieces, path = load(data_dir), _path(data_dir)
  train, test = (windows(grids) for grids in splits(pieces, STEPS[name]))
  field = Field(PITCHES, train.shape[1:], 'uint8', LEVELS)
  source = lambda split, rows: Source(split, len(rows), functools.partial(_rows, rows))
  parts: Callable[[], dict[str, int | str]] = functools.partial(arrays.marks, path)
  return Store(source('train', train), source('test', test), (field,), '', parts)


def _rows(array: np.ndarray, rows: np.ndarray) -> dict[str, np.ndarray]:
  return {PITCHES: array[rows]}
