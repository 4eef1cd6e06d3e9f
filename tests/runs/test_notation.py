"""MIDI files and piano rolls of grids: read back by the library that other programs use."""
import sys

import numpy as np
import pytest

from vdm_jax import data
from vdm_jax.data import fields
from vdm_jax.errors import InputError
from vdm_jax.likelihood.density import Density
from vdm_jax.runs import notation, pictures

GRID = np.zeros((8, 4, 1), np.uint8)
GRID[:, 0, 0] = [72, 72, 74, 74, 0, 76, 76, 77]
GRID[:, 3, 0] = 48


def test_a_midi_file_has_the_notes_of_the_grid(tmp_path):
  mido = pytest.importorskip('mido')
  notation.save_midi(tmp_path / 'a.mid', np.stack([GRID, GRID]), step=2)
  file = mido.MidiFile(tmp_path / 'a.mid')
  assert len(file.tracks) == 4
  sixteenth, found = file.ticks_per_beat // 4, []
  for voice, track in enumerate(file.tracks):
    now, begun = 0, {}
    for message in track:
      now += message.time
      if message.type == 'note_on':
        begun[message.note] = now
      elif message.type == 'note_off':
        found.append((voice, message.note, begun[message.note] / sixteenth, now / sixteenth))
  melody = [(0, 72, 0, 4), (0, 74, 4, 8), (0, 76, 10, 14), (0, 77, 14, 16)]
  whole = [*melody, (3, 48, 0, 16)]
  later = [(voice, pitch, first + 32, last + 32) for voice, pitch, first, last in whole]
  assert sorted(found) == sorted(whole + later)  # a bar of 16 sixteenths lies between


def test_a_piano_roll_has_a_row_for_each_pitch_and_the_soprano_on_top():
  unison = GRID.copy()
  unison[0, 1] = 72
  roll = notation.piano_roll(unison[None])[::4, ::4]
  low, high = 46, 79
  picture = roll[2:-2, 2:-2]
  assert picture.shape == (high - low + 1, 8, 3)
  soprano, bass = picture[high - 72, 0], picture[high - 48, 0]
  assert tuple(soprano) == (214, 69, 65) and tuple(bass) == (52, 104, 178)
  assert (picture[high - 48] == bass).all() and (picture[high - 76, 4] == 255).all()
  assert (picture[high - 60] == 225).all()  # no note: the line of a C


def test_music_is_known_by_its_field():
  spec = data.Spec('chorales', (fields.integers('pitches', (32, 4, 1), 128),))
  assert notation.is_music(spec.x)
  assert not notation.is_music(fields.integers('image', (32, 4, 1), 128))
  assert [notation.sixteenths(name) for name in ('chorales', 'chorales:quarters', 'x.npz')] == [
      2, 4, 2]


def test_music_is_drawn_as_piano_rolls_wherever_examples_are_drawn():
  x = fields.integers('pitches', (8, 4, 1), 128)
  music = np.stack([GRID, np.where(GRID > 0, GRID + 2, 0)])
  roll = notation.piano_roll(music)
  np.testing.assert_array_equal(pictures.of_samples(music, x), roll)
  # Two frames of one piece stand side by side.
  np.testing.assert_array_equal(pictures.of_paths(music[:, None], x), roll)
  flat = np.zeros(2)
  bound = Density(np.array([-1.0, 0.0, 1.0]), flat, flat, np.zeros(3), np.zeros(3), None,
                  np.zeros(2, bool))
  row = {'parts': {}, 'dataset': {'name': 'made', 'split': 'test', 'field': 'pitches',
                                  'levels': 128, 'shape': (8, 4, 1)}}
  drawn = pictures.bits_by_noise(bound, np.arange(2.0), music, np.arange(2.0), x, row).axes[3]
  np.testing.assert_array_equal(drawn.images[0].get_array(), notation.piano_roll(music, 1))
  assert 'the most likely examples' in drawn.get_title()


def test_without_mido_the_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'mido', None)
  with pytest.raises(InputError, match=r'mido, which is not installed.*vdm_jax\[music\]'):
    notation.save_midi(tmp_path / 'a.mid', GRID[None])
  assert not (tmp_path / 'a.mid').exists()
