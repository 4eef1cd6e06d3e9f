"""DiT on the digits, told their labels; all else as in `digits_ddpm`.

  python scripts/train.py --config=configs/digits_dit.py --workdir=runs/digits_dit

Peebles and Xie (2023): patches of 2x2 pixels, so 16 tokens; six blocks of 128 features.
Hardware, time and what it reaches: see the table of networks in README.md.
"""
import digits_ddpm
import ml_collections

from vdm_jax.nn.dit import DiT
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = digits_ddpm.get_config()
  config.model.update(features=128, blocks=6, dropout=0.0)
  config.model.patch = 2
  config.optimizer.learning_rate = 2e-3  # 6e-3 is too much for it
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  return digits_ddpm.experiment(config, DiT(
      patch=m.patch, features=m.features, depth=m.blocks, attention_heads=4, label_dropout=0.0,
      scan=m.scan))
