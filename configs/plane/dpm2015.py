"""The swiss roll of the first diffusion paper: 40 levels, learned rates, 64 radial basis functions.

  python scripts/train.py --config=configs/plane/dpm2015.py --workdir=runs/dpm_swiss_roll
  python scripts/sample.py --workdir=runs/dpm_swiss_roll --sampler=ancestral_learned --steps=39 \
    --out=roll.png

Sohl-Dickstein et al. (2015), section 3.1 and appendix D.1.1, have 16 functions.  Their K of 2.35
bits belongs to a roll with less noise, scaled to variance 1.  A run reports its own K as K_bits,
which is at most -0.65 on this roll (`data.formulas`).  Compare K with K_bits, not with bits/dim.
Hardware, time and what it reaches: see configs/plane/README.md.
The bound, in bits/dim, belongs to the chain; the entropy of the data is 6.09 bits/dim.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.nn.blocks.rbf import RadialBasis
from vdm_jax.systems.chains import dpm2015
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = recipes.plane(dpm2015.default_config(
      timesteps=39, units=64, first_beta=0.001, mean=(143.6, 129.2), std=54.3),  # in levels
      'swiss_roll', steps=10_000)
  config.optimizer.update(learning_rate=1e-2, weight_decay=0.0)
  config.ema = {'ema': 0.998}
  config.train.update(log_every=200, validate_every=2000, checkpoint_every=5000, pictures_every=0)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return dpm2015.gaussian(config, net=lambda steps: RadialBasis(steps, config.model.units))
