"""The samplers of EDM and of diffusers that integrate in sigma, on recorded inputs.

Karras et al. (2022) write every earlier sampler as a time t, a noise level sigma(t) in units of
the data, and a scaling s(t): z = s(t) (x + sigma(t) eps), so alpha = s and sigma = s sigma(t).
"""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import targets
from vdm_jax.processes import from_alpha_sigma
from vdm_jax.samplers.edm import edm
from vdm_jax.samplers.runge_kutta import EULER, HEUN, rho_rk, runge_kutta, second_order

pytestmark = pytest.mark.usefixtures('x64')

EDM, DIFFUSERS = 'edm_gaussian', 'diffusers_gaussian'
RANGES = {'ve': (0.02, 100.0), 'iddpm': (0.002, 81.0), 'edm': (0.002, 80.0)}  # table 1
VP_START = 1e-3  # epsilon_s


def algorithms(name):
  """Second components of the paths of a recording, as `recordings.runs` takes them."""
  paths = [key.split('/') for key in recordings.recording(name)]
  return sorted({path[1] for path in paths if len(path) > 3})


def padded(arrays):
  """[n, ...] each -> [.., longest, ...], the last entry repeated."""
  longest = max(map(len, arrays))
  pad = lambda a: np.pad(a, [(0, longest - len(a))] + [(0, 0)] * (a.ndim - 1), mode='edge')
  return jnp.stack([pad(np.asarray(a)) for a in arrays])


def levels(run):
  """The grid in sigma / alpha: where Heun's method, or Euler's, is at the start of its steps."""
  evaluated = run.arrays['sig_eval']
  return np.append(evaluated[::2] if len(evaluated) > run.count else evaluated, 0.0)


def scheduled(schedule, scaling, lowest, highest):
  """A process of the ablation, and its time of a level; time is scaled to end at 1."""
  if schedule == 'vp':
    # 'beta_d' and 'beta_min' such that sigma(VP_START) and sigma(1) are as given.
    low, high = np.log1p(np.array([lowest, highest])**2)
    slope = 2.0 * (high - low / VP_START) / (1.0 - VP_START)
    offset = high - 0.5 * slope
    sigma = lambda t: jnp.sqrt(jnp.expm1(0.5 * slope * t**2 + offset * t))
    time = lambda u: (np.sqrt(offset**2 + 2.0 * slope * np.log1p(u**2)) - offset) / slope
  else:
    power = {'ve': 0.5, 'linear': 1.0}[schedule]
    sigma, time = lambda t: highest * t**power, lambda u: (u / highest)**(1.0 / power)
  scale = {'vp': lambda t: (1.0 + sigma(t)**2)**-0.5, 'none': jnp.ones_like}[scaling]
  return from_alpha_sigma(scale, lambda t: sigma(t) * scale(t)), time


@pytest.mark.first(1)
@pytest.mark.parametrize('algorithm', [a for a in algorithms(EDM) if a.startswith('abl_')])
def test_the_ablation_of_edm_is_a_tableau_in_the_time_of_a_process(algorithm):
  runs = recordings.runs(EDM, algorithm)
  for data in sorted({recordings.data_set(run.path) for run in runs}):
    some = [run for run in runs if recordings.data_set(run.path) == data]
    grids = [levels(run) for run in some]
    if algorithm.startswith('abl_alpha'):  # otherwise with the choices of EDM
      tableau = second_order(float(algorithm.removeprefix('abl_alpha')))
      kinds = 'edm', 'linear', 'none'
    else:
      solver, *kinds = algorithm.split('_')[1:]
      tableau = {'euler': EULER, 'heun': HEUN}[solver]
    discretization, schedule, scaling = kinds
    ends = RANGES.get(discretization, (grids[0][-2], grids[0][0]))
    process, time = scheduled(schedule, scaling, *ends)
    sampler = runge_kutta(recordings.oracle(EDM, data), process, tableau)
    latents = recordings.recording(EDM)[f'{data}/latents']

    @jax.jit
    def run(times, sampler=sampler, process=process, latents=latents):
      return recordings.replay(sampler, latents * process(times[0]).sigma, times,
                               jnp.zeros((len(times) - 1, 0)))

    for got, expected in zip(map(run, padded([time(grid) for grid in grids])), some, strict=True):
      np.testing.assert_allclose(got, expected.arrays['x'], atol=1e-8, rtol=0,
                                 err_msg=f'{expected.path} {expected.count}')


@pytest.mark.first(1)
@pytest.mark.parametrize('curve', ['ve', 'vp'])
@pytest.mark.parametrize('algorithm', [a for a in algorithms(EDM) if a.startswith('edm')])
def test_the_sampler_of_edm_on_any_curve_and_clock(algorithm, curve):
  """On the `vp` curve z is scaled down by alpha: the data it arrives at are the same."""
  churn = re.search(r'churn(\d+)', algorithm)
  # Beside S_churn the authors' choice for ImageNet-64, in their table 5.
  options = {'s_tmin': 0.05, 's_tmax': 50.0, 's_noise': 1.003}
  options |= {'s_churn': float(churn[1]) if churn else 0.0}
  process = recordings.angle(curve)
  runs = recordings.runs(EDM, algorithm)
  for data in sorted({recordings.data_set(run.path) for run in runs}):
    some = [run for run in runs if recordings.data_set(run.path) == data]
    sampler = edm(recordings.oracle(EDM, data), process, **options)
    latents = recordings.recording(EDM)[f'{data}/latents']
    noise = recordings.recording(EDM)[f'noise/{data}']
    # The grid is that of the run without churn.
    plain = {run.count: run for run in recordings.runs(EDM, 'edm')
             if recordings.data_set(run.path) == data}
    grids = padded([recordings.angle_time(levels(plain[run.count])) for run in some])

    @jax.jit
    def run(times, sampler=sampler, latents=latents, noise=noise):
      start = process(times[0]).sigma * latents
      return recordings.replay(sampler, start, times, noise[:len(times) - 1, None])

    for got, expected in zip(map(run, grids), some, strict=True):
      np.testing.assert_allclose(got, expected.arrays['x'], atol=1e-8, rtol=0,
                                 err_msg=f'{expected.path} {expected.count}')


def diffusers(algorithm, sampler_of):
  """Runs of a scheduler of diffusers, against `sampler_of(oracle, process, run)`."""
  process = recordings.angle('ve')
  runs = recordings.runs(DIFFUSERS, algorithm)
  assert runs
  groups = {}
  for run in runs:
    groups.setdefault((recordings.data_set(run.path), tuple(run.options.items())), []).append(run)
  for (data, _), some in groups.items():
    sampler = sampler_of(recordings.oracle(DIFFUSERS, data), process, some[0])
    noise = recordings.recording(DIFFUSERS).get(f'noise/{data}')
    # Heun's scheduler lists every level but the first twice.
    ratios = [np.append(run.arrays['sigmas'][0], np.delete(run.arrays['sigmas'][1:], np.s_[1::2])
                        if algorithm == 'heun_discrete' else run.arrays['sigmas'][1:])
              for run in some]
    grids = padded([recordings.angle_time(ratio) for ratio in ratios])
    noise = jnp.zeros((grids.shape[1], *some[0].arrays['x'].shape)) if noise is None else noise

    @jax.jit
    def run(times, z, sampler=sampler, noise=noise):
      return recordings.replay(sampler, z, times, noise[:len(times) - 1, None])

    for times, expected in zip(grids, some, strict=True):
      got = run(times, expected.arrays['x_init'])
      np.testing.assert_allclose(got, expected.arrays['x'], atol=1e-8, rtol=0,
                                 err_msg=f'{expected.path} {expected.count}')


def test_heun_of_diffusers_is_heun_in_rho():
  diffusers('heun_discrete', lambda oracle, process, run: rho_rk(oracle, process, HEUN))


def stale(sampler_of, oracle, process, sigma_data):
  """`sampler_of(denoise)` with the network asked before the noise level is raised.

  Its output there is taken for that at the raised level: the scheduler of diffusers is given what
  the network says before it adds noise.  Algorithm 2 of Karras et al. (2022) asks it afterwards.
  """
  target = targets.edm(sigma_data)

  def step(keys, z, t, s, plan):
    at_t = process(t)
    x, eps, _ = oracle(z, at_t)
    a, b = target(at_t)
    denoise = lambda z, level: targets.solve(target, a * x + b * eps, z, level)
    return sampler_of(denoise).step(keys, z, t, s, plan)

  return sampler_of(oracle)._replace(step=step)


@pytest.mark.long
def test_euler_of_edm_in_diffusers_is_algorithm_2_with_a_network_asked_before_the_churn():
  def sampler_of(oracle, process, run):
    names = {'s_churn', 's_tmin', 's_tmax', 's_noise'} & run.options.keys()
    options = {name: float(run.options[name]) for name in names}
    make = functools.partial(edm, process=process, tableau=EULER, **options)
    return stale(make, oracle, process, float(run.options.get('sigma_data', 0.5)))
  diffusers('edm_euler', sampler_of)
