"""Compares schedules learned by the variance of the bound's estimate with published schedules.

On Gaussian data, the numbers are exact, and the best schedule is known.  On a run, the numbers are
measured.  All numbers concern the diffusion term alone.
"""
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.table
from matplotlib.figure import Figure

from vdm_jax import schedules
from vdm_jax.errors import require_at_least
from vdm_jax.likelihood import time_variances
from vdm_jax.machine import files
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import needs, pictures, workdir
from vdm_jax.studies import gaussian
from vdm_jax.train import metrics

__all__ = ['Line', 'of_gaussian_data', 'of_run', 'picture', 'study']

OWN = "the run's own"
LEARNED = {'learned, `PinnedMonotone`': schedules.PinnedMonotone(),
           'learned, `KnotSchedule`': schedules.KnotSchedule()}


class Line(NamedTuple):
  """The curves of a schedule: logsnr at the times t, and the estimate in bits/dim at others."""
  t: np.ndarray
  logsnr: np.ndarray
  at: np.ndarray
  mean: np.ndarray
  std: float  # of the estimate, over all


def study(directory: str = '', out: str = '', *, train_steps: int = 1000, batch_size: int = 128,
          repeats: int = 100, seed: int = 0, overwrite: bool = False, **of_run_alone
          ) -> tuple[Path, rich.table.Table]:
  """Shows a table and draws a picture for a run or for Gaussian data.  Returns (picture, table).

  Args:
    directory: the directory of the run.  '': Gaussian data.
    out: a .png.  Default: schedules.png in `directory`, or in the working directory.
    train_steps: the steps of learning a schedule on Gaussian data.
    batch_size: the B of the estimates whose variance is shown.
    repeats: the batches for each schedule of a run.
    of_run_alone: average, step, data_dir and data_name of `runs.workdir.load_trained`.

  Raises InputError for numbers that are too small, for an existing file, or for a run of another
  kind.
  """
  for name, least, value in [('train_steps', 2, train_steps), ('batch_size', 1, batch_size),
                             ('repeats', 2, repeats)]:
    require_at_least(name, value, least)
  path = files.output('out', out or Path(directory or '.', 'schedules.png'), '.png',
                      overwrite=overwrite)
  lines, table = (
      of_run(directory, batch_size=batch_size, repeats=repeats, seed=seed, **of_run_alone)
      if directory else of_gaussian_data(train_steps=train_steps, batch_size=batch_size, seed=seed))
  figure = picture(lines)
  if jax.process_index() == 0:
    pictures.save_png(path, figure)
  return path, table


def of_gaussian_data(*, train_steps: int, batch_size: int, seed: int
                     ) -> tuple[dict[str, Line], rich.table.Table]:
  """Learns the schedules `LEARNED`, and shows their exact variances and the published ones'."""
  with jax.enable_x64(True):
    processes = time_variances.published_schedules(GaussianProcess(schedules.Linear()))
  processes.update({name: gaussian.learn(schedule, train_steps, seed=seed)
                    for name, schedule in LEARNED.items()})
  t = np.linspace(0.0, 1.0, 2001)
  table = rich.table.Table('schedule', 'mean', 'variance, independent t',
                           f'stratified t, B = {batch_size}',
                           title='the diffusion term of Gaussian data, bits/dim')
  lines, variances = {}, {}
  with jax.enable_x64(True):
    for name, process in processes.items():
      mean, independent = gaussian.estimate(process)
      _, stratified = gaussian.estimate(process, batch=batch_size)
      table.add_row(name, f'{mean:.5f}', f'{independent:.4f}', f'{stratified:.4f}')
      variances[name] = independent, stratified
      u = jnp.asarray(t)
      lines[name] = Line(t, np.asarray(process(u).logsnr), t,
                         np.asarray(gaussian.integrand(process, u)), independent**0.5)
  table.add_row('the lowest possible', f'{mean:.5f}', *[f'{2.0 / gaussian.DIM * mean**2:.4f}'] * 2)
  metrics.show(table)
  _say_what_remains(variances, 'learned, `KnotSchedule`')
  return lines, table


def of_run(directory: str, *, batch_size: int, repeats: int, seed: int, **loading
           ) -> tuple[dict[str, Line], rich.table.Table]:
  """Measures a run's network under its own schedule and under others between the same ends.

  Raises InputError for a run of another kind.
  """
  trained = workdir.load_trained(directory, **loading)
  model, params = trained.experiment.model, trained.params
  needs.require(model(params), 'learn_schedule', directory)
  models = {OWN: model, **time_variances.with_published_schedules(model, params)}
  split = trained.experiment.data.split('test')
  t, edges = np.linspace(0.0, 1.0, 401), np.linspace(0.0, 1.0, 41)
  lines, variances, rows = {}, {}, []
  for name, replaced in models.items():
    logsnr = replaced(params).process(t).logsnr
    draws = time_variances.draw(time_variances.diffusion_term(replaced), params, split,
                                batch=batch_size, batches=repeats, seed=seed)
    values, errors = time_variances.variances(draws)
    rows.append([name, *(f'{value:.4g} ± {error:.2g}'
                         for value, error in zip(values, errors, strict=True))])
    variances[name] = values.variance, values.stratified
    lines[name] = Line(t, logsnr, (edges[1:] + edges[:-1]) / 2,
                       time_variances.mean_by_time(draws, edges), values.variance**0.5)
  table = rich.table.Table(
      'schedule', 'mean', 'variance, independent t',
      f'stratified t, B = {draws.t.shape[1]}',
      title=f'diffusion term, bits/dim, logsnr {logsnr[0]:.2f} to {logsnr[-1]:.2f}',
      caption='± by a bootstrap over the batches')
  for row in rows:
    table.add_row(*row)
  metrics.show(table)
  _say_what_remains(variances, OWN)
  return lines, table


def _say_what_remains(variances: Mapping[str, tuple[float, float]], learned: str) -> None:
  """Prints a ratio of variances: {schedule: (with independent times, with stratified times)}."""
  independent, stratified = (linear / own for linear, own in zip(
      variances[time_variances.LINEAR], variances[learned], strict=True))
  print(f'{time_variances.LINEAR} has {independent:.4g} times the variance of {learned!r} with '
        f'independent t, {stratified:.3g} times with stratified t.')


def picture(lines: Mapping[str, Line]) -> Figure:
  """The schedules, and the mean of the estimate over time under each."""
  figure = Figure(figsize=(11, 4), layout='constrained')
  left, right = figure.subplots(1, 2)
  for name, line in lines.items():
    learned = name == OWN or name in LEARNED
    style = {'lw': 2.5 if learned else 1.2, 'ls': '--' if 'Knot' in name else '-'}
    left.plot(line.t, line.logsnr, **style)
    right.plot(line.at, line.mean, label=f'{name}: {line.std:.3g}', **style)
  left.set(xlabel='t', ylabel='log-SNR', title='noise schedules with equal ends')
  right.set(xlabel='t', ylabel='bits/dim', yscale='log', title='mean of the one-draw estimate at t')
  right.legend(title='standard deviation of a draw, t ~ U[0, 1]')
  return figure
