"""Blurring diffusion of the digits.

  python scripts/train.py --config=digits_blurring.py --workdir=runs/blurring
"""
import blurring
import ml_collections

from vdm_jax import recipes
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  # The published width, 20 pixels, is of images of 32 pixels and more.
  return recipes.digits(blurring.default_config(features=48, blocks=2, groups=12, blur_max=4.0))


def build(config: ml_collections.ConfigDict) -> Experiment:
  return blurring.experiment(config)
