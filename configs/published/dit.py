"""DiT: Peebles and Xie (2023), diffusion transformers on latents of an eighth of the image's sides.

  python scripts/import_weights.py --source=dit --in=DiT-XL-2-256x256.pt --out=RUN
  python scripts/sample.py --workdir=RUN --sampler=ancestral_learned --steps=250 --guidance=0.5 \
    --out=latents.npz

After the colon stands the name of a published network.  Samples are latents of four channels, in
the units of the network: the latents of the published autoencoder (stabilityai/sd-vae-ft-ema),
times 0.18215.  So there is no likelihood of images.  Training would need latents, which this
library does not make.
Hardware and time: not run here.
To reach, as published: ImageNet 256x256 FID 2.27 (XL/2, guidance of weight 1.5; table 2).
"""
import jax.numpy as jnp
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.published.dit import MODELS, SHAPES
from vdm_jax.systems import networks
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.typing import Experiment


def get_config(model: str = 'DiT-XL-2-256x256') -> ml_collections.ConfigDict:
  require_choice('config', model, MODELS)
  config = recipes.published(chain.default_config(checkpoint=model))
  config.data.update(name='imagenet2012', shape=SHAPES.get(model, (32, 32, 4)), levels=256,
                     classes=1000, batch_size=256)
  config.model.update(variances=True, class_conditional=True, dropout=0.0, clip=False)
  config.optimizer.update(learning_rate=1e-4, warmup_steps=0)
  config.train.steps = 7_000_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  net = networks.configured(MODELS[config.model.checkpoint], config)
  base = chain.latent_experiment(config, net=net)

  def model(params, keys=None):  # trained with labels left out now and then
    return base.model(params, keys)._replace(null=lambda label: jnp.full_like(label, -1))

  return base._replace(model=model)
