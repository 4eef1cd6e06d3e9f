"""The flag --measured: a file for the table of a command, in the format of docs/measured."""
import platform
import sys
from collections.abc import Sequence

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
