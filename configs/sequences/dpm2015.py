"""Diffusion of bits: sequences of 20 with a one in every fifth place, in 2,000 steps.

  python scripts/train.py --config=configs/sequences/dpm2015.py --workdir=runs/dpm_heartbeat
  python scripts/sample.py --workdir=runs/dpm_heartbeat --out=beats.png

Sohl-Dickstein et al. (2015), section 3.1 and appendix D.1.2: the binomial chain, which ends at the
data's share of ones.  With another network, the paper reaches K = -2.414 bits a sequence (table 1).
The best possible K, for the distribution of the data, is -log2 5 = -2.322.
Hardware, time and what it reaches: see configs/sequences/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.nn.small.mlp import MLP
from vdm_jax.systems.chains import dpm2015
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = recipes.plane(dpm2015.default_config(
      timesteps=2000, activity=0.2, features=64, blocks=2), 'heartbeat', steps=10_000)
  config.optimizer.update(learning_rate=3e-3, weight_decay=0.0)
  config.ema = {'ema': 0.998}
  config.train.update(log_every=200, validate_every=2000, checkpoint_every=5000, pictures_every=0,
                      validation_repeats=8)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  return dpm2015.binomial(config, net=lambda largest: MLP(
      features=m.features, blocks=m.blocks, logsnr_max=largest, logsnr_min=0.0, adds_z=False))
