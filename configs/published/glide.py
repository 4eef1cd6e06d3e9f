"""GLIDE, which draws what a text says: Nichol et al. (2021), its public models of 2021.

  python scripts/import_weights.py --source=glide --in=base.pt --merges=vocab.bpe --out=BASE
  python scripts/sample.py --workdir=BASE --prompt='a red disk on white' --guidance=2 \\
    --sampler=ancestral_learned --grid=iddpm:100 --count=4 --out=small.npz
  python scripts/import_weights.py --source=glide --in=upsample.pt --merges=vocab.bpe --out=UP
  python scripts/sample.py --workdir=UP --prompt='a red disk on white' --sampler=ddim \\
    --grid=iddpm:fast27 --condition=low_res=low_res.npz --count=4 --out=samples.png

After the colon stands the name of a published file: base, upsample, base_inpaint, upsample_inpaint.
The upsampler reads images of 64 x 64 pixels, the field low_res:
np.savez('low_res.npz', low_res=np.load('small.npz')['images']).  The models for inpainting read the
fields known and mask (1 = known).  The public code starts the upsampler at 0.997 of the noise
(samplers.sampling.tempered).  It clips the guided x_hat, which --guidance does not.
The sizes are the sections config.unet and config.text, so an import may have others.
Hardware and time: not run here.
To reach, as published: FID 12.24 on COCO, by a larger model that is not public.
"""
import ml_collections

from vdm_jax import data, recipes
from vdm_jax.data import fields, tokenisers
from vdm_jax.errors import require_choice
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.unets.adm import UNet
from vdm_jax.nn.unets.glide import GLIDEUNet, images_of
from vdm_jax.published import glide
from vdm_jax.systems import networks, texts
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.systems.guided import inpainting
from vdm_jax.typing import Experiment


def get_config(model: str = 'base') -> ml_collections.ConfigDict:
  require_choice('config', model, glide.MODELS)
  net, published = glide.MODELS[model], glide.CHAINS[model]
  config = recipes.published(chain.default_config(
      checkpoint=model, timesteps=published.steps, betas=published.schedule, variances=True,
      clip=False, dropout=net.dropout))
  config = texts.add(config, GLIDEText(), dropped=0.2)
  size, *_ = shape = glide.SHAPES[model]
  images = {'low_res': (size // 4, size // 4, 3), 'known': shape, 'mask': (size, size, 1)}
  spec = data.Spec('./captioned', (
      fields.integers('image', shape, 256),
      tokenisers.field('caption', tokenisers.Settings('gpt2')),
      *(fields.integers(name, images[name], 2 if name == 'mask' else 256)
        for name in images_of(net))))
  config.data.update(name=spec.name, tokeniser='gpt2', **spec.to_config())
  with config.unlocked():
    config.unet = networks.sizes(net)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  net = networks.configured(UNet(**config.unet), config)
  base = texts.experiment(config, lambda **told: chain.experiment(
      config, net=GLIDEUNet(net), beside=images_of(net), **told), pooled=True)
  return inpainting.experiment(base) if net.inpainting else base
