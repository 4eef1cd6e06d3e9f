"""The score SDEs with NCSN++ and DDPM++: Song et al. (2021), VE, VP and sub-VP.

  python scripts/import_weights.py --source=score-sde --model=vp/cifar10_ddpmpp_continuous \
    --in=checkpoint_8.pth --out=RUN
  python scripts/train.py --config=configs/published/score_sde.py:ve/cifar10_ncsnpp_continuous \
    --workdir=RUN --data_dir=DIR

After the colon stands the name of a config in the public repository.  The loss is |eps - eps_hat|^2
at uniform times, which is their loss without likelihood weighting.
Hardware and time: not run here; 1.3 M steps as published.
To reach, as published: NCSN++ deep, VE, FID 2.20; DDPM++ deep, sub-VP, 2.99 bits/dim (test,
`ode/uniform`).
"""
import ml_collections
import numpy as np

from vdm_jax import inputs, recipes, schedules, targets, weightings
from vdm_jax.decoders import Pixels
from vdm_jax.errors import require_choice
from vdm_jax.processes import GaussianProcess, Scaled, sub_vp, ve, vp
from vdm_jax.published.score_sde import MODELS
from vdm_jax.systems import networks
from vdm_jax.systems.scores import score_sde as score
from vdm_jax.typing import Experiment

FIRST = 1e-5  # the time at which they start


def get_config(model: str = 'vp/cifar10_ddpmpp_continuous') -> ml_collections.ConfigDict:
  require_choice('config', model, MODELS)
  size = 256 if '256' in model else 32
  config = recipes.published(score.default_config(checkpoint=model))
  config.data.update(name='cifar10' if 'cifar10' in model else './ffhq', shape=(size, size, 3),
                     levels=256, classes=10 if 'cifar10' in model else 0,
                     image_size=size if size > 32 else 0)
  config.model.dropout = MODELS[model].dropout
  config.ema = {'ema': 0.999 if model.startswith('ve') else 0.9999}
  config.train.steps = 1_300_000
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  name = config.model.checkpoint
  net, to_ends = networks.configured(MODELS[name], config), Pixels(config.data.levels).to_ends
  shifted = lambda schedule: schedules.Shifted(schedule, 2.0 * np.log(to_ends))
  if name.startswith('ve/'):
    # In that code images are in [0, 1], so its noise levels, which the network reads, are half.
    schedule = schedules.GeometricSigma(0.02, 2.0 * (348.0 if 'ffhq' in name else 50.0))
    return score.experiment(
        config, net=net, schedule=shifted(schedule), curve=Scaled(ve, to_ends),
        target=targets.half_score, inputs=inputs.sigma(), weight=weightings.simple)
  sde = lambda first: schedules.BetaLinear(t_min=first)
  curve = vp
  if name.startswith('subvp/'):
    curve, sde = sub_vp, lambda first: schedules.SameAlpha(schedules.BetaLinear(t_min=first))
  return score.experiment(
      config, net=net, schedule=shifted(sde(FIRST)), curve=Scaled(curve, to_ends),
      target=targets.eps, inputs=inputs.sde(GaussianProcess(shifted(sde(0.0)))),
      weight=weightings.simple)
