"""The flags --measured and --row: files for the tables of commands, as in docs/measured."""
import platform
import sys
from collections.abc import Mapping, Sequence

import jax
from absl import flags

from vdm_jax import measured as measured_lib
from vdm_jax.benchmark import hardware
from vdm_jax.cli.flags import path

flags.disclaim_key_flags()  # what is defined here belongs to the command, for its --help


def measured() -> flags.FlagHolder:
  """Defines --measured, the file for a command's table."""
  return path('measured', 'A .json file for the table, with date, machine and versions (the format '
              'of docs/measured).')


def row() -> flags.FlagHolder:
  """Defines --row, the row of a table that exists."""
  return flags.DEFINE_string('row', '', 'With --measured: update only this row, its minutes '
                             'and bits/dim.')


def keep_row(file: str, name: str, cells: Mapping[str, str]) -> None:
  """Writes `cells` into one row of the table in `file`; see `measured.with_cells`.

  The table states a date, a machine and a version of JAX.  If the row differs, the last of the
  cells says so.
  """
  if jax.process_index() != 0:
    return
  from vdm_jax.runs.provenance import provenance  # see `keep`
  table, origin = measured_lib.read(file), provenance()
  own = {origin['date'][:10]: table.date, hardware.device_name(): table.machine,
         f'jax {origin["jax"]}': f'jax {table.versions.get("jax")}'}
  if differs := [here for here, there in own.items() if here != there]:
    last = list(cells)[-1]
    cells = {**cells, last: f'{cells[last]} ({", ".join(differs)})'}
  measured_lib.write(file, measured_lib.with_cells(table, name, cells))
  print(f'wrote {name} in {file}', file=sys.stderr)


def keep(file: str | None, title: str, cells: Sequence[Sequence[str]]) -> None:
  """Writes a header and rows to `file`, if one is given, with the command, machine and versions."""
  if not file or jax.process_index() != 0:
    return
  from vdm_jax.runs.provenance import provenance  # with all of `runs`, which takes its time
  origin, (header, *rows) = provenance(), cells
  measured_lib.write(file, measured_lib.Measurement(
      title, f'python {origin["command"]}', origin['date'][:10], hardware.device_name(),
      {'vdm_jax': origin['vdm_jax'], 'jax': origin['jax'], 'python': platform.python_version()},
      list(header), [list(row) for row in rows]))
  print(f'wrote {file}', file=sys.stderr)  # stdout may be a command's JSON
