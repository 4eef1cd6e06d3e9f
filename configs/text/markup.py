"""Markup to image (Deng et al. 2023): it draws expressions, 'red disk left of blue square'.

  python scripts/train.py --config=configs/text/markup.py:scheduled --workdir=runs/markup
  python scripts/score_expressions.py --workdir=runs/markup

An expression determines its picture, 12 x 24 pixels.  A text transformer is trained with the U-Net,
which reads the expression as in `glide_shapes.py`.  The chain has 100 steps.

After the colon:

  teacher_forced  DDPM: the network reads noisy pictures of the data
  scheduled       it reads pictures that it denoised itself, in more and more of the examples

Hardware, time and what they reach: see configs/text/README.md.
"""
import ml_collections

from vdm_jax import data, recipes
from vdm_jax.errors import require_choice
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.unets.adm import UNet
from vdm_jax.nn.unets.glide import GLIDEUNet
from vdm_jax.systems import networks, texts
from vdm_jax.systems.chains import ddpm, scheduled_sampling
from vdm_jax.typing import Experiment

TRAININGS = ('teacher_forced', 'scheduled')
STEPS = 4000


def get_config(training: str = 'teacher_forced') -> ml_collections.ConfigDict:
  require_choice('config', training, TRAININGS)
  config = scheduled_sampling.default_config(features=32, dropout=0.0, timesteps=100, remat='none',
                                             training=training, rise_steps=STEPS)
  recipes.texts(config, 'expressions', steps=STEPS)
  config.data.validation = 100
  caption = data.resolve(config.data)['caption']
  encoder = GLIDEText(features=32, depth=2, attention_heads=4, levels=caption.levels,
                      length=caption.shape[0], padding=0, outputs=4 * config.model.features)
  return texts.add(config, encoder, dropped=0.0)


def build(config: ml_collections.ConfigDict) -> Experiment:
  # 12x24 and 6x12 pixels, with attention at the latter.
  net = UNet(features=config.model.features, multipliers=(1, 1), blocks=1,
             attention_resolutions=(6,), head_features=16, groups=8, text=True)
  chain = ddpm if config.model.training == 'teacher_forced' else scheduled_sampling
  return texts.experiment(config, lambda **told: chain.experiment(
      config, net=GLIDEUNet(networks.configured(net, config)),
      scale=1000 / config.model.timesteps, **told), pooled=True)
