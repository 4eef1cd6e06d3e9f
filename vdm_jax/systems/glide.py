"""A small GLIDE (Nichol et al. 2021): a U-Net that is told a text, in continuous time.

A text transformer is trained with the U-Net.  The U-Net reads its pooled vector with the time, and
all its vectors in each attention (section 3.1).  Unlike GLIDE's, this U-Net reads patches, has two
resolutions with attention at both, and its noise levels are those of the continuous cosine
schedule.
"""
import ml_collections

from vdm_jax import data, inputs, schedules, targets, weightings
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.unets.adm import UNet
from vdm_jax.nn.unets.glide import GLIDEUNet
from vdm_jax.nn.unets.patched import Patched
from vdm_jax.processes import vp
from vdm_jax.systems import compose, networks, texts
from vdm_jax.systems.scores import score_sde
from vdm_jax.typing import Experiment, Target


def default_config(*, text_features: int = 32, text_depth: int = 2, dropped: float = 0.1,
                   **model) -> ml_collections.ConfigDict:
  """The fields of the system; config.text describes the text transformer.

  text_features, text_depth: of the text transformer.  dropped: the share of texts that are dropped
  in training.

  `model` may set: features, of the first resolution; patch, the side of a patch in pixels;
  logsnr_max and logsnr_min, the levels; and the fields of `score_sde.default_config`.
  """
  config = score_sde.default_config(**{
      'features': 48, 'patch': 2, 'dropout': 0.0, 'logsnr_max': 13.3, 'logsnr_min': -9.0} | model)
  # The levels and the length of the tokens are those of the data.
  encoder = GLIDEText(features=text_features, depth=text_depth, attention_heads=4, levels=0,
                      length=0, padding=0, outputs=4 * config.model.features)
  return texts.add(config, encoder, dropped=dropped)


def experiment(config: ml_collections.ConfigDict, *, target: Target = targets.v,
               ends_denoised: bool = False) -> Experiment:
  """The loss is |v - v_hat|^2, whichever `target` the network predicts.

  ends_denoised: see `score_sde.experiment`.

  Raises InputError as `texts.experiment` does, for images that cannot be cut into patches, and for
  features that 16 does not divide.
  """
  m, ends = config.model, compose.end_points(config)
  side = data.resolve(config.data).shape[0] // max(m.patch, 1)
  net = UNet(features=m.features, multipliers=(1, 2), blocks=1,
             attention_resolutions=(side, side // 2), head_features=16, groups=8, text=True)
  return texts.experiment(config, lambda **told: score_sde.experiment(
      config, net=Patched(GLIDEUNet(networks.configured(net, config)), m.patch),
      schedule=schedules.Cosine(*ends), curve=vp, target=target, weight=weightings.snr_plus_one,
      inputs=inputs.scaled(*ends), ends_denoised=ends_denoised, **told), pooled=True)
