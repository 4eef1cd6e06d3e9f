"""Compares the ledgers of several runs: one row for each run, with the best of each column marked.

  python scripts/compare_ledgers.py runs/digits runs/digits_small [--markdown]
  python scripts/compare_ledgers.py runs/vdm runs/mulan --rows --measured=objectives.json

RUN means its main evaluation (ledger.json).  For another, name the file (RUN/ledger_raw.json).
"""
from pathlib import Path

import bootstrap
from absl import flags

from vdm_jax import cli, measured, runs
from vdm_jax.errors import InputError
from vdm_jax.ledger import comparison, tables
from vdm_jax.machine import files
from vdm_jax.train import metrics

MEASURED = cli.measured()
ROWS = flags.DEFINE_bool('rows', False, 'With --measured: update rows of a table that exists, each '
                         "named as a run's directory.")
MARKDOWN = flags.DEFINE_bool('markdown', False, 'Print a Markdown table.')


def main(directories):
  if not directories:
    raise InputError(problem='no run is named', remedy='name runs that were evaluated')
  found = runs.evaluated([files.run_directory('workdir', name) for name in directories])
  table = comparison.table(found)
  if ROWS.value:
    cli.keep_rows(MEASURED.value, {Path(name).name: tables.figures(run.ledger)
                                   for name, run in found.items()},
                  date=max(tables.date(run.ledger) for run in found.values()))
  else:
    cli.keep(MEASURED.value, 'Runs side by side, bits/dim', measured.cells(table))
  print(measured.markdown(measured.cells(table))) if MARKDOWN.value else metrics.show(table)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, arguments=True, alone=True)
