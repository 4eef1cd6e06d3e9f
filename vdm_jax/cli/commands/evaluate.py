"""The flags and the `main` of scripts/evaluate.py."""
from pathlib import Path

from absl import flags

from vdm_jax import cli, ledger, measured, runs
from vdm_jax.errors import InputError, require
from vdm_jax.ledger import families, family, tables
from vdm_jax.runs import describing, reconstructing
from vdm_jax.train import metrics
from vdm_jax.typing import Captions, Reconstructs

WORKDIR = cli.run_directory()
SPLIT = flags.DEFINE_string('split', 'test', 'train, validation or test.')
ESTIMATES = flags.DEFINE_list('estimates', ['vlb'], f'{families.ACCEPTED}.  The first row is '
                              'vlb, with the exceptions in docs/reference/likelihoods.md.')
SCHEDULES = flags.DEFINE_bool('schedules', False, 'Also evaluate vlb under other schedules '
                              'with the same ends.')
REPEATS = flags.DEFINE_integer('repeats', 1, 'Independent repetitions of all draws.')
TIMES = flags.DEFINE_integer('times', 32, 'vlb, immse: times for each example and repetition, '
                             'evenly spread.')
IMPORTANCE = flags.DEFINE_integer('importance', 1, 'ode, ais: draws of the dequantiser, or of '
                                  'the noise of t = 0, for each example.')
TOLERANCE = flags.DEFINE_float('ode_tolerance', 1e-5, 'ode: absolute and relative tolerance.')
START = flags.DEFINE_float('ode_start', None, 'ode: the time where the flow ends, such as 1e-3; '
                           'one Gaussian step covers the rest.  Default: 0.')
PROBES = flags.DEFINE_integer('probes', 1, 'ode: probes of the divergence for each example.')
PROBE = flags.DEFINE_string('probe', 'rademacher', f'ode: {", ".join(family.PROBES)}.  exact is '
                            'for data of few dimensions.')
AVERAGE, STEP = cli.average(), cli.step()
SEED = cli.seed('the draws')
BATCH_SIZE = cli.batch_size(512, 'Evaluations of the network at a time.')
EXAMPLES = flags.DEFINE_integer('examples', None, 'How many examples, from the first on.  '
                                'Default: all.')
UNTOLD = flags.DEFINE_bool('untold', False, 'Evaluate without the label or the text, for the bits '
                           'of the data alone.  For a model that can be guided, but not of '
                           'latents.')
REPORT = flags.DEFINE_bool('report', False, 'Evaluate nothing; print the main ledger of '
                           '--split.')
OUT = cli.path('out', 'The directory for the files.  Default: the run.')
OVERWRITE = cli.overwrite('Replace a ledger even if it has more rows or draws.')
MEASURED, ROW = cli.measured(), cli.row()
DATA_DIR, DATA_NAME = cli.data_dir(), cli.moved_data()


def main():
  cli.check_row(MEASURED.value, ROW.value)
  made = runs.made(WORKDIR.value)
  if isinstance(made, Reconstructs):
    _autoencoder()
    return
  if isinstance(made, Captions):
    _captioner()
    return
  of_main = AVERAGE, STEP, EXAMPLES, UNTOLD
  if REPORT.value and (other := [flag.name for flag in of_main if flag.value != flag.default]):
    raise InputError('report', True, 'it shows the main evaluation of a split: all examples, the '
                     'newest weights, the default average, with labels or texts',
                     f'leave out --{other[0]}, or show another ledger by '
                     'scripts/compare_ledgers.py RUN/ledger_....json')
  seeds = runs.seeds(WORKDIR.value)
  require(not (seeds and ROW.value), 'row', ROW.value, f'{WORKDIR.value} holds several runs',
          'name one of them')
  if seeds:
    table = ledger.over_seeds({
        run.name: _evaluated(run, Path(OUT.value) / run.name if OUT.value else '')
        for run in seeds})
    metrics.show(table)
  else:
    found = _evaluated(Path(WORKDIR.value), OUT.value or '')
    table = tables.rows_table(found.rows)
  if ROW.value:
    cli.keep_row(MEASURED.value, ROW.value, _cells(found), date=tables.date(found))
  else:
    cli.keep(MEASURED.value, f'Estimates of {WORKDIR.value}', measured.cells(table))


def _cells(found: ledger.Ledger) -> dict[str, str]:
  """What --row writes: each estimate by its name, and the first one as the result of the run."""
  figures = tables.figures(found)
  first, text = next(iter(figures.items()))
  named = text if first == 'vlb' else f'{text} ({first})'
  return {**figures, 'bits/dim': text, 'reached here': named}


def _autoencoder():
  """Measures the reconstructions of an autoencoder.  Raises InputError for flags of a ledger."""
  _refuse('an autoencoder, which has no ledger', ESTIMATES, SCHEDULES, REPORT, UNTOLD, TIMES,
          IMPORTANCE, TOLERANCE, START, PROBES, PROBE)
  result = reconstructing.evaluate(
      WORKDIR.value, out=OUT.value or '',
      show=lambda found: metrics.show(reconstructing.table(found)),
      **cli.values(SPLIT, REPEATS, AVERAGE, STEP, SEED, BATCH_SIZE, EXAMPLES, OVERWRITE, DATA_DIR,
                   DATA_NAME))
  if ROW.value:
    cli.keep_row(MEASURED.value, ROW.value, reconstructing.figures(result))
  else:
    cli.keep(MEASURED.value, f'Reconstructions of {WORKDIR.value}',
             measured.cells(reconstructing.table(result)))


def _captioner():
  """Measures the captions of a captioner.  Raises InputError for flags of a ledger."""
  _refuse('a captioner, which has no ledger and no draws', ESTIMATES, SCHEDULES, REPORT, UNTOLD,
          TIMES, IMPORTANCE, TOLERANCE, START, PROBES, PROBE, REPEATS, SEED)
  result = describing.evaluate(
      WORKDIR.value, out=OUT.value or '', show=lambda found: metrics.show(describing.table(found)),
      **cli.values(SPLIT, AVERAGE, STEP, BATCH_SIZE, EXAMPLES, OVERWRITE, DATA_DIR, DATA_NAME))
  if ROW.value:
    cli.keep_row(MEASURED.value, ROW.value, describing.figures(result))
  else:
    cli.keep(MEASURED.value, f'Captions of {WORKDIR.value}',
             measured.cells(describing.table(result)))


def _refuse(made: str, *of_ledger: flags.FlagHolder):
  """Raises InputError if one of these flags was given to a run that made something else."""
  others = [flag.name for flag in of_ledger if flag.value != flag.default]
  if others:
    raise InputError(others[0], None, f'this run made {made}', 'leave it out')


def _evaluated(run: Path, out: str | Path) -> ledger.Ledger:
  show = lambda shown: metrics.show(ledger.table(shown))
  if REPORT.value:
    reported = runs.report(run, SPLIT.value, out)
    show(reported)
    return reported
  return runs.evaluate(run, out=out, show=show, **cli.values(
      SPLIT, ESTIMATES, SCHEDULES, REPEATS, TIMES, IMPORTANCE, TOLERANCE, START, PROBES, PROBE,
      AVERAGE, STEP, SEED, BATCH_SIZE, EXAMPLES, UNTOLD, OVERWRITE, DATA_DIR, DATA_NAME))
