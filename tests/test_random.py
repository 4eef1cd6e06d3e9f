"""A draw belongs to an example and a name."""
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random


def draw(keys, name, shape=(3,), dtype=jnp.float32):
  return np.asarray(random.normal(random.stream(keys, name), jnp.zeros((len(keys), *shape), dtype)))


def test_a_draw_depends_on_its_example_and_not_on_the_batch():
  keys = jax.random.split(jax.random.key(0), 8)
  together = draw(keys, 'eps')
  # The random bits are the same; a vectorised function of them may round the last place otherwise.
  np.testing.assert_allclose(draw(keys[2:5], 'eps'), together[2:5], rtol=3e-7)
  np.testing.assert_allclose(draw(keys[::-1], 'eps'), together[::-1], rtol=3e-7)


def test_draws_of_other_examples_and_other_names_are_uncorrelated_standard_normals():
  n = 20_000
  keys = jax.random.split(jax.random.key(1), n)
  eps, eps_0 = draw(keys, 'eps', (2,)), draw(keys, 'eps_0', (2,))
  columns = np.concatenate([eps, eps_0, np.roll(eps, 1, axis=0)], axis=1)
  # The mean of n standard normals has standard error n^-1/2, of their products too, and of
  # their squares (2/n)^1/2; 33 numbers in all, so five standard errors.
  np.testing.assert_allclose(columns.mean(0), 0.0, atol=5 / n**0.5)
  second = columns.T @ columns / n
  np.testing.assert_allclose(np.diag(second), 1.0, atol=5 * (2 / n)**0.5)
  np.testing.assert_allclose(second - np.diag(np.diag(second)), 0.0, atol=5 / n**0.5)


def test_uniform_numbers_are_one_for_each_example_with_the_moments_of_their_law():
  n = 20_000
  got = np.asarray(random.uniform(jax.random.split(jax.random.key(4), n), jnp.zeros((n, 2, 3))))
  assert got.shape == (n,) and 0.0 <= got.min() and got.max() <= 1.0
  for power in (1, 2, 3):
    # E u^p = 1 / (p + 1), and the variance of u^p is 1 / (2 p + 1) - 1 / (p + 1)^2.
    error = ((1 / (2 * power + 1) - 1 / (power + 1)**2) / n)**0.5
    np.testing.assert_allclose(np.mean(got**power), 1 / (power + 1), atol=4 * error)


def test_noise_has_the_shape_and_the_precision_of_what_it_is_added_to():
  keys = jax.random.split(jax.random.key(2), 2)
  assert draw(keys, 'eps', (4, 5), jnp.bfloat16).shape == (2, 4, 5)
  assert random.normal(keys, jnp.zeros((2, 1), jnp.bfloat16)).dtype == jnp.bfloat16


def test_the_key_of_an_example_depends_on_its_index_alone():
  key = jax.random.key(3)
  together = jax.random.key_data(random.per_example(key, jnp.arange(10)))
  np.testing.assert_array_equal(
      jax.random.key_data(random.per_example(key, jnp.array([7, 2]))), together[jnp.array([7, 2])])
  assert len(np.unique(together, axis=0)) == 10


def test_stratified_times_put_one_example_in_every_stratum():
  for n in (5, 49, 128):
    i = jnp.arange(n)
    for u in (0.003, 0.3, 0.77):
      t = random.stratified(u, i, n)
      assert (t >= 0).all() and (t < 1).all()
      assert len(np.unique(np.floor(np.asarray(t) * n))) == n
      np.testing.assert_array_equal(random.stratified(u, i[n // 2:], n), t[n // 2:])


def test_each_stratified_time_is_uniform():
  """Over u uniform, every t_i has the mean 1/2 and the variance 1/12 of the uniform law."""
  u = (jnp.arange(4000) + 0.5) / 4000
  t = random.stratified(u[:, None], jnp.arange(7), 7)
  np.testing.assert_allclose(t.mean(0), 0.5, atol=1e-3)
  np.testing.assert_allclose(t.var(0), 1 / 12, atol=1e-3)
