"""The optimiser against steps computed by hand, and its mask against the names that it is about."""
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from vdm_jax.errors import InputError
from vdm_jax.nn.small.mlp import MLP
from vdm_jax.nn.unets.vdm import UNet
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


def test_radam_begins_with_momentum_and_then_shortens_its_steps_as_in_the_paper():
  """Liu et al. (2020), algorithm 2.  Under a constant gradient both corrected moments are known."""
  b2, rate, g, factors = 0.9, 0.1, np.array([0.5, -2.0]), []
  tx = optimizer.named(config(name='radam', learning_rate=rate, warmup_steps=0, b1=0.9, b2=b2,
                              weight_decay=0.0))
  params = {'net': {'kernel': jnp.zeros(2)}}
  state, last = tx.init(params), 2.0 / (1.0 - b2) - 1.0
  for t in range(1, 12):
    moved, state = tx.update({'net': {'kernel': jnp.asarray(g)}}, state, params)
    length = last - 2.0 * t * b2**t / (1.0 - b2**t)
    factors.append(np.sqrt((length - 4.0) * (length - 2.0) * last / (
        (last - 4.0) * (last - 2.0) * length)) if length > 5.0 else 0.0)
    wanted = -rate * (factors[-1] * np.sign(g) if factors[-1] else g)
    np.testing.assert_allclose(moved['net']['kernel'], wanted, rtol=1e-3)
  assert factors[4] == 0.0 < factors[6] < factors[10] < 1.0


def first_step(gradients, **fields):
  """The first step with a learning rate of 1, along these gradients."""
  tx = optimizer.named(config(name='muon', learning_rate=1.0, warmup_steps=0, weight_decay=0.0,
                              **fields))
  params = jax.tree.map(jnp.zeros_like, gradients)
  return tx.update(gradients, tx.init(params), params)[0]


@pytest.mark.parametrize('shape,matrices', [
    ((12, 8), (1, 12, 8)), ((3, 3, 2, 8), (1, 18, 8)), ((4, 6, 5), (4, 6, 5)),
    ((2, 3, 3, 2, 8), (2, 18, 8))], ids=['dense', 'convolution', 'stacked', 'both'])
def test_a_step_of_muon_has_the_singular_vectors_of_the_gradient_and_equal_lengths(shape, matrices):
  """The singular value decomposition is numpy's.  Newton-Schulz leaves values of 0.7 to 1.2."""
  gradient = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  step = first_step({'net': {'kernel': jnp.asarray(gradient)}})['net']['kernel']
  for g, moved in zip(gradient.reshape(matrices), np.asarray(step).reshape(matrices), strict=True):
    u, _, v = np.linalg.svd(g, full_matrices=False)
    values = u.T @ -moved @ v.T / (0.2 * np.sqrt(max(g.shape)))
    np.testing.assert_allclose(values - np.diag(np.diag(values)), 0.0, atol=1e-3)
    assert 0.6 < np.diag(values).min() and np.diag(values).max() < 1.3
    rest = -moved - u @ (u.T @ -moved @ v.T) @ v  # outside of these vectors there is nothing
    np.testing.assert_allclose(rest, 0.0, atol=1e-3)


def test_with_muon_all_but_kernels_of_the_network_make_the_steps_of_adam():
  """The first step of Adam is the sign of the gradient.  A step of Muon is as long for kernels."""
  draw = lambda *shape: jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32)
  gradients = {'net': {'bias': draw(4), 'embedding': draw(3, 4), 'kernel': draw(64, 64)},
               'schedule': {'kernel': draw(4, 4)}}
  step = first_step(gradients)
  for of, name in (('net', 'bias'), ('net', 'embedding'), ('schedule', 'kernel')):
    np.testing.assert_allclose(step[of][name], -jnp.sign(gradients[of][name]), rtol=1e-4)
  # RMS of an orthogonal matrix [n, n] is 1 / sqrt(n); Adam's long average RMS is some 0.2.
  assert 0.7 * 0.2 < jnp.sqrt(jnp.mean(jnp.square(step['net']['kernel']))) < 1.2 * 0.2
  with pytest.raises(InputError, match="config.optimizer.moments='factored': Muon keeps"):
    optimizer.named(config(name='muon', moments='factored'))


def test_an_optimiser_has_a_name_and_an_older_config_has_none():
  with pytest.raises(InputError, match="config.optimizer.name='sgd': "):
    optimizer.named(config(name='sgd'))
  with pytest.raises(InputError, match="config.optimizer.moments='bfloat16': RAdam keeps"):
    optimizer.named(config(name='radam', moments='bfloat16'))
  old, params = config().to_dict(), {'net': {'kernel': jnp.ones(2)}}
  del old['name']
  assert jax.tree.structure(optimizer.named(ml_collections.ConfigDict(old)).init(params)) == (
      jax.tree.structure(optimizer.adamw(config()).init(params)))


@pytest.mark.first(2)
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


# ------------------------------------------------------ moments

LARGE = (128, 160)  # smaller matrices are not factored


def directions(moments, params, gradients, **fields):
  """[len(gradients)] steps that a rate of 1 makes, in place of the parameters after them."""
  tx = optimizer.adamw(config(moments=moments, learning_rate=1.0, warmup_steps=0,
                              weight_decay=0.0, **fields))
  state, out = tx.init(params), []
  for gradient in gradients:
    change, state = tx.update(gradient, state, params)
    out.append(jax.tree.map(lambda u: -np.asarray(u, np.float64), change))
  return out


def kernel(u):
  return {'net': {'kernel': jnp.asarray(u, jnp.float32)}}


def random_gradients(shape, n, seed=0):
  """Of very different sizes from row to row and from column to column."""
  rng = np.random.default_rng(seed)
  scale = np.exp(rng.normal(size=(shape[0], 1))) * np.exp(rng.normal(size=(1, *shape[1:])))
  return [scale * rng.normal(size=shape) for _ in range(n)]


@pytest.mark.parametrize('schedule_learning_rate', [0.0, 1e-3])
def test_moments_in_float32_are_optax_s_adamw_to_the_bit(schedule_learning_rate):
  c = config(schedule_learning_rate=schedule_learning_rate)
  rate = lambda peak: optax.join_schedules(
      [optax.linear_schedule(0.0, peak, 100), optax.constant_schedule(peak)], [100])
  adamw = lambda peak: optax.adamw(rate(peak), 0.9, 0.99, 1e-8, weight_decay=0.01,
                                   mask=optimizer.decay_mask)
  theirs = adamw(2e-4)
  if schedule_learning_rate:
    theirs = optax.multi_transform(
        {'net': theirs, 'schedule': adamw(schedule_learning_rate)},
        lambda params: {part: jax.tree.map(lambda _, part=part: part, params[part])
                        for part in params})
  params = {**kernel(np.ones((3, 2))), 'schedule': {'w': jnp.ones(2)}}
  gradients = [{**kernel(g), 'schedule': {'w': jnp.asarray(g[0], jnp.float32)}}
               for g in random_gradients((3, 2), 4)]
  for one, other in zip(updates(optimizer.adamw(c), params, gradients),
                        updates(theirs, params, gradients), strict=True):
    jax.tree.map(np.testing.assert_array_equal, one, other)


def bytes_of(tree):
  return sum(u.size * u.dtype.itemsize for u in jax.tree.leaves(tree))


@pytest.fixture(scope='module')
def official():
  """Parameters of the published CIFAR-10 network at a quarter of its depth, by shape."""
  return shapes(LearnedLinear(), UNet(features=128, blocks=8))


@pytest.mark.parametrize('moments, each', [('float32', 8), ('bfloat16', 6)])
def test_the_moments_take_so_many_bytes_a_parameter(official, moments, each):
  state = jax.eval_shape(optimizer.adamw(config(moments=moments)).init, official)
  count = sum(u.size for u in jax.tree.leaves(official))
  assert each * count <= bytes_of(state) <= each * count + 8  # and the step, twice


def test_factored_moments_take_a_row_and_a_column_for_each_matrix_of_channels(official):
  state = jax.eval_shape(optimizer.adamw(config(moments='factored')).init, official)
  expected, leaves = 0, jax.tree.leaves(official)
  for u in leaves:
    expected += 2 * u.size
    if u.ndim > 1 and min(u.shape[-2:]) >= 128:
      expected += 4 * u.size // (u.shape[-2] * u.shape[-1]) * sum(u.shape[-2:])
    else:
      expected += 4 * u.size
  # optax has an array of one number where there is nothing to keep, and counts steps three times.
  assert expected <= bytes_of(state) <= expected + 2 * 4 * len(leaves) + 12
  count = sum(u.size for u in leaves)
  assert 2.0 < bytes_of(state) / count < 2.2


def test_rounding_the_first_moment_moves_a_step_by_its_resolution():
  """With gradients of +-1 a step is m / (1 - b1^t), and |m| < 1 - b1^t.

  m is rounded twice a step, by at most 2^-9 of it, and such an error of k steps ago counts b1^k:
  the sum is below 2 * 2^-9 b1 / (1 - b1).  At the first step nothing has been rounded.
  """
  rng = np.random.default_rng(4)
  gradients = [kernel(rng.choice([-1.0, 1.0], size=(40, 30))) for _ in range(12)]
  exact, rounded = (directions(moments, gradients[0], gradients, eps=0.0)
                    for moments in ('float32', 'bfloat16'))
  error = [np.abs(u['net']['kernel'] - v['net']['kernel']).max()
           for u, v in zip(exact, rounded, strict=True)]
  assert error[0] == 0.0
  assert 1e-3 < max(error) < 2 * 2.0**-9 * 0.9 / 0.1


@pytest.mark.long
def test_where_squared_gradients_have_rank_one_the_factored_second_moment_is_exact():
  """Signs times s_t r_i c_j: V is (r_i c_j)^2 times an average of s^2, whose root divides."""
  rng = np.random.default_rng(1)
  r, c = np.exp(2.0 * rng.normal(size=(LARGE[0], 1))), np.exp(2.0 * rng.normal(size=LARGE[1]))
  signs = [rng.choice([-1.0, 1.0], size=LARGE) for _ in range(4)]
  sizes = np.array([1.0, 5.0, 0.2, 2.0])
  gradients = [kernel(s * sign * r * c) for s, sign in zip(sizes, signs, strict=True)]
  steps = directions('factored', gradients[0], gradients, b1=0.0)
  np.testing.assert_allclose(steps[0]['net']['kernel'], signs[0], rtol=1e-5)
  for t in range(4):
    weights = 0.99 ** np.arange(t, -1, -1)
    second = np.sum(weights * sizes[:t + 1]**2) / np.sum(weights)
    np.testing.assert_allclose(steps[t]['net']['kernel'], signs[t] * sizes[t] / np.sqrt(second),
                               rtol=1e-5)


def test_the_factored_second_moment_has_rank_one_and_the_means_of_rows_and_columns():
  """Which is what defines it.  It is read off steps without a first moment: V = (g / step)^2."""
  gradients = random_gradients(LARGE, 3)
  steps = directions('factored', kernel(gradients[0]), list(map(kernel, gradients)), b1=0.0)
  weights = 0.99 ** np.array([2.0, 1.0, 0.0])
  truth = np.tensordot(weights / weights.sum(), np.square(gradients), 1)
  second = (gradients[2] / steps[2]['net']['kernel'])**2
  for axis in (0, 1):
    np.testing.assert_allclose(second.mean(axis), truth.mean(axis), rtol=1e-4)
  values = np.linalg.svd(second, compute_uv=False)
  assert values[1] < 1e-5 * values[0]
  assert np.abs(second / truth - 1.0).max() > 0.5  # which the truth has not


@pytest.mark.long
def test_each_block_and_tap_has_a_factored_second_moment_of_its_own():
  """A kernel [2, 3, 3, C, C'] whose matrices differ in size by far: each makes its own steps."""
  rng = np.random.default_rng(2)
  sizes = 10.0 ** rng.uniform(-3, 3, size=(2, 3, 3, 1, 1))
  gradients = [sizes * rng.normal(size=(2, 3, 3, *LARGE)) for _ in range(2)]
  together = directions('factored', kernel(gradients[0]), list(map(kernel, gradients)))
  for place in ((0, 0, 0), (1, 2, 1)):
    alone = [kernel(g[place]) for g in gradients]
    for one, other in zip(directions('factored', alone[0], alone), together, strict=True):
      np.testing.assert_allclose(other['net']['kernel'][place], one['net']['kernel'], rtol=1e-5)


@pytest.mark.long
def test_what_is_not_factored_makes_the_steps_of_adam_without_a_first_moment():
  """Small matrices, and biases and norm scales of fewer than 128 blocks."""
  for shape in ((2, 128), (127, 160), (200,)):
    gradients = [kernel(g) for g in random_gradients(shape, 5)]
    for one, other in zip(directions('factored', gradients[0], gradients, b1=0.0, eps=1e-15),
                          directions('float32', gradients[0], gradients, b1=0.0, eps=1e-15),
                          strict=True):
      np.testing.assert_allclose(one['net']['kernel'], other['net']['kernel'], rtol=1e-5)


def test_the_first_moment_of_factored_steps_is_their_average():
  """With weights b1^k over their sum, and rounded to bfloat16 at each step, as above."""
  gradients = [kernel(g) for g in random_gradients(LARGE, 4)]
  without = directions('factored', gradients[0], gradients, b1=0.0)
  smooth = directions('factored', gradients[0], gradients, b1=0.5)
  weights = 0.5 ** np.array([3.0, 2.0, 1.0, 0.0])
  without = np.stack([u['net']['kernel'] for u in without])
  average = np.tensordot(weights / weights.sum(), without, 1)
  largest = np.abs(without).max(axis=0)
  assert np.all(np.abs(smooth[-1]['net']['kernel'] - average) <= 2 * 2.0**-9 / 0.5 * largest)


def test_epsilon_keeps_factored_steps_of_a_vanishing_gradient_small():
  (step,) = directions('factored', kernel(np.zeros(LARGE)), [kernel(np.full(LARGE, 1e-6))],
                       eps=1e-2)
  np.testing.assert_allclose(step['net']['kernel'], 1e-4, rtol=1e-3)
  (still,) = directions('factored', kernel(np.zeros(LARGE)), [kernel(np.zeros(LARGE))])
  np.testing.assert_array_equal(still['net']['kernel'], 0.0)


@pytest.mark.long
def test_every_kind_of_moments_learns_a_linear_map():
  """|(W - A) x|^2 for fresh x, whose sizes differ tenfold: all fall a thousandfold, and alike."""
  rng = np.random.default_rng(3)
  a = jnp.asarray(rng.normal(size=(128, 128)) / 11.0, jnp.float32)
  scale = jnp.asarray(10.0 ** np.linspace(-0.5, 0.5, 128), jnp.float32)

  def final(moments):
    tx = optimizer.adamw(config(moments=moments, learning_rate=3e-2, warmup_steps=0,
                                decay_steps=300, weight_decay=0.0))

    def loss(params, key):
      x = scale * jax.random.normal(key, (32, 128))
      return jnp.mean((x @ (params['net']['kernel'] - a))**2)

    def step(carry, key):
      params, state = carry
      value, gradient = jax.value_and_grad(loss)(params, key)
      change, state = tx.update(gradient, state, params)
      return (optax.apply_updates(params, change), state), value
    params = kernel(np.zeros((128, 128)))
    keys = jax.random.split(jax.random.key(0), 300)
    values = jax.jit(lambda: jax.lax.scan(step, (params, tx.init(params)), keys)[1])()
    return float(jnp.mean(values[-10:]) / values[0])

  left = {moments: final(moments) for moments in optimizer.MOMENTS}
  assert max(left.values()) < 1e-3, left
  assert max(left.values()) < 2.0 * min(left.values()), left


def test_moments_of_another_kind_are_refused_by_name():
  with pytest.raises(InputError, match="^config.optimizer.moments='float16': .*; choose one of "
                                       'float32, bfloat16, factored'):
    optimizer.adamw(config(moments='float16'))


def test_a_config_older_than_the_field_has_moments_in_float32():
  old = optimizer.default_config()
  with old.unlocked():
    del old.moments
  state = optimizer.adamw(old).init(kernel(np.ones((2, 2))))
  assert {u.dtype for u in jax.tree.leaves(state)} == {jnp.dtype('float32'), jnp.dtype('int32')}
