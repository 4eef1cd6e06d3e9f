"""The digits with a Markov chain of four latents: between a VAE and a diffusion model.

  python scripts/train.py --config=configs/digits_mhvae.py --workdir=runs/digits_mhvae

No diffusion model yet: q(z_l | z_{l-1}) = N(sqrt(1 - b) z_{l-1}, b) with learned b, and a network
of its own for each p(z_{l-1} | z_l).  docs/unified_view.md goes on from here.
Hardware, time and what it reaches: see configs/README.md.
"""
import digits_vae
import ml_collections

from vdm_jax.systems import vae
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = digits_vae.get_config()
  config.model.update(latents=(16,) * 4)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vae.markovian(config)
