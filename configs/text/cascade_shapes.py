"""A cascade of two small GLIDEs: shapes of 8x8 pixels, then of 16x16, both told the caption.

  python scripts/train.py --config=configs/text/cascade_shapes.py:base --workdir=runs/small_shapes
  python scripts/train.py --config=configs/text/cascade_shapes.py:upsampler \\
    --workdir=runs/large_shapes
  python scripts/sample.py --workdir=runs/small_shapes --guidance=1 --out=small.npz \\
    --prompt='a large red disk on grey'
  python scripts/sample.py --workdir=runs/large_shapes --out=large.npz \\
    --prompt='a large red disk on grey' --condition=low_res=small.npz \\
    --condition=low_res_noise=0.1

Nichol et al. (2021), with the network of `glide_shapes.py`.  The upsampler is trained on small
images with noise, and is told its time (conditioning augmentation, Ho et al. 2022, section 3.3).
`--config.model.low_res_noise=0` trains it without.  In sampling, the condition low_res_noise is the
time of the noise; 0, the least, is the default.

After the colon:

  base       pictures of 8x8 pixels, the means of blocks of 2x2
  upsampler  pictures of 16x16 pixels, told those of 8x8

Other sizes: --config.data.image_size for both, and --config.model.upsampling for the upsampler.
Hardware, time and what it reaches: see configs/text/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems import glide
from vdm_jax.typing import Experiment

STEPS = {'base': 6000, 'upsampler': 2400}


def get_config(stage: str = 'upsampler') -> ml_collections.ConfigDict:
  require_choice('config', stage, STEPS)
  config = recipes.texts(
      glide.default_config() if stage == 'base' else
      glide.default_config(upsampling=2, low_res_noise=0.5), steps=STEPS[stage])
  config.data.image_size = 8 if stage == 'base' else 0
  config.model.remat = 'none'
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return glide.experiment(config)
