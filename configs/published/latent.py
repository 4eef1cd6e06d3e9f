"""Latent diffusion: Rombach et al. (2022), unconditional and class-conditional models.

  python scripts/import_weights.py --source=latent-diffusion --model=celeba256 --in=model.ckpt \
    --out=RUN
  python scripts/sample.py --workdir=RUN --sampler=ddim --steps=200 --out=samples.png

After the colon stands the name of a published model.  The chain is "linear" in the public code,
`schedules.scaled_linear_betas` here.  Training here uses L_simple.  The published churches model
was trained with |eps - eps_hat|.  The models of vq autoencoders have no likelihood.
Hardware and time: not run here.
To reach, as published: FID 5.11 on CelebA-HQ, 4.98 on FFHQ, 4.02 on churches, 2.95 on bedrooms.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.nn.unets.latent import LabelledUNet
from vdm_jax.published import autoencoders, compvis
from vdm_jax.systems import networks
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
  config.data.update(name=_DATA.get(model, 'imagenet2012'), shape=(256, 256, 3), levels=256,
                     classes=trained.classes, image_size=256, batch_size=48)
  config.optimizer.update(learning_rate=9.6e-5, warmup_steps=0)
  config.train.steps = 500_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  name = config.model.checkpoint
  net = compvis.network(name)
  if isinstance(net, LabelledUNet):
    net = net.clone(net=networks.configured(net.net, config))
  else:
    net = networks.configured(net, config)
  base = latent.of(config, lambda inner: chain.experiment(inner, net=net))
  return label_dropping.with_null(base) if compvis.LATENT_DIFFUSIONS[name].untold else base
