"""Published networks on the digits with labels; the system is VDM with a fixed schedule.

  python scripts/train.py --config=configs/digits/networks.py:ddpm --workdir=runs/digits_ddpm

After the colon:

  ddpm  the U-Net of Ho et al. (2020): two resolutions, 8x8 and 4x4, attention at the smaller
  adm   the U-Net of Dhariwal and Nichol (2021): the embedding scales and shifts, residual blocks
        resample, attention in heads at both resolutions
  dit   Peebles and Xie (2023): patches of 2x2 pixels, so 16 tokens; six blocks of 128 features
  cfg   ddpm, trained with a tenth of the labels left out, for guidance (Ho and Salimans 2022):
        sample.py --guidance=W draws by eps = (1 + W) eps(z, label) - W eps(z)

Hardware, time and what they reach: see configs/digits/README.md.
"""
import ml_collections
from flax import linen as nn

from vdm_jax import data, inputs, recipes, schedules
from vdm_jax.errors import require_choice
from vdm_jax.nn.transformers import dit
from vdm_jax.nn.unets import adm, ddpm
from vdm_jax.systems import compose, networks
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment

NETWORKS = ('ddpm', 'adm', 'dit', 'cfg')


def get_config(network: str = 'ddpm') -> ml_collections.ConfigDict:
  require_choice('config', network, NETWORKS)
  fields = {'features': 32, 'blocks': 2, 'groups': 8}
  if network == 'dit':
    fields = {'features': 128, 'blocks': 6, 'dropout': 0.0, 'patch': 2}
  if network == 'cfg':
    fields['label_dropping'] = 0.1
  config = vdm.default_config(network=network, class_conditional=True, **fields)
  recipes.digits(config, steps=550 if network == 'cfg' else 1500)
  if network == 'dit':
    config.optimizer.learning_rate = 2e-3  # 6e-3 is too much for it
  if network == 'cfg':
    config.ema = {'ema': 0.985}
  return config


def net(config: ml_collections.ConfigDict) -> nn.Module:
  m = config.model
  classes = data.resolve(config.data).classes if m.class_conditional else 0
  if m.network == 'dit':
    return dit.DiT(patch=m.patch, features=m.features, depth=m.blocks, attention_heads=4,
                   label_dropout=0.0, scan=m.scan, classes=classes)
  if m.network == 'adm':
    return adm.UNet(features=m.features, multipliers=(1, 2), blocks=m.blocks,
                    attention_resolutions=(8, 4), head_features=16, resblock_updown=True,
                    qkv_order='new', groups=m.groups, classes=classes)
  return ddpm.UNet(features=m.features, multipliers=(1, 2), blocks=m.blocks,
                   attention_resolutions=(4,), groups=m.groups, classes=classes)


def build(config: ml_collections.ConfigDict) -> Experiment:
  ends = compose.end_points(config)
  experiment = compose.experiment(
      config, net=networks.configured(net(config), config), schedule=schedules.Linear(*ends),
      inputs=inputs.scaled(*ends))  # time is log-SNR mapped to [0, 1000]
  if config.model.network == 'cfg':
    return label_dropping.experiment(experiment, config.model.label_dropping)
  return experiment
