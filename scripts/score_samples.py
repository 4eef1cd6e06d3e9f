"""Scores samples against a data set by features: Fréchet and kernel distance, precision, recall.

  python scripts/score_samples.py --workdir=runs/digits --sampler=ddim --steps=50 --count=1000 \\
    --reference=digits:train --features=classifier:runs/digits_classifier
  python scripts/score_samples.py --samples=samples.npz --reference=cifar10:train \\
    --features=inception:pt_inception-2015-12-05-6726825d.pth --out=scores.json
"""
from pathlib import Path

import cli
from absl import flags

from vdm_jax.evaluation import scores
from vdm_jax.runs import scoring
from vdm_jax.samplers import catalogue
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
SAMPLER = flags.DEFINE_string('sampler', 'ancestral', 'See sample.py --help.')
STEPS = flags.DEFINE_integer('steps', None, 'Steps of the grid; default: 250.')
GRID = flags.DEFINE_string('grid', '', 'See sample.py --help.')
ETA = flags.DEFINE_float('eta', None, 'See sample.py --help.')
COUNT = flags.DEFINE_integer('count', 1000, 'How many are drawn; all of --samples are scored.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the samples.')
AVERAGE = flags.DEFINE_string('average', '', "An EMA of the config, or 'raw'; ours: the longest.")
STEP = flags.DEFINE_string('step', 'latest', "A checkpoint: 'latest', 'best' or its number.")
BATCH_SIZE = flags.DEFINE_integer('batch_size', 100, 'Images at a time.')
DATA_DIR = cli.path('data_dir', 'Where TFDS data sets are, if not where they were.')
DATA_NAME = cli.moved_data()


def main():
  out = OUT.value or (str(Path(WORKDIR.value, 'scores.json')) if WORKDIR.value else '')
  found = scoring.score(
      samples=SAMPLES.value or '', directory=WORKDIR.value or '', overwrite=OVERWRITE.value,
      method=catalogue.method(SAMPLER.value, STEPS.value, GRID.value, ETA.value),
      count=COUNT.value, seed=SEED.value, average=AVERAGE.value, step=STEP.value,
      reference=REFERENCE.value, by=FEATURES.value, out=out,
      save_reference=SAVE_REFERENCE.value or '',
      batch_size=BATCH_SIZE.value, data_dir=DATA_DIR.value or '', data_name=DATA_NAME.value or '')
  if found is not None:
    metrics.show(scores.table(found))
  if written := [file for file in (found and out, SAVE_REFERENCE.value) if file]:
    cli.wrote(*written)


if __name__ == '__main__':
  cli.run(main, required={
      'reference': 'digits:train', 'features': 'pixels'})
