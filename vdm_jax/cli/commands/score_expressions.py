"""The flags and the `main` of scripts/score_expressions.py."""
from absl import flags

from vdm_jax import cli
from vdm_jax.cli import drawing
from vdm_jax.runs import expressions
from vdm_jax.train import metrics

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'A .png file.  Default: expressions.png in the workdir.')
OVERWRITE = cli.overwrite()
SPLIT = flags.DEFINE_string('split', 'test', 'train, validation or test.')
SAMPLER = drawing.sampler(*3 * ['See sample.py --help.  Default: all steps of the chain.'])
COUNT = flags.DEFINE_integer('count', None, 'How many expressions, the first ones.  Default: all.')
SEED = cli.seed('the samples')
BATCH_SIZE = cli.batch_size(128)
AVERAGE, STEP = cli.average(), cli.step()
MEASURED, ROW = cli.measured(), cli.row()


def main():
  cli.check_row(MEASURED.value, ROW.value, expressions.NAMES)
  found, out = expressions.score_expressions(
      WORKDIR.value, OUT.value or '', method=SAMPLER.method() if SAMPLER.chosen() else None,
      **cli.values(OVERWRITE, SPLIT, COUNT, SEED, BATCH_SIZE, AVERAGE, STEP))
  table = expressions.table(found)
  metrics.show(table)
  cli.keep_table(MEASURED.value, ROW.value, 'Expressions that are drawn exactly', table,
                 lambda: expressions.figures(found))
  cli.wrote(out)
