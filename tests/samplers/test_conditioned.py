"""Samples of a posterior: the law of each method for Gaussian data, and recordings of public code.
"""
import itertools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import inverse, oracles, random, schedules
from vdm_jax.errors import InputError
from vdm_jax.inverse import Operator, Problem
from vdm_jax.processes import GaussianProcess, from_alpha_sigma
from vdm_jax.samplers import ancestral, conditioned, ddim, sample
from vdm_jax.typing import Estimate, Level

pytestmark = pytest.mark.usefixtures('x64')
PROCESS = GaussianProcess(schedules.Linear(10.0, -10.0))
MEAN, STD = np.array([0.5, -1.0, 2.0]), np.array([0.3, 1.0, 0.7])
MATRIX = np.array([[1.0, 0.5, -0.5], [0.0, 1.0, 1.0]])
NOISE, Y = 0.2, np.array([0.3, 1.4])
# Run elsewhere, in float64.
POSTERIOR = (np.array([0.74130435, 0.15515772, 1.25225916]),
             np.array([[0.07239130, -0.06521739, 0.06391304],
                       [-0.06521739, 0.10485934, -0.08354646],
                       [0.06391304, -0.08354646, 0.10109122]]))


def by(matrix):
  return Operator('A', lambda x: x @ jnp.asarray(matrix, x.dtype).T, (matrix.shape[1],))


PROBLEM = Problem(by(MATRIX), jnp.asarray(Y)[None], NOISE)
PRIOR = oracles.Correlated.of(MEAN[None], np.diag(STD**2)[None])


def law(sampler, path, dims, draws=1):
  """Mean, covariance and its log-determinant of z at the end, from N(0, I): a step is affine.

  Without noise, the log-determinant is the sum of those of the steps.  A covariance of very
  different variances has no digits of it.

  draws: the most numbers of noise that a step asks for.
  """
  sources = dims * (1 + draws)
  keys = jax.random.split(jax.random.key(0), 1 + sources)
  rows = jnp.concatenate([jnp.zeros((1, sources)), jnp.eye(sources)]).reshape(-1, 1 + draws, dims)

  @jax.jit
  def move(mean, covariance, t, s, plan):
    in_turn = itertools.chain(rows[:, i] for i in range(1, 1 + draws))
    with mock.patch.object(random, 'normal', lambda keys, like: next(in_turn)):
      out = sampler.step(keys, rows[:, 0], t, s, plan)
    slopes = out[1:] - out[0]
    of_z, of_noise = slopes[:dims], slopes[dims:]
    return (out[0] + mean @ of_z, of_z.T @ covariance @ of_z + of_noise.T @ of_noise,
            2.0 * jnp.linalg.slogdet(of_z)[1], jnp.any(of_noise != 0.0))

  plans = sampler.plan(jnp.asarray(path))
  mean, covariance, logdet, noisy = jnp.zeros(dims), jnp.eye(dims), 0.0, False
  for i, (t, s) in enumerate(itertools.pairwise(path)):
    mean, covariance, grown, drawn = move(mean, covariance, t, s,
                                          jax.tree.map(lambda u, i=i: u[i], plans))
    logdet, noisy = logdet + grown, noisy or bool(drawn)
  if noisy:
    logdet = np.linalg.slogdet(covariance)[1]
  return np.asarray(mean), np.asarray(covariance), float(logdet)


def divergence(p, q):
  """KL(p || q) of two normal laws, nats.  p: mean, covariance, and if known its log-determinant."""
  (m, c, *known), (n, d) = p, q
  logdet, = known or [np.linalg.slogdet(c)[1]]
  inverse_d = np.linalg.inv(d)
  return 0.5 * (np.trace(inverse_d @ c) + (n - m) @ inverse_d @ (n - m) - len(m)
                - logdet + np.linalg.slogdet(d)[1])


WRAPPERS = {
    'exact': lambda: PRIOR.given(MATRIX, Y, NOISE),
    'mmps': lambda: inverse.mmps(PRIOR, PROBLEM, iterations=2, solver='cg'),
    'pigdm': lambda: inverse.pigdm(PRIOR, PROBLEM),
    'tmpd': lambda: inverse.tmpd(PRIOR, PROBLEM),
    'point': lambda: inverse.point(PRIOR, PROBLEM),
}
TABLE = {  # steps 10, 100, 1000; from another program, `point` with 60 digits
    ('exact', ancestral): (0.403223, 0.006792, 0.000054),
    ('exact', ddim): (0.158372, 0.001777, 0.000060),
    ('mmps', ancestral): (0.403223, 0.006792, 0.000054),
    ('mmps', ddim): (0.158372, 0.001777, 0.000060),
    ('pigdm', ancestral): (1.031062, 0.297743, 0.274632),
    ('pigdm', ddim): (1.551697, 1.137142, 1.117986),
    ('tmpd', ancestral): (0.424431, 0.021856, 0.015478),
    ('tmpd', ddim): (0.312987, 0.141965, 0.140285),
    ('point', ancestral): (265596.779932, 0.729826, 0.649102),
    # A variance of this law is 7e-33 and 3e-18 in 100 and 1,000 steps, beside one of 0.1.
    ('point', ddim): (119682.086469, 39.930250, 22.879228),
}


@pytest.mark.long
@pytest.mark.parametrize('name,make', TABLE)
def test_the_law_of_a_method_is_as_far_from_the_posterior_as_was_found_elsewhere(name, make):
  sampler = make(WRAPPERS[name](), PROCESS)
  for steps, want in zip((10, 100, 1000), TABLE[name, make], strict=True):
    got = divergence(law(sampler, np.linspace(1.0, 0.0, steps + 1), 3), POSTERIOR)
    # The numbers of POSTERIOR are rounded to eight decimals.
    assert got == pytest.approx(want, rel=1e-6, abs=6e-7), (steps, got, want)


@pytest.mark.long
def test_the_exact_law_falls_with_the_square_of_the_steps():
  sampler = ddim(WRAPPERS['exact'](), PROCESS)
  far = [divergence(law(sampler, np.linspace(1.0, 0.0, n + 1), 3), POSTERIOR) for n in (100, 200)]
  assert 3.5 < far[0] / far[1] < 4.5


@pytest.mark.long
def test_pigdm_is_exact_for_data_of_its_own_variance():
  prior = oracles.Correlated.of(MEAN[None], 0.49 * np.eye(3)[None])
  gain, covariance, _ = oracles.condition(0.49 * np.eye(3), MATRIX, NOISE)
  posterior = MEAN + gain @ (Y - MATRIX @ MEAN), covariance
  times = np.linspace(1.0, 0.0, 1001)
  for std, want, digit in ((0.7, 5.6e-5, 1e-6), (1.0, 0.0152, 1e-4)):
    sampler = ancestral(inverse.pigdm(prior, PROBLEM, std), PROCESS)
    assert abs(divergence(law(sampler, times, 3), posterior) - want) < 0.6 * digit


@pytest.mark.long
@pytest.mark.parametrize('scale,want,digit', [
    (0.3, 4.7, 0.1), (0.1, 4.6, 0.1),
    (1.0, 16.8, 0.1)])
def test_dps_is_far_from_the_posterior_as_was_found_elsewhere(scale, want, digit):
  """By the moments of the samples; the error is that of ten parts."""
  n, times = 10_000, np.linspace(1.0, 0.0, 1001)
  keys = jax.random.split(jax.random.key(1), n)
  z = random.normal(random.stream(keys, 'z_1'), jnp.zeros((n, 3)))
  sampler = conditioned.dps(PRIOR, PROCESS, PROBLEM, scale)
  x = np.asarray(jax.jit(lambda z: sample(sampler, keys, z, times))(z))
  moments = lambda x: divergence((x.mean(axis=0), np.cov(x.T)), POSTERIOR)
  error = np.std([moments(part) for part in np.split(x, 10)], ddof=1) / np.sqrt(10)
  assert abs(moments(x) - want) < 0.5 * digit + 4 * error


PAIR = oracles.Correlated.of(np.zeros((1, 2)), np.array([[[1.0, 0.9], [0.9, 1.0]]]))
FIRST = Problem(inverse.kept(np.array([True, False])), jnp.array([[1.5]]))


@pytest.mark.long
@pytest.mark.parametrize('visits,mean,variance', [
    (1, 0.93775, 0.30913), (2, 1.14689, 0.24083),
    (5, 1.28257, 0.20594),
    (10, 1.32007, 0.19647),
    (20, 1.33599, 0.19218)])
def test_replacement_and_repaint_have_the_moments_that_were_found_elsewhere(visits, mean, variance):
  """Two unit Gaussians of correlation 0.9; the right ones are 1.35 and 0.19."""
  times = np.linspace(1.0, 0.0, 1001)
  method = (conditioned.Replacement() if visits == 1 else
            conditioned.RePaint(jump=1, visits=visits))
  sampler, path = method(conditioned.Case(PAIR, PROCESS, FIRST, times))
  m, c, _ = law(sampler, path, 2, draws=3)
  np.testing.assert_allclose(m[0] / PROCESS(0.0).alpha, 1.5, rtol=1e-12)
  np.testing.assert_allclose([m[1], c[1, 1]], [mean, variance], atol=6e-5)


# ---------------------------------------------------------------- recordings

SMALL = 1e-2
PROCESSES = {
    'vp': from_alpha_sigma(lambda t: SMALL**(t**2),
                           lambda t: jnp.sqrt(1.0 - SMALL**(2.0 * t**2) + SMALL**2)),
    've': from_alpha_sigma(jnp.ones_like, lambda t: SMALL * (50.0 / SMALL)**t),
    'flow': from_alpha_sigma(lambda t: t * SMALL + 1.0 - t, lambda t: t + (1.0 - t) * SMALL),
}
OF_AZULA = {
    'plain': lambda denoise, problem: denoise,
    'tmpd': inverse.tmpd,
    'mmps_cg': lambda denoise, problem: inverse.mmps(denoise, problem, 2, 'cg'),
    'mmps_gmres1': inverse.mmps,
    'diffpir': inverse.diffpir,
}


def azula(prior):
  data = recordings.shared('azula_posterior')
  oracle = (oracles.Correlated.of(data['prior_mean'][None], data['prior_cov'][None])
            if prior == 'gauss' else
            oracles.Correlated.of(data['mix_means'], data['mix_covs'], data['mix_weights']))
  problem = Problem(by(data['A']), jnp.asarray(data['y'])[None], float(data['sigma_y']))
  return data, oracle, problem


@pytest.mark.long
@pytest.mark.parametrize('prior', ['gauss', 'mix'])
@pytest.mark.parametrize('name', OF_AZULA)
def test_a_told_denoiser_repeats_the_public_code(name, prior):
  data, oracle, problem = azula(prior)
  told = OF_AZULA[name](oracle, problem)
  for curve, i in itertools.product(PROCESSES, range(len(data['t']))):
    a, s = data[f'{curve}/alpha'][i], data[f'{curve}/sigma'][i]
    level = Level(*(jnp.asarray(u) for u in (data['t'][i], 2 * np.log(a / s), a, s, 0., 0., 0.)))
    z = jnp.asarray(data['z'] * np.hypot(a, s))
    np.testing.assert_allclose(told(z, level).x, data[f'{curve}/{prior}/{name}/x_hat{i}'],
                               rtol=1e-7, atol=1e-7)


RUNS = {
    'dps': lambda d, p, problem: conditioned.dps(d, p, problem, 0.3),
    'pgdm0': lambda d, p, problem: conditioned.pgdm(d, p, problem, eta=0.0),
    'pgdm1': conditioned.pgdm,
    'ddim_mmps': lambda d, p, problem: ddim(inverse.mmps(d, problem, 2, 'cg'), p),
    'ddpm_mmps': lambda d, p, problem: ancestral(inverse.mmps(d, problem, 2, 'cg'), p),
    'ddim_tmpd': lambda d, p, problem: ddim(inverse.tmpd(d, problem), p),
}


@pytest.mark.long
@pytest.mark.parametrize('name', RUNS)
@pytest.mark.parametrize('prior', ['gauss', 'mix'])
def test_a_sampler_repeats_the_run_of_the_public_code(name, prior):
  data, oracle, problem = azula(prior)
  for curve in ('vp', 'flow'):
    process, run = PROCESSES[curve], f'{curve}/{prior}/{name}/N8'
    traj, noise = data[f'{run}/traj'], data[f'{run}/noise']
    got = recordings.replay(RUNS[name](oracle, process, problem), jnp.asarray(traj[0]),
                            jnp.linspace(1.0, 0.0, 9), jnp.asarray(noise)[:, None])
    np.testing.assert_allclose(got, traj[-1], rtol=1e-8, atol=1e-8)


def published(kind):
  """The recorded chain as a process on the grid of its own times, and the problem."""
  data = recordings.shared('posterior_published')
  bars = np.concatenate([[1.0], data['alphas_cumprod'][np.sort(data['times'])]])
  steps = len(bars) - 1

  def process(t):
    bar = jnp.asarray(bars)[jnp.round(jnp.asarray(t) * steps).astype(int)]
    zero = jnp.zeros_like(bar)
    return Level(jnp.asarray(t), jnp.log(bar) - jnp.log1p(-bar), jnp.sqrt(bar), jnp.sqrt(1.0 - bar),
                 zero, zero, zero)
  oracle = oracles.Correlated.of(data['prior_mean'][None], data['prior_cov'][None])
  operator = by(data['A']) if kind == 'dense' else inverse.kept(data['mask'] > 0)
  return data, process, oracle, Problem(operator, jnp.asarray(data[f'{kind}/y'])[None])


@pytest.mark.long
@pytest.mark.parametrize('kind,name', [
    ('dense', 'pgdm_awd'), ('dense', 'pgdm_noawd'), ('dense', 'dps_norm'), ('mask', 'pgdm_awd'),
    ('mask', 'pgdm_noawd'), ('mask', 'dps_norm'), ('mask', 'mcg')])
def test_a_step_that_is_told_repeats_the_published_one(kind, name):
  data, process, oracle, problem = published(kind)
  weight = float(data[f'{kind}/{name}/weight'])
  sampler = {
      'pgdm_awd': lambda: conditioned.pgdm(oracle, process, problem),
      'pgdm_noawd': lambda: conditioned.pgdm(oracle, process, problem, whole=False),
      # Its gradient is that of the square, over the distance.
      'dps_norm': lambda: conditioned.dps(oracle, process, problem, 2.0 * weight),
      'mcg': lambda: conditioned.mcg(oracle, process, problem, weight)}[name]()
  traj, noise = (jnp.asarray(data[f'{kind}/{name}/{key}']) for key in ('traj', 'noise'))
  steps = len(traj) - 1
  draws = noise[1:].reshape(steps, -1, *noise.shape[1:])
  got = recordings.replay(sampler, traj[0], jnp.linspace(1.0, 0.0, steps + 1), draws)
  np.testing.assert_allclose(got, traj[-1], rtol=1e-8, atol=1e-8)


@pytest.mark.long
def test_the_norm_of_a_batch_is_that_of_the_authors_code():
  """One step for three examples; without the guidance, the step is z_s_before."""
  data, _, oracle, _ = published('dense')
  bar = data['alphas_cumprod'][int(data['official/alphas_cumprod_index'])]
  level = Level(*(jnp.asarray(u) for u in (
      0.5, np.log(bar) - np.log1p(-bar), np.sqrt(bar), np.sqrt(1.0 - bar), 0.0, 0.0, 0.0)))
  problem = Problem(by(data['A']), jnp.asarray(data['official/y'])[None])
  keys, z = jax.random.split(jax.random.key(0), 3), jnp.asarray(data['official/z_t'])
  moved = lambda scale, over: conditioned.dps(oracle, lambda t: level, problem, scale, eta=0.0,
                                              over=over).step(keys, z, 0.5, 0.5, None)
  scale = float(data['official/scale'])
  want = data['official/z_s'] - data['official/z_s_before']
  np.testing.assert_allclose(moved(scale, 'batch') - moved(0.0, 'batch'), want, rtol=1e-9,
                             atol=1e-12)
  each = [moved(scale, over) - moved(0.0, over) for over in ('example', 'batch')]
  r = problem.residual(oracle(z, level).x)
  np.testing.assert_allclose(np.linalg.norm(r), data['official/norm'], rtol=1e-9)
  share = np.linalg.norm(r, axis=1, keepdims=True) / np.linalg.norm(r)
  np.testing.assert_allclose(share * each[0], each[1], rtol=1e-9)


# ----------------------------------------------------------------- bad input


@pytest.mark.long
def test_an_image_does_not_depend_on_the_others_of_its_batch():
  times = np.linspace(1.0, 0.0, 6)
  keys = jax.random.split(jax.random.key(0), 3)
  z = random.normal(random.stream(keys, 'z_1'), jnp.zeros((3, 3)))
  y = jnp.asarray(Y) * jnp.array([[1.0], [0.0], [5.0]])
  for method in (conditioned.PiGDM(), conditioned.MMPS(2, 'cg'), conditioned.TMPD(),
                 conditioned.DPS(), conditioned.DiffPIR(), conditioned.PGDM()):
    draw = lambda rows, method=method: conditioned.sample_posterior(
        method, PRIOR, PROCESS, Problem(by(MATRIX), y[rows], NOISE), keys[rows], z[rows], times)
    np.testing.assert_allclose(draw(np.array([1])), draw(np.arange(3))[1:2], rtol=1e-9)


@pytest.mark.parametrize('method,operator,noise,match', [
    ('pigdm', inverse.phase((4, 4, 1)), 0.1, 'method=.pigdm.: it needs a linear operator'),
    ('mmps', inverse.downsample((4, 4, 1), 2), 0.0, 'noise=0.0: mmps divides by it'),
    ('tmpd', inverse.downsample((4, 4, 1), 2), 0.0, 'noise=0.0: tmpd divides by it'),
    ('diffpir', inverse.downsample((4, 4, 1), 2), 0.0, 'noise=0.0: diffpir divides by it'),
    ('repaint', inverse.blur((4, 4, 1), 1.0), 0.1, 'method=.repaint.: it replaces known numbers'),
    ('mcg', inverse.downsample((4, 4, 1), 2), 0.1, 'method=.mcg.: it replaces known numbers')])
def test_a_method_that_does_not_suit_the_problem_is_refused(method, operator, noise, match):
  with pytest.raises(InputError, match=match):
    conditioned.require_suited(conditioned.named(method), operator, noise)


@pytest.mark.parametrize('method,fields,match', [
    ('dsp', {}, 'did you mean dps'), ('dps', {'std': 1.0}, 'dps does not read it'),
    ('dps', {'over': 'all'}, 'over=.all.'), ('mmps', {'iterations': 0}, 'iterations=0'),
    ('pigdm', {'std': 0.0}, 'std=0.0'), ('repaint', {'visits': 0}, 'visits=0'),
    ('diffpir', {'strength': 0.0}, 'strength=0.0'),
    ('pigdm', {'std': np.inf}, 'std=inf'), ('diffpir', {'strength': np.inf}, 'strength=inf'),
    *((name, {'scale': scale}, f'scale={scale}: it must be at least 0, and finite')
      for name in ('dps', 'mcg') for scale in (-0.1, np.inf, np.nan))])
def test_a_wrong_method_or_number_is_refused(method, fields, match):
  with pytest.raises(InputError, match=match):
    conditioned.named(method, **fields)


@pytest.mark.parametrize('method', [conditioned.PiGDM(), conditioned.DPS()], ids=repr)
@pytest.mark.parametrize('shape,count,match', [
    ((2, 8, 8, 1), 2, r'z: it has the shape \(2, 8, 8, 1\), and blur:1 is of x of shape \(4, 4, 1'),
    ((2, 4, 4), 2, r'z: it has the shape \(2, 4, 4\)'),
    ((2, 4, 4, 1), 5, 'y: it has 5 measurements, and z has 2 examples')])
def test_a_start_that_does_not_fit_the_measurements_is_refused(method, shape, count, match):
  problem = Problem(inverse.blur((4, 4, 1), 1.0), jnp.zeros((count, 4, 4, 1)), 0.1)
  keys, times = jax.random.split(jax.random.key(0), 2), np.linspace(1.0, 0.0, 3)
  with pytest.raises(InputError, match=match):
    conditioned.sample_posterior(method, oracles.Gaussian(0.0, 1.0), PROCESS, problem, keys,
                                 jnp.zeros(shape), times)


@pytest.mark.long
@pytest.mark.parametrize('method', [
    conditioned.PiGDM(), conditioned.TMPD(), conditioned.MMPS(), conditioned.MMPS(3),
    conditioned.DiffPIR(), conditioned.DPS(), conditioned.PGDM(), conditioned.MCG(),
    conditioned.Replacement(), conditioned.RePaint(2, 3)], ids=repr)
def test_a_method_costs_the_evaluations_and_products_that_it_says(method):
  """By a network that counts when it is run, forwards and backwards."""
  calls = {'evaluations': 0, 'products': 0}

  def count(kind):
    def add():
      calls[kind] += 1
    jax.debug.callback(add)

  @jax.custom_vjp
  def network(z):
    count('evaluations')
    return 0.5 * z

  def forwards(z):
    return network(z), None

  def backwards(_, g):
    count('products')
    return (0.5 * g,)
  network.defvjp(forwards, backwards)

  def denoise(z, level, cond=None):
    x, wide = network(z), level.expand(z)
    return Estimate(x=x, eps=(z - wide.alpha * x) / wide.sigma)
  problem = Problem(inverse.kept(np.array([True, False])), jnp.array([[1.5]]), 0.1)
  keys, times = jax.random.split(jax.random.key(0), 1), np.linspace(1.0, 0.0, 7)
  conditioned.sample_posterior(method, denoise, PROCESS, problem, keys, jnp.ones((1, 2)), times)
  jax.effects_barrier()
  assert (calls['evaluations'], calls['products']) == conditioned.cost(method, times)


def test_the_cost_of_repaint_is_the_published_one():
  times = np.linspace(1.0, 0.0, 251)
  assert conditioned.cost(conditioned.RePaint(), times) == (2410, 0)
  assert conditioned.cost(conditioned.MMPS(iterations=3), times) == (250, 1000)


@pytest.mark.first(1)
@pytest.mark.parametrize('method', [
    conditioned.PiGDM(), conditioned.DPS(), conditioned.PGDM(), conditioned.TMPD(),
    conditioned.MMPS(3), conditioned.DiffPIR()], ids=repr)
def test_the_compiled_step_of_a_method_has_the_operations_of_its_cost(method):
  """An evaluation is 2 B (64 x 512 + 512 x 64) operations, and a product with J^T as many.

  All else in a step is less than 8 %, since z has 64 numbers.  One more evaluation is 20 % or more.
  """
  batch, size, width = 4, 64, 512
  inwards, outwards = (random.normal(jax.random.split(jax.random.key(i), a), jnp.zeros((a, b)))
                       for i, (a, b) in enumerate([(size, width), (width, size)]))

  def denoise(z, level, cond=None):
    x, wide = jnp.tanh(z @ inwards) @ outwards, level.expand(z)
    return Estimate(x=x, eps=(z - wide.alpha * x) / wide.sigma)
  problem = Problem(inverse.kept(np.arange(size) % 2 == 0), jnp.zeros((batch, size // 2)), 0.1)
  times = np.array([1.0, 0.5])

  def step(keys, z):
    return conditioned.sample_posterior(method, denoise, PROCESS, problem, keys, z, times)
  program = jax.jit(step).lower(jax.random.split(jax.random.key(0), batch),
                                jnp.zeros((batch, size))).compile()
  evaluations, products = conditioned.cost(method, times)
  one = 2 * batch * (size * width + width * size)
  assert 1.0 <= program.cost_analysis()['flops'] / ((evaluations + products) * one) < 1.08
