"""DDPM: Ho, Jain and Abbeel (2020), the network, the chain and L_simple.

  python scripts/import_weights.py --source=ddpm --in=diffusion_pytorch_model.safetensors --out=RUN
  python scripts/train.py --config=configs/ddpm.py --workdir=RUN --data_dir=DIR

The weights are those that huggingface/diffusers converted, google/ddpm-cifar10-32.
Hardware and time: 8 TPU v3 cores, 10.6 hours (the paper's); not run here.
To reach, as published: 3.70 bits/dim (test, `vlb@1000/ddpm`; table 2) and FID 3.17 (table 1).
"""
import ml_collections

from vdm_jax.systems import chain, vdm
from vdm_jax.typing import Experiment
from vdm_jax.weights.ddpm import MODELS


def get_config() -> ml_collections.ConfigDict:
  config = chain.default_config()
  config.data.update(name='cifar10', shape=(32, 32, 3), levels=256, classes=10)
  config.train.steps = 800_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return chain.experiment(config, net=vdm.configured(MODELS['ddpm-cifar10-32'], config))
