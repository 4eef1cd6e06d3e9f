"""Latent diffusion on MNIST: a U-Net of the latents of configs/mnist/autoencoder_kl.py.

  python scripts/train.py --config=configs/mnist/latent.py --workdir=runs/mnist_latent \
    --config.model.autoencoder=runs/mnist_kl --data_dir=DIR

Rombach et al. (2022).  The latents are 7x7, and the U-Net of Ho et al. (2020) has this one
resolution.
Hardware, time and what it reaches: see configs/mnist/README.md.
"""
import ml_collections

from vdm_jax import inputs, recipes, schedules
from vdm_jax.nn.unets.ddpm import UNet
from vdm_jax.systems import networks
from vdm_jax.systems.latent import autoencoder, latent
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  # For --print_config: a run copies the settings of the autoencoder that it names.
  first = autoencoder.small_config()
  config = latent.default_config(first.model, features=64, dropout=0.0, **networks.how_computed())
  config.model.remat = 'none'
  return recipes.short(config, 'mnist', steps=1600)


def build(config: ml_collections.ConfigDict) -> Experiment:
  ends = config.model.logsnr_max, config.model.logsnr_min
  net = UNet(features=config.model.features, multipliers=(1,), blocks=2,
             attention_resolutions=(7,), groups=8)
  return latent.experiment(config, net=networks.configured(net, config),
                           schedule=schedules.Linear(*ends), inputs=inputs.scaled(*ends))
