"""The digits from 1000 steps to one: a teacher, and the students that are distilled from it.

  python scripts/train.py --config=configs/digits/distilled.py:teacher --workdir=runs/teacher
  python scripts/train.py --config=configs/digits/distilled.py:progressive \
    --workdir=runs/progressive --init_from=runs/teacher
  python scripts/sample.py --workdir=runs/progressive --out=one_step.png

After the colon:

  teacher      v-prediction with the truncated SNR weight; the network reads the labels, and a
               tenth of them is left out: Salimans and Ho (2022), Ho and Salimans (2022)
  progressive  8 steps of DDIM to 4, 2 and 1: Salimans and Ho (2022).  A student of four steps:
               --config.model.student_steps=4 --config.train.steps=250
  guided       one network for every weight of guidance (sample.py --condition=w=2): Meng et al.
               (2023), the first stage
  few_guided   the second stage, --init_from=runs/guided: 8 steps to 4, 2 and 1
  knowledge    one step, from pairs of noise and sample: Luhman and Luhman (2021).  Make the pairs
               first:
               make_pairs.py --workdir=runs/teacher --out=./runs/digits_pairs --sampler=ddim

The network is VDM's, 220,417 parameters.  Hardware, time and what they reach: not measured.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems import networks
from vdm_jax.systems.distilled import guided, knowledge, progressive
from vdm_jax.systems.flows.rectified_flow import of_pairs
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.scores import weighted
from vdm_jax.typing import Experiment

FIELDS = {'teacher': {}, 'progressive': progressive.fields(), 'guided': guided.fields(),
          'few_guided': progressive.fields() | guided.fields(), 'knowledge': knowledge.fields()}


def get_config(system: str = 'teacher') -> ml_collections.ConfigDict:
  require_choice('config', system, FIELDS)
  config = recipes.digits(weighted.default_config(
      features=32, blocks=2, groups=8, objective='truncated_snr', class_conditional=True,
      logsnr_max=20.0, logsnr_min=-20.0, system=system, **FIELDS[system]), steps=1300)
  if system != 'teacher':
    phases = system in ('progressive', 'few_guided')
    recipes.students(config, steps=progressive.updates(config) if phases else 600)
  if system == 'knowledge':
    of_pairs(config, './runs/digits_pairs')
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  system = config.model.system
  require_choice('config.model.system', system, FIELDS)
  net = networks.unet(config).clone(guided='guided' in system)
  base = label_dropping.experiment(weighted.experiment(config, net=net), 0.1)
  made = {'progressive': progressive.experiment, 'guided': guided.first,
          'few_guided': guided.second, 'knowledge': knowledge.experiment}.get(system)
  return made(config, base) if made else base
