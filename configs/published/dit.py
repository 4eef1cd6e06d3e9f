"""DiT: Peebles and Xie (2023), diffusion transformers on latents of an eighth of the image's sides.

  python scripts/import_weights.py --source=dit --in=DiT-XL-2-256x256.pt \
    --autoencoder=sd-vae-ft-ema --out=RUN
  python scripts/sample.py --workdir=RUN --sampler=ancestral_learned --steps=250 \
    --guidance=0.5,channels=3 --out=samples.png

After the colon stands the name of a published network.  `NAME,images` is the model of images, whose
latents the autoencoder of Stable Diffusion encodes and decodes (stabilityai/sd-vae-ft-ema).  `NAME`
alone is the model of latents of four channels, times 0.18215: for sampling, without an autoencoder.
Hardware and time: not run here.
To reach, as published: ImageNet 256x256 FID 2.27 (XL/2, guidance of weight 1.5; table 2).
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.published.dit import MODELS, SHAPES
from vdm_jax.systems import networks
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.latent import latent
from vdm_jax.typing import Experiment


def get_config(model: str = 'DiT-XL-2-256x256') -> ml_collections.ConfigDict:
  model, _, of = model.partition(',')
  require_choice('config', model, MODELS)
  require_choice('config', of, ('', 'images'))
  config = recipes.published(chain.default_config(checkpoint=model))
  shape = SHAPES.get(model, (32, 32, 4))
  if of == 'images':
    config = latent.add(config)  # kl-f8 is the default
    side = 8 * shape[0]
    config.data.update(shape=(side, side, 3), image_size=side)
  else:
    config.data.shape = shape
  config.data.update(name='imagenet2012', levels=256, classes=1000, batch_size=256)
  config.model.update(variances=True, class_conditional=True, dropout=0.0, clip=False)
  config.optimizer.update(learning_rate=1e-4, warmup_steps=0)
  config.train.steps = 7_000_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  net = networks.configured(MODELS[config.model.checkpoint], config)
  if 'autoencoder' in config:
    base = latent.of(config, lambda inner: chain.experiment(inner, net=net))
  else:
    base = chain.latent_experiment(config, net=net)
  return label_dropping.with_null(base)  # trained with labels left out now and then
