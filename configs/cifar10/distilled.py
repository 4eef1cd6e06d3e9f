"""CIFAR-10 in one step: the published recipes of distillation.

  python scripts/train.py --config=configs/cifar10/distilled.py:progressive_teacher \
    --workdir=runs/teacher --data_dir=DIR
  python scripts/train.py --config=configs/cifar10/distilled.py:progressive --workdir=RUN \
    --data_dir=DIR --init_from=runs/teacher

After the colon:

  progressive_teacher  Salimans and Ho (2022), their public config: x-prediction, cosine log-SNR
                       from 20 to -20, truncated SNR, Adam at 2e-4, average 0.9999
  progressive          8,192 steps to 1 in 13 halvings of 50,000 updates; Adam's rate falls from
                       5e-5 to 0 in each halving; no average, no dropout; x_hat is clipped when a
                       student is sampled.  The students of 8, 4, 2 and 1 steps are the checkpoints
                       of 500,000, 550,000, 600,000 and 650,000 updates (sample.py --step=500000)
  knowledge            Luhman and Luhman (2021), their public code: the teacher is ddpm.py, and
                       100 steps of DDIM make 1,024,000 pairs (make_pairs.py --sampler=ddim
                       --grid=ddim_quadratic --steps=100); L1, batch 512, Adam at 2e-4, average
                       0.995.  The length of their training could not be checked
  consistency          Song et al. (2023), distillation: N = 18, Heun, the student as its target,
                       RAdam at 4e-4; the teacher is configs/published/edm.py.  The published metric
                       is LPIPS, whose weights are files of its authors: --config.model.metric=lpips
                       --config.model.lpips=vgg16-397923af.pth,vgg.pth.  Without them it is L2.  The
                       paper uses the network of Song et al. (2021)
  consistency_training the same paper, from data alone: s0 = 2, s1 = 150, mu0 = 0.9 over 800,000
                       updates

Hardware and time: not run here.
To reach, as published (FID): `knowledge` 9.36.  `progressive` 2.57 in 8 steps, 3.00 in 4, 4.51 in 2
and 9.12 in one.  `consistency` 3.55 in one step and 2.93 in two.  `consistency_training` 8.70 in
one step and 5.83 in two.
"""
import ml_collections
import numpy as np

from vdm_jax import inputs, recipes, schedules, targets, weightings
from vdm_jax.decoders import Pixels
from vdm_jax.errors import require_choice
from vdm_jax.nn.unets import adm, ddpm
from vdm_jax.processes import Scaled, ve, vp
from vdm_jax.published import lpips
from vdm_jax.published.edm import MODELS
from vdm_jax.systems import compose, networks
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.systems.distilled import consistency, knowledge, progressive
from vdm_jax.systems.flows.rectified_flow import of_pairs
from vdm_jax.systems.scores import score_sde
from vdm_jax.typing import Experiment

SIGMA_DATA = 0.5  # of images whose outermost levels are -1 and 1
TO_ENDS = Pixels(256).to_ends
PROGRESSIVE = progressive.fields() | {'teacher_steps': 8192, 'halving_updates': 50_000,
                                      'clip': True}
CONSISTENCY = consistency.fields() | {'sigma_data': SIGMA_DATA / TO_ENDS, 'lpips': ''}
GROWING = {'discretisation': 'paper', 'levels': 2, 'last_levels': 150, 'growing_updates': 800_000,
           'target_rate': 0.9}
FIELDS = {'progressive_teacher': {'dropout': 0.2}, 'progressive': {'dropout': 0.0, **PROGRESSIVE},
          'knowledge': {'dropout': 0.0, 'norm': 'l1'},
          'consistency': {'dropout': 0.0, **CONSISTENCY},
          'consistency_training': {'dropout': 0.0, **CONSISTENCY, **GROWING}}


def get_config(which: str = 'progressive') -> ml_collections.ConfigDict:
  require_choice('config', which, FIELDS)
  default_config = chain.default_config if which == 'knowledge' else score_sde.default_config
  config = recipes.published(recipes.cifar10(default_config(which=which, **FIELDS[which])))
  config.data.update(augment=which != 'knowledge', augmentation='flips')
  config.train.steps = 800_000
  if which.startswith('consistency'):
    config.data.batch_size = 512
    config.optimizer.update(name='radam', learning_rate=4e-4, warmup_steps=0, clip_norm=0.0)
  elif which == 'knowledge':
    config.data.update(shape=(32, 32, 3), levels=256, classes=10, batch_size=512)
    config.optimizer.b2, config.ema = 0.98, {'ema': 0.995}
    of_pairs(config, './pairs')
  elif which == 'progressive':
    recipes.students(config, steps=progressive.updates(config), learning_rate=5e-5)
    # Each halving ends in a checkpoint.  The newest 16 go back to the student of 8 steps.
    config.train.update(validate_every=10_000, checkpoint_every=10_000, keep=16)
  else:
    config.optimizer.update(warmup_steps=1000, weight_decay=0.001)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  which = config.model.which
  require_choice('config.model.which', which, FIELDS)
  if which.startswith('consistency'):
    net = networks.configured(MODELS['edm-cifar10-32x32-uncond-vp'], config)
    base = score_sde.experiment(
        config, net=net, schedule=schedules.Shifted(schedules.KarrasSigma(), 2.0 * np.log(TO_ENDS)),
        curve=Scaled(ve, TO_ENDS), target=targets.edm(SIGMA_DATA / TO_ENDS), condition=None,
        inputs=inputs.edm(SIGMA_DATA), weight=weightings.edm(sigma_data=SIGMA_DATA / TO_ENDS))
    made = consistency.distillation if which == 'consistency' else consistency.training
    return made(config, base, net=net, perceptual=lpips.of_config(config))
  if which == 'knowledge':
    schedule, net = chain.table(config, TO_ENDS), networks.configured(ddpm.UNet(), config)
    student = compose.experiment(
        config, net=net, schedule=schedule, curve=Scaled(vp, TO_ENDS),
        target=targets.removed(TO_ENDS), inputs=inputs.chain(schedule), condition=None)
    return knowledge.experiment(config, student,
                                teacher=chain.experiment(config, net=net, condition=None))
  net = networks.configured(adm.UNet(
      features=256, multipliers=(1, 1, 1), blocks=3, attention_resolutions=(8, 16),
      attention_heads=1, scale_shift=True, resblock_updown=True), config)
  base = score_sde.experiment(
      config, net=net, schedule=schedules.Cosine(20.0, -20.0), curve=Scaled(vp, TO_ENDS),
      target=targets.x, weight=weightings.truncated_snr, inputs=inputs.angle(), condition=None)
  return progressive.experiment(config, base) if which == 'progressive' else base
