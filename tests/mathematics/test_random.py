"""A draw belongs to an example and a name."""
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vdm_jax
from vdm_jax import random
from vdm_jax.errors import InputError


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


@pytest.mark.parametrize('preferred', ['rbg', 'unsafe_rbg'])
def test_a_draw_knows_no_batch_whatever_generator_the_environment_prefers(preferred):
  """The default of JAX itself gives the bits; that of the environment would mix the examples."""
  numbers = jnp.arange(8)
  expected = jax.random.key_data(random.per_example(jax.random.key(5), numbers))
  with jax.default_prng_impl(preferred):
    keys = random.per_example(random.key(5), numbers)
    np.testing.assert_array_equal(jax.random.key_data(keys), expected)
    bits = lambda keys: jax.vmap(lambda key: jax.random.bits(key, (6,)))(random.stream(keys, 'x'))
    np.testing.assert_array_equal(bits(keys[2:5]), bits(keys)[2:5])


def test_a_seed_out_of_range_is_refused_by_the_name_it_was_given():
  """JAX would cut 2^32 to 0, and take -1 for 2^32 - 1."""
  for seed in (0, 2**32 - 1, np.int64(7)):
    expected = [0, int(seed)]  # the two words of Threefry's key: high, low
    np.testing.assert_array_equal(jax.random.key_data(random.key(seed)), expected)
  for seed in (-1, 2**32, 1.5):
    with pytest.raises(InputError, match=rf'^config\.seed={seed}: .*from 0') as refused:
      random.key(seed, 'config.seed')
    assert str(refused.value).count('\n') == 0


def test_every_key_of_the_library_comes_from_one_place():
  package = Path(vdm_jax.__file__).parent
  made = [str(path.relative_to(package)) for path in package.rglob('*.py')
          if re.search(r'jax\.random\.(key|PRNGKey)\(|default_prng_impl', path.read_text())]
  assert made == ['random.py']


def test_one_key_and_a_number_are_the_keys_of_the_first_examples_and_keys_are_themselves():
  key = jax.random.key(4)
  keys = random.each(key, 3)
  for i in range(3):
    assert keys[i] == jax.random.fold_in(key, i)
  assert random.each(keys) is keys and random.each(keys, 3) is keys


@pytest.mark.parametrize('key,n,message', [
    (jax.random.key(0), None, 'n: it does not match keys'),
    (jax.random.key(0), 0, 'n=0: it does not match'),
    (jax.random.split(jax.random.key(0), 3), 4, r'n=4: it does not match keys of shape \(3,\)'),
    (jax.random.PRNGKey(0), 2, 'key: it is not a typed key; use jax.random.key'), (7, 2, 'key: ')])
def test_keys_that_are_not_one_for_each_example_are_refused(key, n, message):
  with pytest.raises(InputError, match=message):
    random.each(key, n)


def test_stratified_times_are_off_both_ends_by_half_a_step_and_else_are_the_draws():
  u = jnp.array([0.0, 2.0**-23, 0.3, 1.0 - 2.0**-23])  # all float32 draws are multiples of 2^-23
  np.testing.assert_array_equal(random.stratified(u, jnp.zeros(4), 4),
                                np.array([2.0**-24, *u[1:]], np.float32))
  assert random.stratified(jnp.float32(1.0 - 2.0**-24), 0, 4) < 1.0
