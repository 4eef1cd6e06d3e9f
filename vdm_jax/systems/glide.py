"""A small GLIDE (Nichol et al. 2021): a U-Net that is told a text, in continuous time.

A text transformer is trained with the U-Net.  The U-Net reads its pooled vector with the time, and
all its vectors in each attention (section 3.1).  Unlike GLIDE's, this U-Net has two resolutions,
attention at those of at most 8x8, and the noise levels of the continuous cosine schedule.  It may
read patches.  A network that reads patches is faster, but it has to learn a shape at each of its
positions in a patch; without patches, the convolutions know that a shape may move.

The U-Net may also be told a small image (`guided.upsampling`), or a part of the image
(`guided.inpainting`).
"""
import ml_collections

from vdm_jax import data, inputs, schedules, targets, weightings
from vdm_jax.nn.text.glide import GLIDEText
from vdm_jax.nn.unets.adm import UNet
from vdm_jax.nn.unets.glide import LOW_RES_NOISE, GLIDEUNet, images_of
from vdm_jax.nn.unets.patched import Patched
from vdm_jax.processes import GaussianProcess, vp
from vdm_jax.systems import compose, networks, texts
from vdm_jax.systems.guided import inpainting, upsampling
from vdm_jax.systems.scores import score_sde
from vdm_jax.typing import Experiment, Target


def default_config(*, text_features: int = 32, text_depth: int = 2, dropped: float = 0.1,
                   **model) -> ml_collections.ConfigDict:
  """The fields of the system; config.text describes the text transformer.

  text_features, text_depth: of the text transformer.  dropped: the share of texts that are dropped
  in training.

  `model` may set: features and multipliers, which make the channels of the two resolutions; patch,
  the side of a patch in pixels; logsnr_max and logsnr_min, the levels; and the fields of
  `score_sde.default_config`.
  """
  config = score_sde.default_config(**{
      'features': 32, 'multipliers': (1, 1), 'patch': 1, 'dropout': 0.0,
      'logsnr_max': 13.3, 'logsnr_min': -9.0,
      'upsampling': 0,       # how many times larger the image is than the small one that the model
                             # is told; 0: it is told none
      'low_res_noise': 0.0,  # the largest time of noise on the small image in training; 0: none
      'inpainting': False,   # whether the model is told a part of the image
  } | model)
  # The levels and the length of the tokens are those of the data.
  encoder = GLIDEText(features=text_features, depth=text_depth, attention_heads=4, levels=0,
                      length=0, padding=0, outputs=4 * config.model.features)
  return texts.add(config, encoder, dropped=dropped)


def experiment(config: ml_collections.ConfigDict, *, target: Target = targets.v,
               ends_denoised: bool = False) -> Experiment:
  """The loss is |v - v_hat|^2, whichever `target` the network predicts.

  ends_denoised: see `score_sde.experiment`.

  Raises InputError as `texts.experiment` does, for images that cannot be cut into patches, for
  features that 16 does not divide, and as `upsampling.experiment` and `inpainting.trained` do.
  """
  m, ends = config.model, compose.end_points(config)
  side = data.resolve(config.data).shape[0] // max(m.patch, 1)
  # Runs of before these fields were told a text alone.
  factor, noise, known = (m.get(name, 0) for name in ('upsampling', 'low_res_noise', 'inpainting'))
  compose.require(config, 'low_res_noise', bool(factor or not noise), 'this model is told no small '
                  'image', 'set config.model.upsampling too, or leave it at 0')
  net = UNet(features=m.features, multipliers=tuple(m.get('multipliers', (1, 2))), blocks=1,
             attention_resolutions=tuple(size for size in (side, side // 2) if size <= 8),
             head_features=16, groups=8, text=True,
             super_resolution=factor > 0, low_res_noise=noise > 0.0, inpainting=bool(known))
  beside = (*images_of(net), *[LOW_RES_NOISE] * net.low_res_noise)
  schedule = schedules.Cosine(*ends)

  def build(inner: ml_collections.ConfigDict) -> Experiment:
    return texts.experiment(inner, lambda **told: score_sde.experiment(
        inner, net=Patched(GLIDEUNet(networks.configured(net, config)), m.patch),
        schedule=schedule, curve=vp, target=target, weight=weightings.snr_plus_one,
        inputs=inputs.scaled(*ends), ends_denoised=ends_denoised, beside=beside, **told),
                            pooled=True)

  def upsampled(inner: ml_collections.ConfigDict) -> Experiment:
    return upsampling.experiment(inner, factor, GaussianProcess(schedule), noise, build)
  whole = upsampled if factor else build
  return inpainting.trained(config, whole) if known else whole(config)
