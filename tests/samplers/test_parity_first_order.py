"""The first-order samplers against recorded runs of diffusers and of score_sde, to 1e-8.

A run is a list of steps t -> s.  Those of the public programs do not always join up: where one
step ends at another level than the next assumes, both levels are given as the program has them.
"""
import ast
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import random
from vdm_jax.processes import from_alpha_sigma
from vdm_jax.samplers import ancestral, ddim
from vdm_jax.samplers.euler import euler, euler_maruyama, reverse_diffusion
from vdm_jax.typing import Estimate, Level

pytestmark = pytest.mark.usefixtures('x64')

DIFFUSERS = 'diffusers_gaussian'
SCORE_SDE = 'score_sde_gaussian'


def replay(sampler, z, starts, ends, noise):
  """The steps starts[i] -> ends[i] with recorded draws, one a step.  noise: [N, B, ...]."""
  keys = jax.random.split(jax.random.key(0), len(z))

  def body(z, xs):
    t, s, draw = xs
    with mock.patch.object(random, 'normal', lambda keys, like: draw):
      moved = sampler.step(keys, z, t, s, None)
    return jnp.where(t == s, z, moved), None

  return jax.lax.scan(body, z, (starts, ends, noise))[0]


def check(run, got, expected=None):
  expected = run.arrays['x'] if expected is None else expected
  np.testing.assert_allclose(got, expected, atol=1e-8, rtol=0.0, err_msg=str(run[:3]))


# -------------------------------------------------------------- diffusers


class Replay:
  """Runs of one file as few programs: their steps are padded to a length in common."""

  def __init__(self):
    self.programs = {}

  def __call__(self, run, kind, make, process, starts, ends):
    data = recordings.data_set(run.path)
    length = 50 if run.count <= 50 else 1000
    if (data, kind) not in self.programs:
      sampler = make(recordings.oracle(DIFFUSERS, data), process)
      self.programs[data, kind] = jax.jit(lambda *steps: replay(sampler, *steps))
    pad = lambda a: jnp.pad(a, [(0, length - run.count)] + [(0, 0)] * (a.ndim - 1))
    noise = recordings.recording(DIFFUSERS)[f'noise/{data}'][:run.count]
    return self.programs[data, kind](
        jnp.asarray(run.arrays['x_init']), pad(starts), pad(ends), pad(noise))


def alphas_cumprod(options):
  """The table of alpha^2 of the schedulers, [1000]."""
  n = int(options.get('num_train_timesteps', 1000))
  low, high = float(options.get('beta_start', 1e-4)), float(options.get('beta_end', 0.02))
  bar = lambda i: np.cos((i / n + 0.008) / 1.008 * np.pi / 2)**2
  betas = {
      'linear': np.linspace(low, high, n),
      'scaled_linear': np.linspace(low**0.5, high**0.5, n)**2,
      'squaredcos_cap_v2': np.minimum(1 - bar(np.arange(n) + 1) / bar(np.arange(n)), 0.999),
  }[options.get('beta_schedule', 'linear')]
  return np.cumprod(1 - betas)


@pytest.mark.long
def test_ancestral_is_the_ddpm_of_diffusers_but_for_its_noise_at_the_end():
  """With `trailing` spacing diffusers adds the noise of `fixed_large` to the final sample too.

  It leaves out the noise at its timestep 0 alone, where Ho et al. (2020) leave out the last.  That
  of `fixed_small` is of deviation 1e-10 there, as it keeps variances above 1e-20.
  """
  program = Replay()
  runs = recordings.runs(DIFFUSERS, 'ddpm')
  assert {run.options['variance_type'] for run in runs} >= {'fixed_small', 'fixed_large'}
  for run in runs:
    large = run.options['variance_type'].startswith('fixed_large')
    ratio = run.arrays['ve_sigma_eval']
    times = recordings.angle_time(np.append(ratio, 0.0))
    share = float(large)
    got = program(run, large, lambda oracle, process: ancestral(oracle, process, share=share),  # noqa: B023
                  recordings.angle('vp'), times[:-1], times[1:])
    if large and run.arrays['n_noise'] == run.count:
      noise = recordings.recording(DIFFUSERS)[f'noise/{recordings.data_set(run.path)}']
      got += ratio[-1] / np.hypot(1.0, ratio[-1]) * noise[run.count - 1]
    check(run, got)


@pytest.mark.long
def test_ddim_is_that_of_diffusers_given_the_levels_it_thinks_to_step_to():
  """It steps back by 1000 // N timesteps.  With `linspace` spacing the next is not there."""
  program = Replay()
  runs = recordings.runs(DIFFUSERS, 'ddim')
  assert {float(run.options['eta']) for run in runs} >= {0.0, 1.0}
  for run in runs:
    table = alphas_cumprod(run.options)
    ratio = lambda squared: np.sqrt(1.0 / squared - 1.0)
    asked = run.arrays['ve_sigma_eval']
    at = np.argmin(np.abs(np.log(ratio(table) / asked[:, None])), axis=1)
    np.testing.assert_allclose(ratio(table[at]), asked, rtol=1e-9)
    to = at - len(table) // run.count
    last = table[0] if run.options.get('set_alpha_to_one') == 'False' else 1.0
    ends = ratio(np.where(to >= 0, table[np.maximum(to, 0)], last))
    eta = float(run.options['eta'])
    check(run, program(run, eta, lambda oracle, process: ddim(oracle, process, eta),  # noqa: B023
                       recordings.angle('vp'), recordings.angle_time(asked),
                       recordings.angle_time(ends)))


SIGMA_IS_TIME = from_alpha_sigma(jnp.ones_like, lambda t: t)


@pytest.mark.first(1)
@pytest.mark.parametrize('name,make', [('euler_discrete', euler), ('euler_discrete', ddim),
                                       ('euler_ancestral_discrete', ancestral)])
def test_in_the_time_sigma_euler_is_ddim_and_euler_ancestral_is_ancestral(name, make):
  program = Replay()
  runs = recordings.runs(DIFFUSERS, name)
  assert runs
  for run in runs:
    sigmas = run.arrays['sigmas']
    check(run, program(run, name, make, SIGMA_IS_TIME, sigmas[:-1], sigmas[1:]))


# -------------------------------------------------------------- score_sde


def song(curve):
  """The SDEs of Song et al. (2021): beta from 0.1 to 20 (vp), sigma from 0.01 to 50 (ve)."""
  if curve == 've':
    return from_alpha_sigma(jnp.ones_like, lambda t: 0.01 * 5000.0**t)
  integral = lambda t: 0.1 * t + 0.5 * 19.9 * t * t
  return from_alpha_sigma(lambda t: jnp.exp(-0.5 * integral(t)),
                          lambda t: jnp.sqrt(-jnp.expm1(-integral(t))))


def chain(curve, n):
  """The discrete chain of the public code's betas or sigmas: a process at the times i / n."""
  if curve == 'vp':
    squared = np.append(1.0, np.cumprod(1.0 - np.linspace(0.1 / n, 20.0 / n, n)))
    alpha, sigma = np.sqrt(squared), np.sqrt(1.0 - squared)
  else:
    alpha, sigma = np.ones(n + 1), np.append(0.0, np.geomspace(0.01, 50.0, n))

  def process(t):
    i = jnp.round(t * n).astype(int)
    a, s = jnp.asarray(alpha)[i], jnp.asarray(sigma)[i]
    unused = jnp.full_like(a, jnp.nan)
    return Level(t, 2.0 * (jnp.log(a) - jnp.log(s)), a, s, unused, unused, unused)
  return process


def of_score(score):
  """A denoiser that knows the score alone.  Where alpha = 0 it makes no guess of x: 0."""
  def denoise(z, level, cond=None):
    eps = -level.expand(z).sigma * score(z, level.t)
    alpha = level.expand(z).alpha
    rest = z - level.expand(z).sigma * eps
    return Estimate(jnp.where(alpha > 0.0, rest / jnp.where(alpha > 0.0, alpha, 1.0), 0.0), eps)
  return denoise


def exact_score(oracle, curve):
  def score(z, t):
    level = song(curve)(t)
    return -oracle(z, level).eps / level.sigma
  return score


def song_runs(predictor):
  """(run, data set, curve, probability flow, number of steps) of the runs without a corrector."""
  for run in recordings.runs(SCORE_SDE, predictor):
    data, curve, _, _, corrector, flow, n = run.path.split('/')
    if corrector == 'none':
      yield run, data, curve, flow == 'pf1', int(n[1:])


def song_times(curve, n):
  """Where the public code asks for the score: n times that include both ends."""
  meta = ast.literal_eval(str(recordings.recording(SCORE_SDE)['meta']))
  return np.linspace(1.0, meta[f'eps_{curve}'], n)


def song_replay(sampler, data, curve, starts, ends):
  """Without the last draw: the public code returns the mean of its last step."""
  arrays = recordings.recording(SCORE_SDE)
  noise = arrays[f'{data}/{curve}/pc/noise'][:len(starts)].copy()
  noise[-1] = 0.0
  z = jnp.asarray(arrays[f'{data}/{curve}/pc/x_T'])
  return jax.jit(lambda: replay(sampler, z, jnp.asarray(starts), jnp.asarray(ends), noise))()


def test_euler_maruyama_is_that_of_score_sde_whose_steps_are_longer_than_their_spacing():
  """Steps of 1 / n at times (1 - eps) / (n - 1) apart, the last from eps to below 0."""
  seen = 0
  for run, data, curve, _, n in song_runs('euler_maruyama'):
    sampler = euler_maruyama(recordings.oracle(SCORE_SDE, data), song(curve))
    starts = song_times(curve, n)
    check(run, song_replay(sampler, data, curve, starts, starts - 1.0 / n))
    seen += 1
  assert seen >= 2


@pytest.mark.long
@pytest.mark.parametrize('predictor', ['reverse_diffusion', 'ancestral_sampling'])
def test_the_predictors_of_score_sde_are_ours_on_its_chain_with_its_score(predictor):
  """Its chain has betas or sigmas of its own, and the score is asked at the SDE's times.

  With n = 20 its last beta is 1, so on `vp` its ancestral predictor divides by zero: not a number.
  """
  seen = 0
  for run, data, curve, flow, n in song_runs(predictor):
    if np.isnan(run.arrays['x']).all():
      continue
    times = song_times(curve, n)
    # The i-th level of the chain from below is asked for at the i-th time from below.
    asked = lambda t: jnp.asarray(times[::-1])[jnp.round(t * n).astype(int) - 1]  # noqa: B023
    exact = exact_score(recordings.oracle(SCORE_SDE, data), curve)
    denoise = of_score(lambda z, t: exact(z, asked(t)))  # noqa: B023
    if predictor == 'reverse_diffusion':
      sampler = reverse_diffusion(denoise, chain(curve, n), noise=not flow)
    else:
      sampler = ancestral(denoise, chain(curve, n), share=1.0 if curve == 'vp' else 0.0)
    grid = np.arange(n, -1, -1) / n
    check(run, song_replay(sampler, data, curve, grid[:-1], grid[1:]))
    seen += 1
  assert seen
