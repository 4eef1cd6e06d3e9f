"""An energy of the noisy spiral, trained by recovery likelihood: contrast with a Langevin chain.

  python scripts/train.py --config=configs/plane/recovery.py --workdir=runs/recovery
  python scripts/sample.py --workdir=runs/recovery --sampler=recovery --steps=16 --out=recovery.png

Gao et al. (2021), with the energy E(z, t) = 1/2 |z + network|^2 of `energy.py`.  A chain of 10
moves draws the negatives.  The loss of training has no meaning; the loss of validation is the
bound.  --config.data.name chooses other points.
Hardware, time and what it reaches: see configs/plane/README.md.
"""
import ml_collections

from vdm_jax import recipes, schedules
from vdm_jax.systems import compose, networks
from vdm_jax.systems.scores import recovery
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = recipes.plane(recovery.default_config(features=96, blocks=3, dropout=0.0,
                                                 logsnr_max=10.0), steps=2000)
  config.data.batch_size = 256
  config.optimizer.clip_norm = 1.0
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return recovery.experiment(config, net=networks.mlp(config),
                             schedule=schedules.Linear(*compose.end_points(config)))
