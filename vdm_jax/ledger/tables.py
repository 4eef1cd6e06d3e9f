"""The ledger: each measured quantity with its data, its error and its cost.

"bits/dim" is the name of at least six different quantities in the literature.  A row names its
estimate and its model.  The ledger names the weights, the images and the configuration, and says
whether the relations between its rows hold (`relations`).
"""
import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import rich.box
import rich.console
import rich.table
import rich.text

from vdm_jax.units import BITS_PER_DIM, NATS_PER_DIM, Unit, nats_of

__all__ = ['Ledger', 'caution', 'cells', 'check_cells', 'check_columns', 'columns', 'explained',
           'heading', 'number', 'one', 'rows_table', 'table', 'terms', 'units', 'verdict']


class Ledger(NamedTuple):
  dataset: dict       # name, split, version, examples, sha256 of the decoded examples; field, shape
                      # and levels of one, with levels None of real numbers
  checkpoint: dict    # step, average, and first_weights: the share of those in the average;
                      # untold: true if the label or the text was dropped
  rows: list[dict]
  config: dict
  checks: list[dict]  # what `relations.check` found
  provenance: dict = {}  # versions, commit, date, command; empty of an older version
  format: int = 0        # of the file; 0 of an older version

  def to_json(self) -> str:
    return json.dumps(self._asdict(), indent=2, allow_nan=False)

  def __repr__(self) -> str:
    """The `table` as text."""
    return _printed(self).export_text().strip()

  def _repr_html_(self) -> str:
    """The `table` for a notebook."""
    return _printed(self).export_html(inline_styles=True, code_format='<pre>{code}</pre>')


# -------------------------------------------------------------------- on screen

_SHORT = {'reverse SDE': 'SDE', 'probability flow': 'ODE', 'chain': 'chain',
          'upper bound': 'bound', 'estimate': 'estimate', 'code length': 'code',
          'reconstruction': 'recon.', 'diffusion': 'diff.'}
_UNBROKEN = '\N{NO-BREAK SPACE}'
_EXPLAINED = ('bound: an upper bound on the negative log-likelihood of its own model.  +-: '
              'standard error over examples (over draws).  calls: calls of the network for an '
              'example; a product of its Jacobian counts as one more.')
_FLOW = ('ODE and SDE are different models unless the score is exact: either row may be the '
         'lower one.')
_ENERGY = (
    'energy: the density exp(-E) / Z of z at t = 0.  Data enter it by the noise of t = 0 and the '
    'decoder of the model.  Annealed importance sampling gives a lower bound of log Z in '
    'expectation, and so an upper bound of the likelihood: with log Z itself, the row would be '
    'higher.')
_UNEVEN = 0.3  # nats: the error of log Z from which few chains have most of the weight
_CODE = 'code: the net bits of examples that were encoded, decoded again and found equal.'
_PLAIN = {'box': rich.box.SIMPLE_HEAD, 'show_edge': False, 'pad_edge': False,
          'padding': 0}


_WORDS = ('estimate', 'kind', 'of', 'what must hold', '')  # all other columns are numbers


def units(dataset: Mapping) -> tuple[Unit, ...]:
  """The units of a ledger's numbers, the first with the errors: bits/dim of discrete data.

  -log p of real numbers is in nats of an example, and in nats/dim.  A ledger of an older version
  has no shape, and bits/dim.
  """
  if _discrete(dataset) or 'shape' not in dataset:
    return (BITS_PER_DIM,)
  return nats_of(tuple(dataset['shape'])), NATS_PER_DIM


def _discrete(dataset: Mapping) -> bool:
  return dataset.get('levels', 0) is not None


def one(dataset: Mapping) -> str:
  """The word for one of the data.  A ledger of an older version has no field, or no shape either:
  then data of three axes are images.
  """
  pixels = (_discrete(dataset) and len(dataset.get('shape', 'hwc')) == 3
            and dataset.get('field', 'image') == 'image')
  return 'image' if pixels else 'example'


def _dataset(rows: Sequence[Mapping]) -> Mapping:
  return rows[0].get('dataset', {}) if rows else {}


def columns(dataset: Mapping) -> tuple[str, ...]:
  """The names of the columns of rows of these data."""
  first, *others = (unit.name for unit in units(dataset))
  return ('estimate', 'kind', 'of', first, '+-', *others, 'calls', f'{one(dataset)}s/s')


def check_columns(dataset: Mapping) -> tuple[str, ...]:
  """The names of the columns of checks of these data."""
  unit = units(dataset)[0]
  return ('what must hold', 'difference' + ('' if unit is BITS_PER_DIM else f', {unit.name}'), '+-',
          '')


def heading(ledger: Ledger) -> tuple[str, str]:
  """Two lines on the evaluation: the images, and the weights with the ends of the schedule."""
  data, weights, first = ledger.dataset, ledger.checkpoint, ledger.rows[0]
  untold = ', told nothing' if weights.get('untold') else ''
  count = f'{data["examples"]:,}'
  if data['examples'] < data['of']:  # the checksum is that of all
    count += f' of {data["of"]:,}'
  return (f'{data["name"]} {data["version"]}, {data["split"]}: {count} {one(data)}s, sha256 '
          f'{data["sha256"][:12]}',
          f'step {weights["step"]:,} ({weights["average"]}){untold}; '
          f'log-SNR {first["logsnr_max"]:.3f} to '
          f'{first["logsnr_min"]:.3f}')


def caution(ledger: Ledger) -> str:
  """A sentence if the first weights still make up over a tenth of the average, else ''."""
  weights = ledger.checkpoint
  if (share := weights.get('first_weights', 0.0)) <= 0.1:
    return ''
  return (f'{100 * share:.0f} % of the average {weights["average"]} are still the first weights, '
          'before any training: train longer, or evaluate --average=raw.')


def explained(rows: Sequence[Mapping]) -> list[str]:
  """The notes that a reader of these rows needs, one paragraph each."""
  flow = [_FLOW] if any(row['model'] == 'probability flow' for row in rows) else []
  energy = [_ENERGY] if any(row['model'] == 'energy' for row in rows) else []
  code = [_CODE] if any(row['kind'] == 'code length' for row in rows) else []
  return [_EXPLAINED, *flow, *energy, *code, *(
      f'{row["estimate"]}: +- leaves out {row["error_beside"]}.'
      for row in rows if row['error_beside']), *(
      _of_normaliser(row) for row in rows if 'log_normaliser' in row)]


def _of_normaliser(row: Mapping) -> str:
  """A paragraph on log Z, whose error is shared by all images."""
  error = row['log_normaliser_error']
  unit = units(row['dataset'])[0]
  shared = error * unit.per_bit / (math.log(2.0) * math.prod(row['dataset']['shape']))
  uneven = ('  Few chains have most of the weight, so neither number is trustworthy: take more '
            'steps.' if error > _UNEVEN else '')
  return (f'{row["estimate"]}: log Z is {row["log_normaliser"]:.3f} +- {error:.3f} nats.  The '
          f'column +- leaves out this error, which all {one(row["dataset"])}s share: {shared:.4f} '
          f'{unit.name}.{uneven}')


def table(ledger: Ledger) -> rich.console.Group:
  """The ledger for the screen, in its `units`: the rows, their terms, and the relations."""
  parts: list[rich.console.RenderableType] = [*heading(ledger)]
  if warning := caution(ledger):
    parts.append(rich.text.Text(warning, 'yellow'))
  parts += ['', rows_table(ledger.rows), *explained(ledger.rows), '', _sums(ledger.rows)]
  if ledger.checks:
    parts += ['', _checks(ledger.checks, ledger.dataset)]
  return rich.console.Group(*parts)


def _printed(ledger):
  console = rich.console.Console(width=100, record=True, file=io.StringIO(), force_jupyter=False)
  console.print(table(ledger))
  return console


def number(u: float | None, digits: int = 4) -> str:
  """A number as text for a table; '-' if it is unknown."""
  return '-' if u is None else f'{u:.{digits}f}'


def _short(name: str) -> str:
  return _SHORT.get(name, name)


def cells(row: Mapping) -> list[str]:
  """The cells of a row, one for each of `columns`."""
  calls = '-'
  if row['evaluations_per_image'] is not None:
    calls = f'{row["evaluations_per_image"]:.0f}'
    if row['evaluations_max'] > row['evaluations_per_image']:
      calls += f' (max {row["evaluations_max"]})'
  speed = row['images_per_second']
  first, *others = units(row.get('dataset', {}))
  shown = lambda name, unit: number(None if row[name] is None else row[name] * unit.per_bit)
  return [row['estimate'], _short(row['kind']), _short(row['model'] or '-'),
          shown('bits_per_dim', first),
          f'{shown("standard_error", first)} ({shown("standard_error_draws", first)})',
          *(shown('bits_per_dim', unit) for unit in others),
          calls, '-' if speed is None else f'{speed:.3g}']


def figures(ledger: Ledger) -> dict[str, str]:
  """{estimate: its bits/dim with the standard error over images} as text: '1.822 +- 0.014'.

  The last code length also has the names 'net rate', 'bound' (of its chain) and 'net minus bound'
  (their difference, image by image), if the ledger compares the two.  Beside a row of an energy,
  'log Z, nats' has its normaliser.
  """
  found = {row['estimate']: shown(row['bits_per_dim'], row['standard_error'])
           for row in ledger.rows}
  for row in ledger.rows:
    name = row['estimate']
    if 'log_normaliser' in row:
      found['log Z, nats'] = shown(row['log_normaliser'], row['log_normaliser_error'])
    bound = name.replace('codec', 'vlb', 1)
    for check in ledger.checks:
      if row['kind'] == 'code length' and check['name'].startswith(f'{name} <= {bound},'):
        found |= {'bound': found[bound], 'net rate': found[name],
                  'net minus bound': shown(check['difference'], check['standard_error'])}
  return found


def date(ledger: Ledger) -> str:
  """The day of the evaluation, YYYY-MM-DD; '' of an older version, which did not keep it."""
  return ledger.provenance.get('date', '')[:10]


def shown(value: float, error: float | None) -> str:
  """A mean and its standard error, if it is known, as text: '1.822 +- 0.014'."""
  return number(value, 3) + ('' if error is None else f' +- {number(error, 3)}')


def terms(row: Mapping) -> str:
  """The terms of a row that is a sum, in the first unit; '' for other rows."""
  parts = row['parts'].values()
  if not (parts and math.isclose(sum(parts), row['bits_per_dim'], rel_tol=1e-4, abs_tol=1e-4)):
    return ''
  unit = units(row.get('dataset', {}))[0]
  shown = (f'{u * unit.per_bit:+.5f} {_short(name)}' for name, u in row['parts'].items())
  text = ' '.join(f'{u[0]} {u[1:]}'.replace(' ', _UNBROKEN) for u in shown)
  return text[2:] if text[0] == '+' else text.replace(_UNBROKEN, '', 1)  # as signs of a number


def verdict(check: Mapping) -> str:
  """'holds'; or 'VIOLATED' for a serious check, 'unusual' for another."""
  return 'holds' if check['passed'] else 'VIOLATED' if check['serious'] else 'unusual'


def check_cells(check: Mapping, dataset: Mapping) -> list[str]:
  """The cells of a check of these data, one for each of `check_columns`."""
  unit = units(dataset)[0]
  shown = lambda u: number(None if u is None else u * unit.per_bit, 5)
  return [check['name'], shown(check['difference']), shown(check['standard_error']),
          verdict(check)]


def _columns(names: Sequence[str]) -> rich.table.Table:
  # No divider and no margin: usual rows fit into 80 columns, and a longer one is folded.
  out = rich.table.Table(**_PLAIN)
  for name in names:
    out.add_column(name, justify='left' if name in _WORDS else 'right', overflow='fold')
  return out


def rows_table(rows: Sequence[Mapping]) -> rich.table.Table:
  """A line for each row of a ledger."""
  out = _columns(columns(_dataset(rows)))
  for row in rows:
    out.add_row(*cells(row))
  return out


def _sums(rows):
  """The rows that are sums, and their terms."""
  out = rich.table.Table(show_header=False, **_PLAIN)
  out.add_column(overflow='fold')
  out.add_column(overflow='fold')
  for row in rows:
    if text := terms(row):
      out.add_row(row['estimate'], text)
  return out


def _checks(checks, dataset):
  out, failures = _columns(check_columns(dataset)), []
  for check in checks:
    style = {'holds': '', 'VIOLATED': 'bold red', 'unusual': 'yellow'}[verdict(check)]
    out.add_row(*check_cells(check, dataset), style=style)
    if not check['passed']:
      failures.append(rich.text.Text(f'{check["name"]}: {check["meaning"]}.', style))
  return rich.console.Group(out, *failures)
