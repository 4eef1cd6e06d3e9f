"""The digits conditioned on their names as text, 'zero' .. 'nine': data are named fields.

  python scripts/train.py --config=configs/digits/captioned.py --workdir=runs/digits_captioned
  python scripts/sample.py --workdir=runs/digits_captioned --condition=caption=three --out=three.png

x is the field `image`.  The network is conditioned on the field `caption`, tokens [B, 5].  Any data
with a field `caption` can be used as well: `shapes`, `emoji`, pictures with a captions.txt, or an
.npz with strings `caption`.
Hardware, time and what it reaches: see configs/digits/README.md.
"""
import ml_collections

from vdm_jax import data, recipes, schedules
from vdm_jax.nn.small.captioned import Captioned
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment


def get_config() -> ml_collections.ConfigDict:
  config = recipes.digits(vdm.default_config(features=48, blocks=2, groups=12, text_features=64))
  config.data.name = 'captioned_digits'
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  m = config.model
  net = networks.unet(config).clone(classes=m.text_features)  # takes a vector as its condition
  levels = data.resolve(config.data)['caption'].levels
  return compose.experiment(
      config, net=Captioned(net, levels, m.text_features), condition='caption',
      schedule=schedules.LearnedLinear(*compose.end_points(config)))
