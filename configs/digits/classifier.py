"""A classifier of the digits: scripts/score_samples.py judges samples by its features.

  python scripts/train.py --config=configs/digits/classifier.py --workdir=runs/digits_classifier

The classifier is not a diffusion model: it learns the label.  metrics.jsonl has the accuracy on the
held-out images and on the test images.
Hardware and time: 2 CPU cores, 0.5 minutes.
To reach: accuracy 0.983 on the 300 test images, measured here.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.systems.guided import classifier
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = recipes.digits(classifier.default_config(), steps=500)
  config.optimizer.update(learning_rate=3e-3, warmup_steps=50)
  config.ema = {'ema': 0.98}
  config.train.update(validate_every=250, checkpoint_every=250, validation_repeats=1)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return classifier.experiment(config)
