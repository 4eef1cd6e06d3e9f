"""The samplers by name: for each its paper, its claim and the function that makes it.

  method('dpmpp_2m', steps=20)       a sampler with its grid, for `runs.sample`
  SAMPLERS['ddim'].make              (denoise, process) -> Sampler
  GRIDS['logsnr'](process, 20)       times of a named grid

Names of the same methods in other codebases work too.  A sampler of your own needs no entry: in
Python give the function itself; to a command give FILE.py:NAME.
"""
import difflib
import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import oracles, processes, random, schedules
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.machine import config_files, files
from vdm_jax.samplers import (
  adaptive,
  analytic,
  consistency,
  deis,
  denoising_mcmc,
  dpm_solver,
  dpm_solver_adaptive,
  edm,
  euler,
  first_order,
  grids,
  langevin,
  predictor_corrector,
  recovery,
  runge_kutta,
  splitting,
  taylor,
  unipc,
)
from vdm_jax.samplers.sampling import sample
from vdm_jax.typing import Array, Model, Process, Sampler

__all__ = ['ALIASES', 'ANCESTRAL', 'Entry', 'GRIDS', 'MISSING', 'Method', 'SAMPLERS', 'describe',
           'draws_noise', 'find', 'method', 'on_grid', 'require_suited', 'usual']


class Method(NamedTuple):
  """A sampler and its grid, and their names in files and messages."""
  name: str
  make: Callable[..., Sampler]            # (denoise, process), with `variances` a third argument
  grid: str
  times: Callable[[Process], np.ndarray]  # -> [N + 1], from 1 down to 0
  variances: bool = False  # `make` takes a third argument, `analytic.Variances` of this model
  head: bool = False       # the network has to have the head 'variance'
  stochastic: bool | None = False  # whether it draws noise on the way; None: see `draws_noise`
  ends: bool = False       # the model's estimate has to be the end of its path: a consistency model


ANCESTRAL = Method('ancestral', first_order.ancestral, 'uniform', lambda _: grids.uniform(250),
                   stochastic=True)


class Entry(NamedTuple):
  family: str
  paper: str
  make: Callable              # (denoise, process) -> Sampler; with `needs` a third argument
  order: float | None = None  # of convergence to the probability flow; None: stochastic, adaptive
  use: str = ''               # what it is for
  evaluations: int | None = 1  # of the network in a step; None: adaptive
  extra_evaluations: int = 0  # more than that, at most, in one of the steps
  needs: str = ''             # the third argument of `make`, the head of the network, or 'ends':
                              # a consistency model
  times: Callable = lambda process, n: grids.uniform(n)  # (process, steps) -> its own grid
  at_tolerance: Callable | None = None  # of an adaptive method: tolerance -> make
  stochastic: bool | None = False  # whether it draws noise on the way; None of a file of the user's
                              # own, which does not say it: see `draws_noise`
  version: str = ''           # of a file of the user's own, by its text


_one_step = lambda process, n: np.array([1.0, 0.0])


class _Solved(NamedTuple):
  z: Array
  evaluations: Array


def _adaptive(solve):
  """An adaptive method as a sampler whose grid is a single step from noise to data."""
  def make(denoise, process):
    def step(keys, state, t, s, plan):
      solution = solve(denoise, process, state.z, t, s)
      return _Solved(solution.z, state.evaluations + jnp.asarray(solution.evaluations, int))
    return Sampler(step, lambda z: _Solved(z, jnp.zeros((), int)), lambda state: state.z,
                   evaluations=None)
  return make


def _ode(tolerance=1e-5):
  return _adaptive(lambda denoise, process, z, t, s: adaptive.adaptive_ode(
      denoise, process, z, t, s, rtol=tolerance, atol=tolerance))


def _dpm_adaptive(order, **tolerance):
  return _adaptive(lambda denoise, process, z, t, s: dpm_solver_adaptive.dpm_solver_adaptive(
      denoise, process, z, order, start=t, end=s, **tolerance))


def _corrected(predictor, corrector, **options):
  return partial(predictor_corrector.predictor_corrector, predictor=predictor,
                 corrector=partial(corrector, **options))


def _metropolis(denoise, process, log_prob):
  return predictor_corrector.predictor_corrector(
      denoise, process, corrector=partial(langevin.mala, log_prob=log_prob))


_MOVES, _LEVELS = 50, 32


def _denoising_mcmc(denoise, process, log_prob):
  times = grids.uniform(_LEVELS)
  logits = denoising_mcmc.level_posterior(log_prob, process, times)

  def step(keys, z, t, s, _):
    chain = denoising_mcmc.ChainState(z, jnp.zeros(len(z), int))
    return denoising_mcmc.denoising_mcmc(denoise, process, keys, chain, times, logits,
                                         _MOVES).z
  return Sampler(step, evaluations=_MOVES + 2 * _LEVELS)


_SONG = 'Song et al. (2021), score SDE'
_LU = 'Lu et al. (2022a)'
_LU_PP = 'Lu et al. (2022b)'
_BAO = 'Bao et al. (2022), Analytic-DPM'
_BAO_X = 'Bao et al. (2022), Extended-Analytic-DPM'
_SPLITTING = 'Wizadwongsa and Suwajanakorn (2023)'
_DEIS = 'Zhang and Chen (2023)'
_UNIPC = 'Zhao et al. (2023)'
_KARRAS = 'Karras et al. (2022)'
_FIRST, _OPTIMAL, _EXPONENTIAL = 'first order', 'optimal variance', 'exponential integrators'
_RK, _SCORE, _SPLIT = 'EDM and Runge-Kutta', 'score-based', 'splitting'
_DISTILLED = 'distilled models'
_split = splitting.splitting
_multistep, _single = dpm_solver.dpm_solver_multistep, dpm_solver.dpm_solver

SAMPLERS: dict[str, Entry] = {
    'ancestral': Entry(_FIRST, 'Ho et al. (2020), smaller variance', first_order.ancestral,
                       use='the chain that `vlb@T` bounds; best with hundreds of steps',
                       stochastic=True),
    'ancestral_large': Entry(_FIRST, 'Ho et al. (2020), larger variance',
                             partial(first_order.ancestral, share=1.0),
                             use='a few hundred steps, on data of about unit variance',
                             stochastic=True),
    'ancestral_between': Entry(_FIRST, 'Nichol and Dhariwal (2021), eq. 15, v = 1/2',
                               partial(first_order.ancestral, share=0.5),
                               use='between ancestral and ancestral_large',
                               stochastic=True),
    'ancestral_learned': Entry(_FIRST, 'Nichol and Dhariwal (2021), learned variance',
                               partial(first_order.ancestral, share=processes.learned_share),
                               use='networks with a variance head', needs='variance_head',
                               stochastic=True),
    'ddim': Entry(_FIRST, 'Song, Meng and Ermon (2021)', first_order.ddim, 1,
                  use='the plain deterministic sampler; also encodes'),
    'ddim_half': Entry(_FIRST, 'Song, Meng and Ermon (2021), eta = 1/2',
                       partial(first_order.ddim, eta=0.5), use='between ddim and ancestral',
                       stochastic=True),
    'euler': Entry(_FIRST, _SONG, euler.euler, 1, use='rectified flow'),
    'euler_maruyama': Entry(_FIRST, _SONG, euler.euler_maruyama, use='the SDE as it is written',
                            stochastic=True),
    'exponential_sde': Entry(_FIRST, 'Chen et al. (2022), arXiv 2209.11215', euler.exponential_sde,
                             use='the algorithm that convergence bounds are about; not from '
                             'alpha = 0', stochastic=True),
    'reverse_diffusion': Entry(_FIRST, _SONG + ', appendix E', euler.reverse_diffusion,
                               use='a predictor for predictor-corrector sampling', stochastic=True),
    'reverse_diffusion_flow': Entry(_FIRST, _SONG + ', appendix E',
                                    partial(euler.reverse_diffusion, noise=False), 1,
                                    use='reverse_diffusion without noise; not from alpha = 0'),
    'analytic_dpm': Entry(_OPTIMAL, _BAO, analytic.analytic_dpm, needs='variances',
                          use='the ancestral chain in few steps', stochastic=True),
    'analytic_ddim': Entry(_OPTIMAL, _BAO, partial(analytic.analytic_dpm, eta=0.0),
                           needs='variances', use='ddim in few steps, with the noise that it lacks',
                           stochastic=True),
    'sn_ddpm': Entry(_OPTIMAL, _BAO_X, analytic.sn_ddpm, needs='head',
                     use='networks with a head for eps^2', stochastic=True),
    'npr_ddpm': Entry(_OPTIMAL, _BAO_X, analytic.npr_ddpm, needs='head',
                      use='networks with a head for the residual', stochastic=True),
    'dpm_solver_2': Entry(_EXPONENTIAL, _LU, partial(_single, order=2), 2, evaluations=2,
                          use='unguided, 20 evaluations and more'),
    'dpm_solver_3': Entry(_EXPONENTIAL, _LU, partial(_single, order=3), 3, evaluations=3,
                          use='unguided, 20 evaluations and more'),
    'dpm_solver_fast': Entry(_EXPONENTIAL, _LU, dpm_solver.dpm_solver_fast, 2,
                             use='unguided, any number of evaluations from 20 on',
                             times=lambda process, n: np.asarray(
                                 dpm_solver.fast_times(process, n))),
    'dpm_solver_12': Entry(_EXPONENTIAL, _LU, _dpm_adaptive(2), evaluations=None,
                           use='steps chosen by their error', times=_one_step,
                           at_tolerance=lambda u: _dpm_adaptive(2, atol=u, rtol=u)),
    'dpm_solver_23': Entry(_EXPONENTIAL, _LU, _dpm_adaptive(3), evaluations=None,
                           use='steps chosen by their error', times=_one_step,
                           at_tolerance=lambda u: _dpm_adaptive(3, atol=u, rtol=u)),
    'dpm_solver_2m': Entry(_EXPONENTIAL, _LU_PP, partial(_multistep, of='eps'), 2,
                           use='comparisons: it interpolates eps_hat, not x_hat'),
    'dpm_solver_2m_sde': Entry(_EXPONENTIAL, _LU_PP, partial(_multistep, of='eps', sde=True),
                               use='comparisons: it interpolates eps_hat, not x_hat',
                               stochastic=True),
    'dpmpp_2s': Entry(_EXPONENTIAL, _LU_PP, partial(_single, order=2, of='x'), 2, evaluations=2,
                      use='guided, no memory of earlier steps'),
    'dpmpp_3s': Entry(_EXPONENTIAL, _LU_PP, partial(_single, order=3, of='x'), 3, evaluations=3,
                      use='smooth models, no memory of earlier steps'),
    'dpmpp_2m': Entry(_EXPONENTIAL, _LU_PP, _multistep, 2,
                      use='the default for 10 to 30 evaluations, guided or not'),
    'dpmpp_3m': Entry(_EXPONENTIAL, _LU_PP, partial(_multistep, order=3), 3,
                      use='unguided, 15 evaluations and more'),
    'dpmpp_2m_sde': Entry(_EXPONENTIAL, _LU_PP, partial(_multistep, sde=True),
                          use='stochastic, 20 to 50 evaluations', stochastic=True),
    **{f'deis_t{r}': Entry(_EXPONENTIAL, f'{_DEIS}, tAB{r}', partial(deis.deis, degree=r), r + 1,
                           use='unguided, 10 evaluations and more') for r in (1, 2, 3)},
    **{f'deis_rho{r}': Entry(_EXPONENTIAL, f'{_DEIS}, rhoAB{r}',
                             partial(deis.deis, degree=r, variable='rho'), r + 1,
                             use='as deis_t, with polynomials in sigma / alpha')
       for r in (1, 2, 3)},
    **{f'unip_{p}': Entry(_EXPONENTIAL, f'{_UNIPC}, predictor alone',
                          partial(unipc.unipc, order=p, corrector=False), p,
                          use='UniPC without its corrector') for p in (2, 3)},
    **{f'unipc_{p}': Entry(_EXPONENTIAL, f'{_UNIPC}, B(h) = e^h - 1',
                           partial(unipc.unipc, order=p), p + 1,
                           use='5 to 20 evaluations') for p in (1, 2, 3)},
    'unipc_2_noise': Entry(_EXPONENTIAL, f'{_UNIPC}, noise prediction',
                           partial(unipc.unipc, of='eps'), 3, use='unguided'),
    **{f'unipc_{p}_bh1': Entry(_EXPONENTIAL, f'{_UNIPC}, B(h) = h',
                               partial(unipc.unipc, order=p, variant='bh1'), p + 1,
                               use='5 to 10 evaluations, unguided') for p in (2, 3)},
    'quasi_taylor': Entry(_EXPONENTIAL, 'Tachibana et al. (2021)', taylor.quasi_taylor, 1,
                          use='data close to one point, where its order is 2'),
    'quasi_ito_taylor': Entry(_EXPONENTIAL, 'Tachibana et al. (2021)', taylor.quasi_ito_taylor,
                              use='data close to one point, by the SDE', stochastic=True),
    'edm': Entry(_RK, f'{_KARRAS}, algorithm 1', edm.edm, 2, evaluations=2,
                 use='the reference at 35 to 80 evaluations',
                 times=grids.karras),
    'edm_churn': Entry(_RK, f'{_KARRAS}, algorithm 2, S_churn = 40', partial(edm.edm, s_churn=40.0),
                       evaluations=2, use='many steps; its noise corrects errors',
                       times=grids.karras, stochastic=True),
    'heun': Entry(_RK, _KARRAS, runge_kutta.heun, 2, evaluations=2, use='rectified flow'),
    'midpoint': Entry(_RK, _KARRAS, partial(runge_kutta.runge_kutta,
                                            tableau=runge_kutta.second_order(0.5)), 2,
                      evaluations=2, use='rectified flow'),
    'rk3': Entry(_RK, 'Kutta (1901)', partial(runge_kutta.runge_kutta, tableau=runge_kutta.RK3),
                 3, evaluations=3, use='exact solutions'),
    'rk4': Entry(_RK, 'Kutta (1901)', partial(runge_kutta.runge_kutta, tableau=runge_kutta.RK4), 4,
                 evaluations=4, use='exact solutions'),
    'rho_rk4': Entry(_RK, _DEIS, partial(runge_kutta.rho_rk, tableau=runge_kutta.RK4), 4,
                     evaluations=4, use='exact solutions, in sigma / alpha'),
    'adaptive_ode': Entry(_RK, f'{_SONG}, Dormand and Prince', _ode(), evaluations=None,
                          use='exact solutions to a tolerance', times=_one_step,
                          at_tolerance=_ode),
    'annealed_langevin': Entry(_SCORE, 'Song and Ermon (2019, 2020)',
                               partial(langevin.annealed_langevin, n_steps=5), evaluations=5,
                               use='NCSN; hundreds of levels', stochastic=True),
    'recovery': Entry(_SCORE, 'Gao et al. (2021), 30 Langevin moves a step', recovery.recovery,
                      evaluations=30, use='energies trained by recovery likelihood, one step for '
                      'each of their levels', stochastic=True),
    'pc_ancestral': Entry(_SCORE, _SONG, _corrected(first_order.ancestral,
                                                    langevin.langevin_corrector), evaluations=2,
                          use='predictor-corrector, hundreds of steps', stochastic=True),
    'pc_reverse_diffusion': Entry(_SCORE, _SONG, _corrected(euler.reverse_diffusion,
                                                            langevin.langevin_corrector),
                                  evaluations=2, use='predictor-corrector, hundreds of steps',
                                  stochastic=True),
    'pc_annealed': Entry(_SCORE, _SONG, _corrected(first_order.ancestral,
                                                   langevin.annealed_corrector), evaluations=2,
                         use='predictor-corrector, hundreds of steps', stochastic=True),
    'pc_ula': Entry(_SCORE, 'Roberts and Tweedie (1996)',
                    _corrected(first_order.ancestral, langevin.ula), evaluations=2,
                    use='corrector with a fixed step', stochastic=True),
    'pc_mala': Entry(_SCORE, 'Roberts and Tweedie (1996)', _metropolis, evaluations=3,
                     needs='log_prob', use='an exact corrector', stochastic=True),
    'denoising_mcmc': Entry(_SCORE, 'Kim and Ye (2023)', _denoising_mcmc,
                            evaluations=_MOVES + 2 * _LEVELS,
                            needs='log_prob', use='many samples of few modes', times=_one_step,
                            stochastic=True),
    'plms': Entry(_SPLIT, 'Liu et al. (2022), PNDM', splitting.plms, 2,
                  extra_evaluations=1, use='the sampler of Stable Diffusion; the unguided part of '
                  'split sampling; order 2 on smooth grids'),
    'split_lie': Entry(_SPLIT, f'{_SPLITTING}, LTSP', partial(_split, scheme='lie-trotter'), 1,
                       extra_evaluations=1, needs='guidance', use='classifier guidance'),
    'split_strang': Entry(_SPLIT, f'{_SPLITTING}, STSP', partial(_split, scheme='strang'), 1,
                          extra_evaluations=1, needs='guidance',
                          use='classifier guidance of large scale'),
    'split_strang_heun': Entry(_SPLIT, f'{_SPLITTING}, with Heun for both parts',
                               partial(_split, scheme='strang', diffusion=runge_kutta.heun,
                                       guide='heun'), 2, evaluations=2, needs='guidance',
                               use='classifier guidance of large scale, with order 2'),
    'ddim_to_x': Entry(_DISTILLED, 'Salimans and Ho (2022)', first_order.ddim_to_x, 1,
                       use='ddim that ends in x_hat: students of progressive and knowledge '
                       'distillation, in the steps that they were distilled for'),
    'consistency': Entry(_DISTILLED, 'Song et al. (2023), algorithm 1', consistency.consistency,
                         needs='ends', use='consistency models; 1 or 2 steps', stochastic=True),
}


def _on_chain(indices, process, n):
  return grids.on_table(indices(n, 1000), 1000)


GRIDS: dict[str, Callable] = {  # (process, n) -> times
    'uniform': lambda process, n: grids.uniform(n),
    'quadratic': lambda process, n: grids.quadratic(n),
    'logsnr': grids.logsnr,
    'karras': grids.karras,
    # Of a chain of 1000 levels, as published.
    **{name: partial(_on_chain, indices) for name, indices in {
        'trailing': grids.trailing, 'leading': grids.leading, 'linspace': grids.linspace,
        'ddim_linear': grids.ddim_linear, 'ddim_quadratic': grids.ddim_quadratic}.items()},
    'stable_diffusion': lambda process, n: grids.stable_diffusion(n),
    'stable_diffusion_dpm': lambda process, n: grids.stable_diffusion_dpm(n),
}

MISSING = {
    'head': 'a network with heads for the moments of eps (Estimate.extra)',
    'log_prob': 'the log-density of the noisy data, which a network for the score does not give',
    'guidance': 'the gradient of a classifier of noisy data',
}


def describe() -> str:
  """The text of --help: all names by family, with paper, evaluations and use."""
  lines = []
  for family in dict.fromkeys(entry.family for entry in SAMPLERS.values()):
    lines += ['', f'{family.upper()}']
    for name, entry in SAMPLERS.items():
      if entry.family == family:
        calls = 'adaptive' if entry.evaluations is None else f'{entry.evaluations} a step'
        calls += f' and {entry.extra_evaluations} more' if entry.extra_evaluations else ''
        where = ' [from Python]' if entry.needs in MISSING else ''
        lines.append(f'- {name}{where}: {entry.paper}; {calls}; {entry.use}')
  return ('The sampler: a name below, or FILE.py:NAME, your own function (denoise, process) -> '
          'Sampler.  Each line: paper; evaluations of the network; use.\n'
          + '\n'.join(lines) + '\n')


# What the same method is called elsewhere: without its signs, and with pp for ++.
ALIASES = {
    'ddpm': 'ancestral', 'ddpmlarge': 'ancestral_large', 'iddpm': 'ancestral_learned',
    'eulera': 'ancestral', 'eulerancestral': 'ancestral', 'keuler': 'ddim', 'eulerdiscrete': 'ddim',
    'dpmsolver1': 'ddim', 'eulersde': 'euler_maruyama', 'analyticddpm': 'analytic_dpm',
    'dpmsolverpp': 'dpmpp_2m', 'dpmsolverpp2m': 'dpmpp_2m', 'dpmsolverpp3m': 'dpmpp_3m',
    'dpmsolverpp2s': 'dpmpp_2s', 'dpmsolverpp3s': 'dpmpp_3s', 'sdedpmsolverpp2m': 'dpmpp_2m_sde',
    'unipc': 'unipc_2', 'tab1': 'deis_t1', 'tab2': 'deis_t2', 'tab3': 'deis_t3',
    'deistab1': 'deis_t1', 'deistab2': 'deis_t2', 'deistab3': 'deis_t3',
    'rhoab1': 'deis_rho1', 'rhoab2': 'deis_rho2', 'rhoab3': 'deis_rho3',
    'rk45': 'adaptive_ode', 'dopri5': 'adaptive_ode', 'kheun': 'edm', 'heundiscrete': 'edm',
}


def _letters(name: str) -> str:
  return re.sub('[^a-z0-9]', '', name.lower().replace('++', 'pp'))


def find(name: str, field: str = 'sampler') -> tuple[str, Entry]:
  """The name of a sampler in this catalogue, and its entry; prints that name if it differs.

  FILE.py:NAME is the user's own function (denoise, process) -> Sampler.  field: the field or flag
  that named the sampler, for errors.
  Raises InputError.
  """
  file, colon, function = name.rpartition(':')
  if colon:
    return name, _own(field, name, file, function)
  name = _called(name, field)
  return name, SAMPLERS[name]


def _own(field: str, value: str, file: str, name: str) -> Entry:
  make, source = config_files.own(field, value, file, name)
  remedy = 'give a function (denoise, process) -> Sampler'
  try:
    inspect.signature(make).bind(None, None)
  except (TypeError, ValueError):
    raise InputError(field, value, 'it does not take a denoiser and a process', remedy) from None
  sampler = make(oracles.Gaussian(0.0, 1.0), processes.GaussianProcess(schedules.Linear()))
  if not isinstance(sampler, Sampler):
    raise InputError(field, value, f'it returns a {type(sampler).__name__}, not a Sampler', remedy)
  entry = Entry('of your own', file, make, evaluations=sampler.evaluations,
                extra_evaluations=sampler.extra_evaluations, stochastic=None, version=source.digest)
  return entry if sampler.evaluations else entry._replace(times=_one_step)


def _called(name: str, field: str) -> str:
  """The name of a sampler in this catalogue; prints that name if it differs."""
  if name in SAMPLERS:
    return name
  own = {_letters(known): known for known in SAMPLERS}
  known = own.get(_letters(name)) or ALIASES.get(_letters(name))
  if known is None:
    cited = [known for known, entry in SAMPLERS.items()
             if re.search(rf'\b{re.escape(name)}\b', entry.paper, re.IGNORECASE)]
    near = cited[:3] or difflib.get_close_matches(name, SAMPLERS, n=3, cutoff=0.4)
    raise InputError(field, name,
                     f'did you mean {" or ".join(near)}' if near else 'there is no such choice',
                     'choose one that `sample.py --help` lists')
  if jax.process_index() == 0:
    print(f'The sampler {name} is called {known} here ({SAMPLERS[known].paper}).', file=sys.stderr)
  return known


def method(name: str, steps: int | None = None, grid: str = '', eta: float | None = None, *,
           usual: int = 250) -> Method:
  """The sampler of this name, with a grid.

  Args:
    name: a name in `SAMPLERS` or in another codebase, or FILE.py:NAME: see `find`.
    steps: the number of steps of the grid.
    grid: a name in `GRIDS`, 'iddpm:SECTIONS', or the user's own times: see `on_grid`.  Default: the
      grid of the sampler.
    eta: the noise of ddim.
    usual: the number of steps if `steps` is not given.

  Raises InputError if there is no such sampler or grid, or if they do not take these settings.
  """
  name, entry = find(name)
  if eta is not None:
    if name != 'ddim':
      raise InputError('eta', eta, f'the sampler {name} has no eta', 'leave it out, or choose ddim')
    if not 0.0 <= eta <= 1.0:
      raise InputError('eta', eta, 'it must be from 0 (no noise) to 1 (ancestral)',
                       'give such a number')
    name, entry = f'ddim_eta_{eta:g}', entry._replace(make=partial(entry.make, eta=eta))
  if entry.needs in MISSING:
    raise InputError('sampler', name, f'it needs {MISSING[entry.needs]}', 'use it from Python')
  require_at_least('steps', steps)
  if entry.evaluations is None and (grid or steps is not None):
    raise InputError(*(('grid', grid) if grid else ('steps', steps)),
                     f'the sampler {name} chooses its own steps', 'leave it out')
  if entry.version:  # samples of one version are not taken for those of another
    name = f'{name} {entry.version}'
  times = on_grid(grid, steps, usual=usual) if grid else partial(entry.times, n=steps or usual)
  return Method(name, entry.make, grid or 'its own', times, entry.needs == 'variances',
                entry.needs == 'variance_head', True if eta else entry.stochastic,
                entry.needs == 'ends')


def draws_noise(method: Method, shape: tuple[int, ...]) -> bool:
  """Whether other keys give other samples of this shape; a function of the user's own is tried.

  It draws two samples of Gaussian data with each of two keys.
  """
  if method.stochastic is not None:
    return method.stochastic
  process = processes.GaussianProcess(schedules.Linear())
  times = jnp.asarray(method.times(process), jnp.float32)

  @jax.jit
  def run(key):
    sampler = method.make(oracles.Gaussian(0.3, 0.5), process)
    return sample(sampler, jax.random.split(key, 2), jnp.ones((2, *shape)), times)

  one, other = (np.asarray(run(random.key(seed))) for seed in (0, 1))
  return not np.array_equal(one, other, equal_nan=True)


def require_suited(method: Method, model: Model, field: str = 'sampler') -> None:
  """Raises InputError where the method cannot draw what this model has learned.

  A method for consistency models needs one; a stochastic method needs a score, which a flow of
  coupled noise does not have.  A function of the user's own is tried, to see if it is stochastic.
  """
  require(not method.ends or (model.distilled or ('',))[0] == 'consistency', field, method.name,
          'the estimate of this model is the mean of the data, not the end of a path',
          'choose another sampler, or train a consistency model (configs/plane/consistency.py)')
  without_score = model.coupled and not model.distilled
  require(not (without_score and draws_noise(method, model.shape)), field, method.name,
          'it adds noise by the score, and this model, a flow of coupled noise, has no score',
          'choose a deterministic one (heun, euler, dpmpp_2m, adaptive_ode)')


def usual(model: Model) -> Method:
  """The default method of a model: the method that it was distilled for, or `ANCESTRAL`.

  Of a flow of coupled noise it is Heun's, in 25 steps.
  """
  if model.distilled:
    return method(*model.distilled)
  return method('heun', 25) if model.coupled else ANCESTRAL


def on_grid(grid: str, steps: int | None = None, *, usual: int = 250
            ) -> Callable[[Process], np.ndarray]:
  """process -> times [N + 1] of a grid.

  grid: a name in `GRIDS`; or times, which have their own number of steps, separated by commas or in
  a .npy file; or 'iddpm:SECTIONS' of a chain of 1000.  usual: the number of steps of a named grid
  if none is given.
  Raises InputError.
  """
  if grid in GRIDS:
    return partial(GRIDS[grid], n=steps or usual)
  own = _read(grid)
  if steps is not None:
    raise InputError('steps', steps, f'grid={grid} has its own number of steps',
                     'leave one of them out')
  return lambda process: own


def _read(grid: str) -> np.ndarray:
  """The user's own times, from a .npy file or separated by commas.  Raises InputError."""
  try:
    if grid.startswith('iddpm:'):
      return grids.on_table(grids.iddpm(grid.removeprefix('iddpm:'), 1000), 1000)
    if Path(grid).suffix != '.npy':
      return grids.array(np.array([float(time) for time in grid.split(',')]))
    file = files.user_path('grid', grid)
    if file.is_file() and not file.read_bytes().startswith(b'\x93NUMPY'):
      raise InputError(problem='it is not a NumPy file', remedy='write it by numpy.save, or give '
                       'the times themselves, separated by commas')
    return grids.array(np.load(file))
  except (OSError, ValueError) as error:
    if isinstance(error, InputError):
      raise InputError('grid', grid, f'{error}') from None
    raise InputError('grid', grid, 'there is no such choice',
                     f'choose {", ".join(GRIDS)}, iddpm:SECTIONS, or times from 1 to 0, separated '
                     'by commas or in a .npy file') from None
