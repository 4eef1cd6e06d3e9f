"""Learns schedules by the variance of the bound's estimate on Gaussian data, or measures a run's.

  python scripts/learn_schedule.py --out=schedules.png     # a minute
  python scripts/learn_schedule.py --workdir=runs/digits_schedule

The first has exact numbers, and compares what was learned with the best there is.  The second
evaluates a trained network, on random images of its test split, under its own schedule and under
others between the same ends.  Both are about the diffusion term alone.
"""
import bootstrap
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.studies import learned_schedule

WORKDIR = cli.run_directory('The directory of a run to measure; none: learn.')
OUT = cli.path('out', 'A .png; default: schedules.png, here or in the workdir.')
OVERWRITE = cli.overwrite()
TRAIN_STEPS = flags.DEFINE_integer('train_steps', 1000, 'Of learning.')
BATCH_SIZE = cli.batch_size(128, 'B of the estimates whose variance is shown.')
REPEATS = flags.DEFINE_integer('repeats', 100, 'Batches for each schedule of a run.')
SEED = cli.seed('all draws')
OF_RUN = cli.of_run()
MEASURED = cli.measured()


def main():
  path, table = learned_schedule.study(WORKDIR.value or '', OUT.value or '', **cli.values(
      OVERWRITE, TRAIN_STEPS, BATCH_SIZE, REPEATS, SEED, *OF_RUN))
  cli.keep(MEASURED.value, str(table.title), measured.cells(table))
  cli.wrote(path)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT)
