"""Time series: columns of real numbers, one row for each step, and the windows of a run.

A file holds one row for each step, at equal distances in time:

  x.npz   `values` [N, C] and, if they have names, `names` [C]; or one array [N] for each column
  x.npy   [N, C] or [N]: the columns are called 0, 1, ...
  x.csv   a line of names, then a line for each step; a first column of dates is left out

An example of a run is a window of `history` + `horizon` rows.  Training windows begin at every row.
The last `test` rows are for testing: a test window begins every `horizon` rows, so its forecasts
follow each other without gap or overlap (rolling evaluation).  No training window reaches a test
row, but the history of a test window may.

The fields of a window are `series` [rows, C] and, if there are any, `features` [rows, F].  The
features are known for the future too: columns of the file that are `known`, and the phases of
`periods` in rows, as sine and cosine.  The rows of a file are counted from 0.
"""
import csv
import functools
import os
from collections.abc import Sequence
from typing import NamedTuple

import ml_collections
import numpy as np

from vdm_jax.data import arrays, fields
from vdm_jax.data.fields import Batch, Field
from vdm_jax.data.sources import Source, Store
from vdm_jax.errors import InputError, require, require_at_least

__all__ = ['FEATURES', 'NONE', 'SERIES', 'Series', 'Windows', 'ahead', 'column_names', 'declared',
           'default_config', 'features', 'open_series', 'read', 'settings']

SERIES, FEATURES = 'series', 'features'


class Windows(NamedTuple):
  """The windows of a run: the fields of `config.data.series`."""
  history: int = 0                # rows before the first forecast; 0: the data are no series
  horizon: int = 24               # rows that are forecast
  test: int = 0                   # rows at the end that are for testing; 0: a sixth of all
  columns: tuple[str, ...] = ()   # that are forecast; empty: all but the known ones
  known: tuple[str, ...] = ()     # columns whose future is known when a forecast is made
  periods: tuple[float, ...] = ()  # in rows, whose phases are features: 24 hours, 7 days, ...

  @property
  def rows(self) -> int:
    return self.history + self.horizon

  def tested(self, length: int) -> int:
    """The rows at the end of a series of `length` rows that are for testing."""
    return self.test or length // 6


NONE = Windows()  # of data that are no series


class Series(NamedTuple):
  """The rows of a file."""
  values: np.ndarray       # [N, C]      what is forecast, float32
  names: tuple[str, ...]   # [C]
  known: np.ndarray        # [N + M, K]  columns of which M >= 0 further rows may be known, float32

  def __len__(self) -> int:
    return len(self.values)


def default_config() -> ml_collections.ConfigDict:
  """The fields of `config.data.series`."""
  return ml_collections.ConfigDict(Windows()._asdict()).lock()


def settings(config: ml_collections.ConfigDict) -> Windows:
  """The windows of `config.data`, which may be older than its section `series`.

  Raises InputError for numbers that no window could have.
  """
  section = config.get('series')
  if section is None or not section.history:
    return NONE
  out = Windows(section.history, section.horizon, section.test, tuple(section.columns),
                tuple(section.known), tuple(section.periods))
  for name, least in (('history', 0), ('horizon', 1), ('test', 0)):
    require_at_least(f'config.data.series.{name}', getattr(out, name), least)
  for period in out.periods:
    require(period > 1.0, 'config.data.series.periods', out.periods,
            'a period is longer than one row', 'give numbers of rows, such as 24')
  return out


# --------------------------------------------------------------------- files


def read(path: str, columns: Sequence[str] = (), known: Sequence[str] = ()) -> Series:
  """The series in a file.

  Args:
    columns: those that are forecast, in this order.  Empty: all columns but the known ones.
    known: columns whose future is known.  If there are any, the file may go on after the last value
      of `columns`: these cells are empty (.csv) or NaN.

  Raises FileNotFoundError, or InputError: for columns that the file lacks or that have unequal
  lengths, for values that are not finite, and for a file that cannot be read.
  """
  if not os.path.exists(path):
    raise FileNotFoundError(f'there is no file {path}: see --config.data.name')
  table = _read_csv(path) if path.endswith('.csv') else _read_arrays(path)
  for field, asked in (('columns', columns), ('known', known)):
    for name in asked:
      require(name in table, 'config.data.name', path, f'it has no column {name}', 'add it, or '
              f'set config.data.series.{field} to some of its columns: {", ".join(table)}')
  both = set(columns) & set(known)
  require(not both, 'config.data.series.known', sorted(both), 'these columns are also forecast',
          'leave them out of one of the two')
  names = tuple(columns) or tuple(name for name in table if name not in known)
  require(bool(names), 'config.data.name', path, 'it has no column to forecast',
          'name fewer known columns')
  values = np.stack([table[name] for name in names], axis=1)
  length = len(values)
  if known:  # the cells of the future are empty in all columns that are forecast
    present = np.flatnonzero(np.isfinite(values).any(axis=1))
    length = int(present[-1]) + 1 if present.size else 0
  values = values[:length]
  require(length > 0, 'config.data.name', path, 'it has no row', 'give it one row for each step')
  others = np.stack([table[name] for name in known], axis=1) if known else np.zeros((length, 0))
  _require_finite(path, names, values)
  _require_finite(path, tuple(known), others)
  return Series(values.astype(np.float32), names, others.astype(np.float32))


def column_names(path: str, windows: Windows) -> tuple[str, ...]:
  """The names of the columns that are forecast.  Raises FileNotFoundError, InputError as `read`."""
  return windows.columns or read(path, (), windows.known).names


def _require_finite(path: str, names: Sequence[str], values: np.ndarray) -> None:
  wrong = np.argwhere(~np.isfinite(values))
  if wrong.size:
    row, column = wrong[0]
    more = f', and so on in {len(wrong)} cells' if len(wrong) > 1 else ''
    raise InputError('config.data.name', path, f'{names[column]} has no finite number in row {row}'
                     f'{more}', 'fill the gaps, or leave this column out '
                     '(config.data.series.columns)')


def _read_arrays(path: str) -> dict[str, np.ndarray]:
  """The columns of a .npz or .npy file, by name, of one length.  Raises InputError."""
  try:
    if path.endswith('.npy'):
      found = {'values': np.load(path, allow_pickle=False)}
    else:
      with np.load(path, allow_pickle=False) as file:
        found = {key: file[key] for key in file.files}
  except (ValueError, OSError, EOFError, KeyError) as error:
    raise InputError('config.data.name', path, f'it cannot be read ({error})',
                     'save it with np.savez') from None
  if 'values' in found:
    values = found['values']
    require(values.ndim in (1, 2) and values.dtype.kind in 'fiub', 'config.data.name', path,
            f'its values are {values.dtype} {values.shape}', 'store numbers [N, C], one row for '
            'each step')
    values = values.reshape(len(values), -1)
    names = [str(one) for one in found.get('names', np.arange(values.shape[1])).tolist()]
    require(len(names) == values.shape[1], 'config.data.name', path, f'it has {len(names)} names '
            f'for {values.shape[1]} columns', 'give one name for each column')
    found = dict(zip(names, values.T, strict=True))
    require(len(found) == len(names), 'config.data.name', path, 'two columns have one name',
            'rename one of them')
  for name, one in found.items():
    require(one.ndim == 1 and one.dtype.kind in 'fiub', 'config.data.name', path,
            f'{name} is {one.dtype} {one.shape}, and a column is numbers [N]',
            'store one array [N] for each column, or `values` [N, C]')
  lengths = {name: len(one) for name, one in found.items()}
  if len(set(lengths.values())) > 1:
    least, most = min(lengths, key=lengths.__getitem__), max(lengths, key=lengths.__getitem__)
    raise InputError('config.data.name', path, f'its columns have unequal lengths: {least} has '
                     f'{lengths[least]} rows and {most} has {lengths[most]}',
                     'give every column one row for each step')
  require(bool(found), 'config.data.name', path, 'it has no column', 'store one array at least')
  return {name: one.astype(np.float64) for name, one in found.items()}


def _read_csv(path: str) -> dict[str, np.ndarray]:
  """The columns of a .csv file by name; an empty cell is NaN.  Raises InputError."""
  try:
    with open(path, newline='', encoding='utf-8-sig') as file:
      reader = csv.reader(file)
      lines = [(reader.line_num, line) for line in reader if line]
  except (UnicodeDecodeError, csv.Error) as error:
    raise InputError('config.data.name', path, f'it is no text of a table ({error})',
                     'save it as CSV in UTF-8') from None
  require(len(lines) > 1, 'config.data.name', path, 'it has no rows',
          'give a line of names, then a line for each step')
  (_, names), *rows = lines
  names = [name.strip() for name in names]
  require(not any(_is_number(name) for name in names), 'config.data.name', path,
          'its first line has numbers in the place of names', 'add a line with the names')
  require(len(set(names)) == len(names), 'config.data.name', path, 'two columns have one name',
          'rename one of them')
  for number, row in rows:
    require(len(row) == len(names), 'config.data.name', path, f'line {number} has {len(row)} cells '
            f'and the first line has {len(names)}', 'give every line one cell for each column')
  dates = all(cell[0].strip() and not _is_number(cell[0]) for _, cell in rows)
  return {name: np.array([_number(path, name, line, row[i]) for line, row in rows])
          for i, name in enumerate(names) if i or not dates}


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def _number(path: str, name: str, line: int, text: str) -> float:
  if not text.strip():
    return np.nan
  if not _is_number(text):
    raise InputError('config.data.name', path, f'{name} has {text!r} in line {line}, which is no '
                     'number', 'correct it, or leave the column out')
  return float(text)


# ------------------------------------------------------------------- windows


def features(windows: Windows, known: np.ndarray, rows: np.ndarray, first_row: int = 0
             ) -> np.ndarray:
  """The features of these rows: [..., F], float32.

  known: [N, K], the known columns; rows: integers [...] within them; first_row: the number that the
  first row would have in the file of training, which the phases of the periods follow.
  """
  angle = 2.0 * np.pi * (rows[..., None] + first_row) / np.array(windows.periods, np.float64)
  phases = np.concatenate([np.sin(angle), np.cos(angle)], axis=-1)
  return np.concatenate([phases, known[rows]], axis=-1).astype(np.float32)


def declared(windows: Windows, count: int) -> tuple[Field, ...]:
  """The fields of windows of `count` series."""
  of_rows = 2 * len(windows.periods) + len(windows.known)
  features = (fields.reals(FEATURES, (windows.rows, of_rows)),) if of_rows else ()
  return fields.reals(SERIES, (windows.rows, count)), *features


def open_series(path: str, windows: Windows) -> Store:
  """The windows of a file as a Store.

  Raises FileNotFoundError, or InputError as `read` does.  Raises InputError also if the series are
  too short for one window of training and one of testing.
  """
  series = read(path, windows.columns, windows.known)
  test = windows.tested(len(series))
  count = test // windows.horizon
  require(count >= 1, 'config.data.series.test', test, 'it is shorter than one forecast of '
          f'{windows.horizon} rows (config.data.series.horizon)', 'give more rows')
  starts = len(series) - test - windows.rows + 1  # of the windows that end before the test rows
  require(starts >= 1, 'config.data.name', path, f'it has {len(series)} rows, and needed are '
          f'{windows.rows + test}: {windows.history} of history, {windows.horizon} of the forecast '
          f'and {test} for testing', 'give a longer series, or shorter windows '
          '(config.data.series)')
  first = len(series) - test - windows.history
  before = Source('all before', starts, functools.partial(_read, series, windows, 0, 1))
  last = Source(f'the last {test} rows', count, functools.partial(
      _read, series, windows, first, windows.horizon))
  return Store(before, last, declared(windows, len(series.names)), '',
               functools.partial(arrays.marks, path))


def _read(series: Series, windows: Windows, first: int, stride: int, rows: np.ndarray) -> Batch:
  """The windows of these numbers: the first one begins at row `first`, others `stride` later."""
  steps = first + stride * np.asarray(rows)[:, None] + np.arange(windows.rows)
  return {SERIES: series.values[steps], FEATURES: features(windows, series.known, steps)}


def ahead(series: Series, windows: Windows, horizon: int, first_row: int = 0) -> Batch:
  """The batch of one forecast of the rows after the last one, without their values.

  Returns `series` [1, history, C] and `features` [1, history + horizon, F].  Raises InputError if
  the history is too short, or if the known columns end before the forecast does.
  """
  n = len(series)
  require(n >= windows.history, 'config.data.name', None, f'the series has {n} rows, and this '
          f'model reads {windows.history} before the first forecast', 'give a longer history')
  if windows.known:
    require(len(series.known) >= n + horizon, 'horizon', horizon, f'the known columns '
            f'({", ".join(windows.known)}) go on for {len(series.known) - n} rows after the last '
            'value', 'give their future, or forecast fewer steps')
    known = series.known
  else:
    known = np.zeros((n + horizon, 0), np.float32)
  steps = np.arange(n - windows.history, n + horizon)[None]
  return {SERIES: series.values[steps[:, :windows.history]],
          FEATURES: features(windows, known, steps, first_row)}
