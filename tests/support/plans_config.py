"""A planner of seconds: episodes of a point on a line, few features and few steps."""
import ml_collections

from vdm_jax import recipes
from vdm_jax.systems.applications import decisions
from vdm_jax.typing import Experiment


def get_config(name: str = 'walks.npz') -> ml_collections.ConfigDict:
  config = decisions.default_config(
      kind='continuous', net='transformer', features=8, depth=1, attention_heads=2, hidden=8,
      returns_scale=1.0, steps=3)
  config.data.episodes.update(horizon=4, normaliser='limits')
  config = recipes.plans(config, name, steps=20)
  config.data.update(validation=8, batch_size=8)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return decisions.experiment(config)
