"""The flags and the `main` of scripts/forecast.py."""
from absl import flags

from vdm_jax import cli
from vdm_jax.cli import drawing
from vdm_jax.errors import require
from vdm_jax.evaluation import forecasts
from vdm_jax.runs import forecasting
from vdm_jax.train import metrics

WORKDIR = cli.run_directory()
DATA = cli.path('data', 'The history: a .npz, .npy or .csv file with the columns of the run.  '
                'Default: the test rows of the run are forecast and scored.')
HORIZON = flags.DEFINE_integer('horizon', None, 'Rows to forecast.  Default: as in training.')
PATHS = flags.DEFINE_integer('paths', 100, 'Paths, of which the quantiles are taken.')
FIRST_ROW = flags.DEFINE_integer('first_row', 0, "The number of the first row of --data in the "
                                 'file of training; it sets the hour of the day, for example.')
LEVELS = flags.DEFINE_list('levels', [f'{level:g}' for level in forecasts.LEVELS],
                           'Levels of the quantiles, from 0 to 1.')
OUT = cli.path('out', 'With --data: a .npz file; a .csv and a .png are written beside it.  '
               'Default: forecast.npz in the workdir.  Without: a .json file, and a .png beside '
               'it.  Default: forecasts.json.')
OVERWRITE = cli.overwrite()
SAMPLER = drawing.sampler(*3 * ['See sample.py --help.  Default: the sampler of the model.'])
SEED = cli.seed('the paths')
BATCH_SIZE = cli.batch_size(16, 'Forecasts at a time, without --data.')
AVERAGE, STEP = cli.average(), cli.step()
DATA_NAME = cli.moved_data("The run's data, if they have moved: x.npz or x.csv.")
MEASURED, ROW = cli.measured(), cli.row()


def main():
  method = SAMPLER.method() if SAMPLER.chosen() else None
  options = cli.values(PATHS, SEED, AVERAGE, STEP, OVERWRITE) | {'method': method}
  if DATA.value is not None:
    for flag in (DATA_NAME, BATCH_SIZE, MEASURED, ROW):
      require(not flag.present, flag.name, flag.value, 'it belongs to the scores of the test rows, '
              'and --data asks for a forecast', 'leave one of them out')
    found, wrote = forecasting.forecast(
        WORKDIR.value, DATA.value, OUT.value or '', levels=cli.numbers('levels', LEVELS.value),
        **options, **cli.values(HORIZON, FIRST_ROW))
    print(f'{len(found.mean)} rows of {", ".join(found.names)}')
  else:
    for flag in (HORIZON, FIRST_ROW, LEVELS):
      require(not flag.present, flag.name, flag.value, 'the test rows are forecast as in training',
              'leave it out, or give --data')
    cli.check_row(MEASURED.value, ROW.value, forecasting.NAMES)
    rolling, wrote = forecasting.evaluate(WORKDIR.value, OUT.value or '', **options,
                                          **cli.values(BATCH_SIZE, DATA_NAME))
    metrics.show(forecasts.table(rolling.scores, f'{rolling.windows} forecasts, '
                                 f'{rolling.paths} paths each'))
    if rolling.nats:
      print(f'{rolling.nats.value:.3f} +- {rolling.nats.error:.3f} nats a row')
    if ROW.value:
      cli.keep_row(MEASURED.value, ROW.value, forecasting.figures(rolling))
  cli.wrote(*wrote)
