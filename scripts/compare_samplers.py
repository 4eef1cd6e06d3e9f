"""Compares samplers on a run: a picture and a table of quality against network evaluations.

  python scripts/compare_samplers.py --workdir=runs/digits --samplers=ddim,heun --out=compared.png
"""
import bootstrap
from absl import flags

from vdm_jax import cli, measured
from vdm_jax.evaluation import comparison
from vdm_jax.runs import comparing
from vdm_jax.train import metrics

WORKDIR = cli.run_directory()
OUT = cli.path('out', 'A .png file.  Default: samplers.png in the workdir.')
OVERWRITE = cli.overwrite()
CHOSEN = flags.DEFINE_list('samplers', comparing.USUAL,
                           f'Names, or FILE.py:NAME.  {", ".join(comparing.COMPARABLE)}.')
EVALUATIONS = flags.DEFINE_list('evaluations', ['5', '10', '20', '50'],
                                'Numbers of network evaluations for each sample.')
COUNT = flags.DEFINE_integer('count', 300, 'How many samples each sampler draws.  They are '
                             'compared with as many test examples, or with all if there are fewer.')
SEED = cli.seed('the samples')
BATCH_SIZE = cli.batch_size(100)
OF_RUN = cli.of_run()
MEASURED = cli.measured()


def main():
  compared, out = comparing.compare_samplers(
      WORKDIR.value, OUT.value or '',
      evaluations=cli.integers('evaluations', EVALUATIONS.value),
      **cli.values(OVERWRITE, CHOSEN, COUNT, SEED, BATCH_SIZE, *OF_RUN))
  table = comparison.table(compared)
  metrics.show(table)
  cli.keep(MEASURED.value, str(table.title), measured.cells(table))
  cli.wrote(out)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, required={'workdir': 'runs/digits'})
