"""A variational autoencoder of the digits: 16 latents, perceptrons.

  python scripts/train.py --config=configs/digits_vae.py --workdir=runs/digits_vae

No diffusion model: metrics.jsonl has its bound, which compares with those of diffusion models.  A
beta-VAE is --config.model.beta=4; bits_per_dim remains the bound.  Kingma and Welling (2014).
Hardware, time and what it reaches: see configs/README.md.
"""
import ml_collections

from vdm_jax.systems import vae
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = vae.default_config()
  config.data.update(name='digits', validation=97, batch_size=64)
  config.model.update(features=256, latents=(16,), dropout=0.2)
  config.optimizer.update(learning_rate=1e-3, warmup_steps=100, decay_steps=4000)
  config.ema = {'ema': 0.99}
  config.train.update(steps=4000, log_every=200, validate_every=1000, checkpoint_every=2000,
                      pictures_every=0, keep=2, splits=('validation', 'test'),
                      validation_repeats=8)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vae.hierarchical(config)
