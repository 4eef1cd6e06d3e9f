"""Compares the ledgers of several runs: one row for each run, with the best of each column marked.

  python scripts/compare_ledgers.py runs/digits runs/digits_small [--markdown]

The directory of a run means its main evaluation (ledger.json).  For another evaluation, name the
file of its ledger (runs/digits/ledger_raw.json).
"""
import bootstrap
import rich.table
from absl import flags

from vdm_jax import cli, measured, runs
from vdm_jax.errors import InputError
from vdm_jax.ledger import comparison
from vdm_jax.machine import files
from vdm_jax.train import metrics

MEASURED = cli.measured()
MARKDOWN = flags.DEFINE_bool('markdown', False, 'Print a Markdown table.')


def main(directories):
  if not directories:
    raise InputError(problem='no run is named',
                     remedy='name the directories of one or more runs that were evaluated')
  header, *lines = comparison.comparison_cells(runs.evaluated(
      [files.run_directory('workdir', directory) for directory in directories]))
  cli.keep(MEASURED.value, 'Runs side by side, bits/dim', [header, *lines])
  if MARKDOWN.value:
    print(measured.markdown([header, *lines]))
    return
  table = rich.table.Table(*header, caption='bits/dim ± standard error over images; in **: no run '
                           'is better by two standard errors of the difference')
  for line in lines:
    table.add_row(*line)
  metrics.show(table)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, arguments=True, alone=True)
