"""DDPM by Ho, Jain and Abbeel (2020): the network, the chain and L_simple.

  python scripts/import_weights.py --source=ddpm --model=ddpm-cifar10-32 --out=RUN \\
    --in=diffusion_pytorch_model.safetensors
  python scripts/train.py --config=configs/published/ddpm.py --workdir=RUN --data_dir=DIR

After the colon stands the name of a checkpoint that huggingface/diffusers converted.
Hardware and time: 8 TPU v3 cores, 10.6 hours (the paper's, CIFAR-10); not run here.
To reach, as published: 3.75 bits/dim (test, `vlb@1000/large/ddpm`) and FID 3.17 on CIFAR-10.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.published.ddpm import MODELS, SHAPES
from vdm_jax.systems import networks
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.typing import Experiment

_DATA = {'bedroom': 'lsun/bedroom', 'church': './lsun_church', 'cat': './lsun_cat',
         'celebahq': './celebahq'}


def get_config(model: str = 'ddpm-cifar10-32') -> ml_collections.ConfigDict:
  require_choice('config', model, MODELS)
  cifar10 = model == 'ddpm-cifar10-32'
  config = recipes.published(chain.default_config(checkpoint=model))
  config.data.update(name='cifar10' if cifar10 else _DATA[model.split('-')[-2]],
                     shape=SHAPES[model], levels=256, classes=10 if cifar10 else 0,
                     batch_size=128 if cifar10 else 64, image_size=0 if cifar10 else 256)
  config.model.dropout = MODELS[model].dropout
  if not cifar10:
    config.optimizer.learning_rate = 2e-5
  config.train.steps = 800_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return chain.experiment(config, net=networks.configured(MODELS[config.model.checkpoint], config))
