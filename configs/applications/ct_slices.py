"""Slices through a body with a texture, 32 x 32: a prior for the reconstruction of volumes.

  python scripts/train.py --config=configs/applications/ct_slices.py --workdir=runs/ct_slices
  python scripts/reconstruct.py --workdir=runs/ct_slices --volume=phantoms.npz --peak=1.5 \\
    --views=8 --out=reconstructed.png

The slices are a formula (`textured_ellipses`), so nothing is downloaded.  The network is DDPM's
U-Net on patches of 2 x 2 pixels, with the preconditioning of EDM.  Most slices are nearly constant
outside of their edges, so the cosine schedule is shifted to less noise.
Hardware, time and what it reaches: see configs/applications/README.md.
"""
import jax.numpy as jnp
import ml_collections
import numpy as np

from vdm_jax import inputs, recipes, schedules, targets, weightings
from vdm_jax.nn.unets.ddpm import UNet
from vdm_jax.nn.unets.patched import Patched
from vdm_jax.processes import vp
from vdm_jax.systems import compose, networks
from vdm_jax.systems.scores import score_sde
from vdm_jax.typing import Experiment

STD = 0.25  # of x, but for its mean


def get_config() -> ml_collections.ConfigDict:
  config = score_sde.default_config(features=48, dropout=0.0, logsnr_max=13.3, logsnr_min=-5.0,
                                    remat='none')
  recipes.short(config, 'textured_ellipses', steps=3500)
  config.data.batch_size = 16
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  ends, shift = compose.end_points(config), -2.0 * np.log(STD)
  net = UNet(features=config.model.features, multipliers=(1, 1), blocks=1,
             attention_resolutions=(8,), groups=8)
  # |F - F_hat|^2 at even times, of EDM's output F.
  weight = lambda level: weightings.simple(level) * (1.0 + jnp.exp(shift - level.logsnr))
  return score_sde.experiment(
      config, net=Patched(networks.configured(net, config)),
      schedule=schedules.Shifted(schedules.Cosine(*(end - shift for end in ends)), shift), curve=vp,
      target=targets.edm(STD), inputs=inputs.scaled(*ends), weight=weight, ends_denoised=False)
