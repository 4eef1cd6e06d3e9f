"""The flags and the `main` of scripts/score_samples.py."""
from pathlib import Path

from absl import flags

from vdm_jax import cli
from vdm_jax.cli import drawing
from vdm_jax.evaluation import scores
from vdm_jax.runs import scoring
from vdm_jax.train import metrics

SAMPLES = cli.path('samples', 'An .npz of images, for example from scripts/sample.py.')
WORKDIR = cli.run_directory('Instead of --samples: a run to draw samples from.')
REFERENCE = flags.DEFINE_string(
    'reference', None, 'A data set, NAME or NAME:SPLIT (train, validation or test; default: '
    'train); a config, FILE.py or FILE.py:SPLIT, for its data set; an .npz of images; or an .npz '
    'of statistics, from --save_reference or with arrays mu and sigma.')
FEATURES = flags.DEFINE_string('features', None, f'{scoring.FEATURES}.  FILE: the weights '
                               'pt_inception-2015-12-05-6726825d.pth of the pytorch-fid project.')
OUT = cli.path('out', 'A .json file.  Default: scores.json in the workdir, if one is given.')
SAVE_REFERENCE = cli.path('save_reference', 'An .npz to write the statistics of the reference '
                          'to.  Without samples, nothing else is written.')
OVERWRITE = cli.overwrite()
SAMPLER = drawing.sampler(*3 * ['See sample.py --help.'])
COUNT = flags.DEFINE_integer('count', 1000, 'How many samples are drawn.  All of --samples are '
                             'scored.')
SEED = cli.seed('the samples')
BATCH_SIZE = cli.batch_size(100)
OF_RUN = cli.of_run()
MEASURED, ROW = cli.measured(), cli.row()


def main():
  cli.check_row(MEASURED.value, ROW.value, scores.NAMES)
  # A run that draws its own samples takes no sampler by name.
  method = SAMPLER.method() if SAMPLER.chosen() else None
  out = OUT.value or (str(Path(WORKDIR.value, 'scores.json')) if WORKDIR.value else '')
  scored = scoring.score(
      directory=WORKDIR.value or '', method=method, by=FEATURES.value or '', out=out,
      **cli.values(SAMPLES, REFERENCE, SAVE_REFERENCE, OVERWRITE, COUNT, SEED, BATCH_SIZE, *OF_RUN))
  if scored is not None:
    table = scores.table(scored)
    metrics.show(table)
    cli.keep_table(MEASURED.value, ROW.value, 'Scores of samples', table,
                   lambda: scores.figures(scored))
  if written := [file for file in (scored and out, SAVE_REFERENCE.value) if file]:
    cli.wrote(*written)
