"""Autoencoders of latent diffusion (Rombach et al. 2022), Stable Diffusion, and TAESD (Bohan 2023).

  python scripts/import_weights.py --source=sd-vae --in=sd-vae-ft-ema --out=RUN
  python scripts/evaluate.py --workdir=RUN --data_dir=DIR
  python scripts/train.py --config=configs/published/autoencoder.py:kl-f8 --init_from=RUN \
    --workdir=TUNED --data_dir=DIR

After the colon stands the name of a published network.  kl-f8 is Stable Diffusion's.  The published
losses have LPIPS and a discriminator: add --config.model.perceptual=1 and --config.model.vgg=FILES,
and --config.model.adversarial=0.5 for kl-..., 0.75 for vq-..., but 0.6 for vq-f8.  The published
discriminator normalises over the batch: add --config.model.discriminator_norm=batch.  The default
normalises each image alone, so results do not depend on how devices share the batch.  The loss of a
codebook is the published one, `legacy`.  A run of latents takes an imported autoencoder by
--config.model.autoencoder=RUN.
Hardware and time: not run here.
To reach, as published (ImageNet 256x256): reconstruction FID 0.90, PSNR 24.19 (kl-f8).
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.published import lpips
from vdm_jax.published.autoencoders import NETWORKS, settings
from vdm_jax.systems.latent import autoencoder
from vdm_jax.typing import Experiment


def get_config(model: str = 'kl-f8') -> ml_collections.ConfigDict:
  require_choice('config', model, NETWORKS)
  config = recipes.published(autoencoder.default_config(**settings(NETWORKS[model])))
  config.data.update(name='imagenet2012', shape=(256, 256, 3), levels=256, classes=1000,
                     image_size=256, batch_size=12)
  config.optimizer.update(learning_rate=4.5e-6 * 12, b1=0.5, b2=0.9, warmup_steps=0, clip_norm=0.0)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return autoencoder.experiment(config, distance=lpips.reader(config.model.vgg))
