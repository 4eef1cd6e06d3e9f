"""The U-Net of ADM on the digits, told their labels; all else as in `digits_ddpm`.

  python scripts/train.py --config=configs/digits_adm.py --workdir=runs/digits_adm

Dhariwal and Nichol (2021): the embedding scales and shifts, residual blocks resample, attention in
heads at both resolutions.
Hardware, time and what it reaches: see the table of networks in README.md.
"""
import digits_ddpm
import ml_collections

from vdm_jax.nn.adm import UNet
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  return digits_ddpm.get_config()


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  return digits_ddpm.experiment(config, UNet(
      features=m.features, multipliers=(1, 2), blocks=m.blocks, attention_resolutions=(8, 4),
      head_features=16, resblock_updown=True, qkv_order='new', groups=m.groups))
