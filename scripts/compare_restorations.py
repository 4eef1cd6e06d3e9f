"""Restores test images of a run in three tasks, and compares them with Wiener's restorations.

  python scripts/compare_restorations.py --workdir=runs/digits --out=restored.png

The table has PSNRs, the margin over the posterior mean of Wiener with its error over images, the
energy distance of the samples to training images, and how often the truth is outside of all of
them.  Batches of samples are kept until the picture is written, so a stopped command goes on.
"""
import bootstrap
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.samplers import conditioned
from vdm_jax.studies import restoring

WORKDIR = cli.run_directory('The directory of the run, whose model is the prior.')
OUT = cli.path('out', 'The .png file to write.')
OVERWRITE = cli.overwrite()
METHOD = flags.DEFINE_string('method', 'pigdm', f'One of {", ".join(conditioned.METHODS)}.')
IMAGES = flags.DEFINE_integer('images', 300, 'How many test images, from the first.')
COUNT = flags.DEFINE_integer('count', 16, 'How many samples of each image.')
STEPS = flags.DEFINE_integer('steps', 100, 'Steps of the sampler.')
SEED = cli.seed('the noise')
BATCH_SIZE = cli.batch_size(64, 'How many samples are drawn at a time.')
OF_RUN = cli.of_run()
MEASURED = cli.measured()


def main():
  method = conditioned.named(METHOD.value)
  _, table = restoring.study(WORKDIR.value, OUT.value, method, **cli.values(
      OVERWRITE, IMAGES, COUNT, STEPS, SEED, BATCH_SIZE, *OF_RUN))
  cli.keep(MEASURED.value, str(table.title), measured.cells(table))
  cli.wrote(OUT.value)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, alone=True, required={
      'workdir': 'runs/digits', 'out': 'restored.png'},
      kept='Whole batches of samples are kept, and the same command goes on from there.')
