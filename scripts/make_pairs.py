"""Makes pairs of noise and sample of a run, for reflow and distillation.

  python scripts/make_pairs.py --workdir=runs/flow --out=./runs/pairs --count=10000

It writes a folder of arrays, with z_1.npy and x.npy as floats.  The folder is a data set:
--config.data.name=./runs/pairs.  After an interruption, the same command continues, and gives the
same pairs bit for bit.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import make_pairs

flags.adopt_module_key_flags(make_pairs)

if __name__ == '__main__':
  cli.run(make_pairs.main, bootstrap.ROOT, alone=True,
          required={'workdir': 'runs/flow', 'out': './runs/pairs'},
          kept='Whole batches of pairs are kept, and the same command goes on from there.')
