"""Forecasts time series by a run, or scores the run's forecasts of its test rows.

  python scripts/forecast.py --workdir=runs/greensboro --data=history.csv --horizon=24
  python scripts/forecast.py --workdir=runs/greensboro

The first command writes quantiles (.npz and .csv) and a fan chart (.png).  The second command
forecasts all test rows, and prints CRPS, CRPS_sum and the coverage of intervals.  Batches of its
forecasts are kept until the scores are written, so a stopped command goes on.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import forecast

flags.adopt_module_key_flags(forecast)

if __name__ == '__main__':
  cli.run(forecast.main, bootstrap.ROOT, required={'workdir': 'runs/greensboro'},
          kept='Whole batches of forecasts of the test rows are kept, and the same command goes on '
          'from there.')
