"""Certifies the samplers of the catalogue: each sampler by its own claim, and equalities by theory.

  rows = certify_all(jobs(['ddim', 'heun']))
"""
import concurrent.futures
import functools
import multiprocessing
import os
import sys
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import tqdm

from vdm_jax.certification.exact import (
    FINITE,
    with_ends,
    with_guidance,
    with_log_prob,
    with_variances,
)
from vdm_jax.certification.judging import (
    CertificateRow,
    certify,
    certify_adaptive,
    certify_exact,
    equality,
)
from vdm_jax.errors import require
from vdm_jax.objectives import mean_flow, rectified_flow
from vdm_jax.samplers import catalogue, grids, interpolants, runge_kutta
from vdm_jax.typing import Denoiser, Estimate, Process, Sampler, SamplerMaker

__all__ = ['ENTRIES', 'FROM_PYTHON', 'Job', 'OPTIONS', 'bind', 'certify_all', 'certify_job',
           'equalities', 'jobs']

# Of samplers of the catalogue that the usual options of `certify` do not suit.
OPTIONS: dict[str, dict] = {
    **{name: {'curves': FINITE}  # not where logsnr is infinite
       for name in ('reverse_diffusion_flow', 'exponential_sde', 'dpm_solver_12',
                    'dpm_solver_23')},
    'dpm_solver_fast': {'steps': (48, 96, 192, 384, 768)},  # steps of three
    'annealed_langevin': {'tolerance': 0.1},
    'recovery': {'tolerance': 0.1},  # no Metropolis test
    'denoising_mcmc': {'steps': [1], 'curves': FINITE},
    'plms': {'grid': grids.uniform},  # its coefficients are those of equal steps
    'split_lie': {'tolerance': 0.2},
    # It ends in x_hat, and so in the data alone: where sigma vanishes.
    'ddim_to_x': {'curves': ('ends',)},
    'consistency': {'steps': [3]},
}

_SUPPLIED: dict[str, Callable[[Callable], SamplerMaker]] = {
    '': lambda make: make, 'head': lambda make: make, 'variance_head': lambda make: make,
    'log_prob': with_log_prob, 'variances': with_variances, 'guidance': with_guidance,
    'ends': with_ends}


def by_drift(e: float) -> SamplerMaker:
  """`interpolants.euler` by the drift and the score of the process, with e(t) = e sigma^2."""
  def make(denoise, process):
    return interpolants.euler(interpolants.of_process(denoise, process),
                              lambda t: e * process(t).sigma**2)
  return make


def _of_normal(denoise, z, level):
  """(m, s, level, z - alpha m) for data N(m, s^2); z - alpha m is computed from eps_hat."""
  m, s = denoise.data.means[0], denoise.data.stds[0]
  eps, level = denoise(z, level).eps, level.expand(z)
  return m, s, level, (jnp.square(level.alpha * s) + jnp.square(level.sigma)) / level.sigma * eps


def by_average_velocity(denoise: Denoiser, process: Process) -> Sampler:
  """`mean_flow.step` by the exact average velocity of normal data, (z_t - z_r) / (t - r)."""
  def network(z, r, t):
    m, s, at_t, deviation = _of_normal(denoise, z, process(t))
    at_r = process(r).expand(z)
    spread = lambda level: jnp.hypot(level.alpha * s, level.sigma)
    z_r = at_r.alpha * m + spread(at_r) / spread(at_t) * deviation
    return (z - z_r) / (t - r).reshape(-1, *[1] * (z.ndim - 1))

  each = lambda t, z: jnp.broadcast_to(t, z.shape[:1])
  return Sampler(lambda keys, z, t, s, _: mean_flow.step(network, z, each(t, z), each(s, z)))


def of_pairs(denoise: Denoiser, process: Process) -> Sampler:
  """`rectified_flow.one_step` by the exact denoiser of the pairs of the flow of normal data.

  The flow carries z_1 to x = m + s z_1.  So z_t = alpha x + sigma z_1 determines both.
  """
  def of_z_t(z, level, cond=None):
    m, s, level, deviation = _of_normal(denoise, z, level)
    z_1 = deviation / (level.alpha * s + level.sigma)
    return Estimate(m + s * z_1, z_1)
  return Sampler(lambda keys, z, t, s, _: rectified_flow.one_step(of_z_t, process, z))


_PYTHON = 'from Python alone'
# Samplers that are not made of a denoiser alone, so they are no names of the samplers' catalogue.
FROM_PYTHON: dict[str, catalogue.Entry] = {
    'samplers.interpolants.euler (e = 0)': catalogue.Entry(
        _PYTHON, 'Albergo et al. (2023)', by_drift(0.0), 1, 'the flow of a stochastic interpolant'),
    'samplers.interpolants.euler (e = sigma^2 / 2)': catalogue.Entry(
        _PYTHON, 'Albergo et al. (2023)', by_drift(0.5), stochastic=True,
        use='the SDE of a stochastic interpolant'),
    'objectives.mean_flow.step': catalogue.Entry(
        _PYTHON, 'Geng et al. (2025), algorithm 2', by_average_velocity,
        use='MeanFlow, in one step'),
    'objectives.rectified_flow.one_step': catalogue.Entry(
        _PYTHON, 'Liu et al. (2023)', of_pairs, use='a flow that was distilled into one step'),
}
ENTRIES = {**catalogue.SAMPLERS, **FROM_PYTHON}


class Job(NamedTuple):
  """The work that one process does at a time."""
  kind: str  # 'sampler', 'one step', 'encoding' or 'equality'
  name: str  # of the sampler, or the claim
  order: float | None = None  # claimed of a sampler of the user's own


def bind(entry: catalogue.Entry) -> SamplerMaker:
  """The sampler as the certifier makes it.  The oracle supplies everything that the sampler needs.
  """
  return _SUPPLIED[entry.needs](entry.make)


def equalities() -> dict[str, list[SamplerMaker]]:
  """The samplers that are equal by theory: claim -> samplers."""
  of = lambda name, **options: functools.partial(catalogue.SAMPLERS[name].make, **options)
  return {
      'ddim = dpm_solver_1 = deis_0 = unip_1': [
          of('ddim'), of('dpm_solver_2', order=1), of('dpm_solver_2m', order=1),
          of('deis_t1', degree=0), of('unip_2', order=1)],
      'ancestral = ddim with eta 1 = dpmpp_1_sde': [
          of('ancestral'), of('ddim', eta=1.0), of('dpmpp_2m_sde', order=1)],
      'ancestral_learned with a head of -1 = ancestral': [of('ancestral_learned'), of('ancestral')],
      'unip_2 with B(h) = e^h - 1 = dpmpp_2m': [of('unip_2'), of('dpmpp_2m')],
      'interpolants.euler, e = 0, of a process = euler': [by_drift(0.0), of('euler')],
      'edm with Euler = ddim': [of('edm', tableau=runge_kutta.EULER), of('ddim')],
      'pc_ancestral with no correction = ancestral': [
          of('pc_ancestral', n_corrections=0), of('ancestral')],
      'edm without churn = Heun in sigma / alpha': [
          of('edm'), of('rho_rk4', tableau=runge_kutta.HEUN)],
  }


def jobs(names: Sequence[str] = (), order: float | None = None) -> list[Job]:
  """The jobs of these samplers; by default of all `ENTRIES` and the equalities.

  names: of samplers; 'samplers.interpolants.euler' stands for both entries of this function.
  order: the claimed order of samplers given as FILE.py:NAME; None if they are stochastic.
  Raises InputError.
  """
  given = dict.fromkeys(known for name in names for known in _certifiable(name))
  names = list(given or ENTRIES)
  out = [Job('sampler', name, order if ':' in name else None) for name in names]
  out += [Job('one step', name) for name in names
          if ':' not in name and ENTRIES[name].needs == 'variances']
  out += [Job('encoding', name) for name in names if name in ('ddim', 'heun')]
  if set(names) == set(ENTRIES):
    out += [Job('equality', claim) for claim in equalities()]
  return out


def _certifiable(name: str) -> list[str]:
  heads = {known: known.partition(' (')[0] for known in FROM_PYTHON}
  if alone := [known for known, head in heads.items()
               if name in (known, head, head.partition('.')[2])]:  # with its room, or without
    return alone
  name, entry = catalogue.find(name, 'samplers')
  require(entry.evaluations is not None or entry.at_tolerance is not None, 'samplers', name,
          'it is adaptive, and its tolerance is unknown here',
          'certify it from Python, by certification.certify_adaptive')
  return [name]


def certify_job(job: Job) -> list[CertificateRow]:
  """The rows of one job."""
  if job.kind == 'equality':
    return equality(job.name, equalities()[job.name])
  name = job.name
  entry = ENTRIES[name] if name in ENTRIES else catalogue.find(name, 'samplers')[1]
  if name in FROM_PYTHON and entry.order is None and not entry.stochastic:
    return certify_exact(entry.make, name=name)
  if job.kind == 'one step':  # the best variance is exact for a Gaussian whatever the steps
    return certify(bind(entry), name=f'{name}, one step', models=['gaussian'],
                   curves=FINITE, steps=[1], tolerance=0.0, draws=4096)
  if job.kind == 'encoding':
    return certify(entry.make, entry.order, name=f'{name}, encoding', up=True, curves=FINITE)
  options = OPTIONS.get(name, {})
  if entry.at_tolerance is not None:
    return certify_adaptive(entry.at_tolerance, name=name, **options)
  return certify(bind(entry), entry.order if job.order is None else job.order, name=name,
                 **options)


def certify_all(work: Sequence[Job]) -> list[CertificateRow]:
  """The rows of all jobs, by one process per core: most of the work is tracing and compiling."""
  workers = min(os.cpu_count() or 1, len(work))
  if workers < 2 or len(work) < 8:
    return [row for job in tqdm.tqdm(work, unit='sampler', file=sys.stderr)
            for row in certify_job(job)]
  context = multiprocessing.get_context('spawn')
  with concurrent.futures.ProcessPoolExecutor(min(workers, 8), context) as pool:
    done = tqdm.tqdm(pool.map(certify_job, work), total=len(work), unit='sampler', file=sys.stderr)
    return [row for rows in done for row in rows]
