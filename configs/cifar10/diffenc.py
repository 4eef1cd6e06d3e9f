"""DiffEnc on CIFAR-10, after Nielsen et al. (2024).

  python scripts/prepare_data.py cifar10 --data_dir=DIR
  python scripts/train.py --config=configs/cifar10/diffenc.py --workdir=RUN --data_dir=DIR

Network: see docs/reference/configs.md.  The paper's encoder is a U-Net of several resolutions with
64 features.  Our encoder also has 64 features, but one resolution, like the network of the VDM.
Hardware and time: 8 M steps in the paper.  Not run to its end here.
To reach: 2.62 bits/dim (test, continuous-time bound; the paper's best model, without augmentation).
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.systems import networks
from vdm_jax.systems.variational import diffenc
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  return recipes.cifar10(diffenc.default_config())


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  networks.require_groups(config, 'encoder_')
  # No dropout and no Fourier features.  z is added to the output, which is 0 at first.
  encoder = networks.unet(config).clone(features=m.encoder_features, blocks=m.encoder_blocks,
                                        groups=m.encoder_groups, dropout=0.0, fourier=())
  return diffenc.experiment(config, encoder=encoder)
