"""The spiral from eight steps to one: a teacher, and the students that are distilled from it.

  python scripts/train.py --config=configs/plane/distilled.py:teacher --workdir=runs/plane_teacher
  python scripts/train.py --config=configs/plane/distilled.py:progressive \
    --workdir=runs/plane_progressive --init_from=runs/plane_teacher
  python scripts/sample.py --workdir=runs/plane_progressive --out=one_step.png

After the colon:

  teacher      v-prediction with the truncated SNR weight: Salimans and Ho (2022)
  progressive  8 steps of DDIM to 4, 2 and 1: the same
  knowledge    one step, from pairs of noise and sample: Luhman and Luhman (2021).  Make the pairs
               first:
               make_pairs.py --workdir=runs/plane_teacher --out=./runs/plane_teacher_pairs \
                 --sampler=heun --steps=25 --count=20000

Consistency models are in consistency.py, and flows in one step in flows.py.
Hardware, time and what they reach: see configs/plane/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems import networks
from vdm_jax.systems.distilled import knowledge, progressive
from vdm_jax.systems.flows.rectified_flow import of_pairs
from vdm_jax.systems.scores import weighted
from vdm_jax.typing import Experiment

PAIRS = './runs/plane_teacher_pairs'
FIELDS = {'teacher': {}, 'progressive': progressive.fields() | {'halving_updates': 1000},
          'knowledge': knowledge.fields()}


def get_config(system: str = 'teacher') -> ml_collections.ConfigDict:
  require_choice('config', system, FIELDS)
  config = recipes.plane(weighted.default_config(
      features=96, blocks=3, dropout=0.0, objective='truncated_snr', logsnr_max=20.0,
      logsnr_min=-20.0, system=system, **FIELDS[system]))
  config.data.batch_size = 256
  if system != 'teacher':
    recipes.students(config, steps=3000)
  if system == 'knowledge':
    of_pairs(config, PAIRS)
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  system = config.model.system
  require_choice('config.model.system', system, FIELDS)
  base = weighted.experiment(config, net=networks.mlp(config))
  made = {'progressive': progressive.experiment, 'knowledge': knowledge.experiment}.get(system)
  return made(config, base) if made else base
