"""The work of scripts/forecast.py: forecasts of a run, and their scores on its test rows."""
import csv
import io
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from vdm_jax import random
from vdm_jax.data import series
from vdm_jax.data.series import SERIES
from vdm_jax.errors import InputError, renamed, require, require_at_least
from vdm_jax.evaluation import forecasts
from vdm_jax.evaluation.distances import Estimated
from vdm_jax.evaluation.features import checksum
from vdm_jax.evaluation.forecasts import LEVELS, Scores
from vdm_jax.machine import files
from vdm_jax.runs import needs, pictures, reporting, workdir
from vdm_jax.runs.provenance import FORMAT, provenance
from vdm_jax.samplers.catalogue import Method
from vdm_jax.typing import Experiment, PyTree

__all__ = ['Forecast', 'NAMES', 'Rolling', 'evaluate', 'figures', 'forecast', 'preview']

NAMES = (*forecasts.NAMES, 'nats a row')  # of the measurements of `evaluate`

SHOWN = 3  # horizons of the past in a fan chart, at least


class Forecast(NamedTuple):
  """A forecast of the rows after a history."""
  levels: np.ndarray     # [Q]
  quantiles: np.ndarray  # [Q, H, C]
  mean: np.ndarray       # [H, C]
  names: tuple[str, ...]  # of the series


def forecast(directory: str | Path, source: str, out: str | Path = '', *,
             horizon: int | None = None, paths: int = 100, first_row: int = 0,
             levels: Sequence[float] = LEVELS, method: Method | None = None, seed: int = 0,
             average: str = '', step: int | str = 'latest', overwrite: bool = False
             ) -> tuple[Forecast, list[Path]]:
  """Forecasts the rows after the last row of a file, and the files that were written.

  Writes OUT.npz (`levels`, `quantiles` [Q, H, C], `mean`, `names`), OUT.csv (a line for each row
  and series) and OUT.png (a fan chart).  Renews report.html of the run.

  Args:
    source: a .npz, .npy or .csv with the columns of the run: see `data.series`.
    out: the .npz.  Default: forecast.npz in the run's directory.
    horizon: rows.  Default: as many as the run was trained to forecast.
    paths: S, from which the quantiles are taken.
    first_row: the number of the file's first row in the file of training, which the phases of
      `config.data.series.periods` follow.
    method: the sampler of a row.  Default: the model's own.

  Raises InputError for a run that does not forecast, a history that is too short, values that are
  not finite, columns of unequal lengths, and a file that is not there or lacks a column of the run.
  """
  for field, least, value in (('paths', 2, paths), ('horizon', 1, horizon),
                              ('first_row', 0, first_row), ('levels', 1, len(levels))):
    require_at_least(field, value, least)
  forecasts.require_levels(levels)
  out = files.output('out', out or Path(directory, 'forecast.npz'), '.npz', overwrite=overwrite)
  table, picture = (files.output('out', out.with_suffix(ending), ending, overwrite=overwrite)
                    for ending in ('.csv', '.png'))
  trained = workdir.load_trained(directory, average=average, step=step)
  model = _forecaster(trained, directory, method)
  windows = series.settings(trained.config.data)
  rows = horizon or model.horizon
  if not Path(source).exists():
    raise InputError('data', source, 'there is no such file', 'name a .npz or .csv file')
  with renamed({'config.data.name': 'data'}):
    read = series.read(source, windows.columns, windows.known)
    batch = series.ahead(read, windows, rows, first_row)
  program = _program(trained, paths, rows, method)
  drawn = np.asarray(program(trained.params, batch, random.each(random.key(seed), 1)))[0]
  _require_finite(drawn)
  at_levels = forecasts.quantiles(drawn[None], levels)[0]
  found = Forecast(np.asarray(levels), at_levels, drawn.mean(axis=0), read.names)
  if jax.process_index() == 0:
    files.save_npz(out, levels=found.levels, quantiles=at_levels, mean=found.mean,
                   names=np.array(read.names))
    files.write_text(table, _csv(found))
    pictures.save_png(picture, forecasts.fan(
        read.values[-SHOWN * rows:], _fan_levels(drawn), read.names))
    reporting.write(directory)
  return found, [out, table, picture]


class Rolling(NamedTuple):
  """The scores of forecasts that follow each other through the test rows of a run."""
  scores: Scores
  nats: Estimated | None  # -log p of a row, given all rows before it; over the test windows.  None:
                          # the model has no likelihood
  windows: int            # forecasts
  paths: int              # of each


def evaluate(directory: str | Path, out: str | Path = '', *, paths: int = 100,
             method: Method | None = None, seed: int = 0, average: str = '',
             step: int | str = 'latest', batch_size: int = 16, data_name: str = '',
             overwrite: bool = False) -> tuple[Rolling, list[Path]]:
  """Rolling evaluation: a forecast from every `horizon` rows of the test rows, given all before.

  Series count alike: each is divided by its mean absolute value over the rows of training.  Writes
  OUT.json with the scores, and OUT.png with the last forecast beside the series.  Renews
  report.html of the run.  Whole batches of forecasts are kept beside OUT until it is written.  So
  after a stop the same call goes on, and its result is the same bit for bit.

  Args:
    out: the .json.  Default: forecasts.json in the run's directory.
    batch_size: forecasts at a time.
    data_name: the file of the run, if it has moved.

  Raises InputError as `forecast` does.
  """
  require_at_least('paths', paths, 2)
  require_at_least('batch_size', batch_size)
  out = files.output('out', out or Path(directory, 'forecasts.json'), '.json', overwrite=overwrite)
  picture = files.output('out', out.with_suffix('.png'), '.png', overwrite=overwrite)
  trained = workdir.load_trained(directory, average=average, step=step, data_name=data_name)
  model = _forecaster(trained, directory, method)
  split = needs.split(trained, 'test')
  windows = series.settings(trained.config.data)
  read = series.read(str(Path(trained.config.data.name).expanduser()), windows.columns,
                     windows.known)
  before = read.values[:len(read) - windows.tested(len(read))]
  program = _program(trained, paths, model.horizon, method)
  nats_of = (jax.jit(lambda params, batch, keys: trained.experiment.model(params).row_nats(
      batch, keys)) if model.row_nats else None)
  sampler = model.method if method is None else method
  about = {'paths': paths, 'seed': seed, 'batch_size': batch_size, 'sampler': [
      sampler.name, np.asarray(sampler.times(model.recurrence.process)).tolist()],
           'weights': checksum(trained.params)}
  parts = out.with_name(f'{out.name}.parts')
  drawn, nats, target = [], [], []
  key = random.key(seed)
  with tqdm.tqdm(total=len(split), unit='forecast', dynamic_ncols=True,
                 disable=jax.process_index() != 0) as bar:
    for start in range(0, len(split), batch_size):
      # The last batch repeats its last window, so that one program serves all.
      rows = np.minimum(np.arange(start, start + batch_size), len(split) - 1)
      count = min(batch_size, len(split) - start)
      batch, keys = split.get(rows), random.per_example(key, jnp.asarray(rows))

      def make(batch=batch, keys=keys):
        of_rows = {'nats': nats_of(trained.params, batch, keys)} if nats_of else {}
        return {'paths': program(trained.params, batch, keys), **of_rows}
      tag = files.digest({**about, 'rows': rows.tolist(), 'given': checksum(batch)})[:24]
      # All processes forecast the same, and the first one alone keeps it.
      made = (files.kept(parts / f'{tag}.npz', make) if jax.process_index() == 0
              else jax.device_get(make()))
      drawn.append(made['paths'][:count])
      target.append(batch[SERIES][:count, -model.horizon:])
      if nats_of:
        nats.append(made['nats'][:count])
      bar.update(count)
  drawn, target = np.concatenate(drawn), np.concatenate(target)
  _require_finite(drawn)
  scores = forecasts.scores(target, drawn, read.names, 1.0 / _sizes(before, read.names))
  found = Rolling(scores, forecasts.mean(np.concatenate(nats)) if nats else None, len(drawn), paths)
  if jax.process_index() == 0:
    files.write_text(out, _json(found, trained))
    past = split.get(np.array([len(split) - 1]))[SERIES][0, :-model.horizon]
    pictures.save_png(picture, forecasts.fan(past[-SHOWN * model.horizon:], _fan_levels(drawn[-1]),
                                             read.names, target[-1]))
    reporting.write(directory)
    if parts.is_dir():
      shutil.rmtree(parts)
  return found, [out, picture]


def preview(experiment: Experiment, params: PyTree, seed: int, names: Sequence[str]) -> np.ndarray:
  """uint8 [H, W, 3]: a fan chart of the last held-out window.  names: of the series."""
  part = experiment.data.split('validation')
  batch = part.get(np.array([len(part) - 1]))
  keys = random.each(random.key(seed), 1)
  drawn = np.asarray(jax.jit(lambda params, batch: experiment.model(params).forecast(batch, keys))(
      params, batch))[0]
  _require_finite(drawn)
  horizon, window = drawn.shape[1], batch[SERIES][0]
  return pictures.of_figure(forecasts.fan(window[:-horizon][-SHOWN * horizon:], _fan_levels(drawn),
                                          names, window[-horizon:]))


def figures(found: Rolling) -> dict[str, str]:
  """The measurements as text by `NAMES`, for a row of a table."""
  nats = '-' if found.nats is None else f'{found.nats.value:.2f} +- {found.nats.error:.2f}'
  return forecasts.figures(found.scores) | {NAMES[-1]: nats}


def _forecaster(trained: workdir.Trained, directory: str | Path, method: Method | None):
  """The run's forecaster.  Raises InputError."""
  needs.finite(trained)
  model = needs.require(trained.experiment.model(trained.params), 'forecast', directory)
  if method is not None:
    require(not (method.variances or method.head or method.ends), 'sampler', method.name,
            'it needs more of a model than its estimates', 'choose another sampler')
  return model


def _program(trained: workdir.Trained, paths: int, horizon: int, method: Method | None):
  """(params, batch, keys) -> paths, compiled once for batches of one shape."""
  def run(params, batch, keys):
    return trained.experiment.model(params).forecast(batch, keys, paths=paths, horizon=horizon,
                                                     method=method)
  return jax.jit(run)


def _require_finite(drawn: np.ndarray) -> None:
  if not np.isfinite(drawn).all():
    row = int(np.argwhere(~np.isfinite(drawn))[:, -2].min())
    raise InputError('horizon', None, f'the paths are not finite from row {row + 1} of the '
                     'forecast on: the model feeds back what it never saw', 'forecast fewer rows, '
                     'or train longer')


def _sizes(before: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """The mean absolute value of each series, [C].  Raises InputError for a series of zeros."""
  sizes = np.abs(before.astype(np.float64)).mean(axis=0)
  for name, size in zip(names, sizes, strict=True):
    require(size > 0.0, 'config.data.series.columns', name, 'all its values before the test rows '
            'are 0, and scores are relative to their size', 'leave it out')
  return sizes


def _fan_levels(drawn: np.ndarray) -> dict[float, np.ndarray]:
  """{level: [H, C]} of the lines of a fan chart."""
  levels = sorted({0.5, *(0.5 + sign * central / 2 for central in forecasts.CENTRAL
                          for sign in (-1, 1))})
  return dict(zip(levels, forecasts.quantiles(drawn[None], levels)[0], strict=True))


def _csv(found: Forecast) -> str:
  """A line for each row and series: its mean and its quantiles."""
  text = io.StringIO()
  writer = csv.writer(text, lineterminator='\n')
  writer.writerow(['step', 'series', 'mean', *(f'q{level:g}' for level in found.levels)])
  for row, means in enumerate(found.mean):
    for i, name in enumerate(found.names):
      numbers = (means[i], *found.quantiles[:, row, i])
      writer.writerow([row + 1, name, *(f'{number:.7g}' for number in numbers)])
  return text.getvalue()


def _json(found: Rolling, trained: workdir.Trained) -> str:
  pair = lambda one: None if one is None else {
      'value': one.value, 'error': None if math.isnan(one.error) else one.error}
  scores = found.scores
  return json.dumps({
      'format': FORMAT, 'windows': found.windows, 'paths': found.paths,
      'dataset': {'name': trained.config.data.name, 'split': 'test'},
      'checkpoint': {'step': trained.step, 'average': trained.average},
      'scores': {'CRPS': pair(scores.crps), 'CRPS_sum': pair(scores.crps_sum), 'ND': scores.nd,
                 'NRMSE': scores.nrmse, 'nats': pair(found.nats)},
      'coverage': {f'{central:g}': pair(one) for central, one in scores.coverage.items()},
      'series': {name: pair(one) for name, one in scores.series.items()},
      'provenance': provenance()}, indent=1, allow_nan=False)
