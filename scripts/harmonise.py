"""Writes voices to a melody or a bass, or fills a gap in chorales, and judges them by n-grams.

  python scripts/harmonise.py --workdir=runs/chorales --out=harmonised.png --samples=harmonised.mid

The known notes are those of chorales of the data.  Windows without known notes are drawn too.  An
n-gram that is fitted to the training pieces says what a new note costs, and what it costs in the
data.  Batches of windows are kept beside the picture until it is written, so a stopped command goes
on.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import harmonise

flags.adopt_module_key_flags(harmonise)

if __name__ == '__main__':
  cli.run(harmonise.main, bootstrap.ROOT, alone=True, required={
      'workdir': 'runs/chorales', 'out': 'harmonised.png'},
      kept='Whole batches of windows are kept, and the same command goes on from there.')
