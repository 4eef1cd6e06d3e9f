"""The flags and the `main` of scripts/purify.py."""
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.cli import drawing
from vdm_jax.evaluation.robustness import NORMS, Attack
from vdm_jax.runs import purifying
from vdm_jax.samplers import catalogue

WORKDIR = cli.run_directory('The run of an unconditional diffusion model.')
CLASSIFIER = cli.run_directory('The run of a classifier of the same data '
                               '(configs/digits/classifier.py).', 'classifier')
OUT = cli.path('out', 'The .png file to write.')
OVERWRITE = cli.overwrite()
TIMES = flags.DEFINE_list('times', ['0.05', '0.1', '0.2'], 'The times t* of the noise, above 0 and '
                          'at most 1.')
SAMPLER, STEPS = drawing.way_back(10)
RADIUS = flags.DEFINE_float('radius', 0.1, 'The largest change of an image, as a share of the '
                            'range of grey levels: of each pixel (linf), or of all pixels together '
                            '(l2).')
NORM = flags.DEFINE_enum('norm', NORMS[0], list(NORMS), 'The norm of the change.')
ATTACK_STEPS = flags.DEFINE_integer('attack_steps', 10, 'Steps of projected gradient descent.')
DRAWS = flags.DEFINE_integer('draws', 4, 'Draws of the noise for each gradient of the attack '
                             'through the purifier: the expectation over the transformation.')
COUNT = flags.DEFINE_integer('count', 100, 'How many images are attacked.')
SPLIT = flags.DEFINE_string('split', 'test', 'The split of the images: train, validation or test.')
SEED = cli.seed('the attacks and the noise')
BATCH_SIZE = cli.batch_size(100)
OF_RUN = cli.of_run()
MEASURED = cli.measured()


def main():
  attack = Attack(RADIUS.value, NORM.value, ATTACK_STEPS.value, DRAWS.value)
  _, table = purifying.purify(
      WORKDIR.value, OUT.value, times=cli.numbers('times', TIMES.value), attack=attack,
      method=catalogue.method(SAMPLER.value, STEPS.value), **cli.values(
          CLASSIFIER, OVERWRITE, COUNT, SPLIT, SEED, BATCH_SIZE, *OF_RUN))
  cli.keep(MEASURED.value, str(table.title), measured.cells(table))
  cli.wrote(OUT.value)
