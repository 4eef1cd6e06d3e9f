"""Operators, their adjoints, solvers, and the exact posterior."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from vdm_jax import inverse, oracles, schedules
from vdm_jax.errors import InputError
from vdm_jax.inverse import Problem
from vdm_jax.processes import GaussianProcess

pytestmark = pytest.mark.usefixtures('x64')
SHAPE = (8, 12, 3)
LINEAR = {
    'inpaint': inverse.inpaint(SHAPE),
    'mask': inverse.kept(np.random.default_rng(0).random(SHAPE) < 0.3),
    'keep': inverse.scattered(SHAPE, 0.3),
    'downsample': inverse.downsample(SHAPE, 4),
    'blur': inverse.blur(SHAPE, 1.5),
    'gray': inverse.gray(SHAPE),
}


@pytest.fixture
def x():
  return np.random.default_rng(1).normal(size=(2, *SHAPE))


@pytest.mark.first(1)
@pytest.mark.parametrize('name', LINEAR)
def test_the_adjoint_is_exact_and_the_matrix_is_that_of_the_operator(name, x):
  operator = LINEAR[name]
  y = np.random.default_rng(2).normal(size=(2, *operator.measured))
  got = operator(jnp.asarray(x))
  assert got.shape == y.shape
  np.testing.assert_allclose(np.sum(got * y), np.sum(x * operator.adjoint(jnp.asarray(y))),
                             rtol=1e-12)
  np.testing.assert_allclose(operator.matrix() @ x[0].ravel(), got[0].ravel(), rtol=1e-10)


def test_a_blur_is_the_gaussian_filter_of_scipy(x):
  want = [scipy.ndimage.gaussian_filter(image, (1.5, 1.5, 0.0)) for image in x]
  np.testing.assert_allclose(LINEAR['blur'](jnp.asarray(x)), want, rtol=1e-12)
  wide = inverse.blur(SHAPE, 3.0)  # the filter is wider than the image
  want = [scipy.ndimage.gaussian_filter(image, (3.0, 3.0, 0.0)) for image in x]
  np.testing.assert_allclose(wide(jnp.asarray(x)), want, rtol=1e-12)


def test_what_an_operator_measures(x):
  middle = LINEAR['downsample'](jnp.asarray(x))
  np.testing.assert_allclose(middle[1, 0, 2], x[1, :4, 8:].mean(axis=(0, 1)))
  known = LINEAR['inpaint'].known
  assert known.sum() == known.size * 3 // 4 and not known[2:6, 3:9].any()
  scattered = LINEAR['keep'].known
  assert (scattered == scattered[..., :1]).all() and scattered[..., 0].sum() == 29  # of 96
  assert 0 < scattered[:4, :6].sum() < 72 and 0 < scattered[4:, 6:].sum() < 72
  spread = LINEAR['inpaint'].spread(LINEAR['inpaint'](jnp.asarray(x)), 7.0)
  np.testing.assert_array_equal(spread, np.where(known, x, 7.0))


def test_the_moduli_of_a_phase_problem_keep_the_energy_and_lose_shifts():
  operator = inverse.phase((6, 6, 1))
  x = np.zeros((2, 6, 6, 1))
  x[0, 1:3, 2:4] = x[1, 2:4, 1:3] = [[[1.0], [2.0]], [[3.0], [-4.0]]]
  y = operator(jnp.asarray(x))
  np.testing.assert_allclose(np.sum(y[0]**2), np.sum(x[0]**2), rtol=1e-12)
  np.testing.assert_allclose(y[0], y[1], rtol=1e-12)
  assert np.isfinite(jax.grad(lambda x: operator(x).sum())(jnp.zeros((1, 6, 6, 1)))).all()


@pytest.mark.long
def test_a_pseudo_inverse_is_that_of_the_matrix(x):
  for name, operator in LINEAR.items():
    if name != 'blur':  # whose smallest singular values are below rounding
      y = operator(jnp.asarray(x))
      want = np.linalg.pinv(operator.matrix()) @ np.asarray(y[0]).ravel()
      np.testing.assert_allclose(inverse.pseudo_inverse(operator, y)[0].ravel(), want, atol=1e-10)


@pytest.mark.long
def test_the_solvers_solve_and_treat_each_example_alone():
  rng = np.random.default_rng(3)
  square = rng.normal(size=(2, 6, 6))
  positive = square @ np.swapaxes(square, 1, 2) + np.eye(6)
  b = rng.normal(size=(2, 6)) * [[1.0], [1e6]]
  by = lambda matrix: lambda u: jnp.einsum('bij,bj->bi', matrix, u)
  cg = inverse.conjugate_gradients(by(positive), jnp.asarray(b), 30)
  np.testing.assert_allclose(cg, np.linalg.solve(positive, b[..., None])[..., 0], rtol=1e-9)
  krylov = inverse.gmres(by(square), jnp.asarray(b), 6)  # neither symmetric nor positive
  np.testing.assert_allclose(krylov, np.linalg.solve(square, b[..., None])[..., 0], rtol=1e-7)
  for solver in (inverse.conjugate_gradients, inverse.gmres):
    np.testing.assert_array_equal(solver(by(positive), jnp.zeros((2, 6)), 4), np.zeros((2, 6)))
  # One step leaves the least residual that a multiple of b has.
  one = inverse.gmres(by(square), jnp.asarray(b), 1)
  r = b - np.einsum('bij,bj->bi', square, one)
  np.testing.assert_allclose(np.einsum('bi,bi->b', r, np.einsum('bij,bj->bi', square, b)) /
                             np.linalg.norm(b, axis=1)**2, 0.0, atol=1e-10)


def test_the_posterior_of_a_mixture_has_the_density_of_bayes_rule():
  """log p(x | y) - log p(x) - log p(y | x) is the same for all x."""
  rng = np.random.default_rng(4)
  root = rng.normal(size=(2, 3, 3))
  prior = oracles.Correlated.of(rng.normal(size=(2, 3)), root @ np.swapaxes(root, 1, 2),
                                np.array([0.3, 0.7]))
  matrix, y, noise = rng.normal(size=(2, 3)), np.array([0.4, -0.2]), 0.3
  process = GaussianProcess(schedules.Linear(30.0, -10.0))
  clean = process(0.0)._replace(alpha=jnp.ones(()), sigma=jnp.zeros(()))
  x = jnp.asarray(rng.normal(size=(5, 3)))
  told = prior.given(matrix, y, noise)
  likelihood = -0.5 * np.sum(np.square((y - x @ matrix.T) / noise), axis=1)
  gap = told.log_prob(x, clean) - prior.log_prob(x, clean) - likelihood
  np.testing.assert_allclose(gap, gap[0], rtol=1e-9)


@pytest.mark.long
def test_a_correlated_oracle_of_diagonal_covariances_is_the_mixture(x):
  weights, means = np.array([0.3, 0.7]), np.array([[0.5, -1.0], [1.0, 2.0]])
  stds = np.array([[0.3, 1.0], [0.8, 0.2]])
  known = oracles.Mixture(weights, means, stds)
  ours = oracles.Correlated.of(means, np.stack([np.diag(s**2) for s in stds]), weights)
  process = GaussianProcess(schedules.Linear(10.0, -10.0))
  z = jnp.asarray(np.random.default_rng(5).normal(size=(7, 2)))
  level = process(jnp.linspace(0.0, 1.0, 7))
  for a, b in zip(known(z, level)[:2], ours(z, level)[:2], strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10)
  np.testing.assert_allclose(known.log_prob(z, level), ours.log_prob(z, level), rtol=1e-10)
  slope = jax.grad(lambda z: ours.log_prob(z, level).sum())(z)
  np.testing.assert_allclose(slope, -ours(z, level).eps / level.expand(z).sigma, rtol=1e-8)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize('make,match', [
    (lambda: inverse.downsample(SHAPE, 5), 'task=.downsample:5.: 5 does not divide'),
    (lambda: inverse.downsample(SHAPE, 1), 'must be at least 2'),
    (lambda: inverse.blur(SHAPE, 0.0), 'sigma must be above 0'),
    (lambda: inverse.gray((8, 8, 1)), 'one channel and are gray already'),
    (lambda: inverse.scattered(SHAPE, 0.0), 'the share must be between 0 and 1'),
    (lambda: inverse.scattered((2, 2, 1), 0.1), 'nothing of the image is known'),
    (lambda: inverse.inpaint((8,)), 'it is for images, and x has the shape'),
    (lambda: inverse.kept(np.zeros(SHAPE, bool)), 'nothing of the image is known'),
    (lambda: inverse.kept(np.ones(SHAPE, bool)), 'all of the image is known')])
def test_an_operator_that_does_not_fit_is_refused(make, match):
  with pytest.raises(InputError, match=match):
    make()


@pytest.mark.parametrize('apply,linear', [
    (lambda x: x[:, ::2], True), (lambda x: x**2, False), (jnp.abs, False),
    (lambda x: x + 1.0, False), (lambda x: jnp.sum(x, axis=(1, 2)), True)])
def test_whether_an_operator_of_ones_own_is_linear(apply, linear):
  assert inverse.custom('own.py:a', apply, SHAPE).linear is linear


@pytest.mark.parametrize('apply,match', [
    (lambda x: x @ jnp.ones((7, 2)), 'it fails on x of shape'),
    (lambda x: jnp.sum(x), r'it makes y \(\)'),
    (lambda x: x - jnp.mean(x, axis=0), 'depends on the other images'),
    (lambda x: x > 0.0, 'y has the type bool')])
def test_an_operator_of_ones_own_that_cannot_be_used_is_refused(apply, match):
  with pytest.raises(InputError, match=match):
    inverse.custom('own.py:a', apply, SHAPE)


@pytest.mark.parametrize('change,match', [
    ({'noise': -0.1}, 'noise=-0.1: it must be at least 0'),
    ({'y': jnp.zeros((2, 8, 12, 3))}, r'shape \(8, 12, 3\) for an image, and downsample:4 makes'),
    ({'y': jnp.full((2, 2, 3, 3), jnp.nan)}, 'y: it is not finite'),
    ({'y': jnp.full((2, 2, 3, 3), 128.0)}, 'give y in the units of images in .-1, 1.')])
def test_a_measurement_that_does_not_fit_is_refused(change, match):
  good = Problem(LINEAR['downsample'], jnp.zeros((2, 2, 3, 3)), 0.1)
  good.check()
  with pytest.raises(InputError, match=match):
    good._replace(**change).check()


@pytest.mark.parametrize('operator,x,y', [
    (inverse.phase((6, 8, 1)), 1.0, np.sqrt(48.0) / 2.0),
    (inverse.custom('own.py:columns', lambda x: jnp.sum(x, axis=1), (6, 8, 1)), 1.0, 6.0),
    (inverse.custom('own.py:steps', lambda x: 3.0 * (x[:, 1:] - x[:, :-1]), (6, 8, 1)),
     (-1.0)**np.arange(6)[:, None, None], 6.0)], ids=lambda u: getattr(u, 'name', ''))
def test_a_measurement_that_no_image_in_range_has_is_refused(operator, x, y):
  """The largest y is attained by a constant image, or by one of stripes."""
  most = operator(jnp.asarray(x) * jnp.ones((1, *operator.shape)))
  np.testing.assert_allclose(jnp.max(most), y, rtol=1e-6)
  problem = Problem(operator, most, 0.01)
  problem.check()
  problem._replace(y=most + 0.05).check()
  for wrong in (most + 0.1, 127.5 * most, -most - 0.1):
    with pytest.raises(InputError, match=f'{operator.name} of images in .-1, 1. with this noise'):
      problem._replace(y=wrong).check()


@pytest.mark.parametrize('apply,shape', [
    (lambda x: x**2, (4, 4, 1)), (lambda x: x[:, :1], (4,)), (lambda x: 2.0 * x, (48, 48, 1))])
def test_a_range_that_is_not_known_is_not_checked(apply, shape):
  """Of a function that is not linear, of data that are no images, and of a large matrix."""
  operator = inverse.custom('own.py:a', apply, shape)
  assert operator.limits is None
  Problem(operator, 100.0 * operator(jnp.ones((1, *shape))), 0.01).check()
