"""Acts in an environment by the plans of a run, which are told the return to reach.

  python scripts/plan.py --workdir=runs/pendulum --env=Pendulum-v1 --episodes=50
  python scripts/plan.py --workdir=runs/pendulum --returns=-300,-200,-100

Actions beyond the range of the environment are cut to this range.

It prints the mean return of the episodes with its standard error, and writes a picture of an
episode.  With several returns, a second picture shows which returns were reached.
"""
import bootstrap
from absl import flags

from vdm_jax import cli
from vdm_jax.cli.commands import plan

flags.adopt_module_key_flags(plan)

if __name__ == '__main__':
  cli.run(plan.main, bootstrap.ROOT, required={'workdir': 'runs/pendulum'}, alone=True,
          kept='Whole batches of episodes are kept, and the same command goes on from there.')
