"""Evaluates a run's likelihood: the ledger on screen, ledger.json, bits.npz, pictures, report.html.

For a directory of runs seed_N, it evaluates each run, and prints a table of mean and spread.

  python scripts/evaluate.py --workdir=runs/digits --estimates=vlb,vlb@1000,ode,iw@20x100,immse
  python scripts/evaluate.py --workdir=runs/digits --estimates=my.py:mine
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import evaluate

flags.adopt_module_key_flags(evaluate)

if __name__ == '__main__':
  cli.run(evaluate.main, bootstrap.ROOT, required={'workdir': 'runs/digits'},
          kept='Nothing of this evaluation is kept, and what an earlier one wrote stays.')
