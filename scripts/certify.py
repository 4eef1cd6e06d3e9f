"""Certifies every sampler against closed forms: its order, its moments, what it is equal to.

  python scripts/certify.py                      # all of them; --samplers=ddim,edm for some
  python scripts/certify.py --json > rows.json   # the same rows, with the errors behind each slope
"""
import functools
import json
import sys

import cli
import jax
import jax.numpy as jnp
import rich.console
import rich.table
import sampler_list
import tqdm
from absl import flags

from vdm_jax import certification
from vdm_jax.certification import Row
from vdm_jax.errors import InputError
from vdm_jax.samplers import analytic

SAMPLERS = flags.DEFINE_list('samplers', [], 'Only these; default: all.')
JSON = flags.DEFINE_bool('json', False, 'Print JSON instead of a table.')


STANDARD = certification.Data((0.5, 0.5), (0.0, 0.0), (1.0, 1.0))


def exact_variances(denoise, process):
  """What Analytic-DPM estimates from data, of the oracle's own data."""
  uncounted = certification.Oracle(denoise.data)
  x = uncounted.draw(jax.random.key(1), (512, 16))
  keys = jax.random.split(jax.random.key(2), len(x))
  return analytic.estimate_variances(uncounted, process, x, jnp.linspace(1.0, 0.0, 51), keys)


def guided(make):
  """A sampler with guidance, guided from the standard normal to the data of the oracle.

  With the guidance grad log q_oracle - grad log q_normal the guided flow is the oracle's own.
  """
  def of(denoise, process):
    oracle, normal = certification.Oracle(denoise.data), certification.Oracle(STANDARD)

    def unguided(z, level, cond=None):  # the evaluations that are counted are those of this one
      return jax.tree.map(lambda own, other: own + 0.0 * other, normal(z, level),
                          denoise(z, level))

    def guidance(z, level):
      return (normal(z, level).eps - oracle(z, level).eps) / level.expand(z).sigma
    return make(unguided, process, guidance)
  return of


def bind(entry: sampler_list.Entry):
  """The sampler as the certifier makes it: the oracle has whatever the sampler needs."""
  if entry.needs == 'variances':
    return lambda denoise, process: entry.make(denoise, process, exact_variances(denoise, process))
  if entry.needs == 'log_prob':
    return lambda denoise, process: entry.make(denoise, process, denoise.log_prob)
  return guided(entry.make) if entry.needs == 'guidance' else entry.make


def equalities(names: list[str]) -> list[tuple[str, list, dict]]:
  """(what is claimed, the samplers that are the same, options of `certification.equality`)."""
  of = lambda name, **options: functools.partial(sampler_list.SAMPLERS[name].make, **options)
  claims = [
      ('ddim = dpm_solver_1 = deis_0 = unip_1',
       ['ddim', 'dpm_solver_2', 'dpm_solver_2m', 'deis_t1', 'unip_2'],
       [of('ddim'), of('dpm_solver_2', order=1), of('dpm_solver_2m', order=1),
        of('deis_t1', degree=0), of('unip_2', order=1)]),
      ('ancestral = ddim with eta 1 = dpmpp_1_sde', ['ancestral', 'ddim', 'dpmpp_2m_sde'],
       [of('ancestral'), of('ddim', eta=1.0), of('dpmpp_2m_sde', order=1)]),
      ('learned variance of -1 = the smaller variance', ['ancestral_learned', 'ancestral'],
       [of('ancestral_learned'), of('ancestral')]),
      ('unip_2 with B(h) = e^h - 1 = dpmpp_2m', ['unip_2', 'dpmpp_2m'],
       [of('unip_2'), of('dpmpp_2m')]),
      ('edm without churn = Heun in sigma / alpha', ['edm', 'rho_rk4'],
       [of('edm'), of('rho_rk4', tableau=sampler_list.runge_kutta.HEUN)]),
  ]
  return [(title, makes) for title, used, makes in claims if set(used) <= set(names)]


def certify(names: list[str]) -> list[Row]:
  """All rows of these samplers."""
  rows = []
  jobs = []
  for name in names:
    entry = sampler_list.choose(name)
    if entry.accuracy is not None:
      jobs.append(functools.partial(certification.accuracy, entry.make, entry.accuracy, name=name,
                                    **entry.certify))
    else:
      jobs.append(functools.partial(certification.certify, bind(entry), entry.order, name=name,
                                    **entry.certify))
  for name in {'analytic_dpm', 'analytic_ddim'} & set(names):  # exact for a Gaussian at any T
    jobs.append(functools.partial(
        certification.certify, bind(sampler_list.SAMPLERS[name]), name=f'{name}, one step',
        models=['gaussian'], curves=certification.FINITE, steps=[1]))
  jobs += [functools.partial(certification.equality, title, makes)
           for title, makes in equalities(names)]
  for job in tqdm.tqdm(jobs, unit='sampler', file=sys.stderr):
    rows += job()
  return rows


def table(rows: list[Row]) -> rich.table.Table:
  """One line a sampler or claim, one column a curve: the slope, or the largest deviation."""
  columns = ['sampler', 'model', 'claims', 'calls', *certification.CURVES]
  out = rich.table.Table(*columns, title='slopes of log error against log steps; deviations of '
                         'moments in standard deviations of the data; differences of equals')
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
  else:
    text = f'{row.detail["difference"]:.0e}'
  return text if row.passed else f'[bold red]{text} FAILS[/]'


def main():
  names = SAMPLERS.value or [name for name, entry in sampler_list.SAMPLERS.items()]
  rows = certify(names)
  if JSON.value:
    print(json.dumps({'rows': [{**row._asdict()} for row in rows]}))
  else:
    rich.console.Console(width=150).print(table(rows))
  failed = sorted({row.sampler for row in rows if not row.passed})
  if failed:
    raise InputError(f'not certified: {", ".join(failed)}.')
  print(f'{len(rows)} rows, all certified.', file=sys.stderr)


if __name__ == '__main__':
  cli.run(main)
