"""Damped motion: sequences of 32 points in the plane, by VDM with a density of continuous data.

  python scripts/train.py --config=configs/sequences/motion.py --workdir=runs/motion
  python scripts/train.py --config=configs/sequences/motion.py --workdir=DIR \
    --config.data.name=mine.npy   (floats [N, T, C] or [N, T], of mean 0 and deviation 1 or so)

`oscillations` after the colon takes the first coordinate alone, as sequences of 32 numbers.  The
data are real numbers, so nothing is dequantised, and no level is decoded.  The bits describe a
density, and may be negative.  The network reads a sequence as one vector.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.nn.small.flattened import Flattened
from vdm_jax.systems import networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def get_config(name: str = 'orbits') -> ml_collections.ConfigDict:
  require_choice('config', name, ('orbits', 'oscillations'))
  return recipes.plane(vdm.default_config(features=128, blocks=4, logsnr_max=8.0, dropout=0.0),
                       name)


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vdm.experiment(config, net=Flattened(networks.mlp(config)))
