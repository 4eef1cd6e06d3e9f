"""DPM-Solver against recorded runs of the authors' code and of diffusers, in float64.

What the authors' code does otherwise than the papers, and what gives the same here:
  - its multistep solver of order 3 has half of the second derivative: second_difference=1;
  - it lowers the last orders below 10 steps, where its comments say 15: lower_order_below=10;
  - `denoise_to_zero` is one more step, to sigma = 0, but not one of those that lowering counts;
  - the adaptive solver rounds the factor of a step's length to float32.

And diffusers:
  - second_difference=1 and lower_order_below=15; inner points of its singlestep solver are points
    of the grid, and solver_type applies to them too: `inner`;
  - a grid that ends with sigma_min twice has a last step of no length, which counts as a step and
    in the singlestep solver may correct z.  Here it would be padding, so it is made one rounding
    long.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax.processes import GaussianProcess, from_alpha_sigma
from vdm_jax.samplers import ddim, sample
from vdm_jax.samplers.dpm_solver import dpm_solver_fast, dpm_solver_multistep, fast_times
from vdm_jax.samplers.dpm_solver_adaptive import dpm_solver_adaptive
from vdm_jax.schedules import BetaLinear, linear_betas

pytestmark = pytest.mark.usefixtures('x64')

AUTHORS, DIFFUSERS = 'dpm_solver_gaussian', 'diffusers_gaussian'
ESTIMATE = {'dpmsolver': 'eps', 'dpmsolver++': 'x', 'sde-dpmsolver': 'eps', 'sde-dpmsolver++': 'x'}
SOLVER_TYPE = {'midpoint': 'dpmsolver', 'heun': 'taylor'}


def process(schedule):
  """In their time: beta from 0.1 to 20, the chain of Ho et al., the cosine of offset 0.008."""
  if schedule == 'linear':
    return GaussianProcess(BetaLinear(0.1, 20.0, t_min=0.0))
  if schedule == 'discrete':  # log alpha is linear between entries, where our tables have logsnr
    # Before the first entry, at t = 1 / 1000, theirs goes on to an alpha above 1; here t = 0 is
    # clean data.
    logs = jnp.asarray(np.append(0.0, 0.5 * np.cumsum(np.log1p(-linear_betas()))))

    def log_alpha(t):
      i = jnp.clip(jnp.floor(1000.0 * t).astype(int), 0, 999)
      return logs[i] + (1000.0 * t - i) * (logs[i + 1] - logs[i])
    return from_alpha_sigma(lambda t: jnp.exp(log_alpha(t)),
                            lambda t: jnp.sqrt(-jnp.expm1(2.0 * log_alpha(t))))
  s = 0.008
  alpha = lambda t: jnp.cos(0.5 * jnp.pi * (t + s) / (1 + s)) / np.cos(0.5 * np.pi * s / (1 + s))
  return from_alpha_sigma(alpha, lambda t: jnp.sqrt(1.0 - alpha(t)**2))


def pad(array, length):
  return np.concatenate([array, np.repeat(array[-1:], length - len(array), axis=0)])


@functools.cache
def authors(algorithm):
  """(run, data, schedule, method, order, skip, solver_type) of the runs we have a process for."""
  out = []
  for run in recordings.runs(AUTHORS, algorithm):
    data, schedule, of, method, *rest = run.path.split('/')
    if of == algorithm and schedule in ('linear', 'cosine', 'discrete'):
      method, order = method.split('-')
      skip = rest[0] if method != 'adaptive' else None
      out.append((run, data, schedule, method, int(order), skip, rest[method != 'adaptive']))
  return out


def end_of(data, schedule):
  return recordings.recording(AUTHORS)[f'{data}/{schedule}/t_T_t_0'][1]


def start_of(data):
  return jnp.asarray(recordings.recording(AUTHORS)[f'{data}/x_T'])


@functools.cache
def program(data, schedule, algorithm, multistep, order, solver_type):
  """(times, option) -> z.  One for all runs that differ in numbers alone."""
  model, curve, of = recordings.oracle(AUTHORS, data), process(schedule), ESTIMATE[algorithm]
  z = start_of(data)
  keys = jax.random.split(jax.random.key(0), len(z))
  if multistep:
    make = lambda below: dpm_solver_multistep(model, curve, order, of, solver_type=solver_type,
                                              lower_order_below=below, second_difference=1.0)
  else:
    make = lambda split: dpm_solver_fast(model, curve, order, of, solver_type, split)
  return jax.jit(lambda times, option: sample(make(option), keys, z, times))


def solve(data, schedule, algorithm, multistep, order, solver_type, times, option):
  length = 1 + max(len(run.arrays['t_eval']) for run, *_ in authors(algorithm))
  return program(data, schedule, algorithm, multistep, order, solver_type)(
      pad(np.asarray(times), length), option)


@pytest.mark.long
@pytest.mark.parametrize('algorithm,wanted', [
    ('dpmsolver', 'taylor'), ('dpmsolver++', 'dpmsolver'),
    ('dpmsolver', 'dpmsolver'),
    ('dpmsolver++', 'taylor')])
def test_the_runs_of_the_authors_are_reproduced(algorithm, wanted):
  @functools.cache
  def to_zero(data, schedule):
    step = ddim(recordings.oracle(AUTHORS, data), process(schedule)).step
    return jax.jit(lambda z, t: step(None, z, t, jnp.zeros_like(t), None))

  compared = 0
  for run, data, schedule, method, order, _, solver_type in authors(algorithm):
    if method == 'adaptive' or solver_type != wanted:
      continue
    multistep, end, called = method == 'multistep', end_of(data, schedule), run.arrays['t_eval']
    to_the_data = run.path.endswith('/d2z')
    option = 10 * ('/lof0' not in run.path) if multistep else method == 'singlestep' and order == 3
    times = np.append(called[:-1] if to_the_data else called, end)
    got = solve(data, schedule, algorithm, multistep, order, solver_type, times, option)
    if to_the_data:
      got = to_zero(data, schedule)(got, end)
    np.testing.assert_allclose(got, run.arrays['x'], atol=1e-8, rtol=0, err_msg=run.path)
    compared += 1
  assert compared


def test_denoising_to_zero_is_one_more_point_of_the_grid():
  """At 10 steps and more, where their code lowers no order at the end."""
  compared = 0
  for run, data, schedule, method, order, _, solver_type in authors('dpmsolver++'):
    if method == 'multistep' and run.path.endswith('/d2z') and run.count >= 10:
      got = solve(data, schedule, 'dpmsolver++', True, order, solver_type,
                  np.append(run.arrays['t_eval'], 0.0), 10)
      np.testing.assert_allclose(got, run.arrays['x'], atol=1e-8, rtol=0)
      compared += 1
  assert compared


def test_the_grid_of_the_fast_schedule_is_the_times_at_which_the_authors_call_the_network():
  wanted = {}
  for algorithm in ('dpmsolver', 'dpmsolver++'):
    for run, data, schedule, method, order, skip, _ in authors(algorithm):
      if skip == 'logSNR' and method == 'singlestep' and order > 1:
        wanted[schedule, order, run.count, end_of(data, schedule)] = run.arrays['t_eval']
  got = jax.jit(lambda: [fast_times(process(schedule), n, order, order == 3, times[0], end)
                         for (schedule, order, n, end), times in wanted.items()])()
  for grid, (key, times) in zip(got, wanted.items(), strict=True):
    np.testing.assert_allclose(grid, np.append(times, key[-1]), atol=1e-9)
  assert wanted


@pytest.mark.long
@pytest.mark.parametrize('algorithm,wanted', [
    ('dpmsolver', 'dpmsolver'), ('dpmsolver', 'taylor'), ('dpmsolver++', 'taylor'),
    ('dpmsolver++', 'dpmsolver')])
def test_the_adaptive_runs_of_the_authors_take_the_same_steps(algorithm, wanted):
  """Up to 1e-7: theirs rounds the factor of a step's length to float32 (with that, 2e-13)."""
  compared = 0
  for run, data, schedule, method, order, _, solver_type in authors(algorithm):
    if (method, solver_type) == ('adaptive', wanted):
      adaptive = jax.jit(functools.partial(
          dpm_solver_adaptive, recordings.oracle(AUTHORS, data), process(schedule), order=order,
          of=ESTIMATE[algorithm], solver_type=solver_type, start=run.arrays['t_eval'][0],
          end=end_of(data, schedule)))
      got = adaptive(start_of(data))
      assert got.reached and got.evaluations == len(run.arrays['t_eval'])
      np.testing.assert_allclose(got.z, run.arrays['x'], atol=1e-7, rtol=0, err_msg=run.path)
      compared += 1
  assert compared


@pytest.mark.long
def test_along_the_steps_that_the_authors_took_the_adaptive_runs_are_the_same_to_rounding():
  runs = [(algorithm, *rest) for algorithm in ('dpmsolver', 'dpmsolver++')
          for rest in authors(algorithm) if rest[3] == 'adaptive']
  for algorithm, run, data, schedule, _, order, _, solver_type in runs:
    tried = run.arrays['t_eval'].reshape(-1, order)
    taken = np.append(tried[1:, 0] != tried[:-1, 0], True)
    times = np.append(tried[taken].ravel(), end_of(data, schedule))
    got = solve(data, schedule, algorithm, False, order, solver_type, times, False)
    np.testing.assert_allclose(got, run.arrays['x'], atol=1e-8, rtol=0, err_msg=run.path)
  assert runs


@pytest.mark.long
@pytest.mark.parametrize(
    'scheduler', ['dpmsolver_multistep', 'dpmsolver_singlestep', 'edm_dpmsolver_multistep'])
def test_the_runs_of_diffusers_are_reproduced(scheduler):
  runs = recordings.runs(DIFFUSERS, scheduler)
  length = max(run.count for run in runs)
  curve = recordings.angle('ve' if scheduler.startswith('edm') else 'vp')

  @functools.cache
  def program(data, algorithm, order, solver_type):
    model, of = recordings.oracle(DIFFUSERS, data), ESTIMATE[algorithm]
    if 'singlestep' in scheduler:
      make = lambda *_: dpm_solver_fast(model, curve, order, of, solver_type, inner=solver_type)
    else:
      make = lambda below, euler: dpm_solver_multistep(
          model, curve, order, of, sde=algorithm.startswith('sde'), solver_type=solver_type,
          lower_order_below=below, euler_at_final=euler, second_difference=1.0)
    return jax.jit(
        lambda z, times, noise, *option: recordings.replay(make(*option), z, times, noise))

  for run in runs:
    data, option = recordings.data_set(run.path), run.options.get
    ratio = np.append(run.arrays['ve_sigma_eval'], run.arrays['sigmas'][-1])
    times = recordings.angle_time(ratio)
    if times[-1] == times[-2]:
      times[-1] = np.nextafter(times[-1], 0.0)
    drawn = int(run.arrays['n_noise'])
    noise = np.zeros((length, 1, *run.arrays['x'].shape))
    noise[:drawn, 0] = recordings.recording(DIFFUSERS)[f'noise/{data}'][:drawn]
    below = 0 if option('lower_order_final') == 'False' else 15
    got = program(data, option('algorithm_type', 'dpmsolver++'), int(option('solver_order', 2)),
                  SOLVER_TYPE[option('solver_type', 'midpoint')])(
        jnp.asarray(run.arrays['x_init']), jnp.asarray(pad(times, length + 1)), noise, below,
        option('euler_at_final') == 'True')
    np.testing.assert_allclose(got, run.arrays['x'], atol=1e-8, rtol=0, err_msg=run.path)
  assert runs
