"""Learns schedules by the variance of the bound's estimate on Gaussian data, or measures a run's.

  python scripts/learn_schedule.py --out=schedules.png     # a minute
  python scripts/learn_schedule.py --workdir=runs/digits_schedule

The first has exact numbers, and compares what was learned with the best there is.  The second
evaluates a trained network, on random images of its test split, under its own schedule and under
others between the same ends.  Both are about the diffusion term alone.
"""
from pathlib import Path
from typing import NamedTuple

import cli
import jax
import numpy as np
import rich.table
from absl import flags
from matplotlib.figure import Figure

from vdm_jax import schedules
from vdm_jax.errors import require_at_least
from vdm_jax.likelihood import time_variances
from vdm_jax.machine import files
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import needs, pictures, workdir
from vdm_jax.systems.variational import gaussian
from vdm_jax.train import metrics

WORKDIR = cli.run_directory('The directory of a run to measure; none: learn.')
OUT = cli.path('out', 'A .png; default: schedules.png, here or in the workdir.')
OVERWRITE = cli.overwrite()
TRAIN_STEPS = flags.DEFINE_integer('train_steps', 1000, 'Of learning.')
BATCH_SIZE = flags.DEFINE_integer('batch_size', 128, 'B of the estimates whose variance is shown.')
REPEATS = flags.DEFINE_integer('repeats', 100, 'Batches for each schedule of a run.')
AVERAGE = flags.DEFINE_string('average', '', "An EMA of the config, or 'raw'; ours: the longest.")
STEP = flags.DEFINE_string('step', 'latest', "A checkpoint: 'latest', 'best' or its number.")
SEED = flags.DEFINE_integer('seed', 0, 'Of all draws.')
DATA_DIR = cli.path('data_dir', 'Where TFDS data sets are, if not where they were.')
DATA_NAME = cli.moved_data()

OWN = "the run's own"
LEARNED = {'learned, pinned monotone': schedules.PinnedMonotone(),
           'learned, knots': schedules.KnotSchedule()}


class Line(NamedTuple):
  """What is drawn of a schedule: logsnr at times t; the estimate, bits/dim, at other times."""
  t: np.ndarray
  logsnr: np.ndarray
  at: np.ndarray
  mean: np.ndarray
  std: float  # of the estimate, over all


def on_gaussian_data() -> dict[str, Line]:
  with jax.enable_x64(True):
    processes = time_variances.published_schedules(GaussianProcess(schedules.Linear()))
  processes.update({name: gaussian.learn(schedule, TRAIN_STEPS.value, seed=SEED.value)
                    for name, schedule in LEARNED.items()})
  t = np.linspace(0.0, 1.0, 2001)
  table = rich.table.Table('schedule', 'mean', 'variance, i.i.d. t',
                           f'stratified, B = {BATCH_SIZE.value}',
                           title='the diffusion term of Gaussian data, bits/dim')
  lines, found = {}, {}
  with jax.enable_x64(True):
    for name, process in processes.items():
      mean, independent = gaussian.estimate(process)
      _, stratified = gaussian.estimate(process, batch=BATCH_SIZE.value)
      table.add_row(name, f'{mean:.5f}', f'{independent:.4f}', f'{stratified:.4f}')
      found[name] = independent, stratified
      lines[name] = Line(t, process(t).logsnr, t, gaussian.integrand(process, t), independent**0.5)
  table.add_row('the best there is', f'{mean:.5f}', *[f'{2.0 / gaussian.DIM * mean**2:.4f}'] * 2)
  metrics.show(table)
  say_what_remains(found, 'learned, knots')
  return lines


def of_run() -> dict[str, Line]:
  trained = workdir.load_trained(WORKDIR.value, average=AVERAGE.value, step=STEP.value,
                                 data_dir=DATA_DIR.value or '', data_name=DATA_NAME.value or '')
  model, params = trained.experiment.model, trained.params
  needs.require(model(params), 'learn_schedule', WORKDIR.value)
  models = {OWN: model, **time_variances.with_published_schedules(model, params)}
  split = trained.experiment.data.split('test')
  t, edges = np.linspace(0.0, 1.0, 401), np.linspace(0.0, 1.0, 41)
  lines, found, rows = {}, {}, []
  for name, replaced in models.items():
    logsnr = replaced(params).process(t).logsnr
    draws = time_variances.draw(
        time_variances.diffusion_term(replaced), params, split, batch=BATCH_SIZE.value,
        batches=REPEATS.value, seed=SEED.value)
    values, errors = time_variances.variances(draws)
    rows.append([name, *(f'{value:.4g} ± {error:.2g}' for value, error in zip(values, errors,
                                                                             strict=True))])
    found[name] = values.variance, values.stratified
    lines[name] = Line(t, logsnr, (edges[1:] + edges[:-1]) / 2,
                       time_variances.mean_by_time(draws, edges),
                       values.variance**0.5)
  table = rich.table.Table(
      'schedule', 'mean', 'variance, i.i.d. t', f'stratified, B = {draws.t.shape[1]}',
      title=f'diffusion term, bits/dim, logsnr {logsnr[0]:.2f} to {logsnr[-1]:.2f}',
      caption='± by a bootstrap over the batches')
  for row in rows:
    table.add_row(*row)
  metrics.show(table)
  say_what_remains(found, OWN)
  return lines


def say_what_remains(variances: dict, learned: str) -> None:
  """variances: {schedule: (with independent, with stratified times)}."""
  linear = time_variances.LINEAR
  independent, stratified = (a / b for a, b in zip(variances[linear], variances[learned],
                                                   strict=True))
  print(f'{linear} has {independent:.4g} times the variance of {learned!r} with i.i.d. t, '
        f'{stratified:.3g} times with stratified t.')


def picture(lines: dict[str, Line]) -> Figure:
  figure = Figure(figsize=(11, 4), layout='constrained')
  left, right = figure.subplots(1, 2)
  for name, line in lines.items():
    learned = name == OWN or name in LEARNED
    style = {'lw': 2.5 if learned else 1.2, 'ls': '--' if 'knots' in name else '-'}
    left.plot(line.t, line.logsnr, **style)
    right.plot(line.at, line.mean, label=f'{name}: {line.std:.3g}', **style)
  left.set(xlabel='t', ylabel='log-SNR', title='noise schedules with equal ends')
  right.set(xlabel='t', ylabel='bits/dim', yscale='log', title='mean of the one-draw estimate at t')
  right.legend(title='standard deviation of a draw, t ~ U[0, 1]')
  return figure


def main():
  for flag, least, value in [('train_steps', 2, TRAIN_STEPS.value),
                             ('batch_size', 1, BATCH_SIZE.value), ('repeats', 2, REPEATS.value)]:
    require_at_least(flag, value, least)
  out = files.output('out', OUT.value or Path(WORKDIR.value or '.', 'schedules.png'), '.png',
                     overwrite=OVERWRITE.value)
  figure = picture(of_run() if WORKDIR.value else on_gaussian_data())
  if jax.process_index() == 0:
    pictures.save_png(out, figure)
  cli.wrote(out)


if __name__ == '__main__':
  cli.run(main)
