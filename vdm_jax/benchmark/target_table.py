"""The table of all published configs on machines that need not be here, filled row by row.

A row is a config, a machine and a layout, with the largest batch that fits.  Each row is compiled
in a process of its own, because a compiler that fails can end its process.  The table keeps each
row as soon as it is known.  A second call goes on with the rows that are open.
"""
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import tqdm

from vdm_jax import measured
from vdm_jax.benchmark import compiled, machines, memory
from vdm_jax.errors import require

CONFIGS = (*memory.PUBLISHED, 'imagenet/dit:DiT-XL/2', 'published/latent:stable-diffusion-v1')
MACHINES = ('h200', 'h200x8', 'v5e:4x4', 'v5p:4x4x4', 'v6e:16x16')
# The names of the figures of `compiled.account`.
COLUMNS = ('fits', 'batch size', 'total bytes', 'collectives', 'sent by each bytes', 'kernels',
           'flop on each device', 'moved bytes', 'arithmetic seconds', 'memory seconds',
           'summed seconds', 'longest seconds', 'share of peak longest')
OPEN = '-'


def rows() -> dict[str, list[str]]:
  """{name of a row: the flags of `benchmark.py compile`, with a config relative to its folder}."""
  return {f'{config} on {machine}, {layout}': [config, machine, layout]
          for config in CONFIGS for machine in MACHINES for layout in compiled.LAYOUTS
          # On one device, both layouts are the same program.
          if layout == 'jit' or machines.machine(machine).count > 1}


def cells() -> list[list[str]]:
  """The header and the rows of the table before anything is compiled."""
  return [['step', *COLUMNS], *[[name, *[OPEN] * len(COLUMNS)] for name in rows()]]


def open_rows(file: str | Path, target: str = '') -> list[str]:
  """The rows of the table in `file` that are not filled; target: only those of this machine."""
  table = measured.read(file)
  return [row[0] for row in table.rows if row[0] in rows() and set(row[1:]) == {OPEN}
          and target in ('', rows()[row[0]][1])]


def command(name: str, file: str | Path, script: Path, configs: Path) -> list[str]:
  """The command that fills a row."""
  config, machine, layout = rows()[name]
  stem, colon, variant = config.partition(':')
  return [sys.executable, str(script), 'compile', f'--config={configs / stem}.py{colon}{variant}',
          '--config.model.dtype=bfloat16', f'--config.train.layout={layout}',
          f'--target={machine}', '--largest', f'--measured={file}', f'--row={name}']


def check_target(target: str) -> None:
  """Raises InputError unless the table has this machine; '': all its machines."""
  require(target in ('', *MACHINES), 'target', target, 'the table has no such machine',
          f'name one of {", ".join(MACHINES)}')


def fill(file: str | Path, script: Path, configs: Path, target: str = '',
         run: Callable[[Sequence[str]], int] | None = None) -> dict:
  """Fills the open rows of the table in `file`.

  Args:
    script: scripts/benchmark.py.
    configs: the folder of the published configs.
    target: only the rows of this machine; '': of all.
    run: runs a command and returns its exit status.

  A row whose command fails stays open, and the next one is tried.  Raises InputError if the file is
  another table, or if the compiler for a machine of the open rows is not installed.
  """
  require(measured.read(file).columns == cells()[0], 'measured', str(file), 'it is another table',
          'name a new file, or the table that this command made')
  names = open_rows(file, target)
  if run is None:
    for machine in dict.fromkeys(rows()[name][1] for name in names):
      machines.require_compiler(machines.machine(machine))
    run = lambda words: subprocess.run(words, stdout=subprocess.DEVNULL).returncode
  failed = []
  with tqdm.tqdm(names, desc='rows', unit='row', dynamic_ncols=True) as bar:
    for name in bar:
      bar.set_postfix_str(name)
      if run(command(name, file, script, configs)):
        failed.append(name)
  return {'command': 'targets', 'rows_filled': len(names) - len(failed), 'failed': len(failed),
          'rows_open': len(open_rows(file)), 'failures': [{'row': name} for name in failed] or None}
