"""Grids of pitches as MIDI files and as piano rolls.

A grid has a number for each step and voice: a MIDI pitch, or 0 for a rest (`data.chorales`).
"""
import importlib
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.data.chorales import PITCHES, STEPS
from vdm_jax.data.fields import Field
from vdm_jax.errors import InputError
from vdm_jax.evaluation.music import notes
from vdm_jax.machine import files

__all__ = ['is_music', 'mido', 'piano_roll', 'save_midi', 'sixteenths']

_TICKS = 120         # of a sixteenth
_TEMPO = 750_000     # microseconds of a quarter: 80 beats a minute
_PAUSE = 16          # sixteenths between two pieces
_VELOCITY = 72
_COLOURS = ((214, 69, 65), (232, 165, 53), (64, 145, 108), (52, 104, 178))  # soprano to bass
_SIDE = 4            # pixels of a step, and of a semitone


def is_music(field: Field) -> bool:
  """Whether examples of this field are grids of pitches, [T, voices, 1]."""
  return field.name == PITCHES and len(field.shape) == 3 and field.levels == 128


def sixteenths(data_name: str) -> int:
  """The sixteenths of a step of the data with this name; of unknown data, a step is an eighth."""
  return STEPS.get(data_name, 2)


def mido() -> Any:
  """The package mido.  Raises InputError if it is not installed."""
  try:
    return importlib.import_module('mido')
  except ImportError as error:
    raise InputError('out', '.mid', 'MIDI files are written by the package mido, which is not '
                     'installed', 'pip install "vdm_jax[music]", or choose .png or .npz') from error


def save_midi(path: str | Path, grids: np.ndarray, step: int = 2) -> None:
  """Writes grids [n, T, voices(, 1)] as one MIDI file, whole or not at all.

  The pieces follow each other, with a pause of a bar between them.  Each voice is a track.  A pitch
  that goes on is one held note.  step: sixteenths of a step.

  Raises InputError if mido is not installed.
  """
  library = mido()
  grids = np.asarray(grids)
  grids = grids.reshape(*grids.shape[:3])
  _, steps, voices = grids.shape
  file = library.MidiFile(type=1, ticks_per_beat=4 * _TICKS)
  for voice in range(voices):
    track = library.MidiTrack()
    file.tracks.append(track)
    if not voice:
      track.append(library.MetaMessage('set_tempo', tempo=_TEMPO))
    now = 0
    for i, grid in enumerate(grids):
      start = i * (steps * step + _PAUSE)
      for first, pitch, length in notes(grid[:, voice]).tolist():
        on, off = (_TICKS * (start + step * u) for u in (first, first + length))
        message = {'note': pitch, 'channel': voice % 16}
        track.append(library.Message('note_on', velocity=_VELOCITY, time=on - now, **message))
        track.append(library.Message('note_off', velocity=0, time=off - on, **message))
        now = off
  with files.atomic_write(path) as part:
    file.save(part)


def piano_roll(grids: np.ndarray, across: int = 4) -> np.ndarray:
  """uint8 [H, W, 3]: each grid [T, voices(, 1)] as a picture of time and pitch, a colour a voice.

  Grey lines are the octaves of C.  All pictures have the same range of pitches.
  """
  grids = np.asarray(grids)
  grids = grids.reshape(*grids.shape[:3])
  n, steps, voices = grids.shape
  sounding = grids[grids > 0]
  low, high = (int(sounding.min()), int(sounding.max())) if sounding.size else (60, 72)
  low, high = low - 2, high + 2
  across = min(across, n)
  down, gap = -(-n // across), 2
  sheet = np.full((down * (high - low + 1 + gap) + gap, across * (steps + gap) + gap, 3), 160,
                  np.uint8)
  for i, grid in enumerate(grids):
    picture = np.full((high - low + 1, steps, 3), 255, np.uint8)
    picture[[high - c for c in range(low, high + 1) if c % 12 == 0]] = 225
    for voice in reversed(range(voices)):  # the soprano lies on top
      sounds = grid[:, voice] > 0
      picture[high - grid[sounds, voice].astype(int), np.flatnonzero(sounds)] = (
          _COLOURS[voice % len(_COLOURS)])
    y, x = gap + i // across * (high - low + 1 + gap), gap + i % across * (steps + gap)
    sheet[y:y + high - low + 1, x:x + steps] = picture
  return sheet.repeat(_SIDE, axis=0).repeat(_SIDE, axis=1)
