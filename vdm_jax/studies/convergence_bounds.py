"""The error of a sampler and its bounds, against the number of steps: a table, JSON and a picture.

The data have a known law: an oracle, or the points in the plane that a run was trained on.  For a
run, the error of the network is computed in two ways: by quadrature over the plane, and on held-out
points, from the density of the bound over log-SNR.
"""
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from matplotlib.figure import Figure

from vdm_jax import convergence, laws, measured, oracles, random
from vdm_jax.data import formulas
from vdm_jax.errors import InputError, require, require_at_least, require_choice
from vdm_jax.likelihood import bounds
from vdm_jax.machine import config_files, files
from vdm_jax.processes import Truncated
from vdm_jax.runs import needs, pictures, workdir
from vdm_jax.samplers import catalogue
from vdm_jax.samplers.sampling import data_axes
from vdm_jax.typing import Denoiser, Model, Process

__all__ = ['DATA', 'STEPS', 'Case', 'figures', 'law_of_points', 'of_oracle', 'of_run', 'picture',
           'row_name', 'study', 'table']

DATA = {'gaussian': oracles.Gaussian(np.ones(4), np.full(4, 0.5)),
        'mixture': oracles.Mixture(np.array([0.8, 0.2]), np.array([[-1.0], [1.5]]),
                                   np.array([0.3, 0.3]))}
STEPS = (10, 30, 100, 300)
HORIZON, STOP = 5.0, 6.0
GIRSANOV = 'exponential_sde'  # the sampler that Girsanov's bound is of
_INTERVALS = 40               # of log-SNR, between the ends of the grid


class Case(NamedTuple):
  """What is sampled: the truth, the process from its stop to noise, and the denoiser."""
  name: str
  truth: laws.Truth
  process: Process
  denoise: Denoiser | None = None              # None: the exact one
  measured: convergence.ScoreError | None = None  # on held-out data


def study(out: str | Path, *, workdir: str = '', data: str | None = None,
          sampler: str = GIRSANOV, grid: str = '', steps: Sequence[int] = STEPS,
          horizon: float | None = None, stop: float | None = None, score_error: float | None = None,
          points: int | None = None, times: int = 32, count: int = 1000, seed: int = 0,
          overwrite: bool = False, **of_run_alone) -> tuple[list[Path], rich.table.Table]:
  """Shows a table, and writes a picture and a JSON file of the same name.  Returns both of these.

  Args:
    out: a .png.
    workdir: a run of points in the plane.  '': exact denoisers of `data`.
    data: a name in `DATA`, points of `data.formulas` with a known law, or FILE.py:NAME, an oracle.
    sampler, grid: names of `samplers.catalogue`.
    steps: the numbers of steps.
    horizon: the T of the Ornstein-Uhlenbeck process of an oracle.
    stop: the log-SNR at which sampling ends.  Default: at the data of an oracle, and at 6 of a run.
    score_error: of an oracle, added to the score along the first axis.
    points: of the quadrature along each axis.
    times, count: draws for a held-out point of a run, and the number of these points.
    of_run_alone: average, step, data_dir and data_name of `runs.workdir.load_trained`.

  Raises InputError for a file that exists (unless `overwrite`), for settings of the other kind, and
  as `convergence.compare`.
  """
  path = files.output('out', out, '.png', overwrite=overwrite)
  record = files.output('out', path.with_suffix('.json'), '.json', overwrite=overwrite)
  require(len(steps) > 0, 'steps', None, 'there is none', 'give 10,100, for example')
  for name, value in {'steps': min(steps), 'times': times, 'count': count}.items():
    require_at_least(name, value)
  _require_fit(workdir, {'data': data, 'horizon': horizon, 'score_error': score_error})
  if workdir:
    case = of_run(workdir, stop=STOP if stop is None else stop, times=times, count=count, seed=seed,
                  **of_run_alone)
  else:
    case = of_oracle('gaussian' if data is None else data, HORIZON if horizon is None else horizon,
                     stop, score_error or 0.0)
  rows = _rows(case, sampler, grid, sorted(set(steps)), points)
  shown = table(case.name, sampler, rows)
  rich.console.Console(width=max(120, shutil.get_terminal_size().columns)).print(shown)
  about = {'data': case.name, 'sampler': sampler, 'grid': grid or 'its own', 'horizon': horizon,
           'stop': stop, 'score_error': score_error, 'seed': seed}
  files.write_text(record, json.dumps({'settings': about, 'rows': rows}, indent=1,
                                      allow_nan=False) + '\n')
  pictures.save_png(path, picture(case.name, sampler, rows))
  return [path, record], shown


def _require_fit(directory: str, of_oracles: dict[str, Any]) -> None:
  given = [name for name, value in of_oracles.items() if value is not None]
  if directory and given:
    raise InputError(given[0], of_oracles[given[0]], 'a run has its own data, process and network',
                     'leave it out, or leave out workdir')


def law_of_points(name: str) -> oracles.Mixture:
  """The law of points of `data.formulas`, in units of x in [-1, 1].  Raises InputError."""
  weights, means, std = formulas.components(name)
  return oracles.Mixture(weights, (2.0 * means + 1.0) / 256.0 - 1.0,
                         np.full(len(weights), std / 128.0))


def _oracle(data: str) -> laws.Truth:
  if data in DATA:
    return DATA[data]
  file, colon, name = data.rpartition(':')
  if colon:
    oracle, _ = config_files.own('data', data, file, name)
    require(isinstance(oracle, laws.Truth), 'data', data, f'it is a {type(oracle).__name__}',
            'name an oracle of vdm_jax.oracles, a Gaussian with arrays')
    return oracle
  require_choice('data', data, [*DATA, *formulas.FORMULAS])
  return law_of_points(data)


def of_oracle(data: str, horizon: float = HORIZON, stop: float | None = None,
              score_error: float = 0.0) -> Case:
  """The Ornstein-Uhlenbeck process of an oracle, to the data or to log-SNR `stop`."""
  truth = _oracle(data)
  require(math.isfinite(score_error), 'score_error', score_error, 'it is not a number',
          'give 0.1, for example')
  denoise = None
  if score_error:
    first = np.zeros(laws.of(truth).shape)
    first.flat[0] = score_error
    denoise = convergence.with_score_error(truth, first)
  with jax.enable_x64(True):
    process = convergence.ornstein_uhlenbeck(horizon)
    return Case(data, truth, process if stop is None else _stopped(process, stop), denoise)


def _stopped(process: Process, stop: float) -> Process:
  """`process` from log-SNR `stop` to its end.  Raises InputError if it does not contain it."""
  low, high = (float(process(jnp.asarray(t, float)).logsnr) for t in (1.0, 0.0))
  require(low < stop <= high, 'stop', stop, f'the log-SNR of the process is from {low:.3g} to '
          f'{high:.3g}', 'choose one between them')
  return Truncated.between(process, stop, -math.inf)


def of_run(directory: str, *, stop: float = STOP, times: int = 32, count: int = 1000, seed: int = 0,
           **loading) -> Case:
  """The network of a run of points in the plane, and its error on held-out points.

  Raises InputError for runs of other data, and for models without a score.
  """
  trained = workdir.load_trained(directory, **loading)
  model, params = trained.experiment.model, trained.params
  m = needs.require(model(params), 'convergence', directory)
  bounds.require_default_bound(m, 'bounds on the error of samples')
  needs.finite(trained)
  require(m.shape == (2,) and not m.is_latent, 'workdir', directory, f'its data have the shape '
          f'{m.shape}, and their law is not known', needs.NEEDS['convergence'].remedy)
  require(not data_axes(m.process), 'workdir', directory, 'each number has its own noise level',
          'name a run with one schedule')
  truth = _encoded(law_of_points(trained.config.data.name), m)
  split = needs.split(trained, 'test')
  draw = lambda of: bounds.evaluate_bound(of, params, split, random.key(seed), times=times,
                                          count=count)
  samples, best = draw(model), draw(lambda params: model(params)._replace(denoise=truth))
  low, high = (float(m.process(jnp.asarray(t)).logsnr) for t in (1.0, 0.0))
  with jax.enable_x64(True):
    process = _stopped(m.process, stop)
    edges = np.linspace(low, stop, _INTERVALS + 1)
    edges = np.append(edges, [high] if high > stop else [])
    edges[[0, -1]] += -1e-3, 1e-3  # the draws are in float32
    error = convergence.score_error(samples, best, edges)
  name = f'{trained.config.data.name}, {Path(directory).name}'
  return Case(name, truth, process, m.denoise, error)


def _encoded(truth: oracles.Mixture, model: Model) -> oracles.Mixture:
  """The law in the units of the model's x, which are affine in the level."""
  zero, one = (np.asarray(model.encode(jnp.full((1, 2), level)), np.float64)[0]
               for level in (0, 1))
  level = ((np.asarray(truth.means) + 1.0) * 256.0 - 1.0) / 2.0
  scale = np.broadcast_to(one - zero, level.shape)
  return oracles.Mixture(truth.weights, zero + scale * level,
                         128.0 * scale * np.asarray(truth.stds)[:, None])


def _rows(case: Case, sampler: str, grid: str, steps: Sequence[int], points: int | None
          ) -> list[dict[str, Any]]:
  """A row for each number of steps; what is infinite or unknown is None."""
  methods = [catalogue.method(sampler, n, grid) for n in steps]
  for method in methods:
    require(not (method.variances or method.head or method.ends), 'sampler', sampler,
            'it needs more than the estimate of a denoiser', 'choose another')
  with jax.enable_x64(True):
    grids = [method.times(case.process) for method in methods]
    results = convergence.compare(case.truth, methods[0].make, case.process, grids,
                                  denoise=case.denoise, points=points,
                                  progress=jax.process_index() == 0)
  name, _ = catalogue.find(sampler)
  return [_row(case, len(times) - 1, result, name == GIRSANOV)
          for times, result in zip(grids, results, strict=True)]


def _row(case: Case, steps: int, result: convergence.Result, girsanov: bool) -> dict[str, Any]:
  walk = result.walk
  terms = (convergence.by_girsanov if girsanov else convergence.by_steps)(walk)
  row = {'steps': steps, **terms._asdict(), 'bound': terms.bound,
         'bound_by_steps': convergence.by_steps(walk).bound, 'kl': result.kl, 'tv': result.tv,
         'tv_error': result.tv_error, 'tv_bound': convergence.tv_bound(terms.bound),
         'shares': list(result.shares)}
  if case.measured is not None:
    weight = convergence.girsanov_weight(walk) if girsanov else walk.weight
    held_out, error = convergence.held_out(terms, walk, case.measured, weight)
    row |= {'score_held_out': held_out.score, 'score_held_out_error': error,
            'bound_held_out': held_out.bound}
  return {key: None if isinstance(value, float) and not math.isfinite(value) else value
          for key, value in row.items()}


def table(data: str, sampler: str, rows: Sequence[dict[str, Any]]) -> rich.table.Table:
  """A line for each number of steps, in nats."""
  columns = {'steps': 'steps', 'initial': 'initial', 'discretisation': 'discretisation',
             'score': 'score', 'cross': 'cross', 'bound': 'bound', 'bound_by_steps': 'by steps',
             'kl': 'KL', 'tv': 'TV', 'tv_bound': 'TV bound'}
  held_out = 'score_held_out' in rows[0]
  if not any(abs(row['cross'] or 0.0) > 1e-9 for row in rows):
    del columns['cross']
  if all(row['bound'] == row['bound_by_steps'] for row in rows):
    del columns['bound_by_steps']
  out = rich.table.Table(*columns.values(), *['score, held out', 'bound, held out'] * held_out,
                         title=f'{sampler} on {data}: nats, and total variation')
  show = lambda u: 'infinite' if u is None else f'{u:#.3g}'.rstrip('.')
  for row in rows:
    cells = [str(row['steps']), *(show(row[name]) for name in list(columns)[1:])]
    if held_out:
      cells += [f'{show(row["score_held_out"])} ± {row["score_held_out_error"]:.2g}',
                show(row['bound_held_out'])]
    out.add_row(*cells)
  return out


def row_name(name: str, steps: int | str) -> str:
  """The first cell of a row in a measured table that holds several studies."""
  return f'{name}, {steps} steps'


def figures(name: str, shown: rich.table.Table) -> dict[str, dict[str, str]]:
  """{row: {column: text}} of the table of a study, for a measured table of several studies."""
  header, *rows = measured.cells(shown)
  return {row_name(name, row[0]): dict(zip(header[1:], row[1:], strict=True)) for row in rows}


def picture(data: str, sampler: str, rows: Sequence[dict[str, Any]]) -> Figure:
  """The terms, the bounds and the exact divergence; the total variation and its bound."""
  figure = Figure(figsize=(10, 4), layout='constrained')
  left, right = figure.subplots(1, 2)
  steps = [row['steps'] for row in rows]
  values = lambda name: [row.get(name) or math.nan for row in rows]  # no logarithm of 0
  for name, label, style in (
      ('initial', 'initial', 'C7:'), ('discretisation', 'discretisation', 'C1--'),
      ('score', 'score', 'C2--'), ('bound', 'bound', 'C3o-'), ('kl', 'exact KL', 'C0o-')):
    if np.isfinite(values(name)).any():
      left.loglog(steps, values(name), style, label=label)
  if 'score_held_out' in rows[0]:
    left.errorbar(steps, values('score_held_out'), values('score_held_out_error'), fmt='C2x',
                  capsize=3, label='score, held out')
  for name, label, style in (('tv_bound', 'bound', 'C3o-'), ('tv', 'exact', 'C0o-')):
    right.loglog(steps, values(name), style, label=label)
  left.set(xlabel='steps', ylabel='nats', title=f'KL(data || samples): {data}')
  right.set(xlabel='steps', title=f'total variation: {sampler}')
  left.legend(fontsize='x-small')
  right.legend()
  return figure
