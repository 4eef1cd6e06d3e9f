"""A classifier of MNIST: scripts/score_samples.py judges samples by its features.

  python scripts/train.py --config=configs/mnist/classifier.py --workdir=runs/mnist_classifier \
    --data_dir=DIR

The classifier is not a diffusion model: it learns the label.  metrics.jsonl has the accuracy on the
held-out images and on the test images.
Hardware and time: 2 CPU cores shared with other work, 5 minutes.
To reach: accuracy 0.972 on the 10,000 test images, measured here.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.systems.guided import classifier
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = recipes.short(classifier.default_config(), 'mnist', steps=1000, learning_rate=6e-3)
  config.data.batch_size = 64
  config.ema = {'ema': 0.98}
  config.train.splits = ('validation', 'test')
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return classifier.experiment(config)
