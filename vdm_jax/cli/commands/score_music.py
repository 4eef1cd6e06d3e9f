"""The flags and the `main` of scripts/score_music.py."""
from absl import flags

from vdm_jax import cli
from vdm_jax.cli import drawing
from vdm_jax.runs import music_scores
from vdm_jax.train import metrics

WORKDIR = cli.run_directory('The directory of a run on chorales.')
DATA = flags.DEFINE_string('data', '', 'Instead of --workdir: chorales or chorales:quarters.')
SAMPLES = cli.path('samples', 'An .npz of music, for example from scripts/sample.py.  Then nothing '
                   'is drawn.')
SAMPLER = drawing.sampler(*3 * ['See sample.py --help.'])
COUNT = flags.DEFINE_integer('count', 100, 'How many samples are drawn.  All of --samples are '
                             'scored.')
SEED = cli.seed('the samples')
BATCH_SIZE = cli.batch_size(64)
AVERAGE, STEP, DATA_DIR = cli.average(), cli.step(), cli.data_dir()
MEASURED, ROW = cli.measured(), cli.row()


def main():
  cli.check_row(MEASURED.value, ROW.value, music_scores.NAMES)
  found = music_scores.score_music(
      WORKDIR.value or '', method=SAMPLER.method() if SAMPLER.chosen() else None,
      **cli.values(DATA, SAMPLES, COUNT, SEED, BATCH_SIZE, AVERAGE, STEP, DATA_DIR))
  table = music_scores.table(found)
  metrics.show(table)
  cli.keep_table(MEASURED.value, ROW.value, 'Music, by an n-gram of the training pieces', table,
                 lambda: music_scores.figures(found))
