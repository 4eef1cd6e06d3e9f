"""What evaluations share: the names of their files, a reader of the ledger, a table of means."""
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import rich.table

from vdm_jax.errors import InputError
from vdm_jax.ledger.tables import Ledger
from vdm_jax.machine import files
from vdm_jax.runs.provenance import FORMAT

__all__ = ['Files', 'ending', 'read', 'table']


def ending(split: str, step: int | None, average: str | None, examples: int | None,
           untold: bool = False) -> str:
  """The ending of the names of an evaluation's files.  None: as in the main evaluation.

  untold: whether the model is told nothing.
  """
  other = ['untold' if untold else None, None if split == 'test' else split,
           None if step is None else f'step{step}', average,
           None if examples is None else f'{examples}_examples']
  return ''.join(f'_{part}' for part in other if part is not None)


class Files(NamedTuple):
  """The files that one evaluation writes.  All their names have the same ending."""
  ledger: Path
  bits: Path
  bits_by_noise: Path
  curves: Path

  @classmethod
  def of(cls, directory: str | Path, ending: str = '') -> 'Files':
    name = lambda stem, suffix: Path(directory) / f'{stem}{ending}{suffix}'
    return cls(name('ledger', '.json'), name('bits', '.npz'), name('bits_by_noise', '.png'),
               name('curves', '.png'))

  @classmethod
  def of_ledger(cls, ledger: str | Path) -> 'Files':
    """The files of the evaluation with this ledger.  Raises InputError if it is not a ledger."""
    ledger = Path(ledger)
    if not (ledger.name.startswith('ledger') and ledger.suffix == '.json'):
      raise InputError(None, None, f'{ledger} is not a ledger',
                       'name a run, or a ledger*.json that an evaluation wrote')
    return cls.of(ledger.parent, ledger.stem.removeprefix('ledger'))


def read(where: str | Path) -> tuple[Files, Ledger]:
  """The files and the ledger of an evaluation.

  where: a directory, for its main evaluation; or the path of a ledger.

  Raises InputError if there is no ledger, or if it is damaged or of another version.
  """
  where = files.user_path('workdir', where)
  written = Files.of_ledger(where) if where.suffix == '.json' else Files.of(where)
  if not written.ledger.exists():
    directory, name = written.ledger.parent, written.ledger.name
    raise InputError(problem=f'{directory} has no {name}',
                     remedy=f'evaluate it first (scripts/evaluate.py --workdir={directory})')
  record = files.read_json(written.ledger, of=('dataset', 'checkpoint', 'rows'),
                           remedy='evaluate it again', newest=FORMAT)
  if 'checks' not in record:
    raise InputError(problem=f'{written.ledger} was written by an older version',
                     remedy='evaluate it again')
  return written, Ledger(**record)


def table(dataset: Mapping, checkpoint: Mapping, rows: Sequence[Mapping], digits: int
          ) -> rich.table.Table:
  """Means over the examples of a split, with their standard errors and meanings, for the screen.

  rows: each has a name, mean, standard_error (None if it has none) and meaning.
  """
  out = rich.table.Table(
      'quantity', 'mean', '+-', 'meaning', title=f'{dataset["name"]}, {dataset["split"]}: '
      f'{dataset["examples"]:,} examples, step {checkpoint["step"]:,} ({checkpoint["average"]})')
  for row in rows:
    error = row['standard_error']
    out.add_row(row['name'], f'{row["mean"]:.{digits}f}',
                '-' if error is None else f'{error:.{digits}f}', row['meaning'])
  return out
