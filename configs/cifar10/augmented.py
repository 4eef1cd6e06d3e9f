"""CIFAR-10 with augmentation: the published code's variant, or the paper's.

  python scripts/train.py --config=configs/cifar10/augmented.py --workdir=DIR --data_dir=DIR
  python scripts/train.py --config=configs/cifar10/augmented.py:paper --workdir=DIR --data_dir=DIR

                   open               paper
  attention        in the middle      after every block
  batch            768                1024
  learning rate    1e-4               2e-4
  parameters       122,137,603        139,276,803

Images are flipped and turned by quarters.  The network reads whether an image was changed, and is
evaluated on unchanged images.  The schedule is the unpinned monotone network of the published code.
Hardware and time: 64 TPU v3 cores or more; 100 M steps.  Not run to its end here.
To reach: 2.49 bits/dim (test, continuous-time bound; Kingma et al. 2021, table 1) for `paper`, and
2.52 for `open` (an evaluation of its published checkpoint).
"""
import ml_collections

from vdm_jax import recipes, schedules
from vdm_jax.errors import require_choice
from vdm_jax.systems import compose
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def get_config(variant: str = 'open') -> ml_collections.ConfigDict:
  require_choice('config', variant, ('open', 'paper'))
  paper = variant == 'paper'
  config = recipes.cifar10(vdm.default_config(features=256, attention_everywhere=paper,
                                              dropout=0.05))
  config.data.update(augment=True, batch_size=1024 if paper else 768)
  config.optimizer.learning_rate = 2e-4 if paper else 1e-4
  config.train.steps = 100_000_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  logsnr_max, logsnr_min = compose.end_points(config)
  return vdm.experiment(config, schedule=schedules.Monotone(logsnr_max=logsnr_max,
                                                            logsnr_min=logsnr_min))
