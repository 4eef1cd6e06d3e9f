"""A small GLIDE: it draws shapes as a caption says, 'a large red disk on grey'; 16x16 pixels.

  python scripts/train.py --config=configs/text/glide_shapes.py --workdir=runs/glide_shapes
  python scripts/sample.py --workdir=runs/glide_shapes --guidance=1 --out=disk.png \\
    --prompt='a large red disk on grey'

Nichol et al. (2021).  A text transformer is trained with the U-Net.  The U-Net reads its last
vector with the time, and all its vectors in each attention.  A tenth of the texts is dropped, so
the model can be guided.  Unlike GLIDE, time is continuous, the target is v, and the U-Net reads
patches of 2x2 pixels.

After the colon:

  shapes    all 144 captions
  held_out  120 of them: no red square, green disk, blue triangle or yellow cross

Hardware, time and what they reach: see configs/text/README.md.
"""
import ml_collections

from vdm_jax import data, inputs, recipes, schedules, targets, weightings
from vdm_jax.errors import require_choice
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.unets.adm import UNet
from vdm_jax.nn.unets.glide import GLIDEUNet
from vdm_jax.nn.unets.patched import Patched
from vdm_jax.processes import vp
from vdm_jax.systems import compose, networks, texts
from vdm_jax.systems.scores import score_sde
from vdm_jax.typing import Experiment

DATA = {'shapes': 'shapes', 'held_out': 'shapes:held_out'}


def get_config(which: str = 'shapes') -> ml_collections.ConfigDict:
  require_choice('config', which, DATA)
  config = score_sde.default_config(features=48, dropout=0.0, logsnr_max=13.3, logsnr_min=-9.0)
  recipes.short(config, DATA[which], steps=2400)
  config.data.update(tokeniser='words', hold_out=False)
  config.model.remat = 'none'
  caption = data.resolve(config.data)['caption']
  encoder = GLIDEText(features=32, depth=2, attention_heads=4, levels=caption.levels,
                      length=caption.shape[0], padding=0, outputs=4 * config.model.features)
  return texts.add(config, encoder, dropped=0.1)


def build(config: ml_collections.ConfigDict) -> Experiment:
  ends = compose.end_points(config)
  # 8x8 patches of 2x2 pixels, and half as many, with attention at both.
  net = UNet(features=config.model.features, multipliers=(1, 2), blocks=1,
             attention_resolutions=(8, 4), head_features=16, groups=8, text=True)
  return texts.experiment(config, lambda **told: score_sde.experiment(
      config, net=Patched(GLIDEUNet(networks.configured(net, config)), 2),
      schedule=schedules.Cosine(*ends), curve=vp, target=targets.v,
      weight=weightings.snr_plus_one, inputs=inputs.scaled(*ends), ends_denoised=False, **told),
                          pooled=True)
