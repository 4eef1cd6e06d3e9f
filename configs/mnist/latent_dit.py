"""DiT on latents of MNIST: a class-conditional transformer, with guidance (Peebles and Xie 2023).

  python scripts/train.py --config=configs/mnist/latent_dit.py --workdir=runs/mnist_latent_dit \
    --config.model.autoencoder=runs/mnist_kl --data_dir=DIR
  python scripts/sample.py --workdir=runs/mnist_latent_dit --guidance=1 --out=samples.png

A latent of configs/mnist/autoencoder_kl.py is 7x7 tokens.  A tenth of the labels is left out in
training.
Hardware, time and what it reaches: see configs/mnist/README.md.
"""
import ml_collections

from vdm_jax import data, inputs, recipes, schedules
from vdm_jax.nn.transformers.dit import DiT
from vdm_jax.systems import networks
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.latent import autoencoder, latent
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  # For --print_config: a run copies the settings of the autoencoder that it names.
  first = autoencoder.small_config()
  config = latent.default_config(
      first.model, features=96, blocks=4, label_dropping=0.1, class_conditional=True, dropout=0.0,
      scan=True, **networks.how_computed())
  config.model.remat = 'none'
  return recipes.short(config, 'mnist', steps=1600, learning_rate=1e-3)


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  ends = m.logsnr_max, m.logsnr_min
  net = DiT(patch=1, features=m.features, depth=m.blocks, attention_heads=4, scan=m.scan,
            classes=data.resolve(config.data).classes, label_dropout=m.label_dropping)
  return label_dropping.with_null(latent.experiment(
      config, net=networks.configured(net, config), schedule=schedules.Linear(*ends),
      inputs=inputs.scaled(*ends)))
