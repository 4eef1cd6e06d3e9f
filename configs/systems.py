"""Any system of images on any data set: the digits, MNIST or CIFAR-10.

  python scripts/train.py --config=configs/systems.py:idode_sp --workdir=runs/idode_sp
  python scripts/train.py --config=configs/systems.py:idode_sp,cifar10 --workdir=RUN --data_dir=DIR

After the colon stands the system, and the data set if it is not the digits.  `SYSTEMS` lists the
systems.  The docstring of a system's module describes the system, and names the paper.  All systems
but the VAEs have the network of VDM, with 220,097 parameters on the digits.  So their objectives
can be compared.
Hardware, time and what each reaches on the digits: see configs/README.md.  scoreode starts from the
weights of another run: --init_from=runs/vdm.
"""
import ml_collections

from vdm_jax import recipes, schedules
from vdm_jax.errors import require_choice
from vdm_jax.systems import compose
from vdm_jax.systems.chains import ddpm, iddpm, scheduled_sampling
from vdm_jax.systems.scores import idode, ncsn, scoreflow, scoreode, soft_truncation, weighted
from vdm_jax.systems.variational import (
    autoencoders,
    dequantised,
    diffenc,
    learned_schedule,
    mulan,
    resampled,
    vdm,
)
from vdm_jax.typing import Experiment


def fixed_vdm(config: ml_collections.ConfigDict) -> Experiment:
  """VDM with a fixed schedule, linear in log-SNR: the base of the comparison."""
  return vdm.experiment(config, schedule=schedules.Linear(*compose.end_points(config)))


SYSTEMS = {  # name: (its fields, those that differ, config -> Experiment)
    'vdm': (vdm.default_config, {}, fixed_vdm),
    'vdm_discrete': (vdm.default_config, {'timesteps': 1000}, fixed_vdm),
    'learned_schedule': (learned_schedule.default_config, {}, learned_schedule.experiment),
    'resampled': (resampled.default_config, {}, resampled.experiment),
    'dequantised': (dequantised.default_config, {}, dequantised.experiment),
    'mulan': (mulan.default_config, {}, mulan.experiment),
    'diffenc': (diffenc.default_config, {}, diffenc.experiment),
    'vae': (autoencoders.default_config, {}, autoencoders.hierarchical),
    'hvae': (autoencoders.default_config, {'latents': (8, 16)}, autoencoders.hierarchical),
    'mhvae': (autoencoders.default_config, {'latents': (16,) * 4}, autoencoders.markovian),
    'iddpm_vlb': (iddpm.default_config, {}, iddpm.bound),
    'iddpm_hybrid': (iddpm.default_config, {}, iddpm.hybrid),
    'ddpm': (ddpm.unet_config, {}, ddpm.experiment),
    'iddpm': (ddpm.unet_config, {'betas': 'cosine', 'variances': True}, ddpm.experiment),
    'scheduled_sampling': (scheduled_sampling.default_config, {'class_conditional': True},
                           scheduled_sampling.experiment),
    'scoreflow': (scoreflow.default_config, {}, scoreflow.experiment),
    'soft_truncation': (soft_truncation.default_config, {}, soft_truncation.experiment),
    'idode_vp': (idode.default_config, {}, idode.vp),
    'idode_sp': (idode.default_config, {}, idode.sp),
    'scoreode': (scoreode.default_config, {}, scoreode.experiment),
    'ncsn': (ncsn.default_config, {}, ncsn.experiment),
    'ncsnv2': (ncsn.default_config, {'level_conditional': False}, ncsn.experiment),
    **{name: (weighted.default_config, {'objective': name}, weighted.experiment)
       for name in weighted.OBJECTIVES},
}

NETWORK = {'digits': {'features': 32, 'blocks': 2, 'groups': 8},
           'mnist': {'blocks': 8}, 'cifar10': {}}
# On the digits the other parts are smaller, and a training has as many steps as fit three minutes.
ON_DIGITS = {
    'mulan': {'latent': 16, 'latent_hot': 4, 'schedule_features': 64, 'encoder_features': 16,
              'encoder_blocks': 1, 'encoder_groups': 4},
    'diffenc': {'encoder_features': 16, 'encoder_blocks': 1, 'encoder_groups': 4},
    'scheduled_sampling': {'rise_steps': 500},
}
STEPS = {'ddpm': 1300, 'iddpm': 1300, 'scheduled_sampling': 500, 'ncsn': 1100, 'ncsnv2': 1100,
         'vae': 4000, 'hvae': 4000, 'mhvae': 4000, **dict.fromkeys(weighted.OBJECTIVES, 1400)}


def get_config(which: str = 'vdm') -> ml_collections.ConfigDict:
  system, _, data = which.partition(',')
  data = data or 'digits'
  require_choice('config', system, SYSTEMS)
  require_choice('config', data, recipes.IMAGES)
  default_config, fields, _ = SYSTEMS[system]
  network = {} if default_config is autoencoders.default_config else NETWORK[data]
  small = ON_DIGITS.get(system, {}) if data == 'digits' else {}
  config = default_config(**{**network, **fields, **small, 'system': system})
  if data != 'digits':
    recipes.IMAGES[data](config)
  else:
    recipes.digits(config, steps=STEPS.get(system, 1500))
    if system == 'scheduled_sampling':
      config.ema = {'ema': 0.98}  # its steps are few
    if default_config is autoencoders.default_config:
      config.model.dropout = 0.2
      config.optimizer.learning_rate = 1e-3
      config.train.update(log_every=200, validate_every=1000, checkpoint_every=2000)
  if system == 'learned_schedule':
    # In these steps a log-density moves by some units, but a weight of the network by a hundredth.
    config.optimizer.schedule_learning_rate = 0.03
  if system == 'ncsnv2':
    config.model.timesteps = ncsn.v2_levels(config)
  return recipes.fine_tuning(config) if system == 'scoreode' else config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return SYSTEMS[config.model.system][-1](config)
