"""Evaluates a run's likelihood: the ledger on screen, ledger.json, bits.npz and two pictures.

Of a directory of runs seed_N, each of them, with a table of their means and spreads.

  python scripts/evaluate.py --workdir=runs/digits --estimates=vlb,vlb@1000,ode,iw@20x100,immse
  python scripts/evaluate.py --workdir=runs/digits --estimates=my.py:mine
"""
from pathlib import Path

import cli
from absl import flags

from vdm_jax import ledger, runs
from vdm_jax.errors import InputError
from vdm_jax.ledger import families, family
from vdm_jax.train import metrics

WORKDIR = cli.run_directory()
SPLIT = flags.DEFINE_string('split', 'test', 'train, validation or test.')
ESTIMATES = flags.DEFINE_list('estimates', ['vlb'], f'Of {families.ACCEPTED}; vlb is always '
                              'there.')
SCHEDULES = flags.DEFINE_bool('schedules', False, 'vlb also under other schedules of equal ends.')
REPEATS = flags.DEFINE_integer('repeats', 1, 'Independent repetitions of all draws.')
TIMES = flags.DEFINE_integer('times', 32, 'vlb, immse: times per image and repetition, evenly '
                             'spread.')
IMPORTANCE = flags.DEFINE_integer('importance', 1, 'ode: draws of the dequantiser, for an image.')
TOLERANCE = flags.DEFINE_float('ode_tolerance', 1e-5, 'ode: absolute and relative, of its steps.')
START = flags.DEFINE_float('ode_start', None, 'ode: the time, 1e-3 say, where the flow ends and '
                           'one Gaussian step around the denoised data begins; left out: 0.')
PROBES = flags.DEFINE_integer('probes', 1, 'ode: of the divergence, for an image.')
PROBE = flags.DEFINE_string('probe', 'rademacher', f'ode: {", ".join(family.PROBES)}; exact is '
                            'for data of few dimensions.')
AVERAGE = flags.DEFINE_string('average', '', "An EMA of the config, or 'raw'; ours: the longest.")
STEP = flags.DEFINE_string('step', 'latest', "A checkpoint: 'latest', 'best' or its number.")
SEED = flags.DEFINE_integer('seed', 0, 'Of the draws.')
BATCH_SIZE = flags.DEFINE_integer('batch_size', 512, 'Evaluations of the network at a time.')
EXAMPLES = flags.DEFINE_integer('examples', None, 'Only the first so many images.')
REPORT = flags.DEFINE_bool('report', False, 'Only print the ledger of the main evaluation of '
                           '--split.')
OUT = cli.path('out', 'The directory for the files, if not that of the run.')
OVERWRITE = flags.DEFINE_bool('overwrite', False, 'Also a ledger of the same images and weights '
                              'with more rows or draws.')
DATA_DIR = cli.path('data_dir', 'Where TFDS data sets are, if not where they were.')
DATA_NAME = cli.moved_data()


OPTIONS = (REPEATS, TIMES, IMPORTANCE, TOLERANCE, START, PROBES, PROBE, SEED, BATCH_SIZE)


def evaluated(run: Path, out: str | Path) -> ledger.Ledger:
  show = lambda of: metrics.show(ledger.table(of))
  if REPORT.value:
    show(found := runs.report(run, SPLIT.value, out))
    return found
  return runs.evaluate(
      run, split=SPLIT.value, estimates=ESTIMATES.value, schedules=SCHEDULES.value,
      average=AVERAGE.value, step=STEP.value, examples=EXAMPLES.value,
      data_dir=DATA_DIR.value or '', data_name=DATA_NAME.value or '', out=out,
      overwrite=OVERWRITE.value, show=show, **{of.name: of.value for of in OPTIONS})


def main():
  of_main = AVERAGE, STEP, EXAMPLES
  if REPORT.value and (other := [of.name for of in of_main if of.value != of.default]):
    raise InputError('report', True, 'it shows the main evaluation of a split, of all images by '
                     'the newest weights of the default average', f'leave out --{other[0]}, or '
                     'show another ledger by scripts/compare_ledgers.py RUN/ledger_....json')
  ledgers = {}
  for run in runs.seeds(WORKDIR.value):
    ledgers[run.name] = evaluated(run, Path(OUT.value) / run.name if OUT.value else '')
  if ledgers:
    metrics.show(ledger.over_seeds(ledgers))
  else:
    evaluated(Path(WORKDIR.value), OUT.value or '')


if __name__ == '__main__':
  cli.run(main, required={'workdir': 'runs/digits'},
          kept='Nothing of this evaluation is kept, and what an earlier one wrote stays.')
