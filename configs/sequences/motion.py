"""Damped oscillations: sequences of 32 real numbers, by VDM with the density of continuous data.

  python scripts/train.py --config=configs/sequences/motion.py --workdir=runs/motion
  python scripts/train.py --config=configs/sequences/motion.py --workdir=DIR \
    --config.data.name=mine.npy   (floats [N, T], of mean 0 and standard deviation 1 or so)

x are real numbers, so nothing is dequantised and no level is decoded: the bits are those of a
density, and may be negative.  Sequences [N, T, C] take a network of [B, T, C] in the place of MLP.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.nn.small.mlp import MLP
from vdm_jax.systems import compose
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  return recipes.plane(vdm.default_config(features=128, blocks=4, logsnr_max=8.0, dropout=0.0),
                       'oscillations')


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  logsnr_max, logsnr_min = compose.end_points(config)
  return vdm.experiment(config, net=MLP(
      features=m.features, blocks=m.blocks, dropout=m.dropout, logsnr_max=logsnr_max,
      logsnr_min=logsnr_min))
