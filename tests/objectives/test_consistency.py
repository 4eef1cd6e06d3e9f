"""Consistency models: boundaries, the gains of linear learners, schedules, and a recording."""
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.support import distillation, recordings
from vdm_jax import oracles, processes, schedules, weightings
from vdm_jax.errors import InputError
from vdm_jax.objectives import consistency, progressive
from vdm_jax.objectives.metrics import METRICS
from vdm_jax.samplers.consistency import consistency as sampler_of
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

SIGMA_MIN, SIGMA_MAX, SIGMA_DATA = 0.002, 80.0, 0.5
PROCESS = processes.GaussianProcess(schedules.KarrasSigma(SIGMA_MIN, SIGMA_MAX, 7.0), processes.ve)
STD = 0.5
ORACLE = oracles.Gaussian(0.0, STD)
EXACT = math.sqrt((STD**2 + SIGMA_MIN**2) / (STD**2 + SIGMA_MAX**2))
# N: (training and distillation by Euler's step, distillation by Heun's), over the exact gain.
RATIOS = {2: (.01025, 80.0), 18: (.846086, 1.055278), 40: (.929727, 1.009782),
          150: (.981108, 1.000643)}


# ------------------------------------------------------------------ the function


@pytest.mark.long
@pytest.mark.parametrize('process', [PROCESS, processes.GaussianProcess(
    schedules.Shifted(schedules.KarrasSigma(), 0.01), processes.Scaled(processes.ve, 1.005)),
    processes.GaussianProcess(schedules.Cosine(8.0, -6.0)), processes.RectifiedFlow(0.01)],
    ids=['ve', 'scaled', 'vp', 'flow'])
def test_the_function_is_the_identity_at_the_least_noise_whatever_the_network(process):
  net = lambda z, time, cond: 1e3 + 0.0 * z
  f = consistency.function(net, process)
  z = jnp.array([[0.3], [-2.0]])
  level = process(jnp.zeros(2))
  got = f(z, level)
  np.testing.assert_array_equal(got.x, f(z, level._replace(sigma=level.sigma)).x)
  np.testing.assert_allclose(got.x, z / level.alpha[:, None], rtol=1e-12)
  noisy = process(jnp.array([0.5, 1.0]))
  np.testing.assert_allclose(processes.diffuse(*f(z, noisy)[:2], noisy), z, rtol=1e-9)


@pytest.mark.long
def test_a_noise_level_that_rounding_put_below_the_least_one_is_the_identity_too():
  f = consistency.function(lambda z, time, cond: 1e6 + z, PROCESS)
  level = PROCESS(jnp.zeros(1))
  z = jnp.ones((1, 1))
  np.testing.assert_allclose(f(z, level._replace(sigma=0.9999999 * level.sigma)).x, z, rtol=1e-12)


@pytest.mark.long
def test_scalings_and_weights_are_those_of_the_public_code():
  arrays = recordings.shared('consistency')
  sigma = jnp.asarray(arrays['sigma'])
  level = PROCESS(jnp.zeros_like(sigma))._replace(sigma=sigma, logsnr=-2.0 * jnp.log(sigma))
  seen = []

  def net(of):
    def call(z, time, cond):
      seen.append(z)
      return of * jnp.ones_like(z)
    return call

  z = jnp.ones((len(sigma), 1))
  skip = consistency.function(net(0.0), PROCESS)(z, level).x[:, 0]
  both = consistency.function(net(1.0), PROCESS)(z, level).x[:, 0]
  near = {'rtol': 1e-7, 'atol': 1e-12}  # sigma_min is known to rounding, and its difference less so
  np.testing.assert_allclose(skip, arrays['boundary/c_skip'], **near)
  np.testing.assert_allclose(both - skip, arrays['boundary/c_out'], **near)
  np.testing.assert_allclose(seen[0][:, 0], arrays['boundary/c_in'], rtol=1e-12)
  for name, theirs in {'constant': 'uniform', 'snr': 'snr', 'truncated_snr': 'truncated-snr',
                       'snr_plus_one': 'snr+1'}.items():
    np.testing.assert_allclose(weightings.OF_X[name](level), arrays[f'weight/{theirs}'], rtol=1e-12)
  # EDM's weight of x is that of eps over sigma^2; ours has the density of its noise levels, too.
  mean, std = -1.2, 1.2
  density = stats.norm(-2.0 * mean, 2.0 * std).pdf(level.logsnr)
  of_eps = weightings.edm(mean, std, SIGMA_DATA)(level) / (2.0 * density)
  np.testing.assert_allclose(of_eps / sigma**2, arrays['weight/karras'], rtol=1e-12)


@pytest.mark.first(2)
@pytest.mark.parametrize('n', [2, 18, 40])
def test_noise_levels_are_those_of_the_public_code(n):
  """From the noisiest to the least, at even times of ours; it appends a 0."""
  theirs = recordings.shared('consistency')[f'sigmas_karras/n{n}']
  np.testing.assert_allclose(PROCESS(jnp.linspace(1.0, 0.0, n)).sigma, theirs[:-1], rtol=1e-10)
  assert theirs[-1] == 0.0


# --------------------------------------------------------------- linear learners

POINTS = STD * jnp.array([1.0, 1.0, -1.0, -1.0])[:, None]  # with EPS they average squares exactly
EPS = jnp.array([1.0, -1.0, 1.0, -1.0])[:, None]


def learned_gain(levels, **options):
  """The gain at t = 1 of f(z, t_i) = g_i z that minimises the objective, level after level."""
  keys = jax.random.split(jax.random.key(0), 4)

  def best(below, i):
    def loss(gain):
      f = lambda g: lambda z, level, cond=None: Estimate(g * z, z)
      t = jnp.full(4, i / (levels - 1))
      return consistency.objective(f(gain), PROCESS, POINTS, t, keys, target=f(below),
                                   levels=levels, eps=EPS, **options)[0].mean()
    gain = -jax.grad(loss)(0.0) / jax.hessian(loss)(0.0)
    return gain, gain

  return jax.lax.scan(best, jnp.ones(()), jnp.arange(1.0, levels))[0]


@pytest.mark.first(2)
@pytest.mark.parametrize('levels', RATIOS)
def test_a_linear_learner_has_the_gain_of_the_closed_form(levels):
  by_datum, by_euler, by_heun = jax.jit(lambda: (
      learned_gain(levels), learned_gain(levels, teacher=ORACLE, solver=consistency.euler),
      learned_gain(levels, teacher=ORACLE, solver=consistency.heun)))()
  of_euler, of_heun = RATIOS[levels]
  np.testing.assert_allclose(by_datum / EXACT, of_euler, atol=1e-6)
  np.testing.assert_allclose(by_euler, by_datum, rtol=1e-12)  # training is Euler's distillation
  digits = 0.05 if levels == 2 else 1e-6  # half of the last one known
  np.testing.assert_allclose(by_heun / EXACT, of_heun, atol=digits)


@pytest.mark.long
def test_no_gradient_goes_through_the_target():
  f = lambda g: lambda z, level, cond=None: Estimate(g * z, z)
  keys = jax.random.split(jax.random.key(0), 4)
  loss = lambda gain: consistency.objective(f(0.3), PROCESS, POINTS, jnp.ones(4), keys,
                                            target=f(gain), levels=5, eps=EPS)[0].sum()
  assert jax.grad(loss)(0.2) == 0.0


# ------------------------------------------------------------------- schedules


@pytest.mark.long
@pytest.mark.parametrize('of', ['paper', 'public'])
def test_the_numbers_of_levels_and_rates_are_those_of_the_formulas(of):
  """N(k) in exact integers: the least N with N^2 K >= k ((s1+1)^2 - s0^2) + s0^2 K."""
  first, last, updates, rate = 2, 150, 997, 0.9
  table = consistency.growing(first, last, updates, rate, of)
  k = np.arange(updates + 1)
  levels, rates = jax.vmap(table.at)(jnp.asarray(k))
  inside = [u * ((last + 1)**2 - first**2) + first**2 * updates for u in k.tolist()]
  exact = [next(n for n in range(1, last + 2) if n * n * updates >= q) for q in inside]
  np.testing.assert_array_equal(levels, exact)
  np.testing.assert_allclose(
      rates, rate**(first / (np.array(exact) - (of == 'public'))), rtol=1e-12)
  assert levels[0] == first and levels[-1] == last + 1
  assert float(rates[0]) == pytest.approx(0.9 if of == 'paper' else 0.81, abs=1e-12)
  assert table.at(jnp.asarray(10**7))[0] == last + 1


@pytest.mark.long
def test_the_public_schedules_are_those_of_the_public_code():
  arrays = recordings.shared('consistency')
  for key in (key for key in arrays if key.startswith('schedule/')):
    kind, grows, rate, first, last = key.removeprefix('schedule/').split('_')
    if grows == 'progdist':
      continue
    step, rates, levels = arrays[key].T
    table = (consistency.fixed(int(first), float(rate)) if grows == 'fixed' else
             consistency.growing(int(first), int(last), int(step[-1]), float(rate), 'public'))
    if kind == 'fixed':
      table = table._replace(rates=np.full(len(table.levels), float(rate)))
    got = jax.vmap(table.at)(jnp.asarray(step.astype(int)))
    np.testing.assert_array_equal(got[0], levels)
    np.testing.assert_allclose(got[1], rates, rtol=1e-12)


@pytest.mark.parametrize('make,given,message', [
    (consistency.fixed, (1, 0.0), 'levels=1: neighbours need two levels'),
    (consistency.fixed, (18, 1.0), 'rate=1.0: '),
    (consistency.growing, (2, 1, 10, 0.9), 'last=1: the number of levels grows from first=2'),
    (consistency.growing, (1, 9, 10, 0.9), 'first=1: neighbours'),
    (consistency.growing, (2, 9, 0, 0.9), 'updates=0: '),
    (consistency.growing, (2, 9, 10, 0.0), 'rate=0.0: '),
    (consistency.growing, (2, 9, 10, 0.9, 'papers'), "of='papers': did you mean paper")])
def test_a_discretisation_that_cannot_be_is_refused(make, given, message):
  with pytest.raises(InputError) as error:
    make(*given)
  assert message in str(error.value) and '\n' not in str(error.value)


# ------------------------------------------------------------------- recordings


def linear(arrays, which):
  """The recorded network F = W h + u log(sigma) / 4 + b, of these parameters."""
  params = {name: jnp.asarray(arrays[f'{which}/{name}']) for name in 'Wub'}

  def net(params):
    return lambda h, time, cond: h @ params['W'].T + time[:, None] * params['u'] + params['b']
  return params, lambda params: consistency.function(net(params), PROCESS)


def runs(arrays, data, kind):
  """(N, times [B]) of the recorded draws, whose indices count from the noisiest level."""
  for key in arrays:
    if key.startswith(f'{data}/{kind}n') and key.endswith('/indices'):
      n = int(key.split('/')[-2].removeprefix('n'))
      yield n, arrays[key]


@pytest.mark.long
@pytest.mark.parametrize('data', distillation.DATA)
def test_losses_and_gradients_agree_with_the_public_code(data):
  arrays = recordings.shared('consistency')
  np.testing.assert_allclose(arrays['settings'], [SIGMA_DATA, SIGMA_MIN, SIGMA_MAX, 7.0])
  params, f = linear(arrays, 'student')
  target = linear(arrays, 'target')[1](linear(arrays, 'target')[0])
  x, eps = jnp.asarray(arrays[f'{data}/x']), jnp.asarray(arrays[f'{data}/noise'])
  keys = jax.random.split(jax.random.key(0), len(x))
  teacher = distillation.teacher(arrays, data)

  @functools.partial(jax.jit, static_argnums=(2, 3))
  def both(levels, t, taught, metric):
    def loss(params):
      losses, _ = consistency.objective(
          f(params), PROCESS, x, t, keys, target=target, levels=levels, eps=eps,
          teacher=teacher if taught else None, metric=METRICS[metric])
      return losses.mean() / x.shape[1], losses / x.shape[1]
    return jax.grad(loss, has_aux=True)(params)

  for n, indices in runs(arrays, data, ''):
    t = 1.0 - (indices + 0.5) / (n - 1)  # inside of the recorded step
    for kind in ('cd', 'ct'):
      for metric in ('l1', 'l2'):
        got, losses = both(jnp.asarray(float(n)), t, kind == 'cd', metric)
        path = f'{data}/{kind}/n{n}/{metric}'
        np.testing.assert_allclose(losses, arrays[f'{path}/loss'], rtol=1e-7, atol=1e-11)
        for name in 'Wub':
          np.testing.assert_allclose(got[name], arrays[f'{path}/grad/{name}'], rtol=1e-6,
                                     atol=1e-9)


@pytest.mark.long
@pytest.mark.parametrize('data', distillation.DATA)
def test_its_progressive_distillation_is_ours_without_the_end_in_x_hat(data):
  """Theirs, for comparison, distils Euler's steps to the least noise on EDM's preconditioning."""
  arrays = recordings.shared('consistency')
  params, _ = linear(arrays, 'student')
  x, eps = jnp.asarray(arrays[f'{data}/x']), jnp.asarray(arrays[f'{data}/noise'])
  keys = jax.random.split(jax.random.key(0), len(x))

  def student(z, level, cond=None):
    wide = level.expand(z)
    std = jnp.hypot(wide.sigma, SIGMA_DATA)
    out = (z / std) @ params['W'].T + 0.25 * jnp.log(wide.sigma) * params['u'] + params['b']
    x = SIGMA_DATA**2 / std**2 * z + wide.sigma * SIGMA_DATA / std * out
    return Estimate(x, (z - x) / wide.sigma)

  for n, indices in runs(arrays, data, 'progdist/'):
    losses, _ = progressive.objective(
        student, PROCESS, x, 1.0 - (indices + 0.5) / n, keys, steps=n, eps=eps, ends_in_x=False,
        teacher=distillation.teacher(arrays, data), weight=weightings.OF_X['truncated_snr'])
    np.testing.assert_allclose(losses / x.shape[1], arrays[f'{data}/progdist/n{n}/loss'],
                               rtol=1e-7, atol=1e-11)


@pytest.mark.long
def test_one_and_several_steps_of_sampling_agree_with_the_public_code():
  arrays = recordings.shared('consistency')
  oracle = distillation.teacher(arrays, 'gauss')
  z = jnp.asarray(arrays['sample/z_T'])
  at_0 = PROCESS(jnp.zeros(()))

  def exact(z, level, cond=None):
    x = oracle.flow_map(z, level, at_0)
    return Estimate(x, (z - x) / level.expand(z).sigma)

  sampler = sampler_of(exact, PROCESS)
  none = jnp.zeros((1, 1, *z.shape))
  got = recordings.replay(sampler, z, jnp.array([1.0, 0.0]), none)
  np.testing.assert_allclose(got, arrays['sample/onestep'], rtol=1e-9)
  for key in (key for key in arrays if key.startswith('sample/multistep')
              and not key.endswith('noise')):
    indices = np.array([int(u) for u in key.split('_')[1:]])
    noise = jnp.asarray(arrays[f'{key}/noise'])[:, None]
    got = recordings.replay(sampler, z, jnp.asarray(1.0 - indices / 39.0), noise)
    np.testing.assert_allclose(got, arrays[key], rtol=1e-7, atol=1e-9)
