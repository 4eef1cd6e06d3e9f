"""The U-Net of DDPM on the digits, told their labels; the system is VDM, as in `digits_small`.

  python scripts/train.py --config=configs/digits_ddpm.py --workdir=runs/digits_ddpm

Ho, Jain and Abbeel (2020): two resolutions, 8x8 and 4x4, attention at the smaller.  `digits_adm`
and `digits_dit` differ from it in the network alone.
Hardware, time and what it reaches: see the table of networks in README.md.
"""
import digits_small
import ml_collections
from flax import linen as nn

from vdm_jax import data, inputs, schedules
from vdm_jax.nn.ddpm import UNet
from vdm_jax.systems import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = digits_small.get_config()
  config.model.class_conditional = True
  return config


def experiment(config: ml_collections.ConfigDict, net: nn.Module) -> Experiment:
  """VDM with this network of (z, time, label), time being log-SNR mapped to [0, 1000]."""
  ends, labelled = vdm.end_points(config), config.model.class_conditional
  net = net.clone(classes=data.resolve(config.data).classes if labelled else 0)
  return vdm.experiment(config, net=vdm.configured(net, config), inputs=inputs.scaled(*ends),
                        schedule=schedules.Linear(*ends))


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  return experiment(config, UNet(
      features=m.features, multipliers=(1, 2), blocks=m.blocks, attention_resolutions=(4,),
      groups=m.groups))
