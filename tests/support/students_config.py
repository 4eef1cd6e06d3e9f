"""A teacher of points in the plane and its students, of seconds: for the tests of distillation."""
import ml_collections

from vdm_jax import inputs, schedules, targets, weightings
from vdm_jax.processes import ve, vp
from vdm_jax.systems.distilled import consistency, progressive
from vdm_jax.systems.scores import score_sde
from vdm_jax.typing import Experiment

from . import tiny_config

SIGMA_DATA = 0.5


def get_config(system: str = 'teacher') -> ml_collections.ConfigDict:
  config = score_sde.default_config(
      dropout=0.2, features=8, logsnr_max=8.0, system=system,
      **progressive.fields() | consistency.fields())
  config.data.update(name='swirl', validation=50, batch_size=8)
  config.optimizer.update(learning_rate=1e-2, warmup_steps=0, decay_steps=0)
  config.model.update(teacher_steps=8, student_steps=1, halving_updates=10, levels=5)
  config.ema = {'student': 0.0} if system == 'progressive' else {'slow': 0.9}
  config.train.update(steps=30, log_every=5, validate_every=15, checkpoint_every=5,
                      pictures_every=0, keep=10)
  return config


def base(config: ml_collections.ConfigDict) -> Experiment:
  net = tiny_config.Net(config.model.features, config.model.dropout)
  if 'consistency' in config.model.system:
    return score_sde.experiment(config, net=net, schedule=schedules.KarrasSigma(), curve=ve,
                                target=targets.edm(SIGMA_DATA), inputs=inputs.edm(SIGMA_DATA),
                                weight=weightings.edm(sigma_data=SIGMA_DATA))
  return score_sde.experiment(
      config, net=net, schedule=schedules.Cosine(config.model.logsnr_max, -8.0), curve=vp,
      target=targets.v, weight=weightings.truncated_snr, ends_denoised=False)


def build(config: ml_collections.ConfigDict) -> Experiment:
  system, made = config.model.system, base(config)
  if system == 'progressive':
    return progressive.experiment(config, made)
  if system == 'consistency':
    net = tiny_config.Net(config.model.features, config.model.dropout)
    return consistency.distillation(config, made, net=net)
  return made  # 'teacher', 'of_consistency'
