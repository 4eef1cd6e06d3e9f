"""CIFAR-10 without augmentation, as Kingma et al. (2021).

  python scripts/prepare_data.py cifar10 --data_dir=DIR
  python scripts/train.py --config=configs/cifar10/vdm.py --workdir=runs/cifar10 --data_dir=DIR

Network: 30,578,179 parameters.  What a step computes and needs: docs/performance.md.
Hardware and time: 8 TPU v3 chips in the paper; 10 M steps.  Not run to its end here.
To reach: 2.65 bits/dim (test, continuous-time bound; Kingma et al. 2021, table 1).  In the paper,
2.80 bits/dim took a tenth of the time that the Sparse Transformer took.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  return recipes.cifar10(vdm.default_config())


def build(config: ml_collections.ConfigDict) -> Experiment:
  return vdm.experiment(config)
