"""The flags --measured and --row: files for the tables of commands, as in docs/measured."""
import platform
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import rich.table
from absl import flags

from vdm_jax import measured as measured_lib
from vdm_jax.benchmark import hardware
from vdm_jax.cli.flags import path
from vdm_jax.errors import InputError

flags.disclaim_key_flags()  # what is defined here belongs to the command, for its --help


def measured() -> flags.FlagHolder:
  """Defines --measured, the file for a command's table."""
  return path('measured', 'A .json file for the table, with date, machine and versions (the format '
              'of docs/measured).')


def row() -> flags.FlagHolder:
  """Defines --row, the row of a table that exists."""
  return flags.DEFINE_string('row', '', 'With --measured: update this row of a table that exists, '
                             'in the columns that the command measures.')


def check_row(file: str | None, name: str, columns: Iterable[str] = ()) -> None:
  """Raises InputError if `keep_row` could not write the row.  Call it before the work.

  Args:
    name: the value of --row.  '': no row is to be written.
    columns: the names of the measurements, if they are known before.
  """
  if name:
    table = _table(file, name)
    measured_lib.shared(table, name, columns or table.columns)


def keep_row(file: str | None, name: str, cells: Mapping[str, str], date: str = '') -> None:
  """`keep_rows` of one row."""
  keep_rows(file, {name: cells}, date)


def keep_rows(file: str | None, rows: Mapping[str, Mapping[str, str]], date: str = '') -> None:
  """Writes cells {row: {column: text}} into the table in `file`; see `measured.with_cells`.

  The table states a date, a machine and versions.  If all its rows are written, these are new.
  Otherwise the last new cell of a row says where the row differs.

  date: the day of the measurements, YYYY-MM-DD.  Default: today.

  Raises InputError, before anything is written, if the table cannot hold a row.
  """
  if jax.process_index() != 0:
    return
  from vdm_jax.runs.provenance import provenance  # see `keep`
  table, origin = _table(file, next(iter(rows))), provenance()
  date, machine = date or origin['date'][:10], hardware.device_name()
  if len(rows) == len(table.rows):
    table = table._replace(date=date, machine=machine, versions=_versions(origin))
  own = {date: table.date, machine: table.machine,
         f'jax {origin["jax"]}': f'jax {table.versions.get("jax")}'}
  differs = [here for here, there in own.items() if here != there]
  stamp = f' ({", ".join(differs)})' if differs else ''
  for name, cells in rows.items():
    last = measured_lib.shared(table, name, cells)[-1]
    table = measured_lib.with_cells(table, name, {**cells, last: cells[last] + stamp})
  measured_lib.write(str(file), table)
  print(f'wrote {", ".join(rows)} in {file}', file=sys.stderr)


def _table(file: str | None, name: str) -> measured_lib.Measurement:
  """The table in `file`, for the row `name`."""
  if not file:
    raise InputError('row', name, 'it is a row of a table, and no table is given',
                     'add --measured')
  return measured_lib.read(file)


def keep(file: str | None, title: str, cells: Sequence[Sequence[str]]) -> None:
  """Writes a header and rows to `file`, if one is given, with the command, machine and versions."""
  if not file or jax.process_index() != 0:
    return
  from vdm_jax.runs.provenance import provenance  # with all of `runs`, which takes its time
  origin, (header, *rows) = provenance(), cells
  measured_lib.write(file, measured_lib.Measurement(
      title, f'python {origin["command"]}', origin['date'][:10], hardware.device_name(),
      _versions(origin), list(header), [list(row) for row in rows]))
  print(f'wrote {file}', file=sys.stderr)  # stdout may be a command's JSON


def keep_table(file: str | None, row: str, title: str, table: rich.table.Table,
               figures: Callable[[], Mapping[str, str]]) -> None:
  """Keeps what a command measured: all of `table` by `keep`, or `figures` as one row.

  row: the value of --row.  '': the whole table is kept, if a file is given.
  """
  if row:
    keep_row(file, row, figures())
  else:
    keep(file, title, measured_lib.cells(table))


def _versions(origin: Mapping[str, str]) -> dict[str, str]:
  """{package: version} of a provenance, with Python's."""
  return {'vdm_jax': origin['vdm_jax'], 'jax': origin['jax'], 'python': platform.python_version()}
