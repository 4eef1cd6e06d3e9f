"""MuLAN on CIFAR-10, after Sahoo et al. (2024).

  python scripts/prepare_data.py cifar10 --data_dir=DIR
  python scripts/train.py --config=configs/cifar10/mulan.py --workdir=RUN --data_dir=DIR

Network: 30,603,779 parameters.  Beside it are an encoder of 2,632,883 and a schedule of 37,917,696.
Hardware and time: 10 M steps in the public configuration.  Not run to its end here.
To reach: 2.55 bits/dim (test; likelihood of the probability flow, with the latent's KL).  The
public code does not count the KL of a k-hot latent, which may be up to
log2 C(50, 15) / 3072 = 0.0134 bits/dim; see `systems.variational.mulan`.
"""
import ml_collections

from vdm_jax import recipes, targets
from vdm_jax.systems.variational import mulan
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  return recipes.cifar10(mulan.default_config())


def build(config: ml_collections.ConfigDict) -> Experiment:
  return mulan.experiment(config, target=targets.v)  # as the public configuration
