"""The likelihood of the probability flow, against exact maps, densities and variances."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from vdm_jax import oracles, processes, schedules
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.likelihood import ode
from vdm_jax.likelihood.passes import over_images
from vdm_jax.processes import GaussianProcess, RectifiedFlow
from vdm_jax.typing import Estimate, Model

pytestmark = pytest.mark.usefixtures('x64')

RNG = np.random.default_rng(0)
UNEVEN = oracles.Gaussian(RNG.normal(0.0, 0.5, 8), RNG.uniform(0.1, 1.5, 8))
X = UNEVEN.mean + UNEVEN.std * RNG.standard_normal((3, 8))
KEYS = lambda n, seed=0: jax.random.split(jax.random.key(seed), n)


def per_pixel(t):
  """A schedule with another speed in each of eight dimensions."""
  ends = jnp.linspace(5.0, 9.0, 8), jnp.linspace(-4.0, -7.0, 8)
  t, bend = t[..., None], jnp.linspace(0.0, 0.9, 8)
  return ends[0] + (ends[1] - ends[0]) * t * (1.0 - bend * (1.0 - t))


CURVES = [processes.vp, processes.ve, processes.flow, processes.sub_vp]
VP = GaussianProcess(schedules.Linear(9.0, -6.0))


def ends(process, t0=0.0, t1=1.0, n=1):
  return process(jnp.full(n, t0)), process(jnp.full(n, t1))


def exact(oracle, process, z, t0=0.0):
  """(z_1, log p(z_t0)) of the model that carries its prior by the exact flow of `oracle`."""
  first, last = ends(process, t0)
  z_1 = oracle.flow_map(z, first, last)
  jacobian = oracle.flow_map(z + 1.0, first, last) - z_1  # the map is affine
  scale = jnp.hypot(last.alpha, last.sigma)
  density = -0.5 * (z_1 / scale)**2 - jnp.log(scale) - 0.5 * jnp.log(2.0 * jnp.pi)
  return z_1, jnp.sum(density + jnp.log(jacobian), axis=-1)


def flows(process, **method):
  """Along the ODE and back, the exact map, and the ends' scales."""
  first, last = ends(process)
  z = X * first.alpha
  there = ode.log_prob(UNEVEN, process, z, KEYS(3), probe='exact', **method)
  back = ode.decode(UNEVEN, process, there.z, KEYS(3), probe='exact', **method)
  return z, there, back, exact(UNEVEN, process, z), jnp.hypot(last.alpha, last.sigma).max()


def check(z, there, back, expected, scale):
  z_1, log_prob = expected
  np.testing.assert_allclose(there.log_prob, log_prob, rtol=0, atol=1e-5)
  np.testing.assert_allclose(back.log_prob, log_prob, rtol=0, atol=2e-5)
  np.testing.assert_allclose(there.z, z_1, rtol=0, atol=1e-5 * scale)
  np.testing.assert_allclose(back.z, z, rtol=0, atol=1e-5)


# ------------------------------------------------------------ the density


@pytest.mark.long
@pytest.mark.parametrize('method', [
    pytest.param({'steps': 300}, id='fixed'),
    pytest.param({'rtol': 1e-7, 'atol': 1e-7}, id='adaptive')])
def test_on_every_curve_the_density_is_that_of_the_exact_map_and_the_way_back_agrees(method):
  @jax.jit
  def run(which):
    # The curve is an argument: one program for all.
    curve = lambda logsnr: tuple(jnp.tensordot(which, jnp.stack(values), 1)
                                 for values in zip(*(c(logsnr) for c in CURVES), strict=True))
    return flows(GaussianProcess(schedules.Linear(9.0, -6.0), curve), **method)

  for which in np.eye(4):
    check(*run(which))


@pytest.mark.parametrize('process', [
    RectifiedFlow(), pytest.param(GaussianProcess(per_pixel), marks=pytest.mark.long)],
    ids=['clean data to pure noise', 'per pixel'])
def test_so_it_is_on_other_schedules(process):
  check(*jax.jit(lambda: flows(process, steps=300))())


@pytest.mark.long
def test_the_density_of_a_mixture_is_the_known_one_where_the_end_is_pure_noise():
  mixture = oracles.Mixture(jnp.array([0.3, 0.7]), jnp.array([[-1.0, 0.4], [0.8, 0.1]]),
                            jnp.array([[0.2, 0.5], [0.4, 0.1]]))
  process = GaussianProcess(schedules.Linear(7.0, -28.0))
  z = jnp.asarray(RNG.normal(0.0, 0.7, (3, 2)))
  got = jax.jit(lambda z: ode.log_prob(mixture, process, z, KEYS(3), probe='exact', rtol=1e-8,
                                       atol=1e-8))(z)
  np.testing.assert_allclose(got.log_prob, mixture.log_prob(z, ends(process)[0]), rtol=0, atol=1e-5)


def test_it_may_begin_late_and_end_early():
  part = processes.Truncated(VP, 0.2, 0.7)
  z = jnp.asarray(X)
  got, (z_1, log_prob) = jax.jit(lambda z: (
      ode.log_prob(UNEVEN, VP, z, KEYS(3), t0=0.2, t1=0.7, steps=128), exact(UNEVEN, part, z)))(z)
  np.testing.assert_allclose(got.log_prob, log_prob, rtol=0, atol=1e-5)
  np.testing.assert_allclose(got.z, z_1, rtol=0, atol=1e-6)


def test_fixed_steps_are_of_fourth_order():
  z = jnp.asarray(X)
  run = lambda steps: ode.log_prob(UNEVEN, VP, z, KEYS(3), steps=steps)
  counts = [16, 32]
  found, (_, log_prob) = jax.jit(lambda: ([run(n) for n in counts], exact(UNEVEN, VP, z)))()
  error = np.array([np.abs(got.log_prob - log_prob).max() for got in found])
  slopes = np.log2(error[:-1] / error[1:])
  assert np.all(np.abs(slopes - 4.0) < 0.25), slopes
  # Each of four stages has a call and the product with one probe.
  assert [int(got.evaluations[0]) for got in found] == [2 * 4 * n for n in counts]


# -------------------------------------------------------- independence


@pytest.mark.long
def test_an_example_depends_neither_on_its_neighbours_nor_on_their_steps_conditions_or_failures():
  calls = []

  def denoise(z, level, cond):
    jax.debug.callback(lambda: calls.append(1))
    return oracles.Gaussian(cond['mean'], cond['std'])(z, level)

  z = jnp.asarray(RNG.normal(0.0, 1.0, (3, 4)))
  cond = {'mean': jnp.array([[0.0], [0.5], [9.0]]), 'std': jnp.array([[1.0], [0.01], [jnp.nan]])}
  run = jax.jit(lambda z, keys, cond: ode.log_prob(denoise, VP, z, keys, cond, probe='gaussian',
                                                   max_steps=100))
  together = run(z, KEYS(3), cond)
  jax.effects_barrier()
  for i in range(2):
    calls.clear()
    alike = jax.tree.map(lambda a, i=i: a[jnp.full(3, i)], (z, KEYS(3), cond))
    alone = run(*alike)
    jax.effects_barrier()
    np.testing.assert_allclose(alone.log_prob, together.log_prob[i], rtol=1e-12)
    np.testing.assert_allclose(alone.z[0], together.z[i], rtol=1e-12)
    np.testing.assert_array_equal(alone.evaluations, together.evaluations[i])
    assert 2 * len(calls) == alone.evaluations[0]  # each for the whole batch, with a product
  easy, hard, failed = together.evaluations
  assert easy < hard < failed == 2 * (1 + 6 * 100)
  assert np.isnan(together.log_prob[2]) and np.isnan(together.z[2]).all()


@pytest.mark.long
def test_a_pass_over_a_split_is_one_program_and_gives_an_image_the_same_number_in_any_batch():
  class Split:
    __len__ = lambda self: 5
    get = lambda self, rows: {'image': DATA[rows]}

  traced = []

  def model(params):
    traced.append(1)
    return MODEL

  run = lambda at_once: over_images(
      ode.estimator(importance=2, steps=8), model, {}, Split(),
      jax.random.key(1), label='', at_once=at_once, progress=False)
  one = run(4)
  assert len(traced) == 1  # of two batches
  other = run(5)
  assert np.unique(one['nats']).size == 5
  for name in one:
    assert one[name].shape == (1, 5)
    np.testing.assert_allclose(one[name], other[name], rtol=1e-10)


# ----------------------------------------------------------- the probes


@pytest.mark.parametrize('probe,probes', [
    ('rademacher', 1), pytest.param('gaussian', 2, marks=pytest.mark.long)])
def test_the_probes_are_unbiased_with_the_variance_that_the_integrated_jacobian_predicts(
    probe, probes):
  n, d = 6000, 4
  basis, _ = np.linalg.qr(RNG.standard_normal((d, d)))
  variances = np.array([0.02, 0.1, 0.5, 3.0])
  first, last = (float(ends(VP)[i].logsnr[0]) for i in (0, 1))

  def denoise(z, level, cond=None):
    level = level.expand(z)
    gain = variances / (level.alpha**2 * variances + level.sigma**2)
    x = level.alpha * (z @ basis * gain) @ basis.T
    return Estimate(x, (z - level.alpha * x) / level.sigma)

  z = jnp.asarray(RNG.standard_normal((1, d)))
  # u is stretched along an eigenvector by the ratio of the standard deviations of the two ends.
  share = lambda logsnr: 1.0 / (1.0 + np.exp(-logsnr))
  spread = lambda logsnr: 1.0 + share(logsnr) * (variances - 1.0)
  stretch = 0.5 * np.log(spread(last) / spread(first))
  jacobian = basis * stretch @ basis.T
  u_1 = np.asarray(z) @ basis * np.exp(stretch)
  mean = stats.norm.logpdf(u_1).sum() + stretch.sum()
  off = jacobian - np.diag(np.diag(jacobian)) if probe == 'rademacher' else jacobian
  variance = 2.0 * np.sum(off**2) / probes

  got = np.asarray(jax.jit(lambda z, keys: ode.log_prob(
      denoise, VP, z, keys, steps=40, probe=probe, probes=probes))(
          jnp.repeat(z, n, axis=0), KEYS(n)).log_prob)
  assert abs(got.mean() - mean) < 4 * got.std() / n**0.5
  squares = (got - got.mean())**2
  assert abs(squares.mean() - variance) < 4 * squares.std() / n**0.5
  assert squares.std() / n**0.5 < 0.05 * variance


# ------------------------------------------------------------ gradients


@pytest.mark.long
@pytest.mark.parametrize('method', [
    pytest.param({'steps': 96}, id='fixed'),
    pytest.param({'rtol': 1e-8, 'atol': 1e-8}, id='adaptive')])
def test_gradients_by_data_denoiser_and_schedule_are_those_of_the_closed_form(method):
  params = {'mean': jnp.array([0.3, -0.2]), 'std': jnp.array([0.4, 1.3]),
            'high': jnp.asarray(4.0), 'low': jnp.asarray(-3.0)}
  z = jnp.array([[0.5, -1.0], [0.1, 0.8]])
  parts = lambda p: (oracles.Gaussian(p['mean'], p['std']),
                     GaussianProcess(schedules.Linear(p['high'], p['low'])))
  by_flow = lambda p, z: jnp.sum(ode.log_prob(*parts(p), z, KEYS(2), **method).log_prob)
  in_closed_form = lambda p, z: jnp.sum(exact(*parts(p), z)[1])
  got, expected = (jax.jit(jax.value_and_grad(f, (0, 1)))(params, z)
                   for f in (by_flow, in_closed_form))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, expected)


# ---------------------------------------------------------- the estimator


# One pixel of four levels, and a model whose densities are all known.
BELIEF, LEVELS, LEVEL = oracles.Gaussian(0.2, 0.5), 4, 2
PIXELS = Pixels(LEVELS)
DATA = np.array([[0], [1], [2], [3], [2]])
MODEL = Model(denoise=BELIEF, process=GaussianProcess(schedules.Linear(2.0, -25.0)),
              decoder=PIXELS.log_prob, encode=lambda data: PIXELS.encode(data).astype(float),
              decode=PIXELS.decode,
              cond=lambda batch: None, shape=(1,))
HALF, CENTRE = 1.0 / LEVELS, (2 * LEVEL + 1) / LEVELS - 1.0


def uniform(data, keys):
  y = PIXELS.encode(data) + HALF * (2.0 * jax.vmap(jax.random.uniform)(keys)[:, None] - 1.0)
  return y, jnp.full(len(y), -np.log(2.0 * HALF))


def estimate(n=8000, **options):
  estimator = ode.estimator(steps=40, **options)
  batch = {'image': jnp.full((n, 1), LEVEL)}
  return jax.jit(lambda keys: estimator(MODEL, batch, keys))(KEYS(n, seed=3))


def marginal(t):
  level = ends(MODEL.process, t)[0]
  alpha, sigma = level.alpha[0], level.sigma[0]
  return level, alpha, sigma, stats.norm(alpha * BELIEF.mean, np.hypot(alpha * BELIEF.std, sigma))


def probability(dequantised, start):
  """P(LEVEL) of the model that the estimator describes, in closed form."""
  level, alpha, sigma, density = marginal(start or 0.0)
  if not dequantised:
    z = np.linspace(-4.0, 4.0, 4001)
    data = jnp.full((len(z), 1), LEVEL)
    decoded = np.exp(PIXELS.log_prob(data, jnp.asarray(z)[:, None], level))
    return integrate.simpson(density.pdf(z) * decoded, x=z)
  mean, std = BELIEF.mean, density.std() / alpha  # of z_0 / alpha_0, which is taken for y
  if start is not None:
    # y is normal around x_hat(z), which is linear in z.
    slope = alpha * BELIEF.std**2 / density.var()
    std = np.hypot(slope * density.std(), sigma / alpha)
  return np.diff(stats.norm.cdf([CENTRE - HALF, CENTRE + HALF], mean, std))[0]


@pytest.mark.long
@pytest.mark.parametrize('dequantised,start,importance', [
    (False, None, 1), (True, None, 3), (True, 0.1, 1)])
def test_the_weights_have_the_probability_of_the_data_as_their_mean_for_any_number_of_them(
    dequantised, start, importance):
  out = estimate(dequantise=uniform if dequantised else None, start=start, importance=importance)
  weights = np.exp(-out['nats'])
  error = weights.std() / weights.size**0.5
  expected = probability(dequantised, start)
  assert abs(weights.mean() - expected) < 4 * error
  assert error < 0.02 * expected
  assert out['nats'].mean() > -np.log(expected)
  calls = 2 * 4 * 40 + (dequantised and start is not None)
  assert np.all(out['evaluations'] == importance * calls)
  if importance == 1:
    parts = out['log_q'] - out['log_p'] - out['log_decoder']
    np.testing.assert_allclose(out['nats'], parts, rtol=1e-9)


def test_samples_that_are_all_alike_give_the_number_of_one():
  centre = lambda data, keys: (PIXELS.encode(data).astype(float), jnp.zeros(len(data)))
  many = estimate(n=1, dequantise=centre, importance=6)
  np.testing.assert_allclose(many['nats'], -many['log_p'] - many['log_decoder'], rtol=1e-10)


# --------------------------------------------------------------- bad input


def test_methods_that_are_none_are_refused():
  run = lambda **method: ode.log_prob(UNEVEN, VP, jnp.asarray(X), KEYS(3), **method)
  for method, message in [({'probe': 'signs'}, 'rademacher'), ({'probes': 0}, 'probes=0'),
                          ({'steps': -1}, 'steps=-1')]:
    with pytest.raises(InputError, match=message):
      run(**method)
  with pytest.raises(InputError, match='importance=0: '):
    ode.estimator(importance=0)
  for start in (0.0, 1.0, -0.1, float('nan')):
    with pytest.raises(InputError, match='start=.*: it must be a time between 0 and 1'):
      ode.estimator(start=start)
  with pytest.raises(TypeError, match='step_size'):
    ode.estimator(step_size=0.1)
