"""CIFAR-10 by DDPM: the recipe of Ho, Jain and Abbeel (2020), or a small one for a laptop.

  python scripts/prepare_data.py cifar10 --data_dir=DIR
  python scripts/train.py --config=configs/cifar10/ddpm.py --workdir=runs/ddpm --data_dir=DIR
  python scripts/train.py --config=configs/cifar10/ddpm.py:small --workdir=RUN --data_dir=DIR

After the colon stands `published` (the default) or `small`.  `published` follows `run_cifar.py` of
their public code, and appendix B for the length: 35,746,307 parameters, 128 images a step, Adam at
2e-4 after 5,000 steps of warm-up, gradients clipped at norm 1, dropout 0.1, an average of rate
0.9999, random flips, 800,000 steps.  `small` has the same chain, loss and flips, but its U-Net has
1.1 M parameters and trains for 900 steps of 32 images.  docs/learn/ddpm_on_mnist.md shows the curve
and the samples of `small`.
Hardware and time: `published` took 8 TPU v3 cores and 10.6 hours in the paper; it was not run here.
`small` took 44 minutes of processor time here, so about half an hour on 2 idle cores (estimated).
To reach, as published: FID 3.17 (train, 50,000 samples) and 3.75 bits/dim (test, the bound of the
chain, `vlb@1000/large/ddpm`).
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.nn.unets.ddpm import UNet
from vdm_jax.systems import networks
from vdm_jax.systems.chains import ddpm
from vdm_jax.typing import Experiment

NETWORKS = {  # 32x32, 16x16, 8x8 (and 4x4)
    'published': UNet(),
    'small': UNet(features=32, multipliers=(1, 2, 2), blocks=1, attention_resolutions=(8,),
                  groups=8),
}


def get_config(which: str = 'published') -> ml_collections.ConfigDict:
  require_choice('config', which, NETWORKS)
  config = ddpm.default_config(which=which)
  if which == 'small':
    recipes.short(config, 'cifar10', steps=900, learning_rate=1e-3)
    config.model.update(dropout=0.0, remat='none')
    config.ema = {'ema': 0.992}
  else:
    recipes.published(recipes.cifar10(config))
    config.train.steps = 800_000
  config.data.update(augment=True, augmentation='flips')
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  net = networks.configured(NETWORKS[config.model.which], config)
  return ddpm.experiment(config, net=net, condition=None)  # it is not told which images are flipped
