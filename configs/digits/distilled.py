"""The digits from 1000 steps to one: a teacher, and the students that are distilled from it.

  python scripts/train.py --config=configs/digits/distilled.py:teacher --workdir=runs/teacher
  python scripts/train.py --config=configs/digits/distilled.py:progressive \
    --workdir=runs/progressive --init_from=runs/teacher
  python scripts/sample.py --workdir=runs/progressive --out=one_step.png

`scripts/distil.py` trains all of them and compares their samples.  After the colon:

  teacher      v-prediction with the truncated SNR weight; the network reads the labels, and a
               tenth of them is left out: Salimans and Ho (2022), Ho and Salimans (2022)
  progressive  8 steps of DDIM to 4, 2 and 1: Salimans and Ho (2022).  The students of 4 and 2 steps
               are the checkpoints of a third and two thirds (sample.py --step=200)
  guided       one network for every weight of guidance (sample.py --condition=w=2): Meng et al.
               (2023), the first stage
  few_guided   the second stage, --init_from=runs/guided: 8 steps to 4, 2 and 1
  consistency  8 levels of the teacher's flow, Heun's steps: Song et al. (2023), who take 18
  knowledge    one step, from pairs of noise and sample: Luhman and Luhman (2021).  Make the pairs
               first:
               make_pairs.py --workdir=runs/teacher --out=./runs/digits_pairs --sampler=dpmpp_2m \
                 --steps=12
  reflow       the same pairs on straight lines, for few Euler steps: Liu et al. (2023)
  one_step     one step of `reflow`, --init_from=runs/reflow, from pairs that `reflow` made

The network is VDM's with 16 features, 56,673 parameters.  Hardware, time and what they reach: see
configs/digits/README.md.
"""
import ml_collections

from vdm_jax import inputs, recipes, schedules, targets, weightings
from vdm_jax.errors import require_choice
from vdm_jax.processes import vp
from vdm_jax.systems import networks
from vdm_jax.systems.distilled import consistency, guided, knowledge, progressive
from vdm_jax.systems.flows.rectified_flow import of_pairs, on_lines, straightened
from vdm_jax.systems.guided import label_dropping
from vdm_jax.systems.scores import score_sde, weighted
from vdm_jax.typing import Experiment

HALVING = progressive.fields() | {'halving_updates': 200}
FIELDS = {'teacher': {}, 'progressive': HALVING, 'guided': guided.fields(),
          'few_guided': HALVING | guided.fields(),
          'consistency': consistency.fields() | {'sigma_data': 1.0, 'levels': 8},
          'knowledge': knowledge.fields(), 'reflow': {}, 'one_step': knowledge.fields()}
PAIRS = ('knowledge', 'reflow', 'one_step')
STEPS = 600  # of each student


def get_config(system: str = 'teacher') -> ml_collections.ConfigDict:
  require_choice('config', system, FIELDS)
  config = recipes.digits(weighted.default_config(
      features=16, blocks=2, groups=4, objective='truncated_snr', class_conditional=True,
      logsnr_max=20.0, logsnr_min=-20.0, system=system, **FIELDS[system]), steps=1300)
  if system != 'teacher':
    phases = system in ('progressive', 'few_guided')
    recipes.students(config, steps=progressive.updates(config) if phases else STEPS)
    config.optimizer.decay_steps = 0 if phases else STEPS
    config.data.batch_size = 32
    config.model.dropout = 0.0  # as in the published configs
    config.train.keep = 3  # the students of 4, 2 and 1 steps
  if system in PAIRS:
    of_pairs(config, './runs/digits_pairs')
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  system = config.model.system
  require_choice('config.model.system', system, FIELDS)
  net = networks.unet(config).clone(guided='guided' in system)
  base = label_dropping.experiment(weighted.experiment(config, net=net), 0.1)
  if system == 'consistency':  # on the levels of the paper; v is -F
    levels = score_sde.experiment(
        config, net=net.clone(adds_z=False), schedule=schedules.KarrasSigma(), curve=vp,
        target=targets.v, weight=weightings.truncated_snr)
    return consistency.distillation(config, levels, net=net.clone(adds_z=False),
                                    inputs=inputs.logsnr, teacher=base, sign=-1.0)
  if system == 'reflow':
    return straightened(config, on_lines(config, base, vp))
  if system == 'one_step':
    return knowledge.experiment(config, on_lines(config, base, vp))
  made = {'progressive': progressive.experiment, 'guided': guided.first,
          'few_guided': guided.second, 'knowledge': knowledge.experiment}.get(system)
  return made(config, base) if made else base
