"""MNIST, 28x28 with 256 grey levels.

  python scripts/prepare_data.py mnist --data_dir=DIR
  python scripts/train.py --config=configs/mnist/vdm.py --workdir=runs/mnist --data_dir=DIR

Hardware and time: planned for one GPU; not run to its end here.
To reach: no figure is published for this exact network.  Nielsen et al. (2024) report about 0.37
bits/dim (test, variational bound) for a model of 8 blocks; this figure was not checked.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  return recipes.mnist(vdm.default_config(blocks=8))


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vdm.experiment(config)
