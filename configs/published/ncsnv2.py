"""NCSN and NCSNv2: Song and Ermon (2019, 2020), RefineNets and ladders of noise levels.

  python scripts/import_weights.py --source=ncsnv2 --model=ncsnv2-cifar10 --in=FILE.pth --out=RUN
  python scripts/train.py --config=configs/published/ncsnv2.py:ncsnv2-cifar10 --workdir=RUN \
    --data_dir=DIR

After the colon stands the name of a published network.  The ladder of noise levels is a table.  The
network is trained on each level equally often; the loss is |eps - eps_hat|^2.
Hardware and time: not run here; 300,000 steps as published for CIFAR-10.
To reach, as published: CIFAR-10 FID 25.32 (NCSN), 10.87 (NCSNv2 with denoising).
"""
import jax.numpy as jnp
import ml_collections
import numpy as np

from vdm_jax import inputs, recipes, schedules, targets, weightings
from vdm_jax.decoders import Pixels
from vdm_jax.errors import require_choice
from vdm_jax.processes import Scaled, ve
from vdm_jax.published.ncsnv2 import LEVELS, MODELS, SHAPES
from vdm_jax.systems import networks
from vdm_jax.systems.scores import score_sde as score
from vdm_jax.typing import Experiment

_DATA = {'mnist': ('mnist', 10), 'cifar10': ('cifar10', 10)}


def get_config(model: str = 'ncsnv2-cifar10') -> ml_collections.ConfigDict:
  require_choice('config', model, MODELS)
  data = model.split('-')[1]
  name, classes = _DATA.get(data, (f'./{data}', 0))
  config = recipes.published(score.default_config(checkpoint=model))
  config.data.update(name=name, shape=SHAPES[model], levels=256, classes=classes,
                     image_size=SHAPES[model][0] if name.startswith('.') else 0)
  config.model.dropout = 0.0
  config.ema = {'ema': 0.999}
  config.optimizer.update(learning_rate=1e-4, warmup_steps=0, clip_norm=0.0)
  config.train.steps = 300_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  name = config.model.checkpoint
  # NCSN was trained on levels that are spread over bins of 1 / 256, as ours are; NCSNv2 on k / 255.
  conditional = MODELS[name].levels > 0
  to_ends = 1.0 if conditional else Pixels(config.data.levels).to_ends
  largest, smallest, count = LEVELS[name]
  # Their levels are for images in [0, 1], half as wide as [-1, 1].  Clean data are no level.
  ladder = schedules.TableSchedule.from_sigmas(
      2.0 / to_ends * np.geomspace(largest, smallest, count), clean=False)

  images = inputs.sigma(scale=0.5, shift=0.5)  # in [0, 1]

  def level_of(z, level):
    """Returns z and the number of its level; level 0 is the noisiest."""
    z, _ = images(z, level)
    number = jnp.round(ladder.steps - ladder.index(level.logsnr))
    return z, jnp.broadcast_to(number, z.shape[:1])

  return score.experiment(
      config, net=networks.configured(MODELS[name], config), schedule=ladder,
      curve=Scaled(ve, to_ends), target=targets.half_score, weight=weightings.simple,
      inputs=level_of if conditional else images,
      trained_at=lambda t: jnp.floor(t * count).clip(0, count - 1) / (count - 1))
