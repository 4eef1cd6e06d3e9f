"""Noise and the way back, against the closed forms of Gaussian data, mixtures and a recording."""
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import oracles, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, from_alpha_sigma, time_of
from vdm_jax.samplers import ancestral, around, ddim, grids, heun, sample
from vdm_jax.samplers.euler import euler_maruyama

pytestmark = pytest.mark.usefixtures('x64')

PROCESS = GaussianProcess(schedules.Linear(14.0, -6.0))
MEAN, STD = 0.3, 0.5
DATA = oracles.Gaussian(MEAN, STD)
KEPT = {4.0: 0.931738, 2.0: 0.648786, 0.0: 0.2, -2.0: 0.032727}  # k by log-SNR, for this std
VP = GaussianProcess(schedules.BetaLinear(t_min=0.0))  # beta from 0.1 to 20


def keys_of(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


@pytest.mark.long
@pytest.mark.parametrize('make, power', [(ancestral, 1.0), (heun, 0.5)])
def test_data_come_back_by_the_law_of_k_and_stay_data(make, power):
  n = 20_000
  x = MEAN + STD * np.random.default_rng(0).standard_normal((n, 1))
  run = jax.jit(lambda times: around.around(make(DATA, PROCESS), PROCESS, keys_of(n), x, times)
                / PROCESS(0.0).alpha)
  for logsnr, k in KEPT.items():
    k = k**power
    back = np.asarray(run(np.linspace(float(time_of(PROCESS, logsnr)), 0.0, 301)))
    around_line = back - (MEAN + k * (x - MEAN))
    rest = STD**2 * (1.0 - k**2)
    # Four standard errors, and an error of the steps.
    assert abs(around_line.mean()) < 4 * (rest / n)**0.5 + 0.002
    assert abs(np.mean(around_line * (x - MEAN)) / STD**2) < 4 * (rest / n)**0.5 / STD + 0.005
    assert abs(around_line.var() - rest) < 4 * rest * (2 / n)**0.5 + 0.003
    moved = (back - x)**2
    assert abs(moved.mean() - 2 * STD**2 * (1.0 - k)) < 4 * moved.std() / n**0.5 + 0.004
    assert abs(back.mean() - MEAN) < 4 * STD / n**0.5 + 0.002
    assert abs(back.var() - STD**2) < 4 * STD**2 * (2 / n)**0.5 + 0.004


@pytest.mark.parametrize('make, power', [(ancestral, 1.0), (ddim, 0.5)])
def test_the_gradient_through_all_steps_is_k_or_its_root(make, power):
  times = np.linspace(float(time_of(PROCESS, 0.0)), 0.0, 401)
  x = jnp.array([[-1.0], [0.7]])
  back = lambda x: around.around(make(DATA, PROCESS), PROCESS, keys_of(2), x, times)
  slope = jax.jit(jax.grad(lambda x: back(x).sum()))(x) / PROCESS(0.0).alpha
  np.testing.assert_allclose(slope, 0.2**power, atol=3e-3)


@pytest.mark.long
def test_the_gradient_keeps_a_state_a_step_and_nothing_of_the_network():
  wide = jnp.ones((1, 256))

  def denoise(z, level, cond=None):
    hidden = jnp.tanh(jnp.sin(z @ wide)) @ wide.T / 256
    return DATA(z, level)._replace(x=hidden)

  def bytes_of(sampler, steps):
    times = np.linspace(0.5, 0.1, steps + 1)

    loss = lambda z: sample(sampler, keys_of(64), z, times).sum()
    lowered = jax.jit(jax.grad(loss)).lower(jnp.ones((64, 1)))
    return lowered.compile().memory_analysis().temp_size_in_bytes

  state, sampler = 64 * 8, ddim(denoise, PROCESS)
  grown = lambda sampler: (bytes_of(sampler, 60) - bytes_of(sampler, 20)) / 40
  assert grown(around.checkpointed(sampler)) < 3 * state
  assert grown(sampler) > 200 * state


@pytest.mark.long
def test_a_gradient_takes_two_evaluations_and_one_product_in_a_step():
  counts = {'evaluation': 0, 'product': 0}

  def count(name, value):
    counts[name] += 1
    return np.asarray(value)

  @jax.custom_vjp
  def x_hat(z):
    return jax.pure_callback(lambda z: count('evaluation', np.tanh(z)), z, z)

  def forward(z):
    h = x_hat(z)
    return h, h

  def backward(h, g):
    return (jax.pure_callback(lambda g, h: count('product', g * (1.0 - h**2)), g, g, h),)

  x_hat.defvjp(forward, backward)
  denoise = lambda z, level, cond=None: DATA(z, level)._replace(x=x_hat(z))
  back = lambda x: around.around(ancestral(denoise, PROCESS), PROCESS, keys_of(1), x,
                                 np.linspace(0.5, 0.0, 8)).sum()
  jax.block_until_ready(jax.jit(jax.grad(back))(jnp.ones((1, 1))))
  assert counts == {'evaluation': 14, 'product': 7}


# ---------------------------------------------------------------------------- the adjoint


@pytest.mark.long
@pytest.mark.parametrize('noise', [False, True])
def test_the_adjoint_of_gaussian_data_has_the_gradient_of_the_exact_solution(noise):
  """Exact: cov(z_s, z_t) / var(z_t) of the SDE, the ratio of standard deviations of the flow."""
  start, end = 0.7, 0.1
  at_t, at_s = PROCESS(start), PROCESS(end)
  var = lambda level: level.alpha**2 * STD**2 + level.sigma**2
  exact = (at_t.alpha / at_s.alpha * var(at_s) / var(at_t) if noise else
           jnp.sqrt(var(at_s) / var(at_t)))
  z = jnp.array([[-1.0], [0.7]])

  @jax.jit
  def slope(z):
    return jax.grad(lambda z: around.adjoint(
        DATA, PROCESS, keys_of(2), z, start, end, 200, noise=noise).sum())(z)
  np.testing.assert_allclose(slope(z), float(exact), rtol=2e-3)


@pytest.mark.long
def test_the_adjoint_solves_the_reverse_sde_and_each_example_has_its_own_noise():
  start, end, n = 0.7, 0.1, 4000
  at_t, at_s = PROCESS(start), PROCESS(end)
  run = jax.jit(lambda keys, z: around.adjoint(DATA, PROCESS, keys, z, start, end, 100))
  z = np.asarray(run(keys_of(n), jnp.full((n, 2), 0.4)))
  var = lambda level: float(level.alpha**2 * STD**2 + level.sigma**2)
  gain = float(at_t.alpha / at_s.alpha) * var(at_s) / var(at_t)
  mean = float(at_s.alpha) * MEAN + gain * (0.4 - float(at_t.alpha) * MEAN)
  rest = var(at_s) - gain**2 * var(at_t)
  assert np.all(np.abs(z.mean(axis=0) - mean) < 4 * (rest / n)**0.5 + 0.005)
  assert np.all(np.abs(z.var(axis=0) - rest) < 4 * rest * (2 / n)**0.5 + 0.01 * rest)
  assert abs(np.corrcoef(z.T)[0, 1]) < 4 / n**0.5
  alone = run(keys_of(n)[5:6], jnp.full((1, 2), 0.4))
  np.testing.assert_allclose(alone[0], z[5], rtol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize('noise', [True, False])
def test_the_adjoint_of_a_mixture_is_the_slope_of_its_own_solution(noise):
  data = oracles.Mixture(jnp.array([0.4, 0.6]), jnp.array([[-0.8], [0.6]]), jnp.array([0.15, 0.3]))
  keys = keys_of(1)

  @jax.jit
  def of(z):
    solve = lambda z: around.adjoint(data, PROCESS, keys, z, 0.6, 0.2, 400, noise=noise).sum()
    h = 1e-5
    return jax.grad(solve)(z), (solve(z + h) - solve(z - h)) / (2 * h)
  got, want = of(jnp.array([[0.1]]))
  np.testing.assert_allclose(got[0, 0], want, rtol=0.01)


# ---------------------------------------------------------------------------- distances


@pytest.mark.long
@pytest.mark.parametrize('make, noise', [(ancestral, True), (heun, False)])
def test_the_chosen_distance_comes_out(make, noise):
  n = 20_000
  x = MEAN + STD * np.random.default_rng(1).standard_normal((n, 1))
  run = jax.jit(lambda times: around.around(make(DATA, PROCESS), PROCESS, keys_of(n, 1), x, times)
                / PROCESS(0.0).alpha)
  for distance in (0.1, 0.4, 0.6):
    t = around.time_at(PROCESS, distance, STD, noise=noise)
    moved = (np.asarray(run(np.linspace(t, 0.0, 301))) - x)**2
    assert abs(moved.mean() - distance**2) < 4 * moved.std() / n**0.5 + 0.004


# ---------------------------------------------------------------------------- purification

# The accuracy of sign(x1 + 20 x2) on data of the class x1 = +-1, x2 = 0 with deviations 0.3 and
# 0.02, x2 shifted by -0.1 for the class +1, after an exact reverse SDE from t*.
ACCURACIES = {0.0025: 0.40267, 0.005: 0.72824, 0.01: 0.90863, 0.02: 0.95983, 0.05: 0.97299,
              0.1: 0.96051, 0.2: 0.84378, 0.5: 0.53836}


@pytest.mark.long
def test_purified_accuracy_follows_the_closed_form():
  n = 10_000
  data = oracles.Mixture(jnp.array([0.5, 0.5]), jnp.array([[1.0, 0.0], [-1.0, 0.0]]),
                         jnp.array([[0.3, 0.02], [0.3, 0.02]]))
  draws = np.random.default_rng(0).standard_normal((n, 2))
  x = np.array([1.0, 0.0]) + np.array([0.3, 0.02]) * draws
  shift = np.array([0.0, -0.1])
  right = lambda x: np.mean(np.asarray(x) @ np.array([1.0, 20.0]) > 0.0)
  se = lambda p: 4 * (p * (1 - p) / n)**0.5
  assert abs(right(x + shift) - 0.02275) < se(0.02275) and abs(right(x) - 0.97725) < se(0.97725)
  run = jax.jit(lambda x, times: around.around(ancestral(data, VP), VP, keys_of(n), x, times))
  for t, accuracy in ACCURACIES.items():
    back = run(x + shift, t * grids.quadratic(150))
    assert abs(right(back) - accuracy) < se(accuracy) + 0.004, t
  for t, accuracy in {0.05: 0.97595, 0.5: 0.53837}.items():
    assert abs(right(run(x, t * grids.quadratic(150))) - accuracy) < se(accuracy) + 0.004


@pytest.mark.long
@pytest.mark.parametrize('means, table', [
    ([1.0], {0.0: 1.388889, 0.05: 1.038847, 0.1: 0.607622, 0.2: 0.205281, 0.3: 0.077489}),
    ([1.0, -1.0], {0.0: 1.353115, 0.05: 0.988728, 0.1: 0.536296, 0.2: 0.132154, 0.3: 0.030517})])
def test_noise_brings_attacked_data_nearer_to_clean_data_as_tabulated(means, table):
  """KL(attacked_t || clean_t) by quadrature; the attack moves every class by 0.5 towards 0."""
  of = lambda shift: oracles.Mixture(
      jnp.full(len(means), 1.0 / len(means)), jnp.array(means)[:, None] * (1.0 - shift),
      jnp.full(len(means), 0.3))
  z = jnp.linspace(-8.0, 8.0, 8001)[:, None]
  last = np.inf
  for t, want in table.items():
    level = VP(jnp.full(1, t))
    attacked, clean = (np.asarray(of(shift).log_prob(z, level)) for shift in (0.5, 0.0))
    found = np.trapezoid(np.exp(attacked) * (attacked - clean), z[:, 0])
    assert abs(found - want) < 2e-6 and found < last
    last = found


def recorded_process():
  integral = lambda t: 0.1 * t + 0.5 * 19.9 * t**2
  return from_alpha_sigma(lambda t: jnp.exp(-0.5 * integral(t)),
                          lambda t: jnp.sqrt(-jnp.expm1(-integral(t))))


@pytest.mark.long
@pytest.mark.parametrize('name', ['t100', 't75', 't150'])
def test_the_recorded_purification_is_met_with_its_gradient(name):
  """The public code diffuses by the discrete chain, and returns by the SDE in Euler's steps."""
  file = recordings.shared('diffpure')
  assert json.loads(str(file['meta']))['method'].startswith('euler')
  data = oracles.Mixture(file['weights'], file['means'],
                         np.broadcast_to(file['std'], file['weights'].shape))
  at = lambda leaf: jnp.asarray(file[f'{name}/{leaf}'])
  kept = file['alphas_cumprod_discrete'][int(name[1:]) - 1]
  times = 1.0 - np.append(file[f'{name}/grid'][:, 0], file[f'{name}/grid'][-1, 1])

  def purified(x):
    sampler = around.checkpointed(euler_maruyama(data, recorded_process()))
    z = np.sqrt(kept) * x + np.sqrt(1.0 - kept) * at('eps')
    return recordings.replay(sampler, z, jnp.asarray(times), at('increments')[:, None])

  x = jnp.asarray(file['x'])
  found, slope = jax.jit(lambda x: (purified(x), jax.grad(lambda x: purified(x)[:, 0].sum())(x)))(x)
  np.testing.assert_allclose(np.sqrt(kept) * x + np.sqrt(1.0 - kept) * at('eps'), at('diffused'),
                             rtol=1e-12)
  np.testing.assert_allclose(found, at('purified'), rtol=1e-9, atol=1e-10)
  np.testing.assert_allclose(slope, at('grad_first_coordinate'), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize('call, message', [
    (lambda: around.around(heun(DATA, PROCESS), PROCESS, keys_of(1), jnp.ones((1, 1)),
                           np.linspace(0.0, 0.5, 3)), 'must decrease'),
    (lambda: around.adjoint(DATA, PROCESS, keys_of(1), jnp.ones((1, 1)), 0.2, 0.3, 4),
     'start=0.2: with end=0.3 there is no way back'),
    (lambda: around.adjoint(DATA, PROCESS, keys_of(1), jnp.ones((1, 1)), 0.2, 0.1, 0),
     'steps=0: it must be at least 1'),
    (lambda: around.adjoint(DATA, VP, keys_of(1), jnp.ones((1, 1)), 0.2, 0.0, 4),
     'end=0.0: alpha or sigma is 0 there'),
    (lambda: around.time_at(PROCESS, 0.8, 0.5), 'distance=0.8: data of standard deviation 0.5'),
    (lambda: around.time_at(PROCESS, 0.0, 0.5), 'distance=0.0: .* above 0 and below 0.7071')])
def test_bad_input_is_refused_in_one_line(call, message):
  with pytest.raises(InputError, match=message):
    call()
