"""Slices of a body: a prior for the reconstruction of volumes.

  python scripts/train.py --config=configs/applications/ct_slices.py --workdir=runs/ct_slices
  python scripts/prepare_data.py phantoms --data_dir=DIR
  python scripts/reconstruct.py --workdir=runs/ct_slices --volume=DIR/phantoms/volumes.npz \\
    --peak=1.5 --views=8 --out=reconstructed.png

After the colon:

  ellipses  slices through a body with a texture, 32 x 32: a formula, nothing is downloaded
  brain     slices of a head, 48 x 48: scripts/prepare_data.py brain

The network is DDPM's U-Net on patches of 2 x 2 pixels, with the preconditioning of EDM.  Most
slices are nearly constant outside of their edges, so the cosine schedule is shifted to less noise.
Hardware, time and what it reaches: see configs/applications/README.md.
"""
from typing import NamedTuple

import jax.numpy as jnp
import ml_collections
import numpy as np

from vdm_jax import data, inputs, recipes, schedules, targets, weightings
from vdm_jax.data import brain, slices
from vdm_jax.errors import require_choice
from vdm_jax.nn.unets.ddpm import UNet
from vdm_jax.nn.unets.patched import Patched
from vdm_jax.processes import vp
from vdm_jax.systems import compose, networks
from vdm_jax.systems.scores import score_sde
from vdm_jax.typing import Experiment


class Choice(NamedTuple):
  data: str
  validation: int  # pictures
  std: float       # of x about its mean; for brain: about the mean picture
  steps: int


CHOICES = {'ellipses': Choice(slices.NAME, 1000, 0.25, 3500),
           'brain': Choice(brain.NAME, brain.VALIDATION, 0.5, 1800)}


def get_config(which: str = 'ellipses') -> ml_collections.ConfigDict:
  require_choice('config', which, CHOICES)
  choice = CHOICES[which]
  config = score_sde.default_config(features=48, dropout=0.0, logsnr_max=13.3, logsnr_min=-5.0,
                                    remat='none', std=choice.std)
  recipes.short(config, choice.data, steps=choice.steps)
  config.data.update(batch_size=16, validation=choice.validation)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  # A run's config may be older than the field.
  std = config.model.get('std', CHOICES['ellipses'].std)
  ends, shift = compose.end_points(config), -2.0 * np.log(std)
  coarsest = data.resolve(config.data).x.shape[0] // 4  # pixels, after the patches and a level
  net = UNet(features=config.model.features, multipliers=(1, 1), blocks=1,
             attention_resolutions=(coarsest,), groups=8)
  # |F - F_hat|^2 at even times, of EDM's output F.
  weight = lambda level: weightings.simple(level) * (1.0 + jnp.exp(shift - level.logsnr))
  return score_sde.experiment(
      config, net=Patched(networks.configured(net, config)),
      schedule=schedules.Shifted(schedules.Cosine(*(end - shift for end in ends)), shift), curve=vp,
      target=targets.edm(std), inputs=inputs.scaled(*ends), weight=weight,
      ends_denoised=False)
