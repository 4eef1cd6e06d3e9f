"""Compares ways to draw t, by the variance of the diffusion term: one table.

  python scripts/time_sampling.py                      (Gaussian data, the optimal denoiser)
  python scripts/time_sampling.py --workdir=runs/digits_small --out=proposals.json

Without --workdir, the data are Gaussian, with variance 1/4 in 3,072 dimensions, and three schedules
run from log-SNR 13.3 to -5.  These variances are exact, except for the histories of losses, which
are drawn.  With --workdir, the command measures the network and schedule of a run on random images
of --split.
"""
import bootstrap
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.studies import sampling_times

WORKDIR = cli.run_directory('A run to measure.  Without it, the data are Gaussian.')
SPLIT = flags.DEFINE_string('split', 'test', 'train, validation or test.')
BATCH_SIZE = cli.batch_size(128, 'How many stratified times are drawn together.')
BATCHES = flags.DEFINE_integer('batches', 128, 'How many batches are drawn.')
BINS = flags.DEFINE_integer('bins', 64, 'Bins of the history of losses.')
SEED = cli.seed('the draws')
OUT = cli.path('out', 'A .json file for the table.')
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
