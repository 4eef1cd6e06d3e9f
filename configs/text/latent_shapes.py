"""Latent diffusion of shapes, told a caption: 'a large red disk on grey' (Rombach et al. 2022).

  python scripts/train.py --config=configs/text/latent_shapes.py:autoencoder \\
    --workdir=runs/shapes_autoencoder
  python scripts/train.py --config=configs/text/latent_shapes.py:latent \\
    --workdir=runs/latent_shapes --config.model.autoencoder=runs/shapes_autoencoder
  python scripts/sample.py --workdir=runs/latent_shapes --guidance=1 --out=disk.png \\
    --prompt='a large red disk on grey'
  python scripts/edit.py --workdir=runs/latent_shapes --image=data:test:0 --out=edit.png \\
    --target='a large blue disk on grey' --method=prompt_to_prompt

After the colon:

  autoencoder  the KL kind, from 16x16 pixels to 8x8 latents of 4 channels and back
  latent       a diffusion of the latents, whose U-Net attends to the words of the caption

The text encoder is latent diffusion's "BERT", small, and is trained with the U-Net.  A tenth of the
texts is dropped, so the model can be guided.  Time is continuous, and the target is v.
A run of `latent` keeps the settings and the weights of its autoencoder.
Hardware, time and what it reaches: see configs/text/README.md.
"""
import ml_collections

from vdm_jax import inputs, recipes, schedules, targets, weightings
from vdm_jax.errors import require_choice
from vdm_jax.nn.text.bert import LatentBERT
from vdm_jax.nn.unets.latent import LatentUNet
from vdm_jax.processes import vp
from vdm_jax.systems import networks, texts
from vdm_jax.systems.latent import autoencoder, latent
from vdm_jax.systems.scores import score_sde
from vdm_jax.typing import Experiment

STAGES = ('autoencoder', 'latent')


def get_config(stage: str = 'latent') -> ml_collections.ConfigDict:
  require_choice('config', stage, STAGES)
  first = autoencoder.small_config(stage=stage, multipliers=(1, 2))
  if stage == 'latent':
    config = latent.add(score_sde.default_config(
        stage=stage, features=48, groups=8, dropout=0.0, logsnr_max=13.3, logsnr_min=-9.0),
                        first.model)
    # The levels and the length of the tokens are those of the data.
    texts.add(config, LatentBERT(features=32, depth=2, attention_heads=4, levels=0, length=0,
                                 head_features=8))
    recipes.texts(config)
    config.model.remat = 'none'
  else:
    config = recipes.texts(first, steps=3000)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  if m.stage != 'latent':
    return autoencoder.experiment(config)
  ends = m.logsnr_max, m.logsnr_min
  net = networks.configured(LatentUNet(
      features=m.features, multipliers=(1, 2), blocks=1, attention_heads=4, groups=m.groups,
      attention_levels=(0, 1)), config)
  return latent.of(config, lambda inner: texts.experiment(inner, lambda **told: (
      score_sde.experiment(
          inner, net=net, schedule=schedules.Cosine(*ends), curve=vp, target=targets.v,
          weight=weightings.snr_plus_one, inputs=inputs.scaled(*ends), ends_denoised=False,
          **told))))
