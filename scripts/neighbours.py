"""Draws neighbours of images by a model: noise is added, and removed again (Boomerang).

  python scripts/neighbours.py --workdir=runs/ddpm --times=0.1,0.2,0.4,0.6 --out=neighbours.png

More noise gives neighbours farther away.  With --odd, the distance is a score of anomaly.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import neighbours

flags.adopt_module_key_flags(neighbours)

if __name__ == '__main__':
  cli.run(neighbours.main, bootstrap.ROOT, alone=True, required={
      'workdir': 'runs/ddpm', 'out': 'neighbours.png'},
      kept='Whole batches are kept, and the same command goes on from there.')
