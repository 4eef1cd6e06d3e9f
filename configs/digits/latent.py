"""Latent diffusion on the digits in two stages (Rombach et al. 2022): 2x2 pixels become 2 numbers.

  python scripts/train.py --config=configs/digits/latent.py:autoencoder --workdir=runs/autoencoder
  python scripts/evaluate.py --workdir=runs/autoencoder
  python scripts/train.py --config=configs/digits/latent.py:latent --workdir=runs/latent \
    --config.model.autoencoder=runs/autoencoder

After the colon:

  autoencoder  the KL kind, from 8x8 pixels to 4x4 latents of 2 channels and back
  vq           the VQ kind: each of the 4x4 positions takes one of 64 vectors
  latent       a diffusion of the latents of either, by the U-Net of Ho et al. (2020)

For a tight bound on the likelihood with the VQ kind, train `latent` with
--config.model.quantised=True.
A run of `latent` keeps the settings and the weights of its autoencoder.
Hardware, time and what it reaches: see configs/digits/README.md.
"""
import ml_collections

from vdm_jax import inputs, recipes, schedules
from vdm_jax.errors import require_choice
from vdm_jax.nn.unets.ddpm import UNet
from vdm_jax.systems import networks
from vdm_jax.systems.latent import autoencoder, latent
from vdm_jax.typing import Experiment

STAGES = ('autoencoder', 'vq', 'latent')


def get_config(stage: str = 'autoencoder') -> ml_collections.ConfigDict:
  require_choice('config', stage, STAGES)
  first = autoencoder.default_config(
      stage=stage, features=32, multipliers=(1, 2), blocks=1, groups=8, latent_channels=2, kl=0.01,
      kind='vq' if stage == 'vq' else 'kl', entries=64)
  if stage == 'latent':
    fields = {'features': 32, 'dropout': 0.0, **networks.how_computed(), 'remat': 'none'}
    return recipes.digits(latent.default_config(first.model, stage=stage, **fields), steps=750)
  config = recipes.digits(first, steps=750)
  config.optimizer.update(learning_rate=3e-3, weight_decay=0.0)
  config.train.update(validation_repeats=1, pictures_every=500)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  if config.model.stage != 'latent':
    return autoencoder.experiment(config)
  ends = config.model.logsnr_max, config.model.logsnr_min
  net = UNet(features=config.model.features, multipliers=(1, 2), blocks=1,
             attention_resolutions=(4,), groups=8)
  return latent.experiment(config, net=networks.configured(net, config),
                           schedule=schedules.Linear(*ends), inputs=inputs.scaled(*ends))
