"""Compares ways to draw t: the variance of the diffusion term's estimates, in one table.

  python scripts/time_sampling.py                      (Gaussian data, the optimal denoiser)
  python scripts/time_sampling.py --workdir=runs/digits_small --out=proposals.json

Without a run: 3,072 dimensions of variance 0.25, log-SNR from 13.3 to -5 by three schedules; exact
but for the histories, which are drawn.  With one: its network, its schedule and random images of
--split.
"""
import json

import cli
import jax
import numpy as np
import rich.box
import rich.table
from absl import flags

from vdm_jax import schedules
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.likelihood import time_variances
from vdm_jax.machine import files
from vdm_jax.objectives import idode, proposals
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import needs, workdir
from vdm_jax.systems.variational import gaussian
from vdm_jax.train import metrics

WORKDIR = cli.run_directory('The directory of a run; none: Gaussian data.')
SPLIT = flags.DEFINE_string('split', 'test', 'train, validation or test.')
BATCH_SIZE = flags.DEFINE_integer('batch_size', 128, 'Draws whose times are spread together.')
BATCHES = flags.DEFINE_integer('batches', 128, 'How many batches.')
BINS = flags.DEFINE_integer('bins', 64, 'Of the history of losses.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the draws.')
OUT = cli.path('out', 'A .json for the table.')
OVERWRITE = cli.overwrite()
AVERAGE = flags.DEFINE_string('average', '', "An EMA of the config, or 'raw'; ours: the longest.")
STEP = flags.DEFINE_string('step', 'latest', "A checkpoint: 'latest', 'best' or its number.")
DATA_DIR = cli.path('data_dir', 'Where TFDS data sets are, if not where they were.')
DATA_NAME = cli.moved_data()

MASSES = {'uniform log-SNR (ScoreFlow)': lambda logsnr: logsnr,
          'alpha^2 on VP (i-DODE)': idode.vp_mass, 'alpha^2 on SP (i-DODE)': idode.sp_mass}


def with_history(term, params=None, split=None):
  """The variances at the times that a history of losses proposes, with its errors."""
  options = {'batch': BATCH_SIZE.value, 'seed': SEED.value}
  history = time_variances.loss_history(term, params, split, bins=BINS.value, **options)
  histogram = history.proposal()
  return time_variances.variances(time_variances.draw(
      term, params, split, propose=lambda params: histogram, batches=BATCHES.value, **options))


def on_gaussian_data():
  """Rows of (schedule, times, (values, their standard errors))."""
  history = f'history of losses, {BINS.value} bins (IDDPM)'

  def exact(process, propose):
    with jax.enable_x64(True):
      mean, variance = gaussian.estimate(process, propose)
      stratified = gaussian.estimate(process, propose, batch=BATCH_SIZE.value)[1]
    return (time_variances.TimeVariance(mean, variance, stratified),
            time_variances.TimeVariance(0.0, 0.0, 0.0))

  with jax.enable_x64(True):
    processes = time_variances.published_schedules(GaussianProcess(schedules.Linear()))
  linear = processes[time_variances.LINEAR]
  ends = [float(u) for u in linear(np.array([0.0, 1.0])).logsnr]
  with jax.enable_x64(True):
    best = proposals.tabulated(gaussian.error_of_eps, *ends)
  # Densities of log-SNR are the same under every schedule.
  for name, mass in {**MASSES, 'optimal density, tabulated': best}.items():
    yield 'any', name, exact(linear, proposals.by_mass(linear, mass))
  for name, process in processes.items():
    yield name, 'uniform t', exact(process, proposals.uniform)
    term = lambda params, batch, t, keys, process=process: gaussian.one_draw(process, t, keys)
    yield name, history, with_history(term)


def of_run():
  run = workdir.load_trained(WORKDIR.value, average=AVERAGE.value, step=STEP.value,
                             data_dir=DATA_DIR.value or '', data_name=DATA_NAME.value or '')
  model, params = run.experiment.model, run.params
  needs.require(model(params), 'time_sampling', WORKDIR.value)
  time_variances.require_proposable(model(params))
  split = run.experiment.data.split(SPLIT.value)
  if not len(split):
    raise InputError('split', SPLIT.value, 'this run has no such images', 'choose another')
  term = time_variances.diffusion_term(model)
  proposals = {name: lambda params, mass=mass: proposals.by_mass(model(params).process, mass)
               for name, mass in MASSES.items()}
  for name, propose in {**proposals, 'uniform t': lambda params: proposals.uniform}.items():
    yield 'of the run', name, time_variances.variances(time_variances.draw(
        term, params, split, propose=propose, batch=BATCH_SIZE.value, batches=BATCHES.value,
        seed=SEED.value))
  yield ('of the run', f'history of losses, {BINS.value} bins (IDDPM)',
         with_history(term, params, split))


def main():
  for name, value, least in [('batch_size', BATCH_SIZE.value, 1), ('batches', BATCHES.value, 2),
                             ('bins', BINS.value, 1)]:
    require_at_least(name, value, least)
  if OUT.value:
    files.output('out', OUT.value, '.json', overwrite=OVERWRITE.value)
  if SPLIT.value not in ('train', 'validation', 'test'):
    raise InputError('split', SPLIT.value, 'there is no such choice',
                     'choose train, validation or test')
  table = rich.table.Table(
      title='diffusion term in bits/dim, one draw an estimate',
      caption=f'stratified: {BATCH_SIZE.value} times the variance of the mean of '
              f'{BATCH_SIZE.value} draws at evenly spread u; ± by a bootstrap over batches, of '
              'this one history where there is one; without it exact',
      box=rich.box.SIMPLE_HEAD)
  for name in ('schedule', 'times', 'mean', 'variance', 'stratified'):
    table.add_column(name, justify='left' if name in ('schedule', 'times') else 'right')
  rows = []
  for schedule, method, (values, errors) in of_run() if WORKDIR.value else on_gaussian_data():
    rows.append({'schedule': schedule, 'times': method, **values._asdict(),
                 'standard_errors': errors._asdict()})
    table.add_row(schedule, method, *(
        f'{value:.4g} ± {error:.2g}' if error else f'{value:.4g}'
        for value, error in zip(values, errors, strict=True)))
  metrics.show(table)
  if OUT.value:
    if jax.process_index() == 0:
      files.write_text(OUT.value, json.dumps(rows, indent=2))
    cli.wrote(OUT.value)


if __name__ == '__main__':
  cli.run(main)
