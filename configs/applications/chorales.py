"""Bach's chorales: four voices over 32 eighths, by a VDM on pitches of 128 levels.

  pip install "vdm_jax[music]"
  python scripts/prepare_data.py chorales
  python scripts/train.py --config=configs/applications/chorales.py --workdir=runs/chorales
  python scripts/sample.py --workdir=runs/chorales --sampler=ancestral --steps=200 --out=chorale.mid

`quarters` after the colon takes steps of a quarter: `eighths` is the default.  The network reads a
step as one token.  It knows that a number is one of 128 pitches, and that a voice is a chain.
Its bound is 6.37 bits a step, where an n-gram of the same pieces has 6.87.
Hardware, time and what it reaches: see configs/applications/README.md.
"""
import ml_collections

from vdm_jax import recipes
from vdm_jax.errors import require_choice
from vdm_jax.systems.applications import music
from vdm_jax.typing import Experiment

DATA = {'eighths': 'chorales', 'quarters': 'chorales:quarters'}


def get_config(steps: str = 'eighths') -> ml_collections.ConfigDict:
  require_choice('config', steps, DATA)
  config = music.default_config(features=128, depth=3, dropout=0.15)
  return recipes.chorales(config, DATA[steps])


def build(config: ml_collections.ConfigDict) -> Experiment:
  return music.experiment(config)
