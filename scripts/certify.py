"""Certifies every sampler against closed forms: its order, its moments, what it is equal to.

  python scripts/certify.py                      # all of them; --samplers=ddim,edm for some
  python scripts/certify.py --json > rows.json   # the same rows, with the errors behind each slope
"""
import concurrent.futures
import functools
import json
import math
import multiprocessing
import os
import sys

import cli
import jax
import rich.console
import rich.table
import tqdm
from absl import flags

from vdm_jax import certification
from vdm_jax.certification import Row
from vdm_jax.errors import InputError
from vdm_jax.samplers import catalogue, runge_kutta

SAMPLERS = flags.DEFINE_list('samplers', [], 'Only these; default: all.')
JSON = flags.DEFINE_bool('json', False, 'Print JSON instead of a table.')
MARKDOWN = flags.DEFINE_bool('markdown', False, 'Print the table of README.')


_SUPPLIED = {'': lambda make: make, 'head': lambda make: make,
             'v': lambda make: make,
             'log_prob': certification.with_log_prob, 'variances': certification.with_variances,
             'guidance': certification.with_guidance}


def bind(entry: catalogue.Entry):
  """The sampler as the certifier makes it: the oracle has whatever the sampler needs."""
  return _SUPPLIED[entry.needs](entry.make)


def equalities() -> dict[str, list]:
  """What is the same by theory: claim -> samplers."""
  of = lambda name, **options: functools.partial(catalogue.SAMPLERS[name].make, **options)
  return {
      'ddim = dpm_solver_1 = deis_0 = unip_1': [
          of('ddim'), of('dpm_solver_2', order=1), of('dpm_solver_2m', order=1),
          of('deis_t1', degree=0), of('unip_2', order=1)],
      'ancestral = ddim with eta 1 = dpmpp_1_sde': [
          of('ancestral'), of('ddim', eta=1.0), of('dpmpp_2m_sde', order=1)],
      'ancestral_learned with v = -1 = ancestral': [of('ancestral_learned'), of('ancestral')],
      'unip_2 with B(h) = e^h - 1 = dpmpp_2m': [of('unip_2'), of('dpmpp_2m')],
      'edm with Euler = ddim': [of('edm', tableau=runge_kutta.EULER), of('ddim')],
      'pc_ancestral with no correction = ancestral': [
          of('pc_ancestral', n_corrections=0), of('ancestral')],
      'edm without churn = Heun in sigma / alpha': [
          of('edm'), of('rho_rk4', tableau=runge_kutta.HEUN)],
  }


def certify(job: tuple[str, str]) -> list[Row]:
  """The rows of a job: what it is, and the name of its sampler or claim."""
  kind, name = job
  if kind == 'equality':
    return certification.equality(name, equalities()[name])
  entry = catalogue.SAMPLERS[name]
  if kind == 'one step':  # the best variance is exact for a Gaussian whatever the steps
    return certification.certify(bind(entry), name=f'{name}, one step', models=['gaussian'],
                                 curves=certification.FINITE, steps=[1], tolerance=0.0, draws=4096)
  if kind == 'encoding':
    return certification.certify(entry.make, entry.order, name=f'{name}, encoding', up=True,
                                 curves=certification.FINITE)
  options = certification.OPTIONS.get(name, {})
  if entry.at_tolerance is not None:
    return certification.certify_adaptive(entry.at_tolerance, name=name, **options)
  return certification.certify(bind(entry), entry.order, name=name, **options)


def jobs(names: list[str]) -> list[tuple[str, str]]:
  """Of these samplers; of all of them also what they are equal to."""
  own = [('sampler', name) for name in names]
  own += [('one step', name) for name in names
          if catalogue.SAMPLERS[name].needs == 'variances']
  own += [('encoding', name) for name in names if name in ('ddim', 'heun')]
  if set(names) == set(catalogue.SAMPLERS):
    own += [('equality', claim) for claim in equalities()]
  return own


def certify_all(work: list[tuple[str, str]]) -> list[Row]:
  """Most of it is tracing and compiling, which takes a process for each core to share."""
  workers = min(os.cpu_count(), len(work))
  if workers < 2 or len(work) < 8:
    return [row for job in tqdm.tqdm(work, unit='sampler', file=sys.stderr)
            for row in certify(job)]
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(min(workers, 8), context) as pool:
    done = tqdm.tqdm(pool.map(certify, work), total=len(work), unit='sampler', file=sys.stderr)
    return [row for rows in done for row in rows]


def table(rows: list[Row]) -> rich.table.Table:
  """One line a sampler or claim, one column a curve: the slope, or the largest deviation."""
  columns = ['sampler', 'model', 'claims', 'calls', *certification.CURVES]
  out = rich.table.Table(*columns, title='slopes of log error against log steps; deviations of '
                         'moments in standard deviations of the data; errors at a tolerance of '
                         '1e-5; differences of equals')
  lines = {}
  for row in rows:
    lines.setdefault((row.sampler, row.model), []).append(row)
  for (name, model), of in lines.items():
    orders = [row.claimed_order for row in of if row.claimed_order is not None]
    claims = f'order {max(orders):g}' if orders else of[0].kind
    cells = {row.curve: _cell(row) for row in of}
    calls = '' if of[0].kind == 'equality' else str(of[0].evaluations_per_step or 'adaptive')
    out.add_row(name, model, claims, calls, *(cells.get(c, '-') for c in certification.CURVES))
  return out


def _cell(row: Row) -> str:
  if row.kind == 'order':
    text = 'exact' if row.measured_order is None else f'{row.measured_order:.2f}'
  elif row.kind == 'moments':
    text = f'{certification.largest_deviation(row):.3f}'
  elif row.kind == 'tolerance':
    text = f'{row.detail["errors"][-1]:.0e}'
  else:
    text = f'{row.detail["difference"]:.0e}'
  return text if row.passed else f'[bold red]{text} FAILS[/]'


def markdown(rows: list[Row]) -> str:
  """The table of README: of each sampler the least and the largest of what was measured."""
  lines = ['| `--sampler=` | paper | order | calls a step | certified | what it is for |',
           '|---|---|---|---|---|---|']
  family = None
  for name, entry in catalogue.SAMPLERS.items():
    of = [row for row in rows if row.sampler == name and row.curve != 'ends']
    if entry.family != family:
      family = entry.family
      lines.append(f'| **{family}** | | | | | |')
    slopes = [row.measured_order for row in of if row.measured_order is not None]
    if entry.at_tolerance is not None:
      order, found = 'adaptive', f'{max(row.detail["errors"][-1] for row in of):.0e} at 1e-5'
    elif entry.order is None:
      order = 'stochastic'
      found = f'moments to {max(map(certification.largest_deviation, of)):.3f}'
    else:
      order, found = f'{entry.order:g}', f'{min(slopes):.2f} to {max(slopes):.2f}'
    mark = ' \\*' if entry.needs in catalogue.MISSING else ''
    lines.append(f'| `{name}`{mark} | {entry.paper} | {order} | {entry.evaluations or "varies"} | '
                 f'{found} | {entry.use} |')
  return '\n'.join(lines)


def _plain(value):
  """With None for what is not finite, which JSON has no word for."""
  if isinstance(value, dict):
    return {key: _plain(inner) for key, inner in value.items()}
  if isinstance(value, (list, tuple)):
    return [_plain(inner) for inner in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value


def main():
  # float64 is needed, and a process for each core: not a thing for an accelerator.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  jax.config.update('jax_platforms', os.environ['JAX_PLATFORMS'])
  names = [catalogue.called(name) for name in SAMPLERS.value]
  rows = certify_all(jobs(names or list(catalogue.SAMPLERS)))
  if JSON.value:
    print(json.dumps({'rows': _plain([row._asdict() for row in rows])}, allow_nan=False))
  elif MARKDOWN.value:
    print(markdown(rows))
  else:
    rich.console.Console(width=150).print(table(rows))
  failed = sorted({row.sampler for row in rows if not row.passed})
  if failed:
    raise InputError(problem=f'not certified: {", ".join(failed)}')
  print(f'{len(rows)} rows, all certified.', file=sys.stderr)


if __name__ == '__main__':
  cli.run(main, alone=True)
