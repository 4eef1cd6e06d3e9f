"""The KL autoencoder of latent diffusion on MNIST: 28x28 pixels become 7x7 latents of 4 channels.

  python scripts/prepare_data.py mnist --data_dir=DIR
  python scripts/train.py --config=configs/mnist/autoencoder_kl.py --workdir=runs/mnist_kl \
    --data_dir=DIR
  python scripts/evaluate.py --workdir=runs/mnist_kl --data_dir=DIR

Rombach et al. (2022).  It is the first stage of latent.py and latent_dit.py.  The discriminator
begins after half of the steps.  LPIPS is off by default, because it needs the weights of
VGG-16.  `--config.model.perceptual=1 --config.model.vgg=vgg16-397923af.pth,vgg.pth` turns it on.
Hardware, time and what it reaches: see configs/mnist/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.published import lpips
from vdm_jax.systems.latent import autoencoder
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = autoencoder.small_config(adversarial=0.5, adversarial_from=500,
                                    discriminator_features=16, discriminator_layers=2)
  config = recipes.short(config, 'mnist', steps=1000)
  config.optimizer.update(b1=0.5, b2=0.9, clip_norm=0.0)
  config.ema = {'ema': 0.99}
  config.train.pictures_every = 500
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return autoencoder.experiment(config, distance=lpips.reader(config.model.vgg))
