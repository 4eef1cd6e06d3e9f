"""Measured tables: the JSON that a command writes, and the Markdown that a page shows.

A page encloses a table in two marks with its name.  Each mark stands alone on its line:

    <!-- measured: samplers -->
    ...
    <!-- /measured -->

scripts/render_docs.py renders the lines between the marks from docs/measured/samplers.json.  So a
page never shows a number that differs from the file.
"""
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import rich.table
import rich.text

from vdm_jax.errors import InputError
from vdm_jax.machine import files

__all__ = ['Measurement', 'cells', 'fill', 'markdown', 'named', 'pages', 'read', 'read_all',
           'render', 'shared', 'with_cells', 'write']

_MARKED = re.compile(
    r'^(?P<indent> *)<!-- measured: (?P<name>\S+) -->\n(?P<table>.*?)^ *<!-- /measured -->$',
    re.DOTALL | re.MULTILINE)


class Measurement(NamedTuple):
  """A table, and how it was measured.  Cells are text; their digits show the precision."""
  title: str
  command: str               # what writes it
  date: str                  # YYYY-MM-DD
  machine: str
  versions: dict[str, str]   # {package: version}
  columns: list[str]
  rows: list[list[str]]      # a cell for each column, as Markdown


def read(path: str | Path) -> Measurement:
  """The measurement in a file.  Raises InputError if the file is damaged."""
  record = files.read_json(path, Measurement._fields, 'measure it again')
  measurement = Measurement(**{name: record[name] for name in Measurement._fields})
  wrong = [row for row in measurement.rows if len(row) != len(measurement.columns)]
  if wrong:
    raise InputError(problem=f'{path} has {len(measurement.columns)} columns and a row of '
                     f'{len(wrong[0])} cells, {wrong[0]}', remedy='measure it again')
  return measurement


def write(path: str | Path, measurement: Measurement) -> None:
  """Writes a measurement as JSON with one line per row, so a changed row is a changed line."""
  *head, (name, rows) = measurement._asdict().items()
  text = json.dumps(dict(head), indent=2, ensure_ascii=False).removesuffix('\n}')
  lines = ',\n'.join(f'    {json.dumps(row, ensure_ascii=False)}' for row in rows)
  files.write_text(path, f'{text},\n  "{name}": [\n{lines}\n  ]\n}}\n')


def shared(table: Measurement, row: str, names: Iterable[str]) -> list[str]:
  """Those of `names` that are columns of the table, from left to right.

  The name of a column is its header without backticks, and without brackets at its end.

  Args:
    row: the first cell of a row, without its backticks.
    names: the names of measurements.

  Raises InputError if the table has no such row, or none of the columns.
  """
  rows = [_plain(line[0]) for line in table.rows]
  if row not in rows:
    raise InputError('row', row, f'the table {table.title!r} has no such row',
                     f'choose one of: {"; ".join(rows)}')
  names, columns = list(names), list(map(_name, table.columns))
  if not (common := [name for name in columns if name in names]):
    raise InputError('row', row, f'the table {table.title!r} has none of the columns '
                     f'{", ".join(names)}', 'name another --measured')
  return common


def with_cells(table: Measurement, row: str, cells: Mapping[str, str]) -> Measurement:
  """The table with other cells in one row.

  Args:
    row: the first cell of the row, without its backticks.
    cells: {the name of a column: text}.  Cells of columns that the table lacks are left out; see
      `shared`, also for the errors.
  """
  columns = list(map(_name, table.columns))
  places = {columns.index(name): cells[name] for name in shared(table, row, cells)}
  rows = [[places.get(i, cell) for i, cell in enumerate(line)] if _plain(line[0]) == row else line
          for line in table.rows]
  return table._replace(rows=rows)


def _plain(cell: str) -> str:
  return cell.replace('`', '')


def _name(column: str) -> str:
  return re.sub(r' \([^)]*\)$', '', _plain(column))


def cells(table: rich.table.Table) -> list[list[str]]:
  """The header and the rows of a table for the screen, without colours."""
  plain = lambda u: u.plain if isinstance(u, rich.text.Text) else (
      rich.text.Text.from_markup(str(u)).plain)
  header = [plain(column.header) for column in table.columns]
  rows = zip(*(column.cells for column in table.columns), strict=True)
  return [header, *[list(map(plain, row)) for row in rows]]


def markdown(lines: Sequence[Sequence[str]]) -> str:
  """A Markdown table of a header and rows of cells."""
  header, *rows = (f'|{"|".join(f" {cell} " if cell else " " for cell in line)}|'
                   for line in lines)
  return '\n'.join([header, '|---' * len(lines[0]) + '|', *rows])


def named(page: str) -> Iterator[str]:
  """The names of the tables that a page marks."""
  return (match['name'] for match in _MARKED.finditer(page))


def fill(page: str, measurements: Mapping[str, Measurement]) -> str:
  """The text of a page, with every marked table rendered.

  Raises InputError if a mark is not closed, or if its table is not in `measurements`.
  """
  def rendered(match: re.Match) -> str:
    name, indent = match['name'], match['indent']
    if name not in measurements:
      raise InputError(problem=f'no table {name!r} is measured',
                       remedy=f'name one of {", ".join(sorted(measurements))}')
    table = markdown([measurements[name].columns, *measurements[name].rows])
    lines = [f'<!-- measured: {name} -->', *table.splitlines(), '<!-- /measured -->']
    return '\n'.join(indent + line for line in lines)

  tables = list(_MARKED.finditer(page))
  opened = re.findall(r'^ *<!-- measured: .*$', page, re.MULTILINE)
  closed = re.findall(r'^ *<!-- /measured -->$', page, re.MULTILINE)
  if not len(tables) == len(opened) == len(closed):
    raise InputError(problem=f'{len(opened)} marks open a table and {len(closed)} close one, '
                     f'{len(tables)} of them in pairs',
                     remedy='close each by <!-- /measured --> before the next is opened')
  return _MARKED.sub(rendered, page)


def read_all(root: Path) -> dict[str, Measurement]:
  """{name: measurement} of all files in docs/measured of the checkout at `root`."""
  return {path.stem: read(path) for path in sorted((root / 'docs' / 'measured').glob('*.json'))}


def pages(root: Path) -> list[Path]:
  """The pages for users in the checkout at `root`."""
  pages = [root / 'README.md', root / 'CONTRIBUTING.md', root / 'CHANGELOG.md',
           *sorted((root / 'docs').rglob('*.md')), *sorted((root / 'configs').rglob('README.md'))]
  return [path for path in pages if path.exists()]


def render(root: Path) -> list[Path]:
  """Renders the marked tables of all pages; returns the pages that have changed."""
  measurements, changed = read_all(root), []
  for path in pages(root):
    text = path.read_text()
    if (filled := fill(text, measurements)) != text:
      files.write_text(path, filled)
      changed.append(path)
  return changed
