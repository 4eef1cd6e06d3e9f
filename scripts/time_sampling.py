"""Compares ways to draw t: the variance of the diffusion term's estimates, in one table.

  python scripts/time_sampling.py                      (Gaussian data, the optimal denoiser)
  python scripts/time_sampling.py --workdir=runs/digits_small --out=proposals.json

Without a run: 3,072 dimensions of variance 0.25, log-SNR from 13.3 to -5 by three schedules; exact
but for the histories, which are drawn.  With one: its network, its schedule and random images of
--split.
"""
import bootstrap
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.studies import sampling_times

WORKDIR = cli.run_directory('The directory of a run; none: Gaussian data.')
SPLIT = flags.DEFINE_string('split', 'test', 'train, validation or test.')
BATCH_SIZE = cli.batch_size(128, 'Draws whose times are spread together.')
BATCHES = flags.DEFINE_integer('batches', 128, 'How many batches.')
BINS = flags.DEFINE_integer('bins', 64, 'Of the history of losses.')
SEED = cli.seed('the draws')
OUT = cli.path('out', 'A .json for the table.')
OVERWRITE = cli.overwrite()
OF_RUN = cli.of_run()
MEASURED = cli.measured()


def main():
  rows = sampling_times.study(WORKDIR.value or '', **cli.values(
      SPLIT, BATCH_SIZE, BATCHES, BINS, SEED, OUT, OVERWRITE, *OF_RUN))
  table = sampling_times.table(rows, BATCH_SIZE.value)
  cli.keep(MEASURED.value, str(table.title), measured.cells(table))
  if OUT.value:
    cli.wrote(OUT.value)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT)
