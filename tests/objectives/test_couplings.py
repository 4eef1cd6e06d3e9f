"""Optimal transport within groups of a batch: exact plans, order statistics, labels."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.optimize import linear_sum_assignment

from tests.support import recordings
from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.objectives import couplings

pytestmark = pytest.mark.usefixtures('x64')


@pytest.mark.long
def test_the_pairs_are_the_exact_plan_of_the_recordings():
  """POT's plan, as a permutation: the datum of each noise, and the mean cost."""
  saved = recordings.shared('minibatch_ot')
  for n in sorted({int(key[1:].split('/')[0]) for key in saved if key.startswith('B')}):
    noise, x = (jnp.asarray(saved[f'B{n}/{name}']) for name in ('noise', 'data'))
    paired = couplings.optimal_transport(noise, x, group=n)
    np.testing.assert_allclose(paired[saved[f'B{n}/permutation']], noise)
    cost = jnp.square(paired - x).sum() / n
    np.testing.assert_allclose(cost, saved[f'B{n}/cost'], rtol=1e-12)


def test_the_pairs_of_a_line_are_in_order_and_those_of_a_square_are_counted_by_hand():
  """On a line the least cost pairs the sorted noise with the sorted data.  In the plane: a square.

  The data (0, 0), (2, 0), (0, 2), (2, 2) have noise half a unit or a unit away, of cost 2.5.
  """
  noise, x = jnp.array([3.0, -1.0, 0.5, 2.0]), jnp.array([0.1, 5.0, -4.0, 0.2])
  paired = couplings.optimal_transport(noise[:, None], x[:, None], group=4)[:, 0]
  np.testing.assert_array_equal(paired, [0.5, 3.0, -1.0, 2.0])
  np.testing.assert_allclose(jnp.square(paired - x).sum(), 0.16 + 4.0 + 9.0 + 3.24, rtol=1e-12)
  x = jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0], [2.0, 2.0]])
  near = x + jnp.array([[0.5, 0.0], [0.0, 1.0], [1.0, 0.0], [-0.5, 0.0]])
  paired = couplings.optimal_transport(near[jnp.array([2, 3, 1, 0])], x, group=4)
  np.testing.assert_allclose(jnp.square(paired - x).sum(), 2.5, rtol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize('labelled', [False, True])
def test_the_cost_is_that_of_another_solver_in_every_group_and_within_labels(labelled):
  keys = random.per_example(random.key(1), jnp.arange(24))
  noise, x = (random.normal(random.stream(keys, name), jnp.zeros((24, 2, 3))) for name in 'ab')
  labels = jnp.arange(24) * 7 % 3 if labelled else None
  paired = jax.jit(lambda *u: couplings.optimal_transport(*u, group=8))(noise, x, labels)
  for group in np.arange(24).reshape(3, 8):
    for label in range(3 if labelled else 1):
      rows = group if labels is None else group[np.asarray(labels)[group] == label]
      costs = np.asarray(couplings.cost(noise[rows], x[rows]))
      least = costs[linear_sum_assignment(costs)].sum()
      np.testing.assert_allclose(jnp.square(paired[rows] - x[rows]).sum(), least, rtol=1e-12)
      # A permutation: every noise once, none twice.  The public default draws with replacement.
      first = lambda u: np.sort(np.asarray(u)[:, 0, 0])
      np.testing.assert_array_equal(first(paired[rows]), first(noise[rows]))


@pytest.mark.long
@pytest.mark.parametrize('n', [1, 2, 4, 8, 16, 64])
def test_the_cost_in_one_dimension_is_that_of_normal_order_statistics(n):
  """E = 1 + s^2 - 2 s c_n, c_n the mean of the squared means of n ordered normal numbers."""
  c = {1: 0.0, 2: 1 / np.pi, 4: 0.5739147, 8: 0.7499367, 16: 0.8593587, 64: 0.9587710}[n]
  s, total = 0.5, 2048
  keys = random.per_example(random.key(n), jnp.arange(total))
  noise = random.normal(random.stream(keys, 'eps'), jnp.zeros((total, 1)))
  x = s * random.normal(random.stream(keys, 'x'), jnp.zeros((total, 1)))
  paired = jax.jit(lambda *u: couplings.optimal_transport(*u, group=n))(noise, x)
  each = np.square(paired - x).reshape(-1, n).mean(1)
  assert abs(each.mean() - (1 + s**2 - 2 * s * c)) < 4 * stats.sem(each)


@pytest.mark.long
def test_noise_keeps_its_law_under_every_label_where_nothing_crosses():
  """Two labels at +-3: across them the noise of a label would have the mean of its half."""
  n = 4096
  keys = random.per_example(random.key(5), jnp.arange(n))
  noise = random.normal(random.stream(keys, 'eps'), jnp.zeros((n, 1)))
  labels = (random.uniform(random.stream(keys, 'label'), noise) < 0.5).astype(int)
  x = 6.0 * labels[:, None] - 3.0 + 0.1 * noise[::-1]
  pair = jax.jit(lambda labels: couplings.optimal_transport(noise, x, labels, group=32))
  told, untold = pair(labels), pair(None)
  of = lambda u: np.asarray(u[labels == 1, 0])
  assert abs(of(told).mean()) < 4 * stats.sem(of(told))
  assert of(untold).mean() > 0.5


def test_a_group_that_does_not_divide_the_batch_is_refused():
  with pytest.raises(InputError, match='group=64: it does not divide the 32 examples of a batch'):
    couplings.optimal_transport(jnp.zeros((32, 1)), jnp.zeros((32, 1)))
