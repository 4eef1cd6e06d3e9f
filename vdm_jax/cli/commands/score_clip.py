"""The flags and the `main` of scripts/score_clip.py."""
from absl import flags

from vdm_jax import cli
from vdm_jax.cli import drawing
from vdm_jax.evaluation import clip_scores as scores
from vdm_jax.runs import clip_scores
from vdm_jax.train import metrics

WORKDIR = cli.run_directory()
CLIP = cli.path('clip', 'The run of the dual encoder that judges (configs/text/dual_encoder.py).')
OUT = cli.path('out', 'A .png file.  Default: clip.png in the workdir.')
OVERWRITE = cli.overwrite()
SPLIT = flags.DEFINE_string('split', 'test', 'train, validation or test: the real images.  Each '
                            'sample has the text of one of them.')
WEIGHTS = flags.DEFINE_list('weights', [f'{w:g}' for w in clip_scores.WEIGHTS],
                            'Weights of classifier-free guidance; see sample.py --guidance.')
SAMPLER = drawing.sampler(*3 * ['See sample.py --help.'])
COUNT = flags.DEFINE_integer('count', None, 'How many real images, the first ones.  Default: all.')
SEED = cli.seed('the samples')
BATCH_SIZE = cli.batch_size(128)
OF_RUN = cli.of_run()
MEASURED, ROW = cli.measured(), cli.row()


def main():
  cli.check_row(MEASURED.value, ROW.value, scores.NAMES)
  scored, out = clip_scores.score_clip(
      WORKDIR.value, CLIP.value, OUT.value or '', weights=cli.numbers('weights', WEIGHTS.value),
      method=SAMPLER.method() if SAMPLER.chosen() else None,
      **cli.values(OVERWRITE, SPLIT, COUNT, SEED, BATCH_SIZE, *OF_RUN))
  table = scores.table(scored)
  metrics.show(table)
  cli.keep_table(MEASURED.value, ROW.value, 'Samples and their texts', table,
                 lambda: scores.figures(scored))
  cli.wrote(out)
