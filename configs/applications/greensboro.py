"""Forecasts of the weather of Greensboro: seven hourly series, 24 hours ahead, by TimeGrad.

  python scripts/train.py --config=configs/applications/greensboro.py --workdir=runs/greensboro \
    --config.data.name=greensboro_hourly.npz
  python scripts/forecast.py --workdir=runs/greensboro --step=best

The second command forecasts the last 73 days, each from all hours before it.  `chain` after the
colon is the published chain, and the default.  `flow` is flow matching.

The data are a typical year (TMY3) of station 723170, 8,760 hours, as the package pvlib ships them:
`values` [8760, 7] and `names` in a .npz file.
Hardware, time and what it reaches: see configs/applications/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems.applications import timegrad
from vdm_jax.typing import Experiment

# Each with its mean and standard deviation over the first 7,008 hours, which are for training.
COLUMNS = {'ghi': (198.2, 271.4), 'dni': (177.8, 277.0), 'dhi': (86.1, 112.0),
           'temp_air': (16.1, 9.9), 'temp_dew': (9.9, 10.3), 'relative_humidity': (70.2, 20.4),
           'wind_speed': (3.0, 1.8)}
CUT = ('ghi', 'dni', 'dhi', 'relative_humidity', 'wind_speed')  # which cannot be negative


def get_config(kind: str = 'chain') -> ml_collections.ConfigDict:
  require_choice('config', kind, timegrad.KINDS)
  location, scale = zip(*COLUMNS.values(), strict=True)
  config = timegrad.default_config(
      kind=kind, net='mlp', features=64, blocks=3, dropout=0.2, cells=32, layers=1, conditioning=32,
      lags=(1, 2, 3, *range(24, 169, 24)), scaler='fixed', location=location, scale=scale,
      nonnegative=CUT)
  config.data.series.update(history=192, horizon=24, test=73 * 24, periods=(24.0, 12.0),
                            columns=tuple(COLUMNS))
  return recipes.forecasts(config, 'greensboro_hourly.npz', steps=1500)


def build(config: ml_collections.ConfigDict) -> Experiment:
  return timegrad.experiment(config)
