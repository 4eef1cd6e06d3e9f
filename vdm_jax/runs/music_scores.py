"""The work of scripts/score_music.py: what an n-gram of the training pieces says of music."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import ml_collections
import numpy as np
import rich.table
import tqdm

from vdm_jax import random
from vdm_jax.data import chorales
from vdm_jax.errors import require, require_at_least
from vdm_jax.evaluation import distances, music, references
from vdm_jax.evaluation.distances import Estimated
from vdm_jax.likelihood.passes import over_images
from vdm_jax.machine import files
from vdm_jax.runs import needs, sampling, workdir
from vdm_jax.samplers.catalogue import Method
from vdm_jax.typing import Denoises, Samples

__all__ = ['COLUMNS', 'NAMES', 'Scored', 'cells', 'figures', 'score', 'score_music', 'table']

WINDOWS, PIECES, SHUFFLED, DECODED, DRAWN = NAMES = (
    'test windows', 'test pieces', 'shuffled windows', 'after the autoencoder', 'samples')
COLUMNS = ('music', 'number', 'bits a step', 'bits a note', 'pitch', 'duration')
_PART = 8  # steps of a part of a window, and of the frames of overlap areas


class Scored(NamedTuple):
  """The scores of some grids."""
  count: int
  step: Estimated           # bits of a step of four notes by the n-gram; the error is over grids
  areas: music.Consistency  # with the test windows, of pitch and of duration


def score_music(directory: str | Path = '', *, data: str = '', samples: str | Path = '',
                method: Method | None = None, count: int = 100, seed: int = 0,
                average: str = '', step: int | str = 'latest', batch_size: int = 64,
                data_dir: str = '') -> dict[str, Scored]:
  """{name: scores} of the test pieces, of windows of them, and of the music of a run.

  The n-gram is `evaluation.music.Voices`, fitted to the training pieces.  The names are those of
  `NAMES` that there are:

    test windows           of the length of an example, every 8 steps
    test pieces            whole
    shuffled windows       the test windows, whose parts of 8 steps are exchanged at random
    after the autoencoder  the test windows, encoded and decoded, if the run is an autoencoder
    samples                of the run, or of a file

  Drawn samples are kept in the run's directory, so after a stop the same call goes on.

  Args:
    directory: a run, or '' if `data` is given.
    data: the name of chorales, such as chorales:quarters, if there is no run.
    samples: an .npz of `images`, as `runs.sample` writes it, or of `samples`, as
      `runs.harmonising` does: [n, T, 4] or [n, T, 4, 1].  Then nothing is drawn, and the run needs
      no checkpoint.
    method: the sampler and its grid.  Default: `catalogue.usual`.
    count: how many samples are drawn.
    seed: of the samples, of the latents, and of the exchange of parts.

  The other arguments are those of `runs.evaluate`.

  Raises InputError before anything is compiled, for wrong arguments and for a run of other data.
  Raises FileNotFoundError if the chorales are not there.
  """
  require(bool(directory) != bool(data), 'workdir', str(directory) or None,
          'a run or a name of data is needed, and not both', 'give workdir, or data')
  for flag, value in {'count': count, 'batch_size': batch_size}.items():
    require_at_least(flag, value, 2 if flag == 'count' else 1)
  run = files.run_directory('workdir', directory) if directory else None
  name, place = data, data_dir
  if run:
    config = workdir.read_config(run).get('data', ml_collections.ConfigDict())
    name, place = config.get('name', ''), data_dir or config.get('data_dir', '')
  require(name in chorales.STEPS, 'workdir' if run else 'data', str(run or data),
          f'its data are {name}, and the n-gram is one of chorales' if run else
          'these are no chorales', 'name a run of configs/applications/chorales.py' if run else
          f'choose one of {", ".join(chorales.STEPS)}')
  grids = {}
  if samples:
    grids[DRAWN] = _read(samples)
  elif run:
    grids = _made(run, method, count, seed, average, step, batch_size, data_dir)
  train, test = chorales.splits(chorales.load(place), chorales.STEPS[name])
  windows = chorales.windows(test)[..., 0].astype(np.int64)
  given = {WINDOWS: windows, PIECES: test, SHUFFLED: _shuffled(windows, seed), **grids}
  return score({name: given[name] for name in NAMES if name in given}, train)


def _read(path: str | Path) -> np.ndarray:
  """The grids of an .npz, [n, T, 4].  Raises InputError."""
  arrays = references.arrays(path, 'samples')
  found = next((arrays[key] for key in ('images', 'samples') if key in arrays), np.empty(0))
  shape = (*found.shape, 0, 0, 0)
  require(found.ndim in (3, 4) and found.size > 0 and shape[2:4] in ((4, 0), (4, 1))
          and np.issubdtype(found.dtype, np.integer) and 0 <= found.min()
          and found.max() < chorales.LEVELS, 'samples', str(path), f'it holds no pitches: '
          f'{", ".join(f"{key} {list(u.shape)}" for key, u in arrays.items()) or "nothing"}',
          'give `images` [n, steps, 4] of integers 0 .. 127')
  require(len(found) > 1, 'samples', str(path), 'one piece has no standard error', 'give more')
  return found.reshape(*found.shape[:3]).astype(np.int64)


def _made(run: Path, method: Method | None, count: int, seed: int, average: str,
          step: int | str, batch_size: int, data_dir: str) -> dict[str, np.ndarray]:
  """What the run makes, [n, T, 4]: samples, or the test windows after its autoencoder."""
  trained = workdir.load_trained(run, average=average, step=step, data_dir=data_dir)
  model = needs.require(trained.experiment.model(trained.params), 'score_music', run)
  if isinstance(model, (Denoises, Samples)):
    out = run / (f'scored_{method.name}.npz' if method else 'scored.npz')
    sampling.sample(run, out, method=method, count=count, seed=seed, average=average, step=step,
                    batch_size=batch_size, overwrite=True, data_dir=data_dir)
    return {DRAWN: _read(out)}
  require(method is None, 'sampler', method and method.name, 'this run is an autoencoder, which '
          'draws nothing', 'leave out --sampler, --steps, --grid and --eta')
  found = over_images(
      lambda of, batch, keys: {'data': of.reconstruct(batch[of.field], keys)},
      trained.experiment.model, trained.params, needs.split(trained, 'test'), random.key(seed),
      label='autoencoder', at_once=batch_size)['data'][0]
  return {DECODED: found.reshape(*found.shape[:3]).astype(np.int64)}


def _shuffled(windows: np.ndarray, seed: int) -> np.ndarray:
  """Windows [n, T, 4] of the same parts of `_PART` steps, in a random order of all parts."""
  parts = windows.reshape(-1, _PART, windows.shape[-1])
  return parts[np.random.default_rng(seed).permutation(len(parts))].reshape(windows.shape)


def score(grids: Mapping[str, Sequence[np.ndarray]], train: Sequence[np.ndarray]
          ) -> dict[str, Scored]:
  """The scores of grids [T, 4], some by each name; `WINDOWS` must be one of the names.

  train: grids [T, 4], to which the n-gram is fitted.

  Raises InputError for grids that are too short for overlap areas.
  """
  ngram = music.Voices.fit(train)
  near = {name: music.areas_of_voices(some, _PART, _PART) for name, some in grids.items()}
  out = {}
  with tqdm.tqdm(total=sum(map(len, grids.values())), desc='n-gram', unit='piece') as bar:
    for name, some in grids.items():
      bits = []
      for one in some:
        bits.append(ngram.bits(one).sum())
        bar.update()
      step = distances.ratio(np.array(bits), np.array([len(one) for one in some]))
      out[name] = Scored(len(some), step, music.consistency(near[name], near[WINDOWS]))
  return out


def cells(found: Mapping[str, Scored]) -> list[list[str]]:
  """The rows of the table, as text in the order of `COLUMNS`."""
  pair = lambda c, i: f'{c.consistency[i]:.3f}, {c.variance[i]:.3f}'
  return [[name, f'{one.count:,}', f'{one.step:.2f}', f'{_of_note(one.step):.3f}',
           *(pair(one.areas, i) for i in (0, 1))] for name, one in found.items()]


def _of_note(step: Estimated) -> Estimated:
  return Estimated(*(u / chorales.VOICES for u in step))


def figures(found: Mapping[str, Scored]) -> dict[str, str]:
  """Bits of a step as text by `NAMES`, for a row of a table."""
  return {name: f'{one.step:.2f}' for name, one in found.items()}


def table(found: Mapping[str, Scored]) -> rich.table.Table:
  """The measurements for the screen."""
  out = rich.table.Table(*COLUMNS, title='Music, by an n-gram of the training pieces')
  for row in cells(found):
    out.add_row(*row)
  return out
