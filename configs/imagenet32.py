"""ImageNet at 32x32, as Kingma et al. (2021).

  python scripts/train.py --config=configs/imagenet32.py --workdir=DIR --data_dir=DIR

Network: 122,137,603 parameters, 81.5 TFLOP a step.
Data: TFDS's downsampled_imagenet/32x32.  There are two versions of it, old (49,999 validation
images, no longer distributed) and new (50,000), between which the same model differs by about 0.26
bits/dim; the ledger says which one was read.
Hardware and time: 10 M steps; planned for a TPU pod slice or 8 GPUs.  Not run to its end here.
To reach: 3.72 bits/dim on the old version (Kingma et al. 2021, table 1); about 3.46 on the new
(VDMv, a VDM that predicts v: the baseline of DiffEnc, Nielsen et al. 2024).
"""
import ml_collections

from vdm_jax import schedules
from vdm_jax.systems import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = vdm.default_config()
  config.data.name = 'downsampled_imagenet/32x32'
  config.data.update(shape=(32, 32, 3), levels=256, validation=1024, hold_out=False)
  config.model.features = 256
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vdm.experiment(config, net=vdm.unet(config), schedule=schedules.LearnedLinear(
      *vdm.end_points(config)))
