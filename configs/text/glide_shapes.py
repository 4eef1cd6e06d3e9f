"""A small GLIDE: it draws shapes as a caption says, 'a large red disk on grey'; 16x16 pixels.

  python scripts/train.py --config=configs/text/glide_shapes.py --workdir=runs/glide_shapes
  python scripts/sample.py --workdir=runs/glide_shapes --guidance=1 --out=disk.png \\
    --prompt='a large red disk on grey'

Nichol et al. (2021).  A text transformer is trained with the U-Net.  The U-Net reads its last
vector with the time, and all its vectors in each attention.  A tenth of the texts is dropped, so
the model can be guided.  Unlike GLIDE, time is continuous, and the target is v.  Muon trains it:
in 400 steps of batch 32, a network of patches reached a caption accuracy of 12 % with it, and of
3 % with Adam.

After the colon:

  shapes      all 144 captions
  held_out    120 of them: no red square, green disk, blue triangle or yellow cross
  inpainting  all of them, and the model is told a part of the image: edit.py --method=inpaint
              --by=model, and compare_edits.py --inpainting (section 3.3)

Hardware, time and what they reach: see configs/text/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems import glide
from vdm_jax.typing import Experiment

DATA = {'shapes': 'shapes', 'held_out': 'shapes:held_out', 'inpainting': 'shapes'}


def get_config(which: str = 'shapes') -> ml_collections.ConfigDict:
  require_choice('config', which, DATA)
  config = recipes.texts(glide.default_config(inpainting=which == 'inpainting'), DATA[which])
  config.model.remat = 'none'
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return glide.experiment(config)
