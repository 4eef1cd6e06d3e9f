"""Trains a teacher of the digits and its students, and draws quality against evaluations.

  python scripts/distil.py --workdir=runs/students --out=quality_against_evaluations.png

The students are progressive, consistency, knowledge, reflow, one_step, guided and few_guided: see
configs/digits/distilled.py.  Existing runs and samples are kept.  A stopped training continues.
"""
import bootstrap
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.studies import distilling

WORKDIR = cli.run_directory('The directory of the runs.')
OUT = cli.path('out', 'The .png file to write.')
OVERWRITE = cli.overwrite()
TRAIN_STEPS = flags.DEFINE_integer('train_steps', None, 'Steps of training.  Default: as in the '
                                   'configs.')
STUDENTS = flags.DEFINE_list('students', list(distilling.RUNS)[1:], 'Which students to train.')
COUNT = flags.DEFINE_integer('count', 10_000, 'Samples for each point of the curve.')
MOST = flags.DEFINE_integer('most', distilling.MOST, 'The most network evaluations for one '
                            'point.  Points that need more get fewer samples.')
PAIRS = flags.DEFINE_integer('pairs', distilling.PAIRS, 'How many pairs knowledge, reflow and '
                             'one_step are trained on.')
MEASURED = cli.measured()


def main():
  _, table = distilling.study(WORKDIR.value, OUT.value, bootstrap.ROOT / 'configs',
                              **cli.values(
                                  OVERWRITE, STUDENTS, TRAIN_STEPS, COUNT, MOST, PAIRS))
  cli.keep(MEASURED.value, str(table.title), measured.cells(table))
  cli.wrote(OUT.value)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, required={'workdir': 'runs/students', 'out': 'a.png'}, alone=True)
