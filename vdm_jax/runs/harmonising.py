"""The work of scripts/harmonise.py: voices to a melody or around a gap, judged by n-grams."""
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import rich.table

from vdm_jax import inverse
from vdm_jax.data import chorales
from vdm_jax.errors import InputError, require, require_at_least, require_choice
from vdm_jax.evaluation import distances, music
from vdm_jax.evaluation.distances import Estimated
from vdm_jax.evaluation.features import checksum
from vdm_jax.machine import files
from vdm_jax.runs import needs, notation, pictures, sampling, workdir
from vdm_jax.runs.restoring import draw_posterior
from vdm_jax.samplers import catalogue, conditioned
from vdm_jax.samplers.drawing import draw
from vdm_jax.systems.applications.music import KNOWN, known

__all__ = ['COLUMNS', 'METHODS', 'Result', 'Scored', 'cells', 'harmonise', 'score', 'table']

METHODS = ('replacement', 'repaint')  # of `samplers.conditioned`: both keep what is known
WINDOWS, SAMPLES = 'the data', 'samples'
COLUMNS = ('notes', 'known notes kept, %', 'bits a new note', 'the same notes of the data',
           'as in the data, %', 'pitch', 'duration', 'pitch, published', 'duration, published')
_FRAME = 8     # steps of the frames of overlap areas
_SHOWN = 4     # windows in the picture
_CHUNK = 128   # samples in a kept file


class Scored(NamedTuple):
  """The scores of drawn windows.  New notes are those that were not known.

  kept: the share of known notes that are as they were; None: no note was known.
  bits, bits_of_data: of a new note by the n-gram, and of the same note of the data.
  same: the share of new notes that are those of the data.
  areas, published: of pitch and of duration, by the two overlap areas of `evaluation.music`.
  """
  kept: float | None
  bits: Estimated
  bits_of_data: Estimated
  same: float
  areas: music.Consistency
  published: music.Consistency


class Result(NamedTuple):
  """What a command shows."""
  grids: dict[str, np.ndarray]  # [n, T, 4], by name: the windows, samples, and what was harmonised
  scores: dict[str, Scored]
  method: str


def harmonise(directory: str | Path, out: str | Path, *,
              method: conditioned.Method | None = None, given: Sequence[str] = KNOWN,
              split: str = 'test', count: int = 100, steps: int = 200, seed: int = 0,
              batch_size: int = 64, samples: str | Path = '', average: str = '',
              step: int | str = 'latest', overwrite: bool = False, data_dir: str = '') -> Result:
  """Draws the notes of windows that are not given, and windows without any, and scores both.

  Whole batches are kept beside `out` until it is written.  So after a stop the same call goes on,
  and its result is the same bit for bit.

  Args:
    out: a .png: the piano rolls of four windows in a row each, in the order of the scores.
    method: of `METHODS`.  Default: replacement.
    given: names of `systems.applications.music.KNOWN`.
    count: windows, evenly spread over the split.
    steps: of ancestral sampling.
    samples: an .npz or a .mid, to which all windows are written.

  The other arguments are those of `runs.evaluate`.

  Raises InputError before anything is compiled, for wrong arguments and for a run of other data.
  Raises FileNotFoundError if the chorales are not there.
  """
  directory = files.run_directory('workdir', directory)
  require_choice('split', split, ('train', 'validation', 'test'))
  for flag, value in {'count': count, 'steps': steps, 'batch_size': batch_size}.items():
    require_at_least(flag, value)
  for name in given:
    require_choice('given', name, KNOWN)
  method = method or conditioned.Replacement()
  require_choice('method', type(method).__name__.lower(), METHODS)
  out = files.output('out', out, '.png', overwrite=overwrite)
  kept = files.output('samples', samples, '.npz', '.mid', overwrite=overwrite) if samples else None
  if kept and kept.suffix == '.mid':
    notation.mido()  # refused now
  trained = workdir.load_trained(directory, average=average, step=step, data_dir=data_dir)
  name = trained.config.data.name
  require(name in chorales.STEPS, 'workdir', str(directory), f'its data are {name}, and the n-gram '
          'is one of chorales', 'name a run of configs/applications/chorales.py')
  model = needs.require(trained.experiment.model(trained.params), 'harmonise', directory)
  needs.require_prior(model, directory)
  part = needs.split(trained, split)
  rows = np.linspace(0, len(part) - 1, min(count, len(part))).round().astype(np.int64)
  windows = part.get(rows)[model.field]
  pieces = chorales.load(trained.config.data.data_dir)
  train, _ = chorales.splits(pieces, chorales.STEPS[name])

  times = np.linspace(1.0, 0.0, steps + 1)
  parts = out.with_name(f'{out.name}.parts')
  decode = jax.jit(model.decode)
  x = jax.jit(model.encode)(windows)
  grids = {WINDOWS: windows, SAMPLES: _samples(trained, len(rows), steps, seed, batch_size, parts)}
  for which in given:
    operator = inverse.kept(known(which, x.shape[1:]), which)
    about = {'given': which, 'method': type(method).__name__, **method._asdict(),
             'windows': checksum([windows])}
    drawn = draw_posterior(
        trained.experiment.model, trained.params, method, operator, 0.0, seed,
        np.asarray(operator(x)), 1, times, None, model.conditions, batch_size, parts, about, which)
    grids[which] = np.asarray(decode(drawn[:, 0]))
  grids = {key: np.asarray(u).reshape(*u.shape[:3]).astype(np.int64) for key, u in grids.items()}
  result = Result(grids, score(grids, train), type(method).__name__.lower())
  if kept:
    _save(kept, grids, chorales.STEPS[name])
  pictures.save_png(out, notation.piano_roll(
      np.concatenate([u[:_SHOWN] for u in grids.values()]), min(_SHOWN, len(rows))),
      {'method': result.method, **method._asdict(), 'steps': steps, 'seed': seed,
       'checkpoint': trained.step, 'average': trained.average, 'rows': ', '.join(grids)})
  if parts.is_dir():
    shutil.rmtree(parts)
  return result


def _samples(trained: workdir.Trained, count: int, steps: int, seed: int, batch_size: int,
             parts: Path) -> np.ndarray:
  """[count, T, 4, 1] samples of the model, which are kept in the folder `parts`."""
  model = trained.experiment.model(trained.params)
  how = catalogue.method('ancestral', steps)
  times = how.times(model.process)
  draws = lambda start: draw(
      trained.experiment.model, trained.params, how.make, times=times, start=start, stop=count,
      seed=seed, batch_size=batch_size, cond=model.conditions)
  parts.mkdir(parents=True, exist_ok=True)
  return sampling.draw_kept(parts / 'samples.npz', draws, count, _CHUNK, trained=trained,
                            about=sampling.settings(how, times, seed), cond=model.conditions)


def _save(path: Path, grids: Mapping[str, np.ndarray], step: int) -> None:
  if path.suffix == '.npz':
    files.save_npz(path, **{name.replace(' ', '_'): u.astype(np.uint8)
                            for name, u in grids.items()})
  else:
    notation.save_midi(path, np.concatenate(list(grids.values())), step)


# ------------------------------------------------------------------------ how well


def score(grids: Mapping[str, np.ndarray], train: Sequence[np.ndarray]) -> dict[str, Scored]:
  """The scores of grids [n, T, 4] by name; those of the data are named `WINDOWS`.

  train: grids [T, 4], to which the n-gram is fitted.
  """
  ngram = music.Voices.fit(train)
  real = grids[WINDOWS]
  bits = {name: np.stack([ngram.bits(one) for one in grid]) for name, grid in grids.items()}
  areas = {published: _areas(real, published) for published in (False, True)}
  out = {}
  for name, grid in grids.items():
    there = known(name, grid.shape[1:]) if name in KNOWN else np.zeros(grid.shape[1:], bool)
    each = lambda u, there=there: distances.mean(u[:, ~there].mean(axis=1))
    near = {published: music.consistency(_areas(grid, published), areas[published])
            for published in areas}
    out[name] = Scored(
        float((grid == real)[:, there].mean()) if there.any() else None, each(bits[name]),
        each(bits[WINDOWS]), float((grid == real)[:, ~there].mean()), near[False], near[True])
  return out


def _areas(grids: np.ndarray, published: bool) -> np.ndarray:
  """[K, 2], of all voices."""
  found = music.areas_of_voices(grids, _FRAME, _FRAME, published)
  if not len(found):
    raise InputError('count', len(grids), 'the windows have no two neighbouring frames of at least '
                     'two notes', 'take more windows')
  return found


def cells(found: Result) -> list[list[str]]:
  """The rows of the table, as text in the order of `COLUMNS`."""
  out = []
  for name, one in found.scores.items():
    own = name not in (WINDOWS, SAMPLES)
    pair = lambda c, i: f'{c.consistency[i]:.3f}, {c.variance[i]:.3f}'
    out.append([name, f'{100 * one.kept:.1f}' if one.kept is not None else '-', f'{one.bits:.2f}',
                f'{one.bits_of_data:.2f}' if own else '-',
                f'{100 * one.same:.0f}' if own else '-',
                *(pair(c, i) for c in (one.areas, one.published) for i in (0, 1))])
  return out


def table(found: Result) -> rich.table.Table:
  """The measurements for the screen."""
  out = rich.table.Table(*COLUMNS, title=f'{len(found.grids[WINDOWS])} windows, {found.method}')
  for row in cells(found):
    out.add_row(*row)
  return out
