"""DPM-Solver: orders of convergence, identities, end points and adaptive steps."""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from tests.support import recordings
from tests.support.sampling import MIXTURE, grids, on_grids, quantile_map, rectified_flow
from vdm_jax import oracles, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import ancestral, ddim, encode, sample
from vdm_jax.samplers.dpm_solver import (
    dpm_solver,
    dpm_solver_fast,
    dpm_solver_multistep,
    fast_times,
    phi,
)
from vdm_jax.samplers.dpm_solver_adaptive import dpm_solver_adaptive
from vdm_jax.samplers.grids import stable_diffusion_dpm, warm_up

pytestmark = pytest.mark.usefixtures('x64')

PROCESS = GaussianProcess(schedules.Linear(3.0, -2.5))
KEYS = jax.random.split(jax.random.key(0), 8)


def mixture():
  weights, means, stds = map(jnp.array, MIXTURE)
  return oracles.Mixture(weights, means[:, None], stds)


@functools.cache
def exact():
  z = np.linspace(-2.0, 2.0, 8)[:, None]
  return z, quantile_map(z, PROCESS(jnp.ones(())), PROCESS(jnp.zeros(())))


def slopes(make, lengths, **options):
  """log2 of the ratios of the errors at these numbers of steps, each twice the one before."""
  z, target = exact()
  times = grids(lengths)
  if make is dpm_solver_multistep and options['order'] == 3:
    times = jax.vmap(lambda t: warm_up(t, 3))(times)
  sampler = make(mixture(), PROCESS, **options)
  run = jax.jit(jax.vmap(lambda times: sample(sampler, KEYS, jnp.asarray(z), times)))
  error = np.sqrt(np.mean((run(times) - target)**2, axis=(1, 2)))
  return np.log2(error[:-1] / error[1:])


def cases(usual, long):
  return usual + [pytest.param(*case, marks=pytest.mark.long) for case in long]


@pytest.mark.long
@pytest.mark.parametrize('make,order,of,solver_type', cases(
    [(dpm_solver, 3, 'eps', 'dpmsolver'), (dpm_solver_multistep, 2, 'x', 'dpmsolver'),
     (dpm_solver_multistep, 3, 'x', 'dpmsolver')],
    [(dpm_solver, 1, 'eps', 'dpmsolver'), (dpm_solver, 2, 'eps', 'dpmsolver'),
     (dpm_solver, 2, 'eps', 'taylor'), (dpm_solver, 2, 'x', 'dpmsolver'),
     (dpm_solver, 2, 'x', 'taylor'), (dpm_solver, 3, 'eps', 'taylor'),
     (dpm_solver, 3, 'x', 'dpmsolver'), (dpm_solver, 3, 'x', 'taylor'),
     (dpm_solver_multistep, 2, 'x', 'taylor'), (dpm_solver_multistep, 2, 'eps', 'dpmsolver'),
     (dpm_solver_multistep, 2, 'eps', 'taylor'), (dpm_solver_multistep, 3, 'eps', 'dpmsolver')]))
def test_the_order_of_convergence_is_the_published_one(make, order, of, solver_type):
  lengths = [80, 160, 320] if (make, order) == (dpm_solver, 3) else [160, 320, 640]
  got = slopes(make, lengths, order=order, of=of, solver_type=solver_type)
  np.testing.assert_allclose(got, order, atol=0.08)


@pytest.mark.long
@pytest.mark.parametrize('split,order', cases([(True, 2)], [(False, 3)]))
def test_the_fast_schedule_ends_in_a_first_order_step_and_has_order_two_then(split, order):
  """Where evaluations are a multiple of three: 3, ..., 3, 2, 1; else 3, ..., 3."""
  got = slopes(dpm_solver_fast, [168, 336, 672], order=3, lower_order_final=split)
  np.testing.assert_allclose(got, order, atol=0.06)


@pytest.mark.long
def test_half_of_the_second_derivative_as_in_public_code_makes_the_third_order_method_a_second():
  got = slopes(dpm_solver_multistep, [160, 320, 640], order=3, of='eps', second_difference=1.0)
  np.testing.assert_allclose(got, 2.0, atol=0.04)


@pytest.mark.long
def test_order_one_is_ddim_and_with_noise_ancestral():
  oracle, z = oracles.Gaussian(0.7, 0.4), jnp.linspace(-2.0, 2.0, 8)[:, None]
  ones = [make(oracle, PROCESS, order=1) for make in (dpm_solver, dpm_solver_fast)]
  ones += [dpm_solver_multistep(oracle, PROCESS, order=1, of=of) for of in ('x', 'eps')]
  noisy = dpm_solver_multistep(oracle, PROCESS, order=1, sde=True)

  @jax.jit
  def run():
    at_once = lambda sampler: sample(sampler, KEYS, z, jnp.linspace(1.0, 0.0, 6))
    return (at_once(ddim(oracle, PROCESS)), jnp.stack([at_once(one) for one in ones]),
            at_once(ancestral(oracle, PROCESS)), at_once(noisy))

  plain, same, drawn, also = run()
  np.testing.assert_allclose(same, jnp.broadcast_to(plain, same.shape), atol=1e-12)
  np.testing.assert_allclose(also, drawn, atol=1e-12)


def variance_error(lengths, **options):
  """Error of the standard deviation at t = 0 for Gaussian data, without sampling.

  A chain is linear in its start and its draws: row j of the batch has the j-th of them alone.
  """
  oracle = oracles.Gaussian(0.0, 0.5)
  std = lambda level: jnp.hypot(0.5 * level.alpha, level.sigma)
  longest = max(lengths)
  z = jnp.zeros((longest + 1, 1)).at[0].set(std(PROCESS(jnp.ones(()))))
  draws = jnp.eye(longest, longest + 1, k=1)[:, None, :, None]
  sampler = dpm_solver_multistep(oracle, PROCESS, sde=True, **options)
  run = jax.jit(lambda times: recordings.replay(sampler, z, times, draws))
  got = np.array([np.sqrt(np.sum(np.square(run(times)))) for times in grids(lengths)])
  return got - float(std(PROCESS(jnp.zeros(()))))


@pytest.mark.long
@pytest.mark.parametrize('order,solver_type,of', cases(
    [(2, 'taylor', 'x'), (2, 'dpmsolver', 'eps')],
    [(1, 'taylor', 'x'), (1, 'taylor', 'eps'), (2, 'dpmsolver', 'x'), (2, 'taylor', 'eps')]))
def test_the_spread_of_the_sde_variants_converges_with_their_order(order, solver_type, of):
  error = variance_error([80, 160, 320], order=order, solver_type=solver_type, of=of)
  np.testing.assert_allclose(np.log2(error[:-1] / error[1:]), order, atol=0.12)
  assert abs(error[-1]) < 0.01**order * 3


def of(make, order, of, **options):
  return functools.partial(make, order=order, of=of, **options)


FLOWS = [of(dpm_solver, 3, 'x'), of(dpm_solver_fast, 3, 'eps'), of(dpm_solver_multistep, 3, 'x')]
NOISY = [of(dpm_solver_multistep, 2, 'eps', sde=True)]
MORE = [of(dpm_solver, 2, 'eps'), of(dpm_solver_fast, 2, 'x'), of(dpm_solver_multistep, 2, 'eps'),
        of(dpm_solver_multistep, 2, 'x', sde=True)]


@pytest.mark.long
def test_rectified_flow_is_better_than_of_the_first_order():
  """Gaussian data, where the exact map from t = 1 to 0 is z -> m + s z."""
  oracle, z = oracles.Gaussian(0.7, 0.4), jnp.linspace(-2.0, 2.0, 5)[:, None]
  error = lambda sampler: np.abs(on_grids(sampler, z, [60]) - (0.7 + 0.4 * z)).max()
  first = error(ddim(oracle, rectified_flow()))
  for make in FLOWS[::2]:
    assert error(make(oracle, rectified_flow())) < 0.2 * first


@pytest.mark.long
def test_a_time_that_is_repeated_begins_a_multistep_history_anew():
  oracle, z = oracles.Gaussian(0.7, 0.4), jnp.linspace(-2.0, 2.0, 8)[:, None]
  times = jnp.sort(jnp.append(jnp.linspace(1.0, 0.0, 81), 0.5))[::-1]
  sampler = dpm_solver_multistep(oracle, PROCESS, order=3)
  got = jax.jit(lambda: sample(sampler, KEYS, z, times))()
  want = oracle.flow_map(z, PROCESS(jnp.ones(())), PROCESS(jnp.zeros(())))
  np.testing.assert_allclose(got, want, atol=1e-4)


@pytest.mark.parametrize('make', FLOWS + NOISY + MORE)
def test_the_evaluations_of_a_step_are_counted_and_float32_stays(make):
  calls, oracle = [], oracles.Gaussian(0.7, 0.4)
  sampler = make(lambda z, level: calls.append(1) or oracle(z, level), PROCESS)
  times = jax.ShapeDtypeStruct((7,), jnp.float32)

  def first_step(times):
    row = jax.tree.map(lambda a: a[0], sampler.plan(times))
    return sampler.step(KEYS, sampler.init(jnp.zeros((8, 1), times.dtype)), *times[:2], row)

  state = jax.eval_shape(first_step, times)
  assert len(calls) == sampler.evaluations
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype('float32')}


def test_the_grid_of_the_fast_schedule_has_as_many_steps_as_evaluations_are_asked_for():
  grids = jax.jit(lambda: {n: fast_times(PROCESS, n) for n in (3, 8, 9)})()
  for n, times in grids.items():
    assert times.shape == (n + 1,) and np.all(np.diff(times) < 0.0)
    assert (times[0], times[-1]) == (1.0, 0.0)
  # Nine evaluations: steps of 3, 3, 2 and 1, of equal length; in t too, as logsnr is linear in it.
  np.testing.assert_allclose(1.0 - times, np.array([0, 1, 2, 3, 4, 5, 6, 7.5, 9, 12]) / 12,
                             atol=1e-12)


def test_a_deterministic_sampler_run_upwards_encodes_data_as_noise():
  z, x = exact()
  sampler = dpm_solver_multistep(mixture(), PROCESS)
  got = jax.jit(lambda: encode(sampler, KEYS, jnp.asarray(x), np.linspace(0.0, 1.0, 201)))()
  np.testing.assert_allclose(got, z, atol=2e-3)


@pytest.mark.first(1)
@pytest.mark.parametrize('dtype', [np.float32, np.float64])
def test_phi_is_its_integral_at_every_size_of_step(dtype):
  """phi_k(h) = int_0^1 e^((1 - u) h) u^(k - 1) / (k - 1)! du."""
  h = np.array([-30.0, -2.0, -0.999, -1e-3, -1e-7, 0.0, 1e-7, 1e-2, 0.7, 1.01, 12.0])
  for k, got in enumerate(phi(jnp.asarray(h, dtype)), start=1):
    over = lambda u, a, k=k: np.exp((1.0 - u) * a) * u**(k - 1) / max(k - 1, 1)
    want = [integrate.quad(over, 0.0, 1.0, args=(a,), epsabs=0.0, epsrel=1e-13)[0] for a in h]
    assert got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=4e-6 if dtype == np.float32 else 1e-12)


@pytest.mark.long
@pytest.mark.parametrize('order,of', cases([(3, 'eps')], [(2, 'x')]))
def test_adaptive_steps_keep_the_error_near_the_tolerance_by_as_many_steps_as_it_takes(order, of):
  z, target = exact()
  run = jax.jit(lambda tolerance: dpm_solver_adaptive(mixture(), PROCESS, jnp.asarray(z), order, of,
                                                      atol=tolerance, rtol=tolerance))
  coarse, fine = run(1e-3), run(1e-5)
  assert coarse.reached and fine.reached
  assert np.abs(coarse.z - target).max() < 1e-2 and np.abs(fine.z - target).max() < 1e-4
  # E grows like h^order: a hundredth of the tolerance takes 100^(1 / order) times the steps.
  growth = fine.accepted / coarse.accepted
  assert 0.5 < growth / 100**(1 / order) < 2.0
  assert fine.evaluations == order * (fine.accepted + fine.rejected)


@pytest.mark.long
def test_adaptive_steps_are_those_of_the_hardest_example_unless_each_is_on_its_own():
  z, _ = exact()
  solve = lambda z: dpm_solver_adaptive(mixture(), PROCESS, z, atol=1e-4, rtol=1e-4)
  together = jax.jit(solve)(jnp.asarray(z))
  alone = jax.jit(jax.vmap(solve))(jnp.asarray(z)[:, None])
  assert together.evaluations >= np.max(alone.evaluations) > np.min(alone.evaluations)


def test_bad_input_is_named():
  model = mixture()
  for make in (dpm_solver, dpm_solver_fast, dpm_solver_multistep):
    for option in ({'order': 4}, {'of': 'v'}, {'solver_type': 'heun'}):
      with pytest.raises(InputError, match=next(iter(option))):
        make(model, PROCESS, **option)
  with pytest.raises(InputError, match='evaluations=2: .*order 3 needs 3'):
    fast_times(PROCESS, 2)
  with pytest.raises(InputError, match='infinite'):
    fast_times(rectified_flow(), 9)
  z, times = jnp.zeros((8, 1)), np.array([1.0, 0.5, 0.0, 0.0])
  for make in (dpm_solver_fast, dpm_solver_multistep):
    with pytest.raises(InputError, match=f'^steps=2: {make.__name__} of order 3 needs at least 3; '
                                         'give more steps or times'):
      sample(make(model, PROCESS, order=3), KEYS, z, times)
  with pytest.raises(InputError, match='order=1: '):
    dpm_solver_adaptive(model, PROCESS, z, order=1)
  with pytest.raises(InputError, match='logsnr is infinite'):
    dpm_solver_adaptive(model, rectified_flow(), z)


@pytest.mark.long
def test_an_adaptive_run_that_does_not_arrive_says_where_it_stopped():
  oracle, z = oracles.Gaussian(0.7, 0.4), jnp.ones((2, 1))
  broken = lambda z, level: jax.tree.map(lambda a: jnp.where(level.logsnr > 1.0, jnp.nan, a),
                                         oracle(z, level))
  with pytest.raises(InputError, match='loosen atol and rtol, raise attempts'):
    dpm_solver_adaptive(broken, PROCESS, z)
  solve = lambda denoise, attempts: jax.jit(lambda z: dpm_solver_adaptive(
      denoise, PROCESS, z, attempts=attempts))(z)
  for got in (solve(broken, 1000), solve(oracle, 1)):  # no error can be raised there
    assert not got.reached and np.isnan(got.z).all()


def published_2m(x_hat, log_alphas, n, z):
  """Of the public code of Stable Diffusion (CompVis/stable-diffusion): DPM-Solver++, multistep.

  log_alphas: of the levels 1 / 1000 ... 1, between which the code interpolates.
  """
  t = np.linspace(1.0, 1 / 1000, n + 1)
  log_alpha = np.interp(t, np.arange(1, 1001) / 1000, log_alphas)
  alpha, sigma = np.exp(log_alpha), np.sqrt(-np.expm1(2.0 * log_alpha))
  lam, before = log_alpha - np.log(sigma), None
  for i in range(n):
    h, now = lam[i + 1] - lam[i], x_hat(z, alpha[i], sigma[i])
    d = now
    if before is not None:
      d = now + 0.5 * h / (lam[i] - lam[i - 1]) * (now - before)
    z, before = sigma[i + 1] / sigma[i] * z - alpha[i + 1] * np.expm1(-h) * d, now
  return z


@pytest.mark.parametrize('n, tolerance', [(27, 1e-12), (20, 1e-5)])
def test_its_steps_are_those_of_the_public_code_of_stable_diffusion(n, tolerance):
  """With 27 steps all times are levels.  With 20, the code interpolates another function."""
  mean, std = 0.4, 0.6
  alphas = np.cumprod(1.0 - np.linspace(0.00085**0.5, 0.012**0.5, 1000)**2)
  process = GaussianProcess(schedules.TableSchedule.from_alphas(alphas))
  z = np.linspace(-2.0, 2.0, 8)[:, None]

  def x_hat(z, alpha, sigma):
    return mean + alpha * std**2 * (z - alpha * mean) / (alpha**2 * std**2 + sigma**2)

  sampler = dpm_solver_multistep(oracles.Gaussian(mean, std), process)
  got = jax.jit(lambda z: sample(sampler, KEYS, z, stable_diffusion_dpm(n)))(z)
  difference = np.abs(got - published_2m(x_hat, 0.5 * np.log(alphas), n, z)).max() / std
  assert difference < tolerance
