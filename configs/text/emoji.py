"""A small GLIDE: it draws emoji by their names, 'woman guard dark skin tone'; 32x32 pixels.

  python scripts/prepare_data.py emoji --from=NotoColorEmoji.ttf,emoji-test.txt
  python scripts/train.py --config=configs/text/emoji.py:held_out --workdir=runs/emoji
  python scripts/sample.py --workdir=runs/emoji --guidance=1 --out=guard.png \\
    --prompt='woman guard dark skin tone'

Nichol et al. (2021), with the network of `glide_shapes.py`, on patches of 2x2 pixels, so that a
step takes as long as on shapes of 16x16.

After the colon:

  new_names  tested on names that do not occur in training
  held_out   tested on names and skin tones that occur, but not together

Both choices train on the same pictures.
Hardware, time and what they reach: see configs/text/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems import glide
from vdm_jax.typing import Experiment

DATA = {'new_names': 'emoji', 'held_out': 'emoji:held_out'}


def get_config(which: str = 'new_names') -> ml_collections.ConfigDict:
  require_choice('config', which, DATA)
  config = recipes.texts(glide.default_config(patch=2, text_features=64, text_depth=1),
                         DATA[which])
  config.data.validation = 256
  config.model.remat = 'none'
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return glide.experiment(config)
