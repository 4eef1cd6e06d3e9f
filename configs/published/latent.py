"""Latent diffusion and Stable Diffusion: Rombach et al. (2022), told nothing, a class or a text.

  python scripts/import_weights.py --source=latent-diffusion --model=celeba256 --in=model.ckpt \
    --out=RUN
  python scripts/sample.py --workdir=RUN --sampler=ddim --steps=200 --out=samples.png
  python scripts/import_weights.py --source=stable-diffusion --in=sd-v1-4.ckpt \
    --merges=bpe_simple_vocab_16e6.txt.gz --out=SD
  python scripts/sample.py --workdir=SD --prompt='a red disk on white' --guidance=6.5 \
    --sampler=plms --steps=50 --grid=stable_diffusion --count=4 --out=samples.png

After the colon stands the name of a published model.  The chain is "linear" in the public code,
`schedules.scaled_linear_betas` here.  Training here uses L_simple.  The published churches model
was trained with |eps - eps_hat|.  The models of vq autoencoders have no likelihood.

A model that is told a text reads it by a text encoder (config.text): CLIP's, which is not trained,
or a "BERT" of its own, which is trained with the model.  The section config.unet sets the sizes of
the U-Net, so an import may have other sizes.  To train such a model, name pictures with a
captions.txt and the tokeniser's file (config.data.merges), and start from an import by --init_from.
Hardware and time: not run here.
To reach, as published: FID 5.11 on CelebA-HQ, 4.98 on FFHQ, 4.02 on churches, 2.95 on bedrooms.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.nn.unets.latent import LabelledUNet, LatentUNet
from vdm_jax.published import autoencoders, compvis
from vdm_jax.systems import networks, texts
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.latent import autoencoder, latent
from vdm_jax.typing import Experiment

_DATA = {'lsun_beds256': 'lsun/bedroom', 'lsun_churches256': './lsun_church',
         'celeba256': './celebahq', 'ffhq256': './ffhq'}


def get_config(model: str = 'celeba256') -> ml_collections.ConfigDict:
  require_choice('config', model, compvis.LATENT_DIFFUSIONS)
  trained = compvis.LATENT_DIFFUSIONS[model]
  stage = autoencoder.default_config(
      **autoencoders.settings(compvis.AUTOENCODERS[trained.autoencoder])).model
  config = recipes.published(latent.add(chain.default_config(
      checkpoint=model, betas='scaled_linear', beta_ends=trained.betas, clip=False, dropout=0.0,
      class_conditional=trained.classes > 0), stage))
  config.data.update(name=_DATA.get(model, 'imagenet2012'), shape=(trained.side, trained.side, 3),
                     levels=256, classes=trained.classes, image_size=trained.side, batch_size=48)
  config.optimizer.update(learning_rate=9.6e-5, warmup_steps=0)
  config.train.steps = 500_000
  if trained.tokeniser:
    encoder = compvis.TEXT_ENCODERS[model]
    config = texts.add(config, encoder, trained=trained.tokeniser == 'bert')
    with config.unlocked():
      config.unet = networks.sizes(compvis.UNETS[model][0])
    config.data.update(name='./captioned', fields=('image', 'caption'), text_length=encoder.length,
                       tokeniser=trained.tokeniser)
  if trained.tokeniser == 'clip':  # v1.4, by the README of CompVis/stable-diffusion
    config.data.batch_size = 2048
    config.optimizer.update(learning_rate=1e-4, warmup_steps=10_000)
    config.train.steps = 225_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  if 'text' in config:
    net = networks.configured(LatentUNet(**config.unet), config)
    return latent.of(config, lambda inner: texts.experiment(
        inner, lambda **told: chain.experiment(inner, net=net, **told)))
  name = config.model.checkpoint
  net = compvis.network(name)
  if isinstance(net, LabelledUNet):
    net = net.clone(net=networks.configured(net.net, config))
  else:
    net = networks.configured(net, config)
  base = latent.of(config, lambda inner: chain.experiment(inner, net=net))
  return label_dropping.with_null(base) if compvis.LATENT_DIFFUSIONS[name].untold else base
