"""Attacks on linear classifiers, whose strongest attack is known."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import norm

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.evaluation import robustness
from vdm_jax.evaluation.robustness import Attack

pytestmark = pytest.mark.usefixtures('x64')

W = jnp.array([1.0, -0.5, 0.25])
LENGTHS = {'linf': 1.75, 'l2': float(np.linalg.norm([1.0, -0.5, 0.25]))}  # the dual norms of W


def keys_of(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


@pytest.mark.long
@pytest.mark.parametrize('norm_of', robustness.NORMS)
def test_a_linear_loss_is_raised_as_far_as_the_ball_allows(norm_of):
  x = jnp.linspace(-1.0, 1.0, 12).reshape(4, 3)
  attack = Attack(0.3, norm_of, steps=12, step_size=0.3)
  found = robustness.pgd(lambda x, _: x @ W, keys_of(4), x, attack)
  best = jnp.sign(W) if norm_of == 'linf' else W / LENGTHS['l2']
  # Along a sphere, each step turns the change a little more towards W.
  np.testing.assert_allclose(found - x, jnp.broadcast_to(0.3 * best, x.shape),
                             atol=1e-12 if norm_of == 'linf' else 1e-3)
  one = robustness.pgd(lambda x, _: x @ W, keys_of(4)[2:3], x[2:3], attack)
  np.testing.assert_array_equal(one[0], found[2])


@pytest.mark.long
def test_the_range_of_x_is_kept():
  x = jnp.array([[0.9, 0.0, 0.9]])
  found = robustness.pgd(lambda x, _: x @ W, keys_of(1), x, Attack(0.3), low=-0.2, high=1.0)
  np.testing.assert_allclose(found, [[1.0, -0.2, 1.0]], atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize('norm_of', robustness.NORMS)
def test_the_accuracy_under_attack_is_that_of_the_margin(norm_of):
  """Of N(y m, s^2) and the classifier sign(w x): Phi((m w - radius |w|_dual) / (s |w|))."""
  n, radius, mean, std = 4000, 0.3, jnp.array([0.5, -0.6, 0.2]), 0.4
  x = mean + std * jax.random.normal(jax.random.key(1), (n, 3))
  loss = lambda x, _: jax.nn.softplus(-x @ W)
  found = robustness.pgd(loss, keys_of(n), x, Attack(radius, norm_of, steps=20))
  want = norm.cdf((float(mean @ W) - radius * LENGTHS[norm_of]) / (std * LENGTHS['l2']))
  right = float(jnp.mean(found @ W > 0.0))
  assert 0.3 < want < 0.9
  assert abs(right - want) < 4 * (want * (1 - want) / n)**0.5 + 0.002


def noisy(x, keys):
  """The loss of a defence that adds noise to the weights."""
  return jnp.sum(x * (W + 2.0 * random.normal(keys, x)), axis=-1)


@pytest.mark.long
def test_more_draws_bring_the_direction_to_that_of_the_mean():
  """The angle from W after one long step: its tangent has the deviation 2 sqrt(2 / n) / |W|."""
  x, n = jnp.zeros((2000, 3)), 16
  found = robustness.pgd(noisy, keys_of(2000), x, Attack(1.0, 'l2', 1, n, step_size=1e6))
  along = found @ W / LENGTHS['l2']
  tangent = jnp.sqrt(jnp.maximum(1.0 - along**2, 0.0)) / along
  # g = W + 2 noise / sqrt(n): across W two numbers, along W |W| and one more, so a ratio.
  across = 4.0 / n * np.random.default_rng(0).chisquare(2, 10**6)
  ratio = np.sqrt(across) / np.abs(LENGTHS['l2'] + 2.0 / n**0.5
                                  * np.random.default_rng(1).standard_normal(10**6))
  for q in (0.25, 0.5, 0.75):
    want = np.quantile(ratio, q)
    assert abs(np.mean(np.abs(tangent) < want) - q) < 4 * (q * (1 - q) / 2000)**0.5


@pytest.mark.long
def test_a_known_noise_is_a_fixed_function():
  keys, x = keys_of(4, 7), jnp.zeros((4, 3))
  found = robustness.pgd(noisy, keys_of(4), x, Attack(0.3, steps=8), known=keys)
  np.testing.assert_allclose(found, 0.3 * jnp.sign(W + 2.0 * random.normal(keys, x)), atol=1e-12)


@pytest.mark.parametrize('attack, message', [
    (Attack(0.0), 'radius=0.0: an attack needs a change above 0'),
    (Attack(float('nan')), 'radius=nan: an attack needs'),
    (Attack(0.1, 'l3'), "norm='l3': .*choose one of linf, l2"),
    (Attack(0.1, steps=0), 'attack_steps=0: it must be at least 1'),
    (Attack(0.1, draws=0), 'draws=0: it must be at least 1'),
    (Attack(0.1, step_size=-1.0), 'step_size=-1.0: it must be above 0')])
def test_an_attack_that_cannot_be_is_refused(attack, message):
  with pytest.raises(InputError, match=message):
    robustness.pgd(lambda x, _: x @ W, keys_of(1), jnp.zeros((1, 3)), attack)


def test_draws_of_a_noise_that_is_known_are_refused():
  with pytest.raises(InputError, match='draws=2: the noise is known'):
    robustness.pgd(noisy, keys_of(1), jnp.zeros((1, 3)), Attack(0.1, draws=2), known=keys_of(1))
