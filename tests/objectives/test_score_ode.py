"""Matching of the score's derivatives: least at the true ones, on Gaussian and mixture data.

Expectations over data and noise are Gauss-Hermite sums, exact for the polynomials of a Gaussian;
those over random signs are means over all of them.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.correlated import COVARIANCE, at_rest, hermite, linear, signs
from vdm_jax import oracles, schedules
from vdm_jax.objectives import probes, score_ode, vlb
from vdm_jax.processes import GaussianProcess, diffuse

pytestmark = pytest.mark.usefixtures('x64')

PROCESS = GaussianProcess(schedules.Linear(4.0, -4.0))
TERMS = ('matrix', 'trace', 'third')


def level_at(t, n):
  return PROCESS(jnp.full(n, t))


@jax.jit
def expected_gradients(covariance, params):
  """d E[term] / d params for each term: with exact probes, and in the mean over random signs.

  The data are Gaussian with COVARIANCE, the estimate is that for `covariance`.
  """
  nodes, weights = hermite(5, 4)
  x, eps = nodes[:, :2] @ jnp.linalg.cholesky(jnp.asarray(COVARIANCE)).T, nodes[:, 2:]
  level = level_at(0.4, len(x))
  z = diffuse(x, eps, level)

  def means(params, v):
    _, terms = score_ode.errors(linear(covariance, params), z, eps, level,
                                jnp.broadcast_to(v[:, None], (len(v), *z.shape)))
    return {name: weights @ u for name, u in terms.items()}

  # A single probe, twice, has the shape of the two exact ones.
  both = jnp.concatenate([probes.basis(None, jnp.zeros((1, 2))).reshape(1, 2, 2),
                          jnp.repeat(signs(2)[:, None], 2, axis=1)])
  each = jax.vmap(jax.jacobian(means), in_axes=(None, 0))(params, both)
  return jax.tree.map(lambda u: u[0], each), jax.tree.map(lambda u: u[1:].mean(axis=0), each)


@pytest.mark.long
def test_each_term_rests_at_the_true_derivatives_and_nowhere_near_a_wrong_score():
  true = expected_gradients(COVARIANCE, at_rest())
  # Half the variances, no correlation, another mean.
  wrong = expected_gradients(0.5 * np.diag(np.diag(COVARIANCE)),
                             at_rest(b=jnp.array([0.4, -0.7])))
  for at_truth, elsewhere in zip(true, wrong, strict=True):
    for name in TERMS:
      for what in ('A', 'c'):
        np.testing.assert_allclose(at_truth[name][what], 0.0, atol=1e-12)
      moved = elsewhere[name]['c' if name == 'third' else 'A']
      assert np.abs(moved).max() > 0.1, (name, moved)


def test_the_first_order_error_is_not_trained_by_the_others():
  """b moves eps_hat and no derivative of it."""
  away = at_rest(A=jnp.array([[0.1, -0.2], [0.05, 0.3]]), b=jnp.array([0.4, -0.7]))
  for got in expected_gradients(COVARIANCE, away):
    for name in TERMS:
      np.testing.assert_array_equal(got[name]['b'], 0.0)
    # Nor is the Jacobian by the third order, but for its slope: that of the trace is 2 c_0.
    np.testing.assert_array_equal(got['third']['A'], 0.0)
    assert abs(got['third']['c'][0]) > 0.1


@pytest.mark.long
def test_each_term_rests_at_the_true_derivatives_of_a_mixture():
  """In one dimension, moved by a sine; and not at those of the Gaussian with its moments."""
  mixture = oracles.Mixture(jnp.array([0.3, 0.7]), jnp.array([[-1.0], [0.6]]),
                            jnp.array([0.3, 0.2]))
  mean = -0.3 + 0.7 * 0.6
  variance = 0.3 * (1.0 + 0.09) + 0.7 * (0.36 + 0.04) - mean**2
  gaussian = oracles.Gaussian(mean, variance**0.5)
  nodes, weights = hermite(60, 2)
  x = jnp.concatenate([m + s * nodes[:, :1] for m, s in ((-1.0, 0.3), (0.6, 0.2))])
  eps, weights = jnp.tile(nodes[:, 1:], (2, 1)), jnp.concatenate([0.3 * weights, 0.7 * weights])
  level = level_at(0.45, len(x))
  z = diffuse(x, eps, level)

  def gradient(oracle):
    def mean(move):
      def denoise(z, level, cond=None):
        estimate = oracle(z, level)
        return estimate._replace(eps=estimate.eps + move * jnp.sin(2.0 * z))
      _, terms = score_ode.errors(denoise, z, eps, level, jnp.ones((1, *z.shape)))
      return {name: weights @ u for name, u in terms.items()}
    return jax.jit(jax.jacobian(mean))(0.0)

  true, wrong = gradient(mixture), gradient(gaussian)
  for name in TERMS:
    np.testing.assert_allclose(true[name], 0.0, atol=1e-8)
    assert abs(wrong[name]) > 0.05, (name, wrong[name])


def bent(z, level, cond=None):
  """A denoiser whose derivatives are all different, its Jacobian not symmetric."""
  mix = jnp.array([[0.7, 0.2, -0.3], [0.1, 0.4, 0.5], [-0.2, 0.3, 0.6]])
  eps = jnp.sin(z @ mix.T) + 0.2 * z**2
  return oracles.Estimate(x=z, eps=eps)


def test_the_probes_give_the_matrices_of_the_paper():
  """Lu et al. (2022), with full matrices: by the basis exactly, by signs in the mean over all."""
  z, eps = jnp.array([[0.3, -0.8, 0.5]]), jnp.array([[0.9, 0.1, -1.2]])
  level = level_at(0.3, 1)
  sigma = level.sigma[0]
  one = lambda u: bent(u[None], level).eps[0]

  @jax.jit
  def everything(u):
    """By the definitions; and by the basis, and by each vector of signs."""
    jacobian = jax.jacobian(one)
    at = lambda v: score_ode.errors(bent, z, eps, level, v)[1]
    return (eps[0] - one(u), sigma * jacobian(u),
            sigma**2 * jax.grad(lambda u: jnp.trace(jacobian(u)))(u),
            at(probes.basis(None, z)), jax.vmap(at)(jnp.asarray(signs(3))[:, None, None]))

  miss, jacobian, slope, exact, drawn = jax.tree.map(np.asarray, everything(z[0]))
  off = np.eye(3) - jacobian - np.outer(miss, miss)
  # sigma^3 d tr(ds) + (|l|^2 - tr(l_2)) l - 2 l_2 l with l_2 = I + sigma^2 ds
  l_2 = np.eye(3) - jacobian
  third = -slope + (miss @ miss - np.trace(l_2)) * miss - 2.0 * l_2 @ miss
  np.testing.assert_allclose(exact['matrix'], [np.sum(off**2)], rtol=1e-12)
  np.testing.assert_allclose(exact['trace'], [np.trace(off)**2], rtol=1e-12)
  np.testing.assert_allclose(exact['third'], [third @ third], rtol=1e-12)

  np.testing.assert_allclose(np.mean(drawn['matrix']), np.sum(off**2), rtol=1e-12)
  # The square of v^T M v has the variance of the probe in it, sum over i < j of (M_ij + M_ji)^2.
  both = np.triu(off + off.T, 1)
  np.testing.assert_allclose(np.mean(drawn['trace']), np.trace(off)**2 + np.sum(both**2),
                             rtol=1e-12)


def test_random_signs_are_signs_and_belong_to_their_example():
  keys = jax.random.split(jax.random.key(0), 4)
  v = probes.rademacher(keys, jnp.zeros((4, 5, 20)))
  assert v.shape == (1, 4, 5, 20)
  np.testing.assert_array_equal(np.unique(v), [-1.0, 1.0])
  assert abs(v.mean()) < 4 / np.sqrt(v.size)
  np.testing.assert_array_equal(probes.rademacher(keys[2:3], jnp.zeros((1, 5, 20))), v[:, 2:3])


@pytest.mark.long
def test_the_objective_is_the_bound_and_what_is_added_to_it():
  """Of Gaussian data in d = 1, where matrix and trace are one number."""
  n = 500
  keys = jax.random.split(jax.random.key(1), n)
  x, t = jnp.linspace(-1.0, 1.0, n)[:, None], jnp.linspace(0.01, 0.99, n)
  args = oracles.Gaussian(0.0, 0.5), PROCESS, x, t, keys
  given = {'data': x, 'decoder': lambda data, z, level: jnp.zeros(len(z))}

  @jax.jit
  def values():
    return (vlb.continuous(*args, **given),
            score_ode.objective(*args, **given, second=0.5, third=0.1),
            score_ode.objective(*args, **given, second=0.0))

  (bound, parts), (nats, terms), (only, fewer) = values()
  for name, value in parts.items():
    np.testing.assert_allclose(terms[name], value, rtol=1e-12)
  np.testing.assert_allclose(terms['vlb'], bound, rtol=1e-12)
  np.testing.assert_allclose(nats, bound + terms['second_order'] + terms['third_order'])
  # l is normal with variance s^2 = 1 - J, J = 1 / (1 + SNR / 4); the bound has 1/2 l^2 (-dlogsnr).
  squares = terms['diffusion'] / 4.0
  rest = 0.25 * jnp.exp(8.0 * (0.5 - t)) / (1.0 + 0.25 * jnp.exp(8.0 * (0.5 - t)))
  np.testing.assert_allclose(terms['second_order'], 0.5 * 4.0 * 2.0 * (rest - squares)**2,
                             atol=1e-10)
  np.testing.assert_allclose(terms['third_order'],
                             0.1 * 4.0 * squares * (squares - 3.0 * rest)**2, atol=1e-10)
  np.testing.assert_allclose(only, bound, rtol=1e-12)
  assert 'third_order' not in fewer
