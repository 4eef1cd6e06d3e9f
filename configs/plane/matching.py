"""Sliced score matching on the noisy spiral: no denoising target, one product with the Jacobian.

  python scripts/train.py --config=configs/plane/matching.py --workdir=runs/matching
  python scripts/sample.py --workdir=runs/matching --sampler=ancestral --out=matching.png

`implicit` after the colon takes the exact trace, one product for each of the two coordinates
(Hyvarinen 2005).  The default is the variance-reduced form of Song, Garg, Shi and Ermon (2020).
Both match the score of q(z_t) at all levels, with lambda = sigma^2 as in NCSN: the noise is part of
the data, and the loss does not see which noise was drawn.  The loss differs from denoising score
matching by a constant, and may be negative; the bound is reported.
Hardware, time and what it reaches: see configs/plane/README.md.
energy.py has the same levels, with a denoising target.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems import networks
from vdm_jax.systems.scores import matching
from vdm_jax.typing import Experiment


def get_config(kind: str = 'sliced') -> ml_collections.ConfigDict:
  require_choice('config', kind, matching.MATCHING)
  config = recipes.plane(matching.default_config(
      features=96, blocks=3, dropout=0.0, logsnr_max=10.0, matching=kind))
  config.data.batch_size = 256
  config.optimizer.clip_norm = 1.0
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return matching.experiment(config, net=networks.mlp(config))
