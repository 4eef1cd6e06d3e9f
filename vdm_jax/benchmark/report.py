"""Shows the numbers of a measurement as tables or as JSON."""
import datetime
import json
from pathlib import Path

import jax
import ml_collections
import rich.box
import rich.console
import rich.table

from vdm_jax import measured
from vdm_jax.benchmark import hardware


def about(config_file: str | Path, config: ml_collections.ConfigDict) -> dict:
  """The circumstances of a measurement: config, devices, versions, date."""
  return {'config': str(config_file), 'blocks': config.model.get('blocks'),
          'features': config.model.get('features'),
          'batch_size': config.data.batch_size, 'layout': config.train.layout,
          'device': hardware.device_name(), 'devices': jax.device_count(),
          'processes': jax.process_count(), 'jax': jax.__version__,
          'date': datetime.datetime.now(datetime.UTC).strftime('%Y-%m-%d %H:%M UTC'),
          'model': config.model.to_dict()}


def as_json(result: dict) -> str:
  return json.dumps(result, indent=2, allow_nan=False)


def tables(title: str, result: dict, width: int = 80) -> list[rich.table.Table]:
  """One table of all single values, and one for each list of rows {column: value}.

  If the rows of a list do not fit into `width`, the table is turned, and split into as many tables
  as needed.  Dictionaries are only in the JSON.
  """
  single = rich.table.Table(title=title, box=rich.box.SIMPLE, show_header=False)
  out = [single]
  for name, value in result.items():
    if isinstance(value, list):
      cells = _cells(value)
      if _width(cells) <= width:
        out.append(_table(_words(name), cells))
        continue
      names, *columns = cells
      while columns:
        fitting = max((n for n in range(1, len(columns) + 1)
                       if _width(_turned([names, *columns[:n]])) <= width), default=1)
        out.append(_table(_words(name), _turned([names, *columns[:fitting]])))
        columns = columns[fitting:]
    elif not isinstance(value, dict):
      single.add_row(_words(name), text(name, value))
  return out


_turned = lambda cells: list(map(list, zip(*cells, strict=True)))


def _width(cells: list[list[str]]) -> int:
  """The width of an unfolded table of these rows, with two spaces around each column."""
  return sum(max(map(len, column)) + 2 for column in _turned(cells)) + 2


def _table(title: str, cells: list[list[str]]) -> rich.table.Table:
  header, *lines = cells
  out = rich.table.Table(*(rich.table.Column(u, overflow='fold') for u in header), title=title,
                         box=rich.box.SIMPLE_HEAD)
  for line in lines:
    out.add_row(*line)
  return out


def show(title: str, result: dict, json_only: bool) -> None:
  """Prints the result on process 0, as tables or as one JSON object."""
  if jax.process_index() != 0:
    return
  if json_only:
    print(as_json(result))
    return
  console = rich.console.Console()
  for table in tables(title, result, console.width):
    console.print(table)


def cells(result: dict) -> dict[str, list[list[str]]]:
  """{name: a header and rows} for each list.  Without lists, the rows are the single values."""
  lists = {name: _cells(rows) for name, rows in result.items() if isinstance(rows, list)}
  return lists or {'values': [['', ''], *[[_words(name), text(name, value)] for name, value in
                                          result.items() if not isinstance(value, dict)]]}


def figures(result: dict) -> dict[str, str]:
  """{name in words: text} of the single values, and of the values of dictionaries among them."""
  inner = {f'{name}_{key}': value for name, of in result.items() if isinstance(of, dict)
           for key, value in of.items()}
  return {_words(name): text(name, value) for name, value in {**result, **inner}.items()
          if not isinstance(value, (dict, list, tuple))}


def markdown(result: dict) -> str:
  """`cells` as tables of Markdown."""
  return '\n\n'.join(map(measured.markdown, cells(result).values()))


def _cells(rows: list[dict]) -> list[list[str]]:
  """A header and a line for each row; `a_error` stands behind `a` in the column of `a`."""
  errors = {f'{name}_error' for name in rows[0]}
  columns = [name for name, u in rows[0].items()
             if name not in errors and not isinstance(u, dict)]

  def cell(row, name):
    error = row.get(f'{name}_error')
    return text(name, row[name]) + ('' if error is None else f' ± {text(name, error)}')
  return [list(map(_words, columns)), *[[cell(row, name) for name in columns] for row in rows]]


def text(name: str, value) -> str:
  """A value as text, with the unit that its name ends in: seconds, bytes, FLOP, shares."""
  if value is None:
    return '-'
  if isinstance(value, bool):
    return 'yes' if value else 'no'
  if isinstance(value, str):
    return value
  if name.endswith('bytes'):
    return _scaled(value, 1024, ('B', 'KiB', 'MiB', 'GiB', 'TiB'))
  if 'flop' in name:
    unit = 'FLOP/s' if name.endswith('second') else 'FLOP'
    return _scaled(value, 1000, (unit, f'k{unit}', f'M{unit}', f'G{unit}', f'T{unit}', f'P{unit}'))
  if 'bits' in name:
    return f'{value:.5f}'
  if 'share' in name:
    return f'{100 * value:.2f} %'
  if 'seconds' in name or name.startswith('spread'):
    return f'{value:.4g} s'
  return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
  power = 0
  while abs(value) >= base and power < len(units) - 1:
    value, power = value / base, power + 1
  return f'{value:.4g} {units[power]}'


def _words(name: str) -> str:
  return name.replace('_', ' ')
