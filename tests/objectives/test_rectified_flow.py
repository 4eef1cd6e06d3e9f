"""Rectified flow: public losses and chains, Euler's closed forms, reflow, and straightness."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, stats

from tests.support import recordings
from vdm_jax import oracles, random
from vdm_jax.objectives import flow_matching, rectified_flow
from vdm_jax.processes import RectifiedFlow
from vdm_jax.samplers import adaptive, euler, runge_kutta, sample, straightness
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')

LINES = RectifiedFlow()


def keys(n):
  return random.per_example(random.key(0), jnp.arange(n))


def down(n):
  return np.linspace(1.0, 0.0, n + 1)


def shifted(oracle, offset):
  """A network whose velocity, towards the data, is the oracle's plus `offset`."""
  def denoise(z, level, cond=None):
    level, best = level.expand(z), oracle(z, level)
    u = best.eps - best.x - offset
    return Estimate(z - level.sigma * u, z + level.alpha * u)
  return denoise


@pytest.mark.long
@pytest.mark.parametrize('data', ['gauss', 'mix'])
def test_losses_are_those_of_the_public_code(data):
  """gnobitab/RectifiedFlow, whose time is 1 - t; a network that is off by an offset."""
  saved = recordings.shared('rectified_flow')
  oracle = recordings.exact(saved, data)
  x, z0 = (jnp.asarray(saved[f'{data}/{name}']) for name in ('x', 'z0'))
  network = shifted(oracle, saved[f'{data}/loss/offset'])
  for name in ('first', 'reflow_t0', 'reflow_t1', 'reflow_uniform', 'reflow_2', 'reflow_4'):
    case = f'{data}/loss/{name}'
    t = 1.0 - jnp.asarray(saved[f'{case}/t'])
    if name == 'first':
      noise = jnp.asarray(saved[f'{case}/z0'])
      loss, _ = flow_matching.objective(network, LINES, x, t, keys(len(x)), eps=noise)
    else:
      loss, _ = rectified_flow.reflow(network, LINES, x, t, keys(len(x)), z_1=z0)
    np.testing.assert_allclose(loss.mean() / x.shape[1], saved[f'{case}/mean'], rtol=1e-10)
    np.testing.assert_allclose(0.5 * loss.mean(), saved[f'{case}/half_sum'], rtol=1e-10)


@pytest.mark.long
@pytest.mark.parametrize('data', ['mix', 'gauss'])
def test_euler_steps_are_those_of_the_public_code_at_its_times_which_are_squeezed(data):
  """It takes steps of 1/N at times from 1e-3 to 1, which are .999/N apart, so that one step of the
  exact flow does not end in the mean.  Here it does."""
  saved = recordings.shared('rectified_flow')
  oracle, z0 = recordings.exact(saved, data), jnp.asarray(saved[f'{data}/z0'])
  for n in (1, 2, 4, 16, 100):
    def step(z, i, n=n):
      t = 1.0 - (i / n * (1.0 - 1e-3) + 1e-3)
      return z - flow_matching.velocity(oracle, LINES, z, t) / n, None
    theirs, _ = jax.lax.scan(step, z0, jnp.arange(n))
    np.testing.assert_allclose(theirs, saved[f'{data}/euler/n{n}'], atol=1e-10)
    # Its sampler of reflow takes the same steps.
    np.testing.assert_allclose(theirs, saved[f'{data}/euler_ode/n{n}'], atol=1e-10)
  one = sample(euler.euler(oracle, LINES), keys(len(z0)), z0, down(1))
  mean = oracle(jnp.zeros_like(z0), LINES(1.0)).x
  np.testing.assert_allclose(one, mean, atol=1e-12)
  assert np.abs(saved[f'{data}/euler/n1'] - mean).max() > 1e-3


@pytest.mark.long
@pytest.mark.parametrize('data', ['mix', 'gauss'])
def test_pairs_of_the_public_code_are_the_flow_from_a_thousandth_inside(data):
  """It takes z_0 for the flow's z at our t = .999, in float32, and comes back to it.

  So its pairs are off by a thousandth of the velocity at the noise end.  Those made here are not.
  """
  saved = recordings.shared('rectified_flow')
  oracle, z = recordings.exact(saved, data), jnp.asarray(saved[f'{data}/z0'])

  @jax.jit
  def flow(z, start, end):
    return adaptive.adaptive_ode(oracle, LINES, z, start, end, rtol=1e-9, atol=1e-9).z

  def near(a, b):  # its tolerance is 1e-5 of a step; two points between the clusters are worse
    np.testing.assert_allclose(a, b, atol=1e-3)
    return np.median(np.abs(a - b).max(axis=1))
  inside, ours = flow(z, 0.999, 0.0), flow(z, 1.0, 0.0)
  z_1, back = (jnp.asarray(saved[f'{data}/reflow_pairs/{name}'], float) for name in ('z1', 'back'))
  assert near(saved[f'{data}/rk45'], inside) < 1e-4
  assert near(z_1, inside) < 1e-4
  assert near(back, flow(z_1, 0.0, 0.999)) < 1e-4
  assert near(back, z) < 2e-4
  if data == 'gauss':
    exact = oracle.flow_map(z, LINES(jnp.ones(len(z))), LINES(jnp.zeros(len(z))))
    np.testing.assert_allclose(ours, exact, atol=1e-7)
  assert np.median(np.abs(z_1 - ours).max(axis=1)) > 3e-4


@pytest.mark.long
def test_euler_steps_of_the_first_flow_have_the_standard_deviations_of_the_closed_form():
  """Of N(m, s^2) a step of h from t scales z - m (1 - t) by 1 - h c, with

  c = (t - s^2 (1 - t)) / (s^2 (1 - t)^2 + t^2).  One step ends in the mean, two in a fifth.
  """
  oracle, z = oracles.Gaussian(0.3, 0.5), jnp.array([[1.0], [0.0]])
  for n, std in {1: 0.0, 2: 0.2, 4: 0.3405405405405405, 8: 0.41478455448147766,
                 16: 0.4556830933916337, 100: 0.49264547627652916}.items():
    out = sample(euler.euler(oracle, LINES), keys(2), z, down(n))
    np.testing.assert_allclose(out[0] - out[1], std, atol=1e-12)
    np.testing.assert_allclose(out[1], 0.3, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize('s', [0.1, 0.5, 1.0])
def test_straightness_of_the_first_flow_is_s_times_2_minus_pi_over_2(s):
  """S = int E|(Z_1 - Z_0) - v|^2, of the exact trajectory of a z with z^2 = 1."""
  oracle, times = oracles.Gaussian(0.0, s), jnp.asarray(down(4000))
  exact = jax.vmap(lambda t: oracle.flow_map(jnp.ones((1, 1)), LINES(1.0), LINES(t)))(times)
  np.testing.assert_allclose(straightness.of_trajectory(exact, times), s * (2.0 - np.pi / 2),
                             rtol=1e-5)


def reflowed(m, s):
  """The exact denoiser of the pairs x = m + s z of a first flow: both are known from z_t."""
  def denoise(z, level, cond=None):
    level = level.expand(z)
    eps = (z - level.alpha * m) / (level.alpha * s + level.sigma)
    return Estimate(m + s * eps, eps)
  return denoise


@pytest.mark.long
def test_after_reflow_trajectories_are_straight_and_one_euler_step_is_exact():
  m, s, n = 0.3, 0.5, 200
  z = random.normal(keys(n), jnp.zeros((n, 2)))
  x = oracles.Gaussian(m, s).flow_map(z, LINES(jnp.ones(n)), LINES(jnp.zeros(n)))
  network = reflowed(m, s)
  t = jnp.linspace(0.0, 1.0, n)
  assert rectified_flow.reflow(network, LINES, x, t, keys(n), z_1=z)[0].max() < 1e-28
  assert rectified_flow.distil(network, LINES, x, t, keys(n), z_1=z)[0].max() < 1e-28
  bent, one = straightness.straightness(network, LINES, keys(n), z, down(1))
  many = straightness.straightness(network, LINES, keys(n), z, down(7))
  assert max(bent.max(), many[0].max()) < 1e-28
  np.testing.assert_allclose(one, x, atol=2e-15)
  np.testing.assert_allclose(rectified_flow.one_step(network, LINES, z), x, atol=2e-15)
  # The cost falls from m^2 + s^2 + 1 to m^2 + (1 - s)^2 in each dimension.
  each = jnp.square(x - z).ravel()
  assert abs(each.mean() - m**2 - (1 - s)**2) < 4 * each.std() / each.size**0.5


def test_one_step_is_trained_by_the_distance_of_its_image_from_that_of_the_pair():
  """A student g z of pairs x = m + s z, by sum_k w_k (x_k - g_k z_k)^2, at the points z_k = +-1.

  The mean is sum_k w_k (m^2 + (s - g_k)^2), and its slope by g_k is 2 w_k (g_k - s): the distance
  weighs the dimensions, and its gradient reaches the student.
  """
  m, s, w, g = 0.3, 0.5, jnp.array([3.0, 0.25]), jnp.array([0.2, 0.9])
  z = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])

  def loss(g):
    losses, terms = rectified_flow.distil(
        lambda z, level, cond=None: Estimate(g * z, z), LINES, m + s * z, jnp.zeros(4), keys(4),
        z_1=z, metric=lambda a, b: jnp.sum(w * jnp.square(a - b), axis=-1))
    return losses.mean(), terms

  (value, terms), slope = jax.value_and_grad(loss, has_aux=True)(g)
  np.testing.assert_allclose(value, jnp.sum(w * (m**2 + (s - g)**2)), rtol=1e-12)
  np.testing.assert_allclose(slope, 2.0 * w * (g - s), rtol=1e-12)
  np.testing.assert_allclose(terms['x_error'].mean(), jnp.sum(m**2 + (s - g)**2), rtol=1e-12)


@pytest.mark.long
def test_a_network_at_the_noise_end_sees_the_noise_alone():
  """The public code trains on t = 1e-3, where a thousandth of the data is in z."""
  seen = []
  def denoise(z, level, cond=None):
    seen.append((z, level.sigma))
    return Estimate(z, z)
  z = random.normal(keys(3), jnp.zeros((3, 2)))
  rectified_flow.distil(denoise, LINES, 5.0 + z, jnp.zeros(3), keys(3), z_1=z)
  rectified_flow.reflow(denoise, LINES, 5.0 + z, jnp.ones(3), keys(3), z_1=z)
  rectified_flow.reflow(denoise, LINES, 5.0 + z, jnp.array([0.1, 0.8, 0.999]), keys(3), z_1=z,
                        steps=4)
  np.testing.assert_array_equal(seen.pop()[1], [0.25, 1.0, 1.0])  # a start of one of four steps
  for read, sigma in seen:
    np.testing.assert_array_equal(read, z)
    np.testing.assert_array_equal(sigma, 1.0)


@pytest.mark.long
def test_straightness_is_the_cost_that_reflow_saves_less_the_loss_of_any_data():
  """S = E|x - eps|^2 - loss - E|x' - eps|^2, on a mixture: each term by quadrature.

  In one dimension x' is the quantile of the mixture at the level that z has in N(0, 1).  The loss
  1.1301269 is by quadrature of scipy, and E|x - eps|^2 = sum w (mu^2 + sd^2) + 1 = 1.803.
  The cost 0.2716573 of reflow is E(x' - z)^2 by quadrature of scipy, and the straightness is
  1.803 - 1.1301269 - 0.2716573.
  """
  w, mu, sd = np.array([0.3, 0.7]), np.array([-1.0, 0.8]), np.array([0.3, 0.2])
  oracle = oracles.Mixture(w, mu[:, None], sd)
  level = lambda x: w @ stats.norm.cdf((x - mu) / sd)
  quantile = lambda z: optimize.brentq(lambda x: level(x) - stats.norm.cdf(z), -4.0, 4.0)
  solver = runge_kutta.runge_kutta(oracle, LINES, tableau=runge_kutta.RK4)
  nodes, grid = np.linspace(-6.0, 6.0, 1921), np.linspace(-3.0, 3.0, 61)
  density = np.exp(-0.5 * nodes**2) / np.sqrt(2 * np.pi)
  z = jnp.concatenate([grid, nodes])[:, None]
  x, path = sample(solver, keys(len(z)), z, down(400), trace=solver.value)
  np.testing.assert_allclose(x[:len(grid), 0], [quantile(u) for u in grid], atol=2e-4)
  expected = lambda of: np.trapezoid(density * of[len(grid):], nodes)
  straight = expected(straightness.of_trajectory(path, down(400)))
  cost = expected(jnp.square(x - z)[:, 0])
  np.testing.assert_allclose(cost, 0.2716572916515607, rtol=3e-3)
  np.testing.assert_allclose(straight, 0.4012157897437274, rtol=3e-3)
  loss, independent = of_a_mixture(oracle, w, mu, sd)
  np.testing.assert_allclose([loss, independent], [1.130126918604712, 1.803], rtol=1e-4)
  np.testing.assert_allclose(independent - loss - cost, straight, rtol=3e-3)


def of_a_mixture(oracle, w, mu, sd):
  """The loss of the flow of lines at this denoiser, and E|x - eps|^2, by Gauss' quadratures."""
  normal, of_normal = np.polynomial.hermite_e.hermegauss(40)
  times, of_times = np.polynomial.legendre.leggauss(48)
  component, x, eps, t = np.meshgrid(np.arange(len(w)), normal, normal, 0.5 * (times + 1.0),
                                     indexing='ij')
  weight = np.einsum('k,a,b,t->kabt', w, of_normal, of_normal, of_times) / (4.0 * np.pi)
  x = mu[component] + sd[component] * x
  losses, _ = flow_matching.objective(oracle, LINES, jnp.ravel(x)[:, None], jnp.ravel(t), None,
                                      eps=jnp.ravel(eps)[:, None])
  return np.sum(weight.ravel() * losses), np.sum(weight * np.square(x - eps))
