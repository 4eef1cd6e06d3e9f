"""Bach's chorales by the latent route: bars become vectors, whose sequence a chain draws.

  pip install "vdm_jax[music]"
  python scripts/prepare_data.py chorales
  python scripts/train.py --config=configs/applications/chorales_latent.py:autoencoder \\
    --workdir=runs/bars
  python scripts/evaluate.py --workdir=runs/bars
  python scripts/train.py --config=configs/applications/chorales_latent.py:latent \\
    --workdir=runs/chorales_latent --config.model.autoencoder=runs/bars
  python scripts/sample.py --workdir=runs/chorales_latent --out=chorale.mid

Mittal et al. (2021).  After the colon:

  autoencoder  a bar of 8 eighths and four voices becomes a vector of 32 numbers, and notes again
  latent       the published chain of 1,000 steps diffuses the four vectors of a window

`systems.applications.music_latents` says what is published.  `chorales.py` is the direct route.
A run of `latent` keeps the settings and the weights of its autoencoder.
Hardware, time and what it reaches: see configs/applications/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems.applications import music_latents
from vdm_jax.typing import Experiment

STAGES = ('autoencoder', 'latent')


def get_config(stage: str = 'latent') -> ml_collections.ConfigDict:
  require_choice('config', stage, STAGES)
  first = music_latents.autoencoder_config(stage=stage, kl=0.03)
  config = first if stage == 'autoencoder' else music_latents.default_config(
      first.model, stage=stage, depth=4)
  recipes.chorales(config, steps=2500)
  config.optimizer.learning_rate = 3e-3
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  if config.model.stage == 'autoencoder':
    return music_latents.autoencoder(config)
  return music_latents.experiment(config)
