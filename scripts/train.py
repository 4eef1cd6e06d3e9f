"""Trains a config.  The same command, or --workdir alone, resumes a run.

  python scripts/train.py --config=configs/cifar10/vdm.py --workdir=runs/cifar10 --data_dir=DIR
  python scripts/train.py --workdir=runs/cifar10
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import train
from vdm_jax.train.window import Diverged

flags.adopt_module_key_flags(train)

if __name__ == '__main__':
  cli.run(train.main, bootstrap.ROOT, resumes=True, failures=(Diverged,),
          required={'config': 'configs/digits/vdm.py', 'workdir': 'runs/digits'},
          kept='Its checkpoints are kept, and the same command goes on from the last.')
