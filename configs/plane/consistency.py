"""Consistency models of the spiral, from the EDM of spiral.py or from the data alone.

  python scripts/train.py --config=configs/plane/spiral.py:edm --workdir=runs/spiral_edm
  python scripts/train.py --config=configs/plane/consistency.py --workdir=runs/consistency \
    --init_from=runs/spiral_edm
  python scripts/sample.py --workdir=runs/consistency --out=one_step.png
  python scripts/sample.py --workdir=runs/consistency --sampler=consistency --steps=2 --out=two.png

After the colon:

  distillation  18 levels, Heun's steps on the teacher, the student itself as its target: Song et
                al. (2023), algorithm 2
  training      from the data alone: the number of levels and the target's rate grow as in the
                paper, algorithm 3
  public        the same training with the rate of the public code

Hardware, time and what they reach: see configs/plane/README.md.
"""
import jax.numpy as jnp
import ml_collections

from vdm_jax import inputs, recipes, schedules, targets, weightings
from vdm_jax.errors import require_choice
from vdm_jax.processes import ve
from vdm_jax.systems import networks
from vdm_jax.systems.distilled import consistency
from vdm_jax.systems.scores import score_sde
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Experiment

SIGMA_DATA = 0.36  # of the spiral
SYSTEMS = ('distillation', 'training', 'public')
STEPS = 3000


def get_config(system: str = 'distillation') -> ml_collections.ConfigDict:
  require_choice('config', system, SYSTEMS)
  fields = consistency.fields() | {'sigma_data': SIGMA_DATA}
  if system != 'distillation':
    fields |= {'discretisation': 'public' if system == 'public' else 'paper', 'levels': 2,
               'last_levels': 30, 'growing_updates': STEPS, 'target_rate': 0.9}
  config = recipes.plane(vdm.default_config(features=128, blocks=4, dropout=0.0, system=system,
                                            **fields), steps=STEPS)
  config.data.batch_size = 256
  config.optimizer.learning_rate = 1e-3
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  require_choice('config.model.system', config.model.system, SYSTEMS)
  schedule = schedules.KarrasSigma()
  ends = [float(schedule(jnp.asarray(t))) for t in (0.0, 1.0)]
  net = networks.mlp(config, ends).clone(adds_z=False)

  def read(z, level):
    return inputs.logsnr(inputs.edm(SIGMA_DATA)(z, level)[0], level)

  base = score_sde.experiment(config, net=net, schedule=schedule, curve=ve, inputs=read,
                              target=targets.edm(SIGMA_DATA),
                              weight=weightings.edm(sigma_data=SIGMA_DATA))
  taught = config.model.system == 'distillation'
  return (consistency.distillation if taught else consistency.training)(
      config, base, net=net, inputs=read)
