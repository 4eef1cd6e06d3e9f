"""Compares samplers on a run: a picture and a table of quality against network evaluations.

  python scripts/compare_samplers.py --workdir=runs/digits --samplers=ddim,heun --out=compared.png
"""
import cli
from absl import flags

from vdm_jax.evaluation import comparison
from vdm_jax.runs.comparing import COMPARABLE, USUAL, compare_samplers
from vdm_jax.train import metrics

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'A .png; default: samplers.png in the workdir.')
OVERWRITE = cli.overwrite()
CHOSEN = flags.DEFINE_list('samplers', USUAL, f'Of {", ".join(COMPARABLE)}; or '
                           'FILE.py:NAME of your own.')
EVALUATIONS = flags.DEFINE_list('evaluations', ['5', '10', '20', '50'],
                                'Of the network, for one image.')
COUNT = flags.DEFINE_integer('count', 300, 'Images of each sampler, and at most of the data.')
SEED = flags.DEFINE_integer('seed', 0, 'Of the samples.')
AVERAGE = flags.DEFINE_string('average', '', "An EMA of the config, or 'raw'; ours: the longest.")
STEP = flags.DEFINE_string('step', 'latest', "A checkpoint: 'latest', 'best' or its number.")
BATCH_SIZE = flags.DEFINE_integer('batch_size', 100, 'Images at a time.')
DATA_DIR = cli.path('data_dir', 'Where TFDS data sets are, if not where they were.')
DATA_NAME = cli.moved_data()


def main():
  found, out = compare_samplers(
      WORKDIR.value, OUT.value or '', samplers=CHOSEN.value,
      evaluations=cli.integers('evaluations', EVALUATIONS.value), count=COUNT.value,
      seed=SEED.value, average=AVERAGE.value, step=STEP.value, batch_size=BATCH_SIZE.value,
      data_dir=DATA_DIR.value or '', data_name=DATA_NAME.value or '',
      overwrite=OVERWRITE.value)
  metrics.show(comparison.table(found))
  cli.wrote(out)


if __name__ == '__main__':
  cli.run(main, required={'workdir': 'runs/digits'})
