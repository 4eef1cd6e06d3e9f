"""Handwritten digits, 8x8 with 17 grey levels: the quick start."""
import ml_collections

from vdm_jax import schedules
from vdm_jax.systems import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = vdm.default_config()
  config.data.name = 'digits'
  config.data.validation = 97
  config.data.batch_size = 64
  config.model.update(features=48, blocks=2, groups=12)
  config.optimizer.update(learning_rate=2e-3, warmup_steps=100, decay_steps=1500)
  config.ema = {'ema': 0.99}
  config.train.update(steps=1500, log_every=50, validate_every=150, checkpoint_every=500,
                      pictures_every=500, keep=2, splits=('validation', 'test'),
                      validation_repeats=4)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vdm.experiment(config, net=vdm.unet(config), schedule=schedules.LearnedLinear(
      *vdm.end_points(config)))
