"""Grids of a bar that was made by hand, the file, the windows, and the corpus if it is there."""
import hashlib
import sys

import numpy as np
import pytest

from vdm_jax import data
from vdm_jax.data import chorales, prepare
from vdm_jax.data.chorales import Pieces
from vdm_jax.errors import InputError


class _Pitch:
  def __init__(self, midi):
    self.midi = midi


class _Note:
  def __init__(self, offset, length, *pitches):
    self.offset, self.quarterLength = offset, length
    self.pitches = [_Pitch(u) for u in pitches]


class _Part:
  def __init__(self, *notes):
    self.notes = notes

  def flatten(self):
    return self


class _Tonic:
  pitchClass = 7


class _Key:
  tonic, mode = _Tonic, 'major'


class _Score:
  """What `chorales` asks of a score of music21: one bar in G major."""

  def __init__(self, voices=4, last=72):
    self.parts = [_Part(_Note(0.0, 1.0, 67), _Note(1.0, 0.5, 69), _Note(1.5, 0.5, last)),
                  _Part(_Note(0.0, 2.0, 62, 64)), _Part(_Note(0.5, 1.5, 59)),
                  _Part(_Note(0.0, 0.25, 55), _Note(0.25, 1.75, 43))][:voices]
    self.highestTime = 2.0

  def analyze(self, what):
    assert what == 'key'
    return _Key


BAR = np.array([[67] * 4 + [69] * 2 + [72] * 2, [64] * 8, [0] * 2 + [59] * 6, [55] + [43] * 7]).T


def test_a_bar_becomes_a_grid_of_sixteenths():
  np.testing.assert_array_equal(chorales.grid(_Score()), BAR)


def test_pieces_of_four_parts_are_kept_once_and_moved_to_c():
  pieces = chorales.collect([_Score(), _Score(3), _Score(), _Score(last=71)])
  assert pieces.lengths.tolist() == [8, 8] and pieces.shifts.tolist() == [5, 5]
  first, second = pieces.each(transposed=True, step=2)
  np.testing.assert_array_equal(first, np.where(BAR > 0, BAR + 5, 0)[::2])
  assert second[-1, 0] == 76
  digest = hashlib.sha256(np.concatenate([u.T.reshape(-1) for u in (BAR, pieces.each(False)[1])])
                          .astype('<i2').tobytes()).hexdigest()
  assert chorales.checksums(pieces)['untransposed, sixteenths'] == digest[:16]


@pytest.mark.parametrize('tonic, mode, shift', [
    (0, 'major', 0), (7, 'major', 5), (6, 'major', 6), (5, 'major', -5), (9, 'minor', 0),
    (4, 'minor', 5), (2, 'minor', -5)])
def test_keys_move_the_shortest_way(tonic, mode, shift):
  assert chorales.semitones(tonic, mode) == shift


def _pieces():
  rng = np.random.default_rng(0)
  lengths = np.array([160, 96, 64, 100, 128, 64, 96, 200], np.int32)
  return Pieces(rng.integers(40, 80, (lengths.sum(), 4)).astype(np.int16), lengths,
                rng.integers(-5, 7, 8).astype(np.int16))


def test_windows_of_a_piece_are_in_one_split(tmp_path):
  pieces = _pieces()
  assert chorales.write(pieces, str(tmp_path)) == str(tmp_path / 'chorales' / 'grids.npz')
  config = data.default_config()
  config.update(name='chorales', data_dir=str(tmp_path))
  d = data.Data(config)
  assert str(d.spec.x) == 'pitches 32 x 4 x 1, 128 levels'
  # Pieces 0 and 6 are for testing: 80 and 48 eighths.
  test = d.split('test').get(np.arange(len(d.split('test'))))['pitches'][..., 0]
  assert len(test) == 7 + 3
  own = pieces.each(True, 2)
  np.testing.assert_array_equal(test[1], own[0][8:40])
  np.testing.assert_array_equal(test[7], own[6][:32])
  assert len(d.split('train')) == sum((len(own[i]) - 32) // 8 + 1 for i in (1, 2, 3, 4, 5, 7))


def test_what_cannot_be_read_is_one_clear_line(tmp_path, monkeypatch):
  config = data.default_config()
  config.update(name='chorales:quarters', data_dir=str(tmp_path))
  with pytest.raises(FileNotFoundError, match='run `python scripts/prepare_data.py chorales'):
    data.Data(config).spec  # noqa: B018
  with pytest.raises(InputError, match='no piece of four parts'):
    chorales.collect([_Score(3)])
  with pytest.raises(InputError, match='the longest piece has 10 steps'):
    chorales.windows([np.zeros((10, 4), int)])
  monkeypatch.setitem(sys.modules, 'music21', None)
  with pytest.raises(InputError, match=r'music21, which is not installed.*vdm_jax\[music\]'):
    prepare.prepare('chorales', str(tmp_path))


@pytest.mark.long
def test_the_corpus_has_the_published_grids():
  """The checksums are those of an independent program.  Skipped without the package music21."""
  pytest.importorskip('music21')
  pieces = chorales.read()
  assert len(pieces.lengths) == 329 and chorales.checksums(pieces) == chorales.KNOWN
  train, test = chorales.splits(pieces, 2)
  assert (len(train), len(test)) == (274, 55)
  assert len(chorales.windows(train)) + len(chorales.windows(test)) == 3395
