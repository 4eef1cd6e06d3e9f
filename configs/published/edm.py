"""EDM: Karras, Aittala, Aila and Laine (2022), their networks and preconditioning.

  python scripts/import_weights.py --source=edm --in=edm-cifar10-32x32-uncond-vp.pkl --out=RUN
  python scripts/train.py --config=configs/published/edm.py:edm-cifar10-32x32-cond-vp --workdir=RUN
  python scripts/sample.py --workdir=RUN --sampler=edm --steps=17 --out=samples.npz

After the colon stands the name of a published network.  Noise levels run from 80 to 0.002.
Their loss draws noise levels from a density, with a weight.  The loss here draws even times, and
its weight is the product of the two.
Seventeen steps down the 18 levels, and one evaluation at the last level, make their 35 evaluations.
Hardware and time: not run here; 200 M images on 8 V100 as published.
To reach, as published (table 2, 35 evaluations): CIFAR-10 FID 1.79 conditional, 1.97 unconditional.
"""
import ml_collections
import numpy as np

from vdm_jax import inputs, recipes, schedules, targets, weightings
from vdm_jax.decoders import Pixels
from vdm_jax.errors import require_choice
from vdm_jax.processes import Scaled, ve
from vdm_jax.published.edm import MODELS
from vdm_jax.systems import networks
from vdm_jax.systems.scores import score_sde as score
from vdm_jax.typing import Experiment

SIGMA_DATA = 0.5
_DATA = {'cifar10': 'cifar10', 'ffhq': './ffhq', 'afhqv2': './afhqv2',
         'imagenet': 'imagenet_resized/64x64'}


def get_config(model: str = 'edm-cifar10-32x32-uncond-vp') -> ml_collections.ConfigDict:
  require_choice('config', model, MODELS)
  net, data = MODELS[model], _DATA[model.split('-')[1]]
  size = 32 if '32x32' in model else 64
  config = recipes.published(score.default_config(checkpoint=model))
  config.data.update(name=data, shape=(size, size, 3), levels=256, batch_size=512,
                     classes={'cifar10': 10, 'imagenet_resized/64x64': 1000}.get(data, 0),
                     image_size=64 if data.startswith('.') else 0)
  config.model.update(class_conditional=net.classes > 0, dropout=net.dropout)
  config.optimizer.update(learning_rate=1e-3, clip_norm=0.0)
  config.train.steps = 400_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  to_ends = Pixels(config.data.levels).to_ends
  return score.experiment(
      config, net=networks.configured(MODELS[config.model.checkpoint], config),
      schedule=schedules.Shifted(schedules.KarrasSigma(), 2.0 * np.log(to_ends)),
      curve=Scaled(ve, to_ends), target=targets.edm(SIGMA_DATA / to_ends),
      inputs=inputs.edm(SIGMA_DATA), weight=weightings.edm(
          mean=-1.2 - np.log(to_ends), sigma_data=SIGMA_DATA / to_ends))  # of sigma / alpha
