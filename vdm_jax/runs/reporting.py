"""The page that shows a run: report.html, one file that a browser opens anywhere.

The page shows what the run's directory holds at that moment: curves, evaluations, samples, data,
config, provenance.  A run of time series has forecasts in the place of evaluations and samples, and
a run of episodes has plans.  What `evaluate.py` measured of an autoencoder or a captioner is shown
there too.  A sentence stands in for a missing part.  The page loads nothing from outside and runs
no script, and its pictures are inside it.  Its text is ASCII, so that no encoding can spoil it.
"""
import base64
import contextlib
import functools
import html
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from absl import logging
from PIL import Image

from vdm_jax.data.fields import from_row
from vdm_jax.errors import InputError
from vdm_jax.ledger import tables
from vdm_jax.ledger.tables import Ledger
from vdm_jax.machine import files
from vdm_jax.runs import evaluations, workdir
from vdm_jax.runs.evaluations import Files
from vdm_jax.runs.provenance import provenance
from vdm_jax.train import metrics as metrics_lib
from vdm_jax.units import BITS_PER_DIM, NATS_PER_DIM, Unit

__all__ = ['page', 'write']

PICTURE_BYTES = 8 << 20  # a larger one is named, not shown
SAMPLES = 6              # pictures on the way
PARTS = 50               # of the data that are listed
POINTS = 500             # of a curve
_CAPTIONS = 12           # that are shown


def write(directory: str | Path, out: str | Path = '') -> None:
  """Writes report.html into `out`, or into the run's directory; on the first process alone.

  If that fails, it only warns, because the computed numbers matter more than their page.
  """
  if jax.process_index() != 0:
    return
  path = Path(out or directory) / 'report.html'
  try:
    files.write_text(path, page(directory, out))
  except Exception as error:
    logging.warning('%s was not written (%s: %s).', path, type(error).__name__, error)


def page(directory: str | Path, out: str | Path = '') -> str:
  """The page of the run in `directory`, as HTML.

  out: the directory of the run's evaluations, if not `directory`.  Raises InputError if there is no
  run.
  """
  directory = Path(directory)
  run = _Run(directory, workdir.record(directory), metrics_lib.read(directory),
             workdir.steps_made(directory), Path(out or directory),
             *_evaluations(Path(out or directory)))
  name = _text(directory.absolute().name)
  application = _application(run)
  sections = (application | {'Training': _training} if application else
              {'Likelihood': _likelihood, 'Training': _training, 'Samples': _samples})
  sections |= {'Data': _data, 'Config': _config, 'Provenance': _provenance}
  links = ''.join(f'<a href="#{title.lower()}">{title}</a> ' for title in sections)
  body = ''.join(f'<section id="{title.lower()}">\n<h2>{title}</h2>\n{_guarded(make, run)}'
                 '</section>\n' for title, make in sections.items())
  text = (f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{_HEAD}<title>{name}: vdm_jax</title>\n'
          f'<style>{_STYLE}</style>\n</head>\n<body>\n<header>\n<h1>{name}</h1>\n'
          f'{_guarded(_summary, run)}<nav aria-label="Sections">{links}</nav>\n</header>\n'
          f'<main>\n{body}</main>\n</body>\n</html>\n')
  return text.encode('ascii', 'xmlcharrefreplace').decode()


class _Run(NamedTuple):
  """The parts of the page."""
  directory: Path
  record: dict                       # of config.json
  metrics: list[dict]
  steps: int                         # made, by its newest checkpoint
  evaluated: Path                    # the directory of its evaluations
  ledgers: list[tuple[Files, Ledger]]  # the main evaluation first
  unread: list[str]                  # what is wrong with other ledgers


def _evaluations(directory: Path) -> tuple[list[tuple[Files, Ledger]], list[str]]:
  """(all evaluations of a directory, a sentence for each evaluation that cannot be read)."""
  read, unread = [], []
  for path in sorted(directory.glob('ledger*.json'), key=lambda path: path.stem):
    try:
      read.append(evaluations.read(path))
    except (InputError, TypeError) as error:  # damaged, or of another version
      unread.append(f'{path.name} is not shown: {error}')
  return read, unread


def _guarded(make: Callable[[_Run], str], run: _Run) -> str:
  """A part of the page.  If a damaged file spoils the part, a sentence says so instead."""
  try:
    return make(run)
  except Exception as error:
    return _paragraph(f'This part could not be made ({type(error).__name__}: {error}).', 'bad')


# -------------------------------------------------------------------- parts


def _application(run: _Run) -> dict[str, Callable[[_Run], str]]:
  """The section in the place of likelihood and samples, of a run that has neither."""
  data = run.record['config'].get('data', {})
  if data.get('series', {}).get('history'):
    return {'Forecasts': _forecasts}
  if data.get('episodes', {}).get('horizon'):
    return {'Plans': _plans}
  return {name.capitalize(): functools.partial(_means, name=name)
          for name, stem in _MEANS.items() if _of_means(run, stem)}


# Section -> the beginning of the names of its files: of an autoencoder and of a captioner.
_MEANS = {'reconstructions': 'reconstruction', 'captions': 'captions'}


def _of_means(run: _Run, stem: str) -> list[Path]:
  """The measurements of a run that has no ledger, the main evaluation first."""
  return sorted(run.evaluated.glob(f'{stem}*.json'), key=lambda path: path.stem)


def _summary(run: _Run) -> str:
  config = run.record['config']
  # A run may be older than a field, and a system need not have it.
  wanted = config.get('train', {}).get('steps')
  facts = {'data': config.get('data', {}).get('name', ''),
           'steps': f'{run.steps:,}' + (f' of {wanted:,}' if wanted else '')}
  for _, ledger in run.ledgers[:1]:
    first, checks = ledger.rows[0], ledger.checks
    facts[f'{first["estimate"]}, {ledger.dataset["split"]}'] = _value(first, ledger.dataset)
    verdicts = [tables.verdict(check).replace('holds', 'hold') for check in checks]
    facts['checks'] = ', '.join(f'{verdicts.count(one)} {one}' for one in dict.fromkeys(verdicts))
  facts |= _measured(run)
  items = ''.join(f'<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>\n'
                  for name, value in facts.items() if value)
  return f'<dl>\n{items}</dl>\n'


def _measured(run: _Run) -> dict[str, str]:
  """The first score of forecasts or plans, or the scores of reconstructions or captions."""
  scores, acted = (run.directory / name for name in ('forecasts.json', 'plans.json'))
  with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # their own section says so
    if scores.exists():
      crps = json.loads(scores.read_text())['scores']['CRPS']
      return {'CRPS, test': ' ± '.join(number for number in _with_error(crps) if number != '-')}
    if acted.exists():
      best = max(json.loads(acted.read_text())['asked'], key=lambda one: one['mean'])
      error = '' if best['error'] is None else f' ± {best["error"]:.1f}'
      return {f'mean return, told {best["return"]:.4g}': f'{best["mean"]:.1f}{error}'}
    for path in [path for stem in _MEANS.values() for path in _of_means(run, stem)][:1]:
      found = json.loads(path.read_text())
      return {f'{row["name"]}, {found["dataset"]["split"]}': ' ± '.join(
          number for number in _mean(row) if number != '-')
          for row in found['rows'] if row['name'] in ('psnr', 'accuracy', 'exact', 'BLEU')}
  return {}


def _value(row: Mapping, dataset: Mapping) -> str:
  """The value of a row with its error, and in further units if it has some."""
  unit, *others = tables.units(dataset)
  error = row['standard_error']
  text = f'{row["bits_per_dim"] * unit.per_bit:.4f}'
  text += f' {unit.name}' if error is None else f' ± {error * unit.per_bit:.4f} {unit.name}'
  return text + ''.join(f' ({row["bits_per_dim"] * other.per_bit:.4f} {other.name})'
                        for other in others)


def _likelihood(run: _Run) -> str:
  sentences = run.unread
  if not run.ledgers and not sentences:
    sentences = ['This run has not been evaluated yet: scripts/evaluate.py does it.']
  return ''.join(_evaluation(run, *one) for one in run.ledgers) + ''.join(
      _paragraph(sentence) for sentence in sentences)


def _evaluation(run: _Run, written: Files, ledger: Ledger) -> str:
  images, weights = tables.heading(ledger)
  data, one, unit = ledger.dataset, tables.one(ledger.dataset), tables.units(ledger.dataset)[-1]
  out = f'<h3>{_text(ledger.dataset["split"])} ({_text(written.ledger.name)})</h3>\n'
  out += _paragraph(images) + _paragraph(weights)
  step = ledger.checkpoint['step']
  if step != run.steps and written.ledger.stem == 'ledger':
    out += _paragraph(f'The run has made {run.steps:,} steps by now, and this evaluation is of '
                      f'step {step:,}: evaluate it again.', 'bad')
  if warning := tables.caution(ledger):
    out += _paragraph(warning, 'bad')
  out += _table('Estimates', tables.columns(data), map(tables.cells, ledger.rows), words=3)
  out += ''.join(_paragraph(text.replace('+-', '±'), 'note')
                 for text in tables.explained(ledger.rows))
  if sums := [(row['estimate'], text) for row in ledger.rows if (text := tables.terms(row))]:
    out += _table('Terms of the sums', ('estimate', tables.units(data)[0].name), sums, words=2)
  if ledger.checks:
    # The verdict comes second, where a phone shows it.
    name, *numbers, _ = tables.check_columns(data)
    lines = [(first, verdict, *rest) for first, *rest, verdict in (
        tables.check_cells(check, data) for check in ledger.checks)]
    out += _table('Checks', (name, 'verdict', *numbers), lines, words=2, verdicts=True)
    out += ''.join(_paragraph(f'{check["name"]}: {check["meaning"]}.',
                              _KINDS[tables.verdict(check)])
                   for check in ledger.checks if not check['passed'])
  measure = unit.name.partition('/')[0]
  out += _picture(written.bits_by_noise, f'Where the {measure} are, by noise level and by {one}',
                  'Four panels: the density of the bound over log-SNR with its error; its running '
                  f'sum from the data to the noise; a histogram of the {unit.name} of each {one}; '
                  f'the most and the least likely {one}s', wide=True)
  out += _picture(written.curves, f'{unit.name.capitalize()} against steps, and the noise schedule',
                  'Two panels: the bound or the loss against steps; the log-SNR against time '
                  'before and after training', wide=True)
  names = dict.fromkeys(name for row in ledger.rows for name in row)
  fields = [(name, *(_json(row.get(name)) for row in ledger.rows)) for name in names
            if name not in ('dataset', 'checkpoint')]
  about = [(name, _json(value)) for part in (ledger.dataset, ledger.checkpoint)
           for name, value in part.items()]
  return out + _details('Every field of this ledger', _table(
      'Rows', ('field', *(row['estimate'] for row in ledger.rows)), fields, words=None)
      + _table(f'{one.capitalize()}s and weights', ('field', 'value'), about, words=None))


def _training(run: _Run) -> str:
  if not run.metrics:
    return _paragraph('This run has recorded nothing yet.')
  names = dict.fromkeys(name for record in run.metrics for name in record
                        if name not in ('step', 'kind'))
  first = 'bits_per_dim' if 'bits_per_dim' in names else 'loss'
  twice = lambda name: all(str(one.get(name)) == str(one.get(first)) for one in run.metrics)  # NaN
  shown = [name for name in sorted(names, key=lambda name: name != first)
           if name == first or not twice(name)]
  unit = _unit(run.record['config'])
  return '<div class="grid">\n' + ''.join(_chart(run.metrics, name, unit) for name in shown) + (
      '</div>\n')


def _unit(config: Mapping) -> Unit:
  """The unit of the bound in training: nats/dim of real numbers."""
  found = config.get('data', {}).get('found')
  return NATS_PER_DIM if found and from_row(*found[0]).levels is None else BITS_PER_DIM


def _samples(run: _Run) -> str:
  out = _on_the_way(run, 'Samples')
  drawn = run.directory / 'samples.png'
  if drawn.exists():
    with Image.open(drawn) as image:
      about = ', '.join(f'{name} {value}' for name, value in image.info.items()
                        if isinstance(value, str) and value != 'None')
    out += _picture(drawn, f'samples.png: {about}' if about else 'samples.png',
                    'Samples of the trained model')
  if not out:
    return _paragraph('This run has no samples yet: scripts/sample.py '
                      f'--out={drawn} draws some.')
  return f'<div class="grid">\n{out}</div>\n'


def _on_the_way(run: _Run, what: str, count: int = SAMPLES, wide: bool = False) -> str:
  """`count` of the pictures that were made during training, from the first to the last."""
  of_step = lambda path: path.stem.removeprefix('step_')
  pictures = sorted((path for path in (run.directory / 'samples').glob('step_*.png')
                     if of_step(path).isdecimal()), key=lambda path: int(of_step(path)))
  last, count = len(pictures) - 1, min(len(pictures), count)
  chosen = [pictures[-1 - round(i * last / max(count - 1, 1))] for i in reversed(range(count))]
  return ''.join(_picture(path, f'Step {int(of_step(path)):,} of the training',
                          f'{what} after {int(of_step(path)):,} steps', wide) for path in chosen)


def _forecasts(run: _Run) -> str:
  """The scores of the test rows, and fan charts of the last of them and of rows to come.

  Without forecasts of the test rows, the last one that was made during training is shown.
  """
  scores, ahead = (run.directory / name for name in ('forecasts.json', 'forecast.png'))
  if scores.exists():
    found = json.loads(scores.read_text())
    out = _paragraph(f'{found["windows"]} forecasts of the test rows, {found["paths"]} paths each, '
                     f'by step {found["checkpoint"]["step"]:,} ({found["checkpoint"]["average"]}).')
    shares = {f'{100 * float(share):.0f} % interval': one
              for share, one in found['coverage'].items()}
    rows = ((name, *_with_error(one)) for name, one in (found['scores'] | shares).items()
            if one is not None)
    columns = ('score', 'value', 'standard error')
    out += _table('Scores', columns, rows, words=1)
    out += _table('CRPS of each series', columns, (
        (name, *_with_error(one)) for name, one in found['series'].items()), words=1)
    out += _picture(scores.with_suffix('.png'), 'The last forecast of the test rows',
                    'Fan charts of each series, beside the observed values', wide=True)
  else:
    out = _paragraph('The test rows have not been forecast yet: scripts/forecast.py does it.')
    out += _on_the_way(run, 'A forecast of rows that were held out', count=1, wide=True)
  if ahead.exists():
    out += _picture(ahead, 'The rows after a history', 'Fan charts of each series', wide=True)
  return out


def _plans(run: _Run) -> str:
  """The returns that episodes reached, an episode, and plans beside windows of the data."""
  saved = run.directory / 'plans.json'
  if saved.exists():
    found = json.loads(saved.read_text())
    out = _paragraph(f'{found["episodes"]} episodes of {found["env"]} for each return, with '
                     f'guidance {found["guidance"]:g} and temperature {found["temperature"]:g}, '
                     f'by step {found["checkpoint"]["step"]:,} ({found["checkpoint"]["average"]}).')
    pair = lambda *both: tuple('-' if one is None else f'{one:.1f}' for one in both)
    # Older files do not have it.
    to_go = lambda one: pair(*map(one.get('to_go', {}).get, ('value', 'error')))
    out += _table('Returns', ('told', 'reached from a row on', '+-', 'sum of an episode', '+-',
                              'ms a step'), (
        (f'{one["return"]:.4g}', *to_go(one), *pair(one['mean'], one['error']),
         f'{one["milliseconds_a_step"]:.0f}') for one in found['asked']), words=0)
    out += _paragraph('A return that is told, and the one that is reached from a row on, is '
                      'discounted as in training.  The sum of an episode is not.', 'note')
    out += _picture(saved.with_suffix('.png'), 'The first episode of the best return, with plans',
                    'The observations of an episode, beside them plans, and the actions', wide=True)
    if (curve := saved.with_name('plans_returns.png')).exists():
      out += _picture(curve, 'The returns that were reached',
                      'The return from a row on against the return that plans were told')
  else:
    out = _paragraph('No episode has been acted by these plans yet: scripts/plan.py does it.')
  return out + _on_the_way(run, 'Plans beside windows of held-out episodes', count=1, wide=True)


def _means(run: _Run, name: str) -> str:
  """The means of reconstructions or captions with their pictures, and those made in training."""
  out, stem = '', _MEANS[name]
  for path in _of_means(run, stem):
    found = json.loads(path.read_text())
    data, weights, ending = found['dataset'], found['checkpoint'], path.stem.removeprefix(stem)
    out += f'<h3>{_text(data["split"])} ({_text(path.name)})</h3>\n'
    out += _paragraph(f'{data["name"]}, {data["split"]}: {data["examples"]:,} examples, step '
                      f'{weights["step"]:,} ({weights["average"]})')
    if weights['step'] != run.steps and not ending:
      out += _paragraph(f'The run has made {run.steps:,} steps by now: evaluate it again.', 'bad')
    out += _table(name.capitalize(), ('quantity', 'mean', 'standard error', 'meaning'), (
        (row['name'], *_mean(row), row['meaning']) for row in found['rows']), words=None)
    if said := found.get('captions'):
      out += _table('The first captions', ('said', 'true'), said[:_CAPTIONS], words=None)
    for picture, text in (('reconstructions', 'originals, each with its reconstruction below it'),
                          ('latents', 'histograms, means and deviations of the latents')):
      if (drawn := path.with_name(f'{picture}{ending}.png')).exists():
        out += _picture(drawn, drawn.name, f'{data["split"]}: {text}', wide=True)
  return out + f'<div class="grid">\n{_on_the_way(run, name.capitalize())}</div>\n'


def _mean(row: Mapping) -> tuple[str, str]:
  return tables.number(row['mean']), tables.number(row['standard_error'])


def _with_error(one: float | Mapping) -> tuple[str, str]:
  """The cells of a number, or of {'value': .., 'error': ..}, where an error may be unknown."""
  if not isinstance(one, Mapping):
    return f'{one:.4f}', '-'
  return f'{one["value"]:.4f}', '-' if one['error'] is None else f'{one["error"]:.4f}'


def _data(run: _Run) -> str:
  fingerprint = run.record.get('fingerprint')
  if not fingerprint:
    return _paragraph('This run keeps no fingerprint of its data.')
  parts = fingerprint.get('parts')
  out = _table('Fingerprint', ('field', 'value'), [
      ('sha256', fingerprint['sha256']), ('parts', f'{fingerprint["count"]:,}')], words=None)
  if parts is None:
    return out + _paragraph('There are too many parts to list.')
  listed = _table('Parts', ('part', 'size or checksum'), [
      (name, _json(parts[name])) for name in list(parts)[:PARTS]], words=None)
  if len(parts) > PARTS:
    listed += _paragraph(f'{len(parts) - PARTS:,} more are in config.json.')
  return out + _details('Its parts', listed)


def _config(run: _Run) -> str:
  fields = workdir.flat(run.record['config'])
  return _paragraph(f'From {run.record["from"]}') + _table(
      'Values', ('field', 'value'), [(name, _json(value)) for name, value in fields.items()],
      words=None)


def _provenance(run: _Run) -> str:
  origins = [('start of training', start) for start in run.record.get('starts', ())]
  origins += [(written.ledger.name, ledger.provenance) for written, ledger in run.ledgers]
  origins.append(('this page', provenance()))
  columns = ('date', 'vdm_jax', 'commit', 'jax', 'command')
  out = _table('What made what', ('what', *columns), [
      (what, *(one.get(name) or '-' for name in columns)) for what, one in origins], words=None)
  return out + ''.join(
      _paragraph(f'The learning rate was given a longer curve: {_json(one["extended"])}')
      for _, one in origins if 'extended' in one)


# -------------------------------------------------------------------- curves

_LABELS = {'grad_norm': 'norm of the gradient'}
_IN_BITS = ('bits_per_dim', 'reconstruction', 'latent', 'diffusion')  # per dimension
_WIDTH, _HEIGHT = 360, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 348, 10, 190  # where the axes are


def _chart(records: Sequence[Mapping], name: str, unit: Unit) -> str:
  """A figure of one number against steps, a line for each kind of record.

  unit: for all that is recorded in bits/dim.
  """
  scale = unit.per_bit if name in _IN_BITS else 1.0
  lines = {kind: [(record['step'], record[name] * scale) for record in records
                  if record['kind'] == kind and name in record]
           for kind in dict.fromkeys(record['kind'] for record in records)}
  lines = {kind: line for kind, line in lines.items() if line}
  label = unit.name if name == 'bits_per_dim' else _LABELS.get(name, name.replace('_', ' '))
  steps = [step for line in lines.values() for step, _ in line]
  x_limits, y_limits = _padded(min(steps), max(steps), 0.0), _limits(lines.values())
  x = _scale(x_limits, _LEFT, _RIGHT)
  y = _scale(y_limits, _BOTTOM, _TOP)
  marks = ''.join(f'<line class="axis" x1="{_LEFT}" x2="{_RIGHT}" y1="{y(u):.1f}" y2="{y(u):.1f}"/>'
                  f'<text x="{_LEFT - 6}" y="{y(u) + 4:.1f}" text-anchor="end">{_short(u)}</text>'
                  for u in _ticks(*y_limits))
  marks += ''.join(f'<text x="{x(u):.1f}" y="{_BOTTOM + 18}" text-anchor="middle">{_short(u)}'
                   '</text>' for u in _ticks(*x_limits))
  paths = ''.join(_path(i, line, x, y) for i, line in enumerate(lines.values()))
  keys = ' '.join(
      f'<span><svg class="key" viewBox="0 0 24 8" aria-hidden="true"><path class="line l{i % 4}" '
      f'd="M0 4H24"/></svg> {_text(kind)} {_number(line[-1][1])}</span>'
      for i, (kind, line) in enumerate(lines.items()))
  ends = '; '.join(f'{kind}: {_number(line[0][1])} at step {line[0][0]:,}, {_number(line[-1][1])} '
                   f'at step {line[-1][0]:,}' for kind, line in lines.items())
  return (f'<figure class="chart">\n<figcaption><b>{_text(label)}</b> {keys}</figcaption>\n'
          f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
          f'aria-label="{_text(label)} against steps. {_text(ends)}">\n'
          f'<g>{marks}<text x="{_RIGHT}" y="{_HEIGHT - 5}" text-anchor="end">step</text></g>\n'
          f'<svg x="{_LEFT}" y="{_TOP - 4}" width="{_RIGHT - _LEFT + 6}" '
          f'height="{_BOTTOM - _TOP + 8}" viewBox="{_LEFT} {_TOP - 4} {_RIGHT - _LEFT + 6} '
          f'{_BOTTOM - _TOP + 8}">{paths}</svg>\n</svg>\n</figure>\n')


def _path(index: int, line: Sequence[tuple[float, float]], x: Callable, y: Callable) -> str:
  """A line, broken where a value is not a number.  Its points are marked if they are few."""
  every = -(-len(line) // POINTS)
  line = line[::-1][::every][::-1]  # the last one is always there
  text, pen, dots = '', 'M', ''
  for step, value in line:
    if not math.isfinite(value):
      pen = 'M'
      continue
    text += f'{pen}{x(step):.1f} {y(value):.1f}'
    pen = 'L'
    if len(line) < 40:
      dots += f'<circle class="l{index % 4}" cx="{x(step):.1f}" cy="{y(value):.1f}" r="2"/>'
  return f'<path class="line l{index % 4}" d="{text}"/>{dots}' if text else ''


def _limits(lines: Iterable[Sequence[tuple[float, float]]]) -> tuple[float, float]:
  """The limits of an axis for these lines.

  Each line counts without the outermost 2 % on either side, but with its end.  A start or a spike
  far outside would flatten the rest.
  """
  inner = []
  for line in lines:
    if values := [value for _, value in line if math.isfinite(value)]:
      cut = len(values) // 50
      inner += [*sorted(values)[cut:len(values) - cut], values[-1]]
  return _padded(min(inner, default=0.0), max(inner, default=1.0), 0.05)


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
  """The limits of an axis around these values, which may be equal."""
  margin = share * (high - low) if high > low else 0.05 * abs(low) or 1.0
  return low - margin, high + margin


def _scale(limits: tuple[float, float], first: float, last: float) -> Callable[[float], float]:
  low, high = limits
  # A value far outside stays a number that a browser can draw.
  return lambda u: first + (last - first) * min(max((u - low) / (high - low), -20.0), 20.0)


def _ticks(low: float, high: float) -> list[float]:
  """About five round numbers between `low` and `high`."""
  raw = (high - low) / 5
  power = 10.0**math.floor(math.log10(raw))
  step = power * next(m for m in (1, 2, 2.5, 5, 10) if m * power >= raw * (1 - 1e-9))
  return [i * step for i in range(math.ceil(low / step), math.floor(high / step) + 1)]


def _short(u: float) -> str:
  """A number as text beside an axis: 20k for 20,000."""
  for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(u) >= 10 * size or abs(u) >= size and u % size == 0:
      return f'{u / size:.6g}{letter}'
  return f'{u:.6g}'


def _number(u: float) -> str:
  return f'{u:.4g}'


# -------------------------------------------------------------------- markup


def _text(value: object) -> str:
  """A value as text of the page, wherever it stands."""
  return html.escape(str(value))


def _json(value: Any) -> str:
  """A value as JSON, in the form of a config and a ledger."""
  return value if isinstance(value, str) and value else json.dumps(value)


def _paragraph(text: str, kind: str = '') -> str:
  return f'<p class="{kind}">{_text(text)}</p>\n' if kind else f'<p>{_text(text)}</p>\n'


def _details(title: str, body: str) -> str:
  return f'<details>\n<summary>{_text(title)}</summary>\n{body}</details>\n'


_KINDS = {'VIOLATED': 'bad', 'unusual': 'odd'}  # of `tables.verdict`


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]],
           words: int | None, verdicts: bool = False) -> str:
  """A table that scrolls where it is wider than the screen.

  words: the number of columns, from the left, that hold words; the others hold numbers.  None: all
  hold words.  verdicts: whether the second column has the verdicts of checks.
  """
  numeric = lambda i: ' class="number"' if words is not None and i >= words else ''
  plus_minus = lambda text: _text(text).replace('+-', '±')
  head = ''.join(f'<th scope="col"{numeric(i)}>{plus_minus(name)}</th>'
                 for i, name in enumerate(columns))
  lines = []
  for row in rows:
    kind = f' class="{_KINDS[row[1]]}"' if verdicts and row[1] in _KINDS else ''
    cells = ''.join(f'<td{numeric(i)}>{_text(cell)}</td>' for i, cell in enumerate(row) if i)
    name = _text(row[0]).replace('.', '.<wbr>')  # a long name of a field may be broken there
    lines.append(f'<tr{kind}><th scope="row">{name}</th>{cells}</tr>\n')
  return (f'<div class="scroll" role="region" aria-label="{_text(title)}" tabindex="0">\n<table>\n'
          f'<caption>{_text(title)}</caption>\n<thead><tr>{head}</tr></thead>\n'
          f'<tbody>\n{"".join(lines)}</tbody>\n</table>\n</div>\n')


def _picture(path: Path, caption: str, alt: str, wide: bool = False) -> str:
  """A PNG inside the page, or a sentence if there is no PNG.  wide: it scrolls on a phone."""
  if not path.exists():
    return _paragraph(f'{path.name} is not there.')
  if (size := path.stat().st_size) > PICTURE_BYTES:
    return _paragraph(f'{path.name} is not shown: it has {size / 2**20:.0f} MiB.')
  with Image.open(path) as image:
    width, height = image.size
  data = base64.b64encode(path.read_bytes()).decode()
  kind = ' class="wide"' if wide else ''
  region = f' role="region" aria-label="{_text(caption)}" tabindex="0"' if wide else ''
  return (f'<figure>\n<div class="card scroll"{region}><img{kind} width="{width}" '
          f'height="{height}" alt="{_text(alt)}" src="data:image/png;base64,{data}"></div>\n'
          f'<figcaption>{_text(caption)}</figcaption>\n</figure>\n')


# No browser loads anything for this page, whatever the texts in it are.
_HEAD = '''<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<link rel="icon" href="data:,">
'''

_STYLE = '''
:root { color-scheme: light dark; --page: #fff; --text: #1b1f24; --quiet: #57606a;
  --line: #d0d7de; --band: #f6f8fa; --link: #0550ae; --bad: #a40e26; --odd: #7d4e00;
  --l0: #0969da; --l1: #bc4c00; --l2: #1a7f37; --l3: #8250df; }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --text: #e6edf3; --quiet: #9da7b3; --line: #3d444d; --band: #161b22;
    --link: #79b8ff; --bad: #ff9492; --odd: #e3b341;
    --l0: #58a6ff; --l1: #f0883e; --l2: #56d364; --l3: #bc8cff; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--page);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; margin: 0.5rem 0; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 0.75rem; padding-top: 0.75rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1.1rem; margin: 1.5rem 0 0.5rem; }
p { margin: 0.25rem 0; max-width: 48rem; }
a { color: var(--link); margin-right: 0.75rem; display: inline-block; padding: 0.25rem 0; }
dl { display: flex; flex-wrap: wrap; gap: 0.5rem 2rem; margin: 0.75rem 0; }
dt { color: var(--quiet); font-size: 0.875rem; }
dd { margin: 0; font-weight: 600; }
.note, figcaption { color: var(--quiet); font-size: 0.875rem; }
.bad, .bad th, .bad td { color: var(--bad); font-weight: 600; }
.odd, .odd th, .odd td { color: var(--odd); font-weight: 600; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.875rem; overflow-wrap: normal; }
caption { text-align: left; font-weight: 600; padding: 0.25rem 0; white-space: nowrap; }
th, td { padding: 0.3rem 0.75rem 0.3rem 0; text-align: left; vertical-align: top;
  border-bottom: 1px solid var(--line); max-width: 36rem; overflow-wrap: break-word; }
thead th { color: var(--quiet); white-space: nowrap; }
tbody th { font-weight: normal; font-family: ui-monospace, monospace; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
details { margin: 1rem 0; }
summary { cursor: pointer; padding: 0.25rem 0; }
figure { margin: 1rem 0; min-width: 0; }
.chart { display: flex; flex-direction: column; justify-content: space-between; }
figcaption span { white-space: nowrap; margin-left: 0.75rem; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem;
  margin: 0 0 0.25rem; }
img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
img.wide { width: 100%; max-width: none; min-width: 44rem; }
.grid { display: grid; gap: 0 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.chart > svg { display: block; width: 100%; height: auto; background: var(--band);
  border: 1px solid var(--line); border-radius: 6px; }
.chart text { fill: var(--quiet); font-size: 11px; }
.axis { stroke: var(--line); }
.key { width: 24px; height: 8px; }
.line { fill: none; stroke-width: 1.75; stroke-linejoin: round; }
.l0 { stroke: var(--l0); } .l1 { stroke: var(--l1); stroke-dasharray: 6 3; }
.l2 { stroke: var(--l2); stroke-dasharray: 2 2; }
.l3 { stroke: var(--l3); stroke-dasharray: 8 2 2 2; }
circle.l0 { fill: var(--l0); } circle.l1 { fill: var(--l1); }
circle.l2 { fill: var(--l2); } circle.l3 { fill: var(--l3); }
'''
