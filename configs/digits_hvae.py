"""The digits with two layers of latents, inferred from the top down.

  python scripts/train.py --config=configs/digits_hvae.py --workdir=runs/digits_hvae

No diffusion model.  q(z_2 | x) q(z_1 | z_2, x) against p(z_2) p(z_1 | z_2) p(x | z_1, z_2), as in
Sonderby et al. (2016).
Hardware, time and what it reaches: see configs/README.md.
"""
import digits_vae
import ml_collections

from vdm_jax.systems import vae
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = digits_vae.get_config()
  config.model.update(latents=(8, 16))
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vae.hierarchical(config)
