"""Learns schedules of least variance on Gaussian data, or measures the schedule of a run.

  python scripts/learn_schedule.py --out=schedules.png     # a minute
  python scripts/learn_schedule.py --workdir=runs/digits_schedule

The first command compares the learned schedules with the best possible one, by exact numbers.  The
second command evaluates a trained network on random test images, under its own schedule and under
others between the same ends.  Both measure the variance of the diffusion term only.
"""
import bootstrap
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.studies import learned_schedule

WORKDIR = cli.run_directory('A run to measure.  Without it, schedules learn on Gaussian data.')
OUT = cli.path('out', 'A .png file.  Default: schedules.png, in the workdir or here.')
OVERWRITE = cli.overwrite()
TRAIN_STEPS = flags.DEFINE_integer('train_steps', 1000, 'Steps of training.')
BATCH_SIZE = cli.batch_size(128, 'B: how many draws one estimate averages.')
REPEATS = flags.DEFINE_integer('repeats', 100, 'With --workdir: batches for each schedule.')
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
