"""Certifies every sampler against closed forms: its order or moments, and the samplers it equals.

  python scripts/certify.py                      # all of them; --samplers=ddim,edm for some
  python scripts/certify.py --json > rows.json   # the same rows, with the errors behind each slope
"""
import os
import sys

import bootstrap
import jax
import rich.console
from absl import flags

from vdm_jax import cli
from vdm_jax.certification import catalogue, report
from vdm_jax.errors import InputError

SAMPLERS = flags.DEFINE_list('samplers', [], 'Names, as docs/reference/samplers.md has them, or '
                             'FILE.py:NAME of your own.  Default: all.')
ORDER = flags.DEFINE_float('order', None, 'The order that your own samplers claim.  Default: '
                           'they are stochastic, and judged by their moments.')
MEASURED = cli.measured()
JSON = flags.DEFINE_bool('json', False, 'Print JSON instead of a table.')


def main():
  # float64 is needed, and a process for each core: not a thing for an accelerator.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  jax.config.update('jax_platforms', os.environ['JAX_PLATFORMS'])
  rows = catalogue.certify_all(catalogue.jobs(SAMPLERS.value, ORDER.value))
  cli.keep(MEASURED.value, 'Samplers, certified', report.cells(rows))
  show = print if JSON.value else rich.console.Console(width=150).print
  show(report.as_json(rows) if JSON.value else report.table(rows))
  if failed := report.failed(rows):
    raise InputError(problem=f'not certified: {", ".join(failed)}')
  print(f'{len(rows)} rows, all certified.', file=sys.stderr)


if __name__ == '__main__':
  cli.run(main, bootstrap.ROOT, alone=True)
