"""Several runs side by side: their ledgers, the best of them, and the spread over seeds."""
import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import rich.table

from vdm_jax.errors import InputError
from vdm_jax.ledger.tables import Ledger, number

__all__ = ['Evaluated', 'comparison', 'comparison_cells', 'failed', 'over_seeds', 'table']


class Evaluated(NamedTuple):
  """A run's ledger, and the bits/dim of every image [N] by estimate."""
  ledger: Ledger
  bits: Mapping[str, np.ndarray]


def failed(ledger: Ledger) -> list[str]:
  """The names of the relations that must hold in a ledger, and do not."""
  return [check['name'] for check in ledger.checks if check['serious'] and not check['passed']]


def comparison(runs: Mapping[str, Evaluated]) -> dict[str, dict[str, tuple[float, float | None,
                                                                           bool]]]:
  """{estimate: {run: (bits/dim, standard error over examples, whether it is among the best)}}.

  A run is among the best if it exceeds the lowest by less than two standard errors of the
  difference, image by image.  A run whose ledger has `failed` is not compared.
  Raises InputError if the ledgers are not of the same examples.
  """
  of = {name: run.ledger.dataset for name, run in runs.items()}
  first, *others = of
  for other in others:
    if any(of[first][key] != of[other][key] for key in ('sha256', 'examples')):
      what = lambda name: (f'{name} ({of[name]["name"]} {of[name]["version"]}, '
                           f'{of[name]["split"]}, {of[name]["examples"]} examples, sha256 '
                           f'{of[name]["sha256"][:12]})')
      raise InputError(problem=f'{what(first)} and {what(other)} are not of the same examples',
                       remedy='evaluate them on one data set, split and examples')
  columns = dict.fromkeys(row['estimate'] for run in runs.values() for row in run.ledger.rows)
  return {column: _column(column, runs) for column in columns}


def _column(estimate, runs):
  rows = {name: row for name, run in runs.items() for row in run.ledger.rows
          if row['estimate'] == estimate}
  sound = [name for name in rows if not failed(runs[name].ledger)]
  lowest = min(sound, key=lambda name: rows[name]['bits_per_dim'], default=None)

  def among_the_best(name):
    if name not in sound:
      return False
    excess = runs[name].bits[estimate] - runs[lowest].bits[estimate]
    if name == lowest or len(excess) < 2:
      return name == lowest
    return bool(excess.mean() <= 2.0 * np.std(excess, ddof=1) / math.sqrt(len(excess)))

  return {name: (row['bits_per_dim'], row['standard_error'], among_the_best(name))
          for name, row in rows.items()}


def comparison_cells(runs: Mapping[str, Evaluated]) -> list[list[str]]:
  """A header, and a line for each run; the best of each column is in **, as in Markdown.

  A run whose ledger has `failed` is marked, and is never best.
  """
  columns = comparison(runs)
  lines = [['run', *columns]]
  for name in runs:
    line = [f'{name} (failed checks)' if failed(runs[name].ledger) else name]
    for column in columns.values():
      value, error, best = column.get(name, (None, None, False))
      text = '-' if value is None else f'{value:.4f}' + ('' if error is None else f' ± {error:.4f}')
      line.append(f'**{text}**' if best else text)
    lines.append(line)
  return lines


def table(runs: Mapping[str, Evaluated]) -> rich.table.Table:
  """`comparison_cells` for the screen."""
  header, *lines = comparison_cells(runs)
  out = rich.table.Table(*header, caption='bits/dim ± standard error over examples; in **: no '
                         'run is better by two standard errors of the difference')
  for line in lines:
    out.add_row(*line)
  return out


def over_seeds(ledgers: Mapping[str, Ledger]) -> rich.table.Table:
  """Mean and standard deviation of bits/dim, by estimate, over runs that differ in their seed.

  The standard deviation (with n - 1) describes a single run; it is absent if there is only one run.
  """
  out = rich.table.Table('estimate', *ledgers, 'mean', 'std', title='bits/dim')
  for column in out.columns[1:]:
    column.justify = 'right'
  bits = [{row['estimate']: row['bits_per_dim'] for row in ledger.rows}
          for ledger in ledgers.values()]
  for name in dict.fromkeys(name for rows in bits for name in rows):
    values = [rows.get(name) for rows in bits]
    there = [value for value in values if value is not None]
    std = float(np.std(there, ddof=1)) if len(there) > 1 else None
    out.add_row(name, *map(number, [*values, float(np.mean(there)), std]))
  return out
