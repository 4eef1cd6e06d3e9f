"""An energy of the noisy spiral, whose gradient is the score: curl-free, with a Metropolis test.

  python scripts/train.py --config=configs/plane/energy.py --workdir=runs/energy
  python scripts/sample.py --workdir=runs/energy --sampler=ancestral --out=energy.png

The energy is E(z, t) = 1/2 |z + network|^2, as in Salimans and Ho (2021).  It is trained by
denoising score matching with lambda = 2 sigma^2 on all levels.  --config.data.name chooses other
points.  In Python, the functions of `systems.scores.energy` take the denoiser of a loaded model.
They sample by MALA, multiply models and estimate normalisers.
Hardware, time and what it reaches: see configs/plane/README.md.
"""
import ml_collections

from vdm_jax import recipes, schedules
from vdm_jax.systems import compose, networks
from vdm_jax.systems.scores import energy
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = recipes.plane(vdm.default_config(features=96, blocks=3, dropout=0.0, logsnr_max=10.0))
  config.data.batch_size = 256
  config.optimizer.clip_norm = 1.0
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return energy.experiment(config, net=networks.mlp(config),
                           schedule=schedules.Linear(*compose.end_points(config)))
