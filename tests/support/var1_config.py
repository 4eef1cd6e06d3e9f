"""A forecaster of a VAR(1) of two series, which learns it in a minute or two."""
import ml_collections

from vdm_jax import recipes
from vdm_jax.systems.applications import timegrad
from vdm_jax.typing import Experiment


def get_config(name: str = 'var1.npz') -> ml_collections.ConfigDict:
  config = timegrad.default_config(kind='flow', net='mlp', features=32, blocks=2, cells=16,
                                   layers=1, conditioning=16, lags=(1,), scaler='fixed',
                                   scale=(1.5, 2.0))
  config.data.series.update(history=8, horizon=3, test=600)
  config = recipes.forecasts(config, name, steps=1500)
  config.data.update(validation=64, batch_size=128)
  config.train.update(validate_every=1500, checkpoint_every=1500)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return timegrad.experiment(config)
