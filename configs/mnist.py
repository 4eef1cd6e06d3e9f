"""MNIST, 28x28 with 256 grey levels.

  python scripts/prepare_data.py mnist --data_dir=DIR
  python scripts/train.py --config=configs/mnist.py --workdir=runs/mnist --data_dir=DIR

Hardware and time: planned for one GPU; not run to its end here.
To reach: about 0.37 bits/dim (test, variational bound) is what DiffEnc (Nielsen et al. 2024)
plots for an 8-block VDM after 2 M steps; read off from memory, so take it as a region.
"""
import ml_collections

from vdm_jax import schedules
from vdm_jax.systems import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = vdm.default_config()
  config.data.name = 'mnist'
  config.data.update(validation=1000, batch_size=128)
  config.model.update(features=128, blocks=8)
  config.train.steps = 2_000_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vdm.experiment(config, net=vdm.unet(config), schedule=schedules.LearnedLinear(
      *vdm.end_points(config)))
