"""A slim student of a DDPM chain on the digits, taught by a run of `configs/systems.py:ddpm`.

  python scripts/train.py --config=configs/systems.py:ddpm --workdir=runs/ddpm
  python scripts/train.py --config=configs/digits/slim.py --init_from=runs/ddpm --workdir=runs/slim

The student is a U-Net of 8 features that resamples by gated wavelets.  Its teacher is VDM's network
of 32 features.  Yang et al. (2023), `Diffusion Probabilistic Model Made Slim`.
Hardware, time and what it reaches: see configs/digits/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.nn.unets.ddpm import UNet
from vdm_jax.systems import networks
from vdm_jax.systems.distilled import slim
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  # The teacher has these features, blocks and groups, as in configs/systems.py.
  config = slim.default_config(features=32, blocks=2, groups=8, student_features=8)
  return recipes.digits(config, steps=800)


def build(config: ml_collections.ConfigDict) -> Experiment:
  net = UNet(features=config.model.student_features, multipliers=(1, 2), blocks=1,
             attention_resolutions=(4,), groups=4, resampling='wavelets')
  return slim.experiment(config, net=networks.configured(net, config))
