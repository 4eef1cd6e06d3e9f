"""A captioner: it says in words what an image shows, by one word after another.

  python scripts/train.py --config=configs/text/captioner.py:imitation --workdir=runs/captioner
  python scripts/evaluate.py --workdir=runs/captioner

After the colon:

  teacher_forcing  the decoder reads the true words before a word
  scheduled        it reads more and more words of its own (scheduled sampling)
  imitation        the share of its own words is its accuracy, and it imitates its own answer to the
                   true words (DySI, Lin et al. 2023)

A second choice names the data: `imitation,emoji:held_out`.  The default is `shapes:held_out`, whose
captions for testing never occur in training.
Hardware, time and what it reaches: see configs/text/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems import captioners
from vdm_jax.typing import Experiment


def get_config(chosen: str = 'teacher_forcing') -> ml_collections.ConfigDict:
  training, _, name = chosen.partition(',')
  require_choice('config', training, captioners.TRAININGS)
  name = name or 'shapes:held_out'
  config = recipes.captions(captioners.default_config(training=training), name,
                            steps=300 if name.startswith('shapes') else 1500)
  config.model.rise_steps = config.train.steps
  return config


def build(config: ml_collections.ConfigDict) -> Experiment:
  return captioners.experiment(config)
