"""The flags and the `main` of scripts/neighbours.py."""
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.cli import drawing
from vdm_jax.runs import neighbours
from vdm_jax.samplers import catalogue

WORKDIR = cli.run_directory('The run of an unconditional diffusion model.')
OUT = cli.path('out', 'The .png file to write.')
OVERWRITE = cli.overwrite()
TIMES = flags.DEFINE_list('times', [], 'The times t* of the noise.  Default: 0.1,0.2,0.4,0.6.')
DISTANCES = flags.DEFINE_list('distances', [], 'Instead of --times: the distances of the '
                              'neighbours, as shares of the range of grey levels.')
CLASSIFIER = cli.run_directory('The run of a classifier of the same data, which says whether the '
                               'neighbours have the class of the image.', 'classifier')
ODD = flags.DEFINE_integer('odd', None, 'A class that the model was trained without '
                           '(config.data.left_out): how well does the distance tell it from the '
                           'others?')
SAMPLER, STEPS = drawing.way_back(20)
DRAWS = flags.DEFINE_integer('draws', 4, 'Neighbours of each image.')
COUNT = flags.DEFINE_integer('count', 100, 'How many images.')
SPLIT = flags.DEFINE_string('split', 'test', 'The split of the images: train, validation or test.')
SEED = cli.seed('the noise')
BATCH_SIZE = cli.batch_size(100)
OF_RUN = cli.of_run()
MEASURED = cli.measured()


def main():
  _, table = neighbours.neighbours(
      WORKDIR.value, OUT.value, times=cli.numbers('times', TIMES.value),
      distances=cli.numbers('distances', DISTANCES.value),
      method=catalogue.method(SAMPLER.value, STEPS.value), **cli.values(
          CLASSIFIER, OVERWRITE, ODD, DRAWS, COUNT, SPLIT, SEED, BATCH_SIZE, *OF_RUN))
  cli.keep(MEASURED.value, str(table.title), measured.cells(table))
  cli.wrote(OUT.value)
