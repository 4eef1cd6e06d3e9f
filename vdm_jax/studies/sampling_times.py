"""Compares ways to draw t, by the variance of the diffusion term's estimates.

On Gaussian data, the numbers are exact, except for the histories of losses, which are drawn.  On a
run, the numbers are measured under the run's own schedule.
"""
import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.box
import rich.table

from vdm_jax import schedules
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.likelihood import time_variances
from vdm_jax.machine import files
from vdm_jax.objectives import idode, proposals
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import needs, workdir
from vdm_jax.studies import gaussian
from vdm_jax.train import metrics
from vdm_jax.typing import PyTree

__all__ = ['Row', 'Settings', 'as_json', 'of_gaussian_data', 'of_run', 'study', 'table']

MASSES = {'uniform log-SNR (ScoreFlow)': lambda logsnr: logsnr,
          'alpha^2 on VP (i-DODE)': idode.vp_mass, 'alpha^2 on SP (i-DODE)': idode.sp_mass}
EXACT = time_variances.TimeVariance(0.0, 0.0, 0.0)


class Settings(NamedTuple):
  """The sizes of the draws, and the seed."""
  batch_size: int = 128  # draws whose times are spread together
  batches: int = 128
  bins: int = 64         # of the history of losses
  seed: int = 0


class Row(NamedTuple):
  """The result of one way to draw times under one schedule."""
  schedule: str
  times: str
  values: time_variances.TimeVariance
  errors: time_variances.TimeVariance  # standard errors; 0 of what is exact


def study(directory: str = '', *, split: str = 'test', batch_size: int = 128, batches: int = 128,
          bins: int = 64, seed: int = 0, out: str = '', overwrite: bool = False, **of_run_alone
          ) -> list[Row]:
  """Shows the table of a run or of Gaussian data, writes it to `out`, and returns its rows.

  Args:
    directory: the directory of the run.  '': Gaussian data.
    split: the split of the run's data.
    batch_size, batches, bins, seed: see `Settings`.
    out: a .json.  '': none.
    of_run_alone: average, step, data_dir and data_name of `runs.workdir.load_trained`.

  Raises InputError for numbers that are too small, for an existing file, or for a run of another
  kind.
  """
  settings = Settings(batch_size, batches, bins, seed)
  for name, least in [('batch_size', 1), ('batches', 2), ('bins', 1)]:
    require_at_least(name, getattr(settings, name), least)
  if out:
    files.output('out', out, '.json', overwrite=overwrite)
  require(split in ('train', 'validation', 'test'), 'split', split, 'there is no such choice',
          'choose train, validation or test')
  rows = list(of_run(directory, settings, split, **of_run_alone) if directory else
              of_gaussian_data(settings))
  metrics.show(table(rows, batch_size))
  if out and jax.process_index() == 0:
    files.write_text(out, as_json(rows))
  return rows


def of_gaussian_data(settings: Settings) -> Iterator[Row]:
  """Rows for 3,072 dimensions of variance 0.25, the optimal denoiser, and log-SNR 13.3 to -5."""
  def exact(process, propose):
    with jax.enable_x64(True):
      mean, variance = gaussian.estimate(process, propose)
      stratified = gaussian.estimate(process, propose, batch=settings.batch_size)[1]
    return time_variances.TimeVariance(mean, variance, stratified), EXACT

  with jax.enable_x64(True):
    processes = time_variances.published_schedules(GaussianProcess(schedules.Linear()))
  linear = processes[time_variances.LINEAR]
  high, low = (float(u) for u in linear(jnp.array([0.0, 1.0])).logsnr)
  with jax.enable_x64(True):
    best = proposals.tabulated(
        lambda logsnr: np.asarray(gaussian.error_of_eps(jnp.asarray(logsnr))), high, low)
  # Densities of log-SNR are the same under every schedule.
  for name, mass in {**MASSES, 'optimal density, tabulated': best}.items():
    yield Row('any', name, *exact(linear, proposals.by_mass(linear, mass)))
  for name, process in processes.items():
    yield Row(name, 'uniform t', *exact(process, proposals.uniform))
    term = lambda params, batch, t, keys, process=process: gaussian.one_draw(process, t, keys)
    yield Row(name, _history(settings), *_with_history(term, settings))


def of_run(directory: str, settings: Settings, split: str = 'test', **loading) -> Iterator[Row]:
  """Rows for a run's network on random images of a split.

  Raises InputError for a run of another kind.
  """
  trained = workdir.load_trained(directory, **loading)
  model, params = trained.experiment.model, trained.params
  needs.require(model(params), 'time_sampling', directory)
  time_variances.require_proposable(model(params))
  images = trained.experiment.data.split(split)
  if not len(images):
    raise InputError('split', split, 'this run has no such images', 'choose another')
  term = time_variances.diffusion_term(model)
  ways = {name: lambda params, mass=mass: proposals.by_mass(model(params).process, mass)
          for name, mass in MASSES.items()}
  for name, propose in {**ways, 'uniform t': lambda params: proposals.uniform}.items():
    yield Row('of the run', name, *time_variances.variances(time_variances.draw(
        term, params, images, propose=propose, batch=settings.batch_size,
        batches=settings.batches, seed=settings.seed)))
  yield Row('of the run', _history(settings), *_with_history(term, settings, params, images))


def _history(settings: Settings) -> str:
  return f'history of losses, {settings.bins} bins (IDDPM)'


def _with_history(term: time_variances.Term, settings: Settings, params: PyTree = None, images=None
                  ) -> tuple[time_variances.TimeVariance, time_variances.TimeVariance]:
  """The variances at the times that a history of losses proposes, with their standard errors."""
  batch, seed = settings.batch_size, settings.seed
  histogram = time_variances.loss_history(term, params, images, bins=settings.bins,
                                          batch=batch, seed=seed).proposal()
  return time_variances.variances(time_variances.draw(
      term, params, images, propose=lambda params: histogram, batches=settings.batches, batch=batch,
      seed=seed))


def table(rows: Sequence[Row], batch_size: int) -> rich.table.Table:
  """A table with a line for each row.  Inexact numbers have their standard error."""
  out = rich.table.Table(
      title='diffusion term in bits/dim, one draw an estimate',
      caption=f'stratified: {batch_size} times the variance of the mean of '
              f'{batch_size} draws at evenly spread u; ± by a bootstrap over batches, of '
              'this one history where there is one; without it exact',
      box=rich.box.SIMPLE_HEAD)
  for name in ('schedule', 'times', 'mean', 'variance', 'stratified'):
    out.add_column(name, justify='left' if name in ('schedule', 'times') else 'right')
  for row in rows:
    out.add_row(row.schedule, row.times, *(
        f'{value:.4g} ± {error:.2g}' if error else f'{value:.4g}'
        for value, error in zip(row.values, row.errors, strict=True)))
  return out


def as_json(rows: Sequence[Row]) -> str:
  """The rows as a JSON list of objects."""
  return json.dumps([{'schedule': row.schedule, 'times': row.times, **row.values._asdict(),
                      'standard_errors': row.errors._asdict()} for row in rows], indent=2)
