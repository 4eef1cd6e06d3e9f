"""The first 40 of 1,000 steps on the noisy spiral, and a generator of points at step 40.

  python scripts/train.py --config=configs/plane/truncated.py --workdir=runs/truncated
  python scripts/sample.py --workdir=runs/truncated --sampler=ancestral --steps=40 --out=spiral.png

The method is by Zheng, He, Chen and Zhou (2023).  `gaussian` after the colon replaces the generator
by a Gaussian, which has a likelihood (scripts/evaluate.py).  At step 40 the spiral still shows, so
a Gaussian is not enough.
Hardware, time and what it reaches: see configs/plane/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems.chains import truncated
from vdm_jax.typing import Experiment

PRIORS = {'adversarial': truncated.adversarial_prior, 'gaussian': truncated.gaussian_prior}


def get_config(prior: str = 'adversarial') -> ml_collections.ConfigDict:
  require_choice('config', prior, PRIORS)
  config = recipes.plane(truncated.default_config(
      features=96, blocks=3, dropout=0.0, prior=prior, truncated_at=40, discriminator_layers=2,
      generator_learning_rate=1e-3, discriminator_learning_rate=1e-3))
  config.data.batch_size = 128
  config.optimizer.weight_decay = 0.0
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return PRIORS[config.model.prior](config, net=truncated.points(config))
