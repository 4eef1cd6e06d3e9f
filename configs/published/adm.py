"""IDDPM and ADM with their chains: Nichol and Dhariwal (2021), Dhariwal and Nichol (2021).

  python scripts/import_weights.py --source=guided-diffusion --in=64x64_diffusion.pt --out=RUN
  python scripts/train.py --config=configs/published/adm.py:cifar10_uncond_50M_500K --workdir=RUN

After the colon stands the name of a published checkpoint, whose settings are used.  The loss is
L_hybrid with learned variances.  To start from imported weights: `train.py --init_from=RUN`.
Hardware and time: no config has been trained or evaluated here; the files are large.
To reach, as published: CIFAR-10 2.94 bits/dim with L_vlb (test, `vlb@4000/learned/ddpm`; Nichol and
Dhariwal 2021, table 2), ImageNet 64x64 3.53 bits/dim.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import InputError
from vdm_jax.published.openai import CHAINS, MODELS, SHAPES, is_diffusion
from vdm_jax.systems import networks
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.typing import Experiment

# What each was trained on: the beginning of its name -> data set.
_DATA = {'cifar10': 'cifar10', 'imagenet64_cond': 'imagenet_resized/64x64',
         'imagenet64': 'downsampled_imagenet/64x64', '64x64': 'imagenet_resized/64x64',
         'lsun_bedroom': 'lsun/bedroom', 'lsun_uncond': 'lsun/bedroom', 'lsun_cat': './lsun_cat',
         'lsun_horse': './lsun_horse'}


def get_config(model: str = 'cifar10_uncond_50M_500K') -> ml_collections.ConfigDict:
  images = {name for name, net in MODELS.items() if is_diffusion(net)}
  if model not in images:
    also = (' is a classifier or an upsampler, which take more than an image and are used from '
            'Python (vdm_jax.published.openai)' if model in MODELS else '')
    raise InputError('config', f'configs/published/adm.py:{model}',
                     f'it{also or " is no model of the paper"}',
                     f'choose one of {", ".join(sorted(images))}')
  net, published = MODELS[model], CHAINS[model]
  size = SHAPES[model][0]
  config = recipes.published(chain.default_config(checkpoint=model))
  data = next((data for name, data in _DATA.items() if model.startswith(name)), 'imagenet2012')
  config.data.update(name=data, shape=SHAPES[model], levels=256,
                     classes=net.classes or (10 if data == 'cifar10' else 0),
                     image_size=size if size > 64 else 0)
  config.model.update(timesteps=published.steps, betas=published.schedule,
                      variances=bool(net.heads), class_conditional=bool(net.classes),
                      dropout=net.dropout)
  config.optimizer.update(learning_rate=1e-4, warmup_steps=0, clip_norm=0.0)
  config.train.steps = 500_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  name = config.model.checkpoint
  return chain.experiment(config, net=networks.configured(MODELS[name], config),
                          scale=CHAINS[name].scale)
