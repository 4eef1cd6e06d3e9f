"""Draws samples from a run.

  python scripts/sample.py --workdir=runs/digits --sampler=ddim --steps=50 --out=samples.png
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import sample

flags.adopt_module_key_flags(sample)

if __name__ == '__main__':
  cli.run(sample.main, bootstrap.ROOT, required={'workdir': 'runs/digits', 'out': 'samples.png'},
          kept='Whole batches of an .npz or a .csv are kept, and the same command goes on from '
               'there.  Nothing of a .png is kept.')
