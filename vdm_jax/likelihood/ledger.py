"""The ledger: what was measured, on what, with which error, at what cost.

"bits/dim" is the name of at least six different quantities in the literature.  A row says which
one it is, and of which model; the ledger says for which weights, which images and which
configuration, and whether what must hold between its rows does (`relations`).
"""
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import rich.box
import rich.console
import rich.table
import rich.text

from vdm_jax.errors import InputError


class Ledger(NamedTuple):
  dataset: dict       # name, split, version, examples, sha256 of the decoded images
  checkpoint: dict    # step, average, and first_weights: the share of those in the average
  rows: list[dict]
  config: dict
  checks: list[dict]  # what `relations.check` found

  def to_json(self) -> str:
    return json.dumps(self._asdict(), indent=2, allow_nan=False)

  def __repr__(self) -> str:
    """Its `table`, as text."""
    return _printed(self).export_text().strip()

  def _repr_html_(self) -> str:
    """Its `table`, as a notebook shows it."""
    return _printed(self).export_html(inline_styles=True, code_format='<pre>{code}</pre>')


def standard_errors(values: np.ndarray) -> tuple[float | None, float | None]:
  """(over images, over repetitions of the draws) of the mean of `values` [R, N]; None where R or N
  is 1.

  The first is how far another test set of this size would move the result.  The second is
  how far other noise would; stratified times are not independent draws, so it is taken from whole
  repetitions, image by image: the draws of one image are independent of those of another, so that
  two repetitions suffice.  They are kept apart: the first includes the second.
  """
  r, n = values.shape
  over_images = float(np.std(values.mean(axis=0), ddof=1)) / math.sqrt(n) if n > 1 else None
  over_draws = math.sqrt(np.sum(np.var(values, axis=0, ddof=1)) / r) / n if r > 1 else None
  return over_images, over_draws


def row(about: Mapping, bits: Mapping[str, np.ndarray], evaluations: np.ndarray) -> dict:
  """A row of the ledger: `about` (what the estimate is) and the numbers.

  bits: of every image, 'total' and its parts, bits/dim [R, N]; evaluations: [R, N], of the network.
  """
  over_images, over_draws = standard_errors(bits['total'])
  repeats, examples = bits['total'].shape
  calls = evaluations.sum(axis=0)
  return {
      **about,
      'bits_per_dim': float(bits['total'].mean()),
      'standard_error': over_images,
      'standard_error_draws': over_draws,
      'parts': {name: float(u.mean()) for name, u in bits.items() if name != 'total'},
      'examples': examples,
      'repeats': repeats,
      'evaluations_per_image': float(calls.mean()),  # all repetitions together
      'evaluations_max': int(calls.max()),
  }


# -------------------------------------------------------------------- on screen

_SHORT = {'reverse SDE': 'SDE', 'probability flow': 'ODE', 'chain': 'chain',
          'upper bound': 'bound', 'estimate': 'estimate',
          'reconstruction': 'recon.', 'diffusion': 'diff.'}
_UNBROKEN = '\N{NO-BREAK SPACE}'
_EXPLAINED = ('bound: from above, on the negative log-likelihood of its own model.  +-: standard '
              'error over images (over draws).  calls: of the network, per image; a product of '
              'its Jacobian is one more.')
_FLOW = ('ODE and SDE are different models unless the score is exact: their rows may lie either '
         'way.')
_PLAIN = {'box': rich.box.SIMPLE_HEAD, 'show_edge': False, 'pad_edge': False,
          'padding': 0}


def table(ledger: Ledger) -> rich.console.Group:
  """The ledger for the screen, in bits/dim: the rows, what they consist of, what must hold."""
  data, weights = ledger.dataset, ledger.checkpoint
  count = f'{data["examples"]:,}'
  if data['examples'] < data['of']:  # the checksum is that of all
    count += f' of {data["of"]:,}'
  first = ledger.rows[0]
  parts: list[rich.console.RenderableType] = [
      f'{data["name"]} {data["version"]}, {data["split"]}: {count} images, sha256 '
      f'{data["sha256"][:12]}',
      f'step {weights["step"]:,} ({weights["average"]}); log-SNR {first["logsnr_max"]:.3f} to '
      f'{first["logsnr_min"]:.3f}']
  if (share := weights.get('first_weights', 0.0)) > 0.1:
    parts.append(rich.text.Text(
        f'{100 * share:.0f} % of the average {weights["average"]} are still the first weights, '
        'before any training: train longer, or evaluate --average=raw.', 'yellow'))
  parts += ['', _rows(ledger.rows), _EXPLAINED]
  if any(row['model'] == 'probability flow' for row in ledger.rows):
    parts.append(_FLOW)
  parts += [f'{row["estimate"]}: beside these errors {row["error_beside"]}.' for row in ledger.rows
            if row['error_beside']]
  parts += ['', _sums(ledger.rows)]
  if ledger.checks:
    parts += ['', _checks(ledger.checks)]
  return rich.console.Group(*parts)


def _printed(ledger):
  console = rich.console.Console(width=100, record=True, file=io.StringIO(), force_jupyter=False)
  console.print(table(ledger))
  return console


def _number(u, digits=4):
  return '-' if u is None else f'{u:.{digits}f}'


def _rows(rows):
  # No divider and no margin: usual rows fit into 80 columns, and a longer one is folded.
  out = rich.table.Table(**_PLAIN)
  for name in ('estimate', 'kind', 'of', 'bits/dim', '+-', 'calls', 'images/s'):
    out.add_column(name, justify='left' if name in ('estimate', 'kind', 'of') else 'right',
                   overflow='fold')
  for row in rows:
    calls = f'{row["evaluations_per_image"]:.0f}'
    if row['evaluations_max'] > row['evaluations_per_image']:
      calls += f' (max {row["evaluations_max"]})'
    speed = row['images_per_second']
    out.add_row(row['estimate'], _SHORT[row['kind']], _SHORT[row['model']],
                _number(row['bits_per_dim']),
                f'{_number(row["standard_error"])} ({_number(row["standard_error_draws"])})',
                calls, '-' if speed is None else f'{speed:.3g}')
  return out


def _sums(rows):
  """The rows that are sums, and their terms."""
  out = rich.table.Table(show_header=False, **_PLAIN)
  out.add_column(overflow='fold')
  out.add_column(overflow='fold')
  for row in rows:
    if row['family'] in ('vlb', 'immse'):
      shown = (f'{u:+.5f} {_SHORT.get(name, name)}' for name, u in row['parts'].items())
      text = ' '.join(f'{u[0]} {u[1:]}'.replace(' ', _UNBROKEN) for u in shown)
      out.add_row(row['estimate'], text.removeprefix('+' + _UNBROKEN))
  return out


def _checks(checks):
  out, failures = rich.table.Table(**_PLAIN), []
  for name in ('what must hold', 'difference', '+-', ''):
    out.add_column(name, justify='left' if name in ('what must hold', '') else 'right',
                   overflow='fold')
  for check in checks:
    style, verdict = (('', 'holds') if check['passed'] else
                      ('bold red', 'VIOLATED') if check['serious'] else ('yellow', 'unusual'))
    out.add_row(check['name'], _number(check['difference'], 5),
                _number(check['standard_error'], 5), verdict, style=style)
    if not check['passed']:
      failures.append(rich.text.Text(f'{check["name"]}: {check["meaning"]}.', style))
  return rich.console.Group(out, *failures)


# ---------------------------------------------------------------- several runs


class Evaluated(NamedTuple):
  """A run's ledger, and the bits/dim of every image [N] by estimate."""
  ledger: Ledger
  bits: Mapping[str, np.ndarray]


def failed(ledger: Ledger) -> list[str]:
  """The names of what must hold of a ledger, and does not."""
  return [check['name'] for check in ledger.checks if check['serious'] and not check['passed']]


def comparison(runs: Mapping[str, Evaluated]) -> dict[str, dict[str, tuple[float, float | None,
                                                                           bool]]]:
  """{estimate: {run: (bits/dim, standard error over images, whether it is among the best)}}.

  Among the best is what exceeds the lowest by less than two standard errors of the difference,
  image by image.  A run whose ledger has `failed` is compared with none.
  Raises InputError where ledgers are not of the same images.
  """
  of = {name: run.ledger.dataset for name, run in runs.items()}
  first, *others = of
  for other in others:
    if any(of[first][key] != of[other][key] for key in ('sha256', 'examples')):
      what = lambda name: (f'{name} ({of[name]["name"]} {of[name]["version"]}, '
                           f'{of[name]["split"]}, {of[name]["examples"]} images, sha256 '
                           f'{of[name]["sha256"][:12]})')
      raise InputError(f'{what(first)} and {what(other)} are not of the same images: evaluate them '
                       'on one data set, --split and --examples.')
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
  """A header, and a line for each run; the best of each column in **, as in Markdown.

  A run whose ledger has `failed` is marked, and is not best.
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


def over_seeds(ledgers: Mapping[str, Ledger]) -> rich.table.Table:
  """bits/dim by estimate of runs that differ in their seed: of each, their mean and their spread.

  The standard deviation is that of a single run, with n - 1; absent where there is but one.
  """
  out = rich.table.Table('estimate', *ledgers, 'mean', 'std', title='bits/dim')
  for column in out.columns[1:]:
    column.justify = 'right'
  found = [{row['estimate']: row['bits_per_dim'] for row in ledger.rows}
           for ledger in ledgers.values()]
  for name in dict.fromkeys(name for rows in found for name in rows):
    values = [rows.get(name) for rows in found]
    there = [value for value in values if value is not None]
    std = float(np.std(there, ddof=1)) if len(there) > 1 else None
    out.add_row(name, *map(_number, [*values, float(np.mean(there)), std]))
  return out


def markdown(cells: Sequence[Sequence[str]]) -> str:
  header, *lines = (f'| {" | ".join(line)} |' for line in cells)
  return '\n'.join([header, '|---' * len(cells[0]) + '|', *lines])
