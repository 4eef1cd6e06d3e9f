"""Attacks a classifier, purifies the attacked images by a model, and measures the accuracy.

  python scripts/purify.py --workdir=runs/ddpm --classifier=runs/digits_classifier \\
    --times=0.05,0.1,0.2 --out=purify.png

The table has a row for each time of the noise, and a column for each attack.  The picture shows
attacked and purified images.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import purify

flags.adopt_module_key_flags(purify)

if __name__ == '__main__':
  cli.run(purify.main, bootstrap.ROOT, alone=True, required={
      'workdir': 'runs/ddpm', 'classifier': 'runs/digits_classifier', 'out': 'purify.png'},
      kept='Whole batches are kept, and the same command goes on from there.')
