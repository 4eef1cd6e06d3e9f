"""An energy of the noisy spiral, whose gradient is the score: curl-free, with a Metropolis test.

  python scripts/train.py --config=configs/ebm_swirl.py --workdir=runs/ebm_swirl
  python scripts/sample.py --workdir=runs/ebm_swirl --sampler=ancestral --out=ebm_swirl.png

E(z, t) = 1/2 |z + network|^2, as Salimans and Ho (2021), trained by denoising score matching with
lambda = 2 sigma^2 on all levels.  --config.data.name takes other points.  In Python, with the
denoiser of `vdm_jax.load`, `systems.energy` samples by MALA, multiplies models and estimates
normalisers.
Hardware, time and what it reaches: see configs/README.md.
A free network has 5.57 bits/dim (toy2d.py), on another loss.
"""
import ml_collections

from vdm_jax import schedules
from vdm_jax.nn.mlp import MLP
from vdm_jax.systems import energy, vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = vdm.default_config()
  config.data.update(name='swirl', validation=2000, batch_size=256)
  config.model.update(features=96, blocks=3, dropout=0.0, logsnr_max=10.0)
  config.optimizer.update(learning_rate=2e-3, decay_steps=3000, clip_norm=1.0)
  config.ema = {'ema': 0.995}
  config.train.update(steps=3000, log_every=100, validate_every=500, checkpoint_every=1000,
                      pictures_every=1000, keep=2, validation_repeats=4)
  return config


def network(config: ml_collections.ConfigDict) -> MLP:
  m, (logsnr_max, logsnr_min) = config.model, vdm.end_points(config)
  return MLP(features=m.features, blocks=m.blocks, dropout=m.dropout, logsnr_max=logsnr_max,
             logsnr_min=logsnr_min)


def build(config: ml_collections.ConfigDict) -> Experiment:
  return energy.experiment(config, net=network(config),
                           schedule=schedules.Linear(*vdm.end_points(config)))
