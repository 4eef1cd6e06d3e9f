"""A forecaster of seconds, of two waves and noise: few cells, and few steps."""
import ml_collections

from vdm_jax import recipes
from vdm_jax.systems.applications import timegrad
from vdm_jax.typing import Experiment


def get_config(name: str = 'waves.npz') -> ml_collections.ConfigDict:
  config = timegrad.default_config(kind='flow', net='mlp', features=8, blocks=1, cells=8, layers=1,
                                   conditioning=8, lags=(1, 4), scaler='standard')
  config.data.series.update(history=12, horizon=3, test=9, periods=(4.0,))
  config = recipes.forecasts(config, name, steps=20)
  config.data.update(validation=8, batch_size=8)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return timegrad.experiment(config)
