"""DiT on ImageNet at 256x256: Peebles and Xie (2023), class-conditional diffusion of latents.

  python scripts/import_weights.py --source=sd-vae --in=sd-vae-ft-ema --out=runs/vae
  python scripts/train.py --config=configs/imagenet/dit.py:DiT-XL/2 --workdir=RUN \
    --config.model.autoencoder=runs/vae --config.data.name=./imagenet
  python scripts/sample.py --workdir=RUN --sampler=ancestral_learned --steps=250 \
    --guidance=0.5,channels=3 --out=samples.png

After the colon stands DiT-S, -B, -L or -XL (table 1), with patches of 2, 4 or 8.  The settings are
those of section 4 and of `train.py` in facebookresearch/DiT: latents of sd-vae-ft-ema times
0.18215, 256 images a step, AdamW at a constant 1e-4 without warm-up, weight decay or clipping, an
average of rate 0.9999, random flips, and a tenth of the labels left out.  XL/2 trains for 7 M
steps, and the others for 400,000.

               S/2          B/2           L/2           XL/2
  parameters   32,865,056   130,315,808   457,840,672   674,834,720

Data: a folder `imagenet` with the folders train and val, and in each a folder for every class; or
imagenet2012 of TFDS, which is the default.  Images are resized and cropped to 256x256.
Hardware and time: not run here.
To reach, as published: FID 2.27 (XL/2, 7 M steps, guidance of weight 1.5; table 2).
"""
import ml_collections

from vdm_jax import data, recipes
from vdm_jax.data.fields import LABEL
from vdm_jax.errors import require_choice
from vdm_jax.nn.transformers.dit import DiT
from vdm_jax.published.dit import SCALE, SIZES
from vdm_jax.systems import networks
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.latent import latent
from vdm_jax.typing import Experiment


def get_config(size: str = 'DiT-XL/2') -> ml_collections.ConfigDict:
  require_choice('config', size, SIZES)
  net = SIZES[size]
  config = recipes.published(latent.add(chain.default_config(  # the autoencoder is kl-f8
      patch=net.patch, features=net.features, blocks=net.depth, scan=net.scan,
      attention_heads=net.attention_heads, label_dropping=net.label_dropout, variances=True,
      clip=False)))
  config.model.update(scale=SCALE, class_conditional=True, dropout=0.0)
  config.data.update(name='imagenet2012', shape=(256, 256, 3), levels=256, classes=1000,
                     image_size=256, batch_size=256, augment=True, augmentation='flips')
  config.optimizer.update(learning_rate=1e-4, warmup_steps=0, clip_norm=0.0)
  config.train.steps = 7_000_000 if size == 'DiT-XL/2' else 400_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  net = DiT(m.patch, m.features, m.blocks, m.attention_heads, scan=m.scan,
            classes=data.resolve(config.data).classes, label_dropout=m.label_dropping,
            heads=int(m.variances))
  net = networks.configured(net, config)
  # It is told the label, and not which images are flipped.
  return label_dropping.with_null(latent.of(
      config, lambda inner: chain.experiment(inner, net=net, condition=LABEL)))
