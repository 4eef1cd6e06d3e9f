"""A noise-aware dual encoder of pictures and captions, whose gradient guides other runs by texts.

  python scripts/train.py --config=configs/text/dual_encoder.py:shapes --workdir=runs/dual_shapes
  python scripts/sample.py --workdir=runs/shapes --clip=runs/dual_shapes --clip_scale=1 \\
    --prompt='a large red disk on grey' --out=disk.png

The loss is CLIP's (Radford et al. 2021), on noisy pictures, as in GLIDE's "noised CLIP" (Nichol et
al. 2021, section 3.4).  metrics.jsonl has the share of pictures whose caption is the likeliest of
its group, over all levels and for each quarter of time; accuracy_1 is nearest the data.

After the colon:

  shapes    the 9,216 pictures of `data.shapes`
  held_out  the pictures of 120 of the 144 captions; the others are for testing
  emoji     emoji of 32x32 pixels with their names, which prepare_data.py makes

Hardware, time and what it reaches: see configs/text/README.md.
"""
import ml_collections

from vdm_jax import inputs, recipes, schedules
from vdm_jax.errors import require_choice
from vdm_jax.nn.text.clip import ImageTower, TextTower
from vdm_jax.processes import GaussianProcess
from vdm_jax.systems import compose, networks
from vdm_jax.systems.guided import dual_encoder
from vdm_jax.typing import Experiment

DATA = {'shapes': 'shapes', 'held_out': 'shapes:held_out', 'emoji': 'emoji'}
STEPS = 1000  # noise levels that the image tower tells apart


def get_config(which: str = 'shapes') -> ml_collections.ConfigDict:
  require_choice('config', which, DATA)
  tower = {'features': 64, 'attention_heads': 4, 'outputs': 64, 'gelu': 'exact',
           'key_bias': False}
  # The levels and the length of the tokens are those of the data.
  config = dual_encoder.default_config(TextTower(depth=2, levels=0, length=0, **tower), group=128,
                                       **tower, depth=3, patch=4)
  recipes.short(config, DATA[which], steps=1500, learning_rate=1e-3)
  config.data.update(tokeniser='words', batch_size=128,
                     validation=256 if which == 'emoji' else 1024)
  config.model.remat = 'none'
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  m, ends = config.model, compose.end_points(config)
  tower = ImageTower(features=m.features, depth=m.depth, attention_heads=m.attention_heads,
                     patch=m.patch, outputs=m.outputs, steps=STEPS, gelu=m.gelu,
                     key_bias=m.key_bias)
  return dual_encoder.experiment(
      config, net=networks.configured(tower, config), inputs=inputs.scaled(*ends, STEPS - 1.0),
      process=GaussianProcess(schedules.Cosine(*ends)))
