"""The certificate as a table, as rows of the samplers' table, and as JSON."""
import json
import math
from collections.abc import Sequence
from typing import Any

import rich.table

from vdm_jax.certification.catalogue import ENTRIES, FROM_PYTHON
from vdm_jax.certification.exact import CURVES
from vdm_jax.certification.judging import CertificateRow, largest_deviation
from vdm_jax.samplers import catalogue

__all__ = ['as_json', 'cells', 'failed', 'table']


def table(rows: Sequence[CertificateRow]) -> rich.table.Table:
  """A line per sampler or claim, a column per curve: the slope, or the largest deviation."""
  columns = ['sampler', 'model', 'claims', 'calls', *CURVES]
  out = rich.table.Table(*columns, title='slopes of log error against log steps; deviations of '
                         'moments in standard deviations of the data; errors at a tolerance of '
                         '1e-5; distances of one exact step; differences of equals')
  lines = {}
  for row in rows:
    lines.setdefault((row.sampler, row.model), []).append(row)
  for (name, model), of in lines.items():
    orders = [row.claimed_order for row in of if row.claimed_order is not None]
    claims = f'order {max(orders):g}' if orders else of[0].kind
    cells = {row.curve: _cell(row) for row in of}
    calls = '' if of[0].kind == 'equality' else str(of[0].evaluations_per_step or 'adaptive')
    out.add_row(name, model, claims, calls, *(cells.get(c, '-') for c in CURVES))
  return out


def _cell(row: CertificateRow) -> str:
  if row.kind == 'order':
    text = 'exact' if row.measured_order is None else f'{row.measured_order:.2f}'
  elif row.kind == 'moments':
    text = f'{largest_deviation(row):.3f}'
  elif row.kind == 'exact':
    text = f'{row.detail["error"]:.0e}'
  elif row.kind == 'tolerance':
    text = f'{row.detail["errors"][-1]:.0e}'
  else:
    text = f'{row.detail["difference"]:.0e}'
  return text if row.passed else f'[bold red]{text} FAILS[/]'


def cells(rows: Sequence[CertificateRow]) -> list[list[str]]:
  """A header, and a line for each sampler of `ENTRIES` that has rows, by family.

  A line shows the range of measured orders, or the largest error or deviation.  Rows between the
  ends of the rectified flow count only for samplers that have no others.
  """
  lines = [['`--sampler=`', 'paper', 'order', 'calls a step', 'certified', 'good for']]
  family = None
  for name, entry in ENTRIES.items():
    every = [row for row in rows if row.sampler == name]
    of = [row for row in every if row.curve != 'ends'] or every
    if not of:
      continue
    if entry.family != family:
      family = entry.family
      lines.append([f'**{family}**', '', '', '', '', ''])
    slopes = [row.measured_order for row in of if row.measured_order is not None]
    if of[0].kind == 'exact':
      order, result = 'exact', f'one step to {max(row.detail["error"] for row in of):.0e}'
    elif entry.at_tolerance is not None:
      order, result = 'adaptive', f'{max(row.detail["errors"][-1] for row in of):.0e} at 1e-5'
    elif entry.stochastic:
      order = 'stochastic'
      result = f'moments to {max(map(largest_deviation, of)):.3f}'
    else:
      order, result = f'{entry.order:g}', f'{min(slopes):.2f} to {max(slopes):.2f}'
    mark = ' \\*' if entry.needs in catalogue.MISSING or name in FROM_PYTHON else ''
    calls = str(entry.evaluations or 'varies') + (
        f', and {entry.extra_evaluations} more' if entry.extra_evaluations else '')
    lines.append([f'`{name}`{mark}', entry.paper, order, calls, result, entry.use])
  return lines


def as_json(rows: Sequence[CertificateRow]) -> str:
  """The rows with all their data, as JSON.  Numbers that are not finite become null."""
  return json.dumps({'rows': _plain([row._asdict() for row in rows])}, allow_nan=False)


def _plain(value: Any) -> Any:
  if isinstance(value, dict):
    return {key: _plain(inner) for key, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(inner) for inner in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def failed(rows: Sequence[CertificateRow]) -> list[str]:
  """The samplers and claims with a row that did not pass."""
  return sorted({row.sampler for row in rows if not row.passed})
