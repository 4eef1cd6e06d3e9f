"""MNIST by DDPM: the chain and the loss of Ho, Jain and Abbeel (2020), with a small U-Net.

  python scripts/prepare_data.py mnist --data_dir=DIR
  python scripts/train.py --config=configs/mnist/ddpm.py --workdir=runs/mnist_ddpm --data_dir=DIR

The network has 686,769 parameters.  docs/learn/ddpm_on_mnist.md is the lesson that trains it,
samples by DDPM and by DDIM, and scores the samples.
Hardware and time: 17 minutes on 2 CPU cores.
To reach: 2.37 bits/dim (test, the bound of the chain, `vlb@1000/large/ddpm`), measured here.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.nn.unets.ddpm import UNet
from vdm_jax.systems import networks
from vdm_jax.systems.chains import ddpm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = ddpm.default_config(features=16, dropout=0.0, remat='none')
  return recipes.short(config, 'mnist', steps=1600)


def build(config: ml_collections.ConfigDict) -> Experiment:
  # 28x28, 14x14 and 7x7 pixels, with attention at the last.
  net = UNet(features=config.model.features, multipliers=(1, 2, 4), blocks=1,
             attention_resolutions=(7,), groups=8)
  return ddpm.experiment(config, net=networks.configured(net, config))
