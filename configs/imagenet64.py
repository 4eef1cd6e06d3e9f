"""ImageNet at 64x64, as Kingma et al. (2021).

  python scripts/train.py --config=configs/imagenet64.py --workdir=DIR --data_dir=DIR

Network: 237,603,843 parameters, 641 TFLOP a step.
Data: TFDS's downsampled_imagenet/64x64, in two versions as described in imagenet32.py.
Hardware and time: 10 M steps; planned for a TPU pod slice or 8 GPUs.  Not run to its end here.
To reach: 3.40 bits/dim on the old version (Kingma et al. 2021, table 1).
"""
import ml_collections

from vdm_jax import schedules
from vdm_jax.systems import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = vdm.default_config()
  config.data.name = 'downsampled_imagenet/64x64'
  config.data.update(shape=(64, 64, 3), levels=256, validation=1024, hold_out=False)
  config.model.update(features=256, blocks=64)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vdm.experiment(config, net=vdm.unet(config), schedule=schedules.LearnedLinear(
      *vdm.end_points(config)))
