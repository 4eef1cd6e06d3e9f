"""Draws the expressions of a split by a run of markup, and counts how many are drawn exactly.

  python scripts/score_expressions.py --workdir=runs/markup
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import score_expressions

flags.adopt_module_key_flags(score_expressions)

if __name__ == '__main__':
  cli.run(score_expressions.main, bootstrap.ROOT, required={'workdir': 'runs/markup'},
          kept='Whole batches of samples are kept, and the same command goes on from there.')
