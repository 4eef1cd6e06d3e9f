"""The flags of scripts/score_samples.py, and what it does with them."""
from pathlib import Path

from absl import flags

from vdm_jax import cli, measured
from vdm_jax.cli import drawing
from vdm_jax.evaluation import scores
from vdm_jax.runs import scoring
from vdm_jax.train import metrics

SAMPLES = cli.path('samples', 'An .npz of images, of scripts/sample.py for example.')
WORKDIR = cli.run_directory('Or the directory of a run, to draw them from.')
REFERENCE = flags.DEFINE_string(
    'reference', None, 'A data set, NAME or NAME:SPLIT (train, validation or test; default: '
    'train); a config FILE.py or FILE.py:SPLIT, for its data set; or an .npz of images, or of '
    'statistics: those of --save_reference, or mu and sigma.')
FEATURES = flags.DEFINE_string('features', None, f'{scoring.FEATURES}.  FILE: the weights '
                               'pt_inception-2015-12-05-6726825d.pth of the pytorch-fid project.')
OUT = cli.path('out', 'A .json; default: scores.json in the workdir, if there is one.')
SAVE_REFERENCE = cli.path('save_reference', "An .npz for the reference's statistics; without "
                          'samples, they are all that is made.')
OVERWRITE = cli.overwrite()
SAMPLER = drawing.sampler(*3 * ['See sample.py --help.'])
COUNT = flags.DEFINE_integer('count', 1000, 'How many are drawn; all of --samples are scored.')
SEED = cli.seed('the samples')
BATCH_SIZE = cli.batch_size(100)
OF_RUN = cli.of_run()
MEASURED = cli.measured()


def main():
  out = OUT.value or (str(Path(WORKDIR.value, 'scores.json')) if WORKDIR.value else '')
  scored = scoring.score(
      directory=WORKDIR.value or '', method=SAMPLER.method(), by=FEATURES.value or '', out=out,
      **cli.values(SAMPLES, REFERENCE, SAVE_REFERENCE, OVERWRITE, COUNT, SEED, BATCH_SIZE, *OF_RUN))
  if scored is not None:
    table = scores.table(scored)
    metrics.show(table)
    cli.keep(MEASURED.value, 'Scores of samples', measured.cells(table))
  if written := [file for file in (scored and out, SAVE_REFERENCE.value) if file]:
    cli.wrote(*written)
