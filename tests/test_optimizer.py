"""The optimiser against steps computed by hand, and its mask against the names that it is about."""
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax.errors import InputError
from vdm_jax.nn.mlp import MLP
from vdm_jax.nn.vdm_unet import UNet
from vdm_jax.schedules import LearnedLinear, Monotone, PinnedMonotone
from vdm_jax.train import optimizer


def config(**fields):
  c = optimizer.default_config()
  c.update(fields)
  return c


def names_decayed(params, official=False):
  mask = optimizer.decay_mask(params, official)
  return {'/'.join(entry.key for entry in path): on
          for path, on in jax.tree_util.tree_flatten_with_path(mask)[0]}


def shapes(schedule, net=None):
  z = jnp.zeros((1, 4, 4, 1))
  net = net or UNet(features=4, blocks=1, groups=2, classes=3)
  key = jax.random.key(0)
  params = jax.eval_shape(lambda: {
      'net': net.init(key, z, jnp.zeros(1), jnp.zeros(1, jnp.int32))['params'],
      'schedule': schedule.init(key, jnp.zeros(1))['params']})
  return params


@pytest.mark.parametrize('schedule', [LearnedLinear(), Monotone(4), PinnedMonotone(4)],
                         ids=lambda s: type(s).__name__)
def test_only_kernels_of_the_network_decay(schedule):
  decayed = names_decayed(shapes(schedule))
  ends = {name.split('/')[-1] for name, on in decayed.items() if on}
  assert ends == {'kernel'}
  assert not any(on for name, on in decayed.items() if name.startswith('schedule'))
  kernels = {name for name in decayed if name.startswith('net') and name.endswith('kernel')}
  assert kernels == {name for name, on in decayed.items() if on}


def test_the_norms_and_biases_of_the_mlp_do_not_decay():
  net = MLP(features=4, blocks=1)
  params = jax.eval_shape(lambda: {'net': net.init(
      jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))['params']})
  decayed = names_decayed(params)
  assert {name.split('/')[-1] for name, on in decayed.items() if not on} == {'bias', 'scale'}


def test_the_official_mask_spares_biases_alone():
  """It decays the scales of the group norms, and the schedule: w, b and the monotone kernels."""
  for schedule in (LearnedLinear(), Monotone(4)):
    decayed = names_decayed(shapes(schedule), official=True)
    assert all(on != name.endswith('bias') for name, on in decayed.items())
  assert decayed['schedule/l3/kernel'] and not decayed['schedule/l1/bias']
  assert names_decayed(shapes(LearnedLinear()), official=True)['schedule/w']


def updates(tx, params, gradients):
  """The parameters after each of a sequence of gradients."""
  state, out = tx.init(params), []
  for gradient in gradients:
    change, state = tx.update(gradient, state, params)
    params = optax.apply_updates(params, change)
    out.append(params)
  return out


@pytest.mark.parametrize('official', [False, True])
def test_decay_moves_what_the_mask_names_and_nothing_else(official):
  """Without a gradient AdamW multiplies by 1 - lr wd, decoupled from all moments."""
  params = {'net': {'dense': {'kernel': jnp.full(2, 3.0), 'bias': jnp.full(2, 3.0)},
                    'norm': {'scale': jnp.full(2, 3.0), 'bias': jnp.full(2, 3.0)}},
            'schedule': {'w': jnp.full(1, 3.0), 'l1': {'kernel': jnp.full(1, 3.0)}}}
  tx = optimizer.adamw(config(learning_rate=0.1, warmup_steps=0, weight_decay=0.5,
                              official_decay_mask=official))
  zero = jax.tree.map(jnp.zeros_like, params)
  after = updates(tx, params, [zero, zero])[-1]
  decayed = 3.0 * (1.0 - 0.1 * 0.5) ** 2
  np.testing.assert_allclose(after['net']['dense']['kernel'], decayed, rtol=1e-6)
  np.testing.assert_array_equal(after['net']['dense']['bias'], 3.0)
  np.testing.assert_array_equal(after['net']['norm']['bias'], 3.0)
  schedule = after['schedule']
  for leaf in (after['net']['norm']['scale'], schedule['w'], schedule['l1']['kernel']):
    np.testing.assert_allclose(leaf, decayed if official else 3.0, rtol=1e-6)


def test_two_steps_of_adamw_by_hand():
  """b1 = 1/2, b2 = 3/4, lr = 0.1, wd = 0.01, w = 2, gradients 4 and 1; all numbers by hand.

  m = 2, v = 4: corrected 4 and 16, so the first step is 4/4 + 0.02 = 1.02.
  m = 1.5, v = 3.25: corrected 2 and 52/7, so the second is 2 sqrt(7/52) + 0.01 * 1.898.
  """
  tx = optimizer.adamw(config(learning_rate=0.1, warmup_steps=0, b1=0.5, b2=0.75, eps=0.0))
  wrap = lambda w: {'net': {'kernel': jnp.full((), w)}}
  first, second = updates(tx, wrap(2.0), [wrap(4.0), wrap(1.0)])
  np.testing.assert_allclose(first['net']['kernel'], 1.898, rtol=1e-6)
  np.testing.assert_allclose(second['net']['kernel'], 1.898 - 0.1 * (0.7337994 + 0.01898),
                             rtol=1e-6)


def test_epsilon_is_added_outside_the_root():
  """A gradient far below eps makes a step of lr g / eps, not of lr g / sqrt(eps)."""
  tx = optimizer.adamw(config(learning_rate=1.0, warmup_steps=0, eps=1e-2, weight_decay=0.0))
  wrap = lambda w: {'net': {'kernel': jnp.full((), w)}}
  (after,) = updates(tx, wrap(0.0), [wrap(1e-6)])
  np.testing.assert_allclose(after['net']['kernel'], -1e-4, rtol=1e-3)


def test_the_learning_rate_warms_up_linearly_from_zero_and_stays():
  rate = optimizer.learning_rate(config(learning_rate=2e-4, warmup_steps=100))
  np.testing.assert_allclose([rate(k) for k in (0, 1, 50, 99, 100, 10**7)],
                             [0.0, 2e-6, 1e-4, 1.98e-4, 2e-4, 2e-4], rtol=1e-5)


def test_without_warmup_the_first_step_has_the_full_rate():
  assert optimizer.learning_rate(config(learning_rate=0.3, warmup_steps=0))(0) == 0.3
  rate = optimizer.learning_rate(config(learning_rate=0.3, warmup_steps=0, decay_steps=10))
  np.testing.assert_allclose([rate(0), rate(5)], [0.3, 0.15], rtol=1e-6)


def test_a_decay_that_ends_before_the_warmup_is_refused():
  with pytest.raises(InputError, match='decay_steps=50'):
    optimizer.learning_rate(config(warmup_steps=100, decay_steps=50))


def test_the_cosine_is_half_way_down_in_the_middle_and_ends_at_zero():
  rate = optimizer.learning_rate(config(learning_rate=1.0, warmup_steps=10, decay_steps=110))
  np.testing.assert_allclose([rate(k) for k in (5, 10, 60, 110, 200)], [0.5, 1.0, 0.5, 0.0, 0.0],
                             atol=1e-6)


def test_clipping_bounds_the_global_norm_and_leaves_small_gradients_alone():
  """With b1 = b2 = 0 and a large eps a step is -lr g / eps: the gradient AdamW was given."""
  c = config(learning_rate=1.0, warmup_steps=0, b1=0.0, b2=0.0, eps=1e6, weight_decay=0.0,
             clip_norm=1.0)
  params = {'net': {'kernel': jnp.zeros(2), 'bias': jnp.zeros(1)}}
  gradient = {'net': {'kernel': jnp.array([2.0, 4.0]), 'bias': jnp.array([4.0])}}  # norm 6
  seen = lambda g: jax.tree.map(lambda u: -1e6 * u, updates(optimizer.adamw(c), params, [g])[0])
  clipped = seen(gradient)['net']
  np.testing.assert_allclose(clipped['kernel'], [1 / 3, 2 / 3], rtol=1e-4)
  np.testing.assert_allclose(clipped['bias'], [2 / 3], rtol=1e-4)
  small = jax.tree.map(lambda u: u / 60, gradient)
  np.testing.assert_allclose(seen(small)['net']['kernel'], [1 / 30, 1 / 15], rtol=1e-4)
