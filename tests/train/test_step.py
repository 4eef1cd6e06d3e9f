"""One optimisation step: its randomness, its average, its gradient.

A probe makes the step tell what it did: the loss w_i q_i of example i has the gradient q_i / B in
w_i, so SGD with rate B leaves w_i = -q_i.
"""
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from tests.support import tiny_config
from vdm_jax import random
from vdm_jax.train import parallel
from vdm_jax.train import step as step_lib

B = 8
ONE = jax.devices()[:1]
LAYOUTS = {'one': (parallel.jit_layout, ONE), 'jit': (parallel.jit_layout, None),
           'pmap': (parallel.pmap_layout, None)}


def probe(quantity, layout='one', at_step=0, batch=B, accumulate=1):
  """quantity(context, n) -> [n], for each example of a global batch: [batch]."""
  make, devices = LAYOUTS[layout]

  def loss(params, rows, context):
    i = rows['row']
    return params[i] * quantity(context, len(i)), {}

  update = functools.partial(step_lib.make_step(loss, optax.sgd(batch), {}), accumulate=accumulate)
  layout = make(update, devices)
  state = step_lib.init(jnp.zeros(batch), optax.sgd(batch), {}).replace(step=jnp.int32(at_step))
  placed = layout.place({'row': np.arange(batch)})
  state, _ = layout.step(layout.put(state), placed, jax.random.key(3))
  return -jax.device_get(layout.view(state)).params


def times(context, n):
  return context.t


def noise(context, n):
  return random.normal(random.stream(context.keys, 'eps'), jnp.zeros((n,)))


@pytest.mark.parametrize('layout', LAYOUTS)
def test_times_are_stratified_over_the_global_batch(layout):
  """In order round the circle they are 1/B apart, whatever the devices."""
  t = np.sort(probe(times, layout))
  gaps = np.diff(t, append=t[0] + 1.0)
  np.testing.assert_allclose(gaps, 1.0 / B, atol=1e-6)
  assert 0.0 <= t[0] and t[-1] < 1.0


@pytest.mark.first(2)
@pytest.mark.parametrize('quantity', [times, noise], ids=lambda f: f.__name__)
@pytest.mark.parametrize('accumulate', [1, 2])
def test_what_an_example_draws_does_not_depend_on_the_split_of_the_batch(quantity, accumulate):
  one = probe(quantity, 'one', at_step=5)
  assert len(np.unique(one)) == B
  for layout in LAYOUTS:
    np.testing.assert_array_equal(probe(quantity, layout, 5, accumulate=accumulate), one)


def test_the_noise_of_an_example_does_not_depend_on_the_size_of_the_batch():
  np.testing.assert_array_equal(probe(noise, batch=4), probe(noise, batch=B)[:4])


def over_steps(quantity, steps):
  """[steps, B]: what the examples draw at each step."""
  loss = lambda params, rows, context: (params * quantity(context, B), {})
  update = step_lib.make_step(loss, optax.sgd(B), {})
  state = step_lib.init(jnp.zeros(B), optax.sgd(B), {})
  rows, key = {'row': jnp.arange(B)}, jax.random.key(7)
  one = lambda k: -update(state.replace(step=k), rows, key, parallel.Axis())[0].params
  return np.asarray(jax.jit(jax.vmap(one))(jnp.arange(steps)))


def test_the_time_of_each_example_is_uniform_over_steps():
  n = 3000
  t = over_steps(times, n)
  for i in (0, 3, B - 1):
    counts, _ = np.histogram(t[:, i], 20, (0.0, 1.0))
    statistic = np.sum((counts - n / 20) ** 2) / (n / 20)
    assert statistic < scipy.stats.chi2(19).ppf(0.999)


def test_noise_is_independent_between_examples_and_between_steps():
  n = 3000
  eps = over_steps(noise, n)
  error = 1.0 / np.sqrt(n)  # of the mean of products of independent standard normals
  products = eps.T @ eps / n
  # The diagonal's own error is sqrt(2/n); 36 numbers, each within 4.5 of its errors.
  assert np.abs(np.diag(products) - 1.0).max() < 4.5 * np.sqrt(2.0) * error
  assert np.abs(products - np.diag(np.diag(products))).max() < 4.5 * error
  between = np.mean(eps[1:] * eps[:-1], axis=0)
  assert np.abs(between).max() < 4.5 * error


def test_an_average_of_a_straight_path_lags_by_the_geometric_sum():
  """w_k = w_0 - c k:  e_n = w_n + c r (1 - r^n) / (1 - r), for each rate by itself."""
  rates, c, n = {'fast': 0.5, 'slow': 0.9, 'last': 0.0}, 0.25, 7  # 1 is refused: it never moves
  loss = lambda params, batch, context: (jnp.full(B, params['w']), {})
  update = step_lib.make_step(loss, optax.sgd(c), rates)
  state = step_lib.init({'w': jnp.float32(3.0)}, optax.sgd(c), rates)
  step = jax.jit(lambda s: update(s, {'row': jnp.arange(B)}, jax.random.key(0), parallel.Axis())[0])
  for _ in range(n):
    state = step(state)
  w = 3.0 - c * n
  assert float(state.params['w']) == w and int(state.step) == n
  for name in ('fast', 'slow'):
    r = rates[name]
    np.testing.assert_allclose(state.ema[name]['w'], w + c * r * (1 - r**n) / (1 - r), rtol=1e-6)
  assert float(state.ema['last']['w']) == w


def test_an_average_of_parameters_that_do_not_move_is_exactly_those():
  p = {'w': jax.random.normal(jax.random.key(0), (100,))}
  average = p
  for _ in range(50):
    average = step_lib.average(average, p, 0.9999)
  np.testing.assert_array_equal(average['w'], p['w'])


def test_the_loss_reads_the_step_the_averages_and_aux_and_sends_no_gradient_to_them():
  """loss = w + e + aux + k: 3 + 3 + 10 + 2, with gradient 1 though e is a function of w's past."""
  def loss(params, batch, context):
    total = params['w'] + context.ema['e']['w'] + context.aux + context.step
    return jnp.full(B, total), {'seen': jnp.full(B, context.step)}

  tx = optax.sgd(1.0)
  state = step_lib.init({'w': jnp.float32(3.0)}, tx, {'e': 0.9}, aux=jnp.float32(10.0))
  state, metrics = step_lib.make_step(loss, tx, {'e': 0.9})(
      state.replace(step=jnp.int32(2)), {'row': jnp.arange(B)}, jax.random.key(0), parallel.Axis())
  assert float(metrics['loss']) == 18.0 and float(metrics['seen']) == 2.0
  assert float(metrics['grad_norm']) == 1.0
  assert float(state.params['w']) == 2.0 and float(state.aux) == 10.0


def test_the_averages_own_their_buffers():
  """An average that shared the parameters' memory could not be donated with them."""
  params = {'w': jnp.ones(3)}
  state = step_lib.init(params, optax.sgd(1.0), {'a': 0.9, 'b': 0.99})
  where = [u['w'].unsafe_buffer_pointer() for u in (state.params, *state.ema.values())]
  assert len(set(where)) == 3


def test_what_an_experiment_keeps_survives_the_donation_of_a_state():
  kept = {'history': jnp.arange(3.0)}
  state = step_lib.init({'w': jnp.ones(3)}, optax.sgd(1.0), {}, kept)
  jax.jit(lambda s: jax.tree.map(lambda u: u + 1, s), donate_argnums=0)(state)
  assert state.aux['history'].is_deleted()
  np.testing.assert_array_equal(kept['history'], [0.0, 1.0, 2.0])


def test_a_gradient_of_their_own_for_no_parameters_is_refused():
  own = step_lib.OwnGradient(lambda names: False, lambda losses, terms: losses)
  with pytest.raises(ValueError, match="chooses none of the parameters.*'schedule'"):
    one_update(next(iter(LAYOUTS)), own=own)


def test_a_loss_that_takes_the_mean_itself_is_refused():
  update = step_lib.make_step(lambda p, b, c: (jnp.mean(p), {}), optax.sgd(1.0), {})
  state = step_lib.init(jnp.zeros(B), optax.sgd(1.0), {})
  with pytest.raises(ValueError, match='a loss returns'):
    update(state, {'row': jnp.arange(B)}, jax.random.key(0), parallel.Axis())


# ------------------------------------------------------ gradients of their own

Q, R = np.linspace(-1.0, 2.0, B, dtype=np.float32), np.linspace(3.0, 0.5, B, dtype=np.float32)**2
START = {'net': {'a': np.float32(0.7)}, 'schedule': {'b': np.float32(-1.5)}}


def two_parts(params, rows, context):
  """l_i = a q_i + b r_i."""
  losses = params['net']['a'] * rows['q'] + params['schedule']['b'] * rows['r']
  return losses, {'quantity': rows['q']}


def one_update(layout, remember=None, aux=None, own=None, accumulate=1):
  make, devices = LAYOUTS[layout]
  tx = optax.sgd(1.0)
  update = step_lib.make_step(two_parts, tx, {}, own=own, remember=remember)
  layout = make(functools.partial(update, accumulate=accumulate), devices)
  state = step_lib.init(jax.tree.map(jnp.asarray, START), tx, {}, aux)
  state, metrics = layout.step(layout.put(state), layout.place({'q': Q, 'r': R}), jax.random.key(3))
  state = jax.device_get(layout.view(state))
  return jax.tree.map(lambda before, after: before - after, START, state.params), state, metrics


def of_schedule(names):
  return names[0] == 'schedule' and names[-1] == 'b'


@pytest.mark.parametrize('layout', LAYOUTS)
def test_with_cotangents_of_one_the_gradient_is_that_of_the_mean(layout):
  own = step_lib.OwnGradient(of_schedule, lambda losses, terms: jnp.ones_like(losses))
  moved, _, metrics = one_update(layout, own=own)
  np.testing.assert_allclose([moved['net']['a'], moved['schedule']['b']], [Q.mean(), R.mean()],
                             rtol=1e-6)
  np.testing.assert_allclose(metrics['grad_norm'], np.hypot(Q.mean(), R.mean()), rtol=1e-6)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('accumulate', [1, 2])
def test_cotangents_of_twice_the_loss_are_the_gradient_of_its_mean_square_for_their_part(
    layout, accumulate):
  own = step_lib.OwnGradient(of_schedule, lambda losses, terms: 2.0 * losses)
  moved, _, metrics = one_update(layout, own=own, accumulate=accumulate)
  losses = 0.7 * Q - 1.5 * R
  np.testing.assert_allclose(moved['net']['a'], Q.mean(), rtol=1e-6)
  np.testing.assert_allclose(moved['schedule']['b'], np.mean(2.0 * losses * R), rtol=1e-5)
  np.testing.assert_allclose(metrics['loss'], losses.mean(), rtol=1e-5)


@pytest.mark.first(1)
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('accumulate', [1, 2])
def test_what_is_remembered_is_of_the_global_batch_in_its_order(layout, accumulate):
  def remember(aux, context, losses, terms):
    draws = random.normal(random.stream(context.keys, 'eps'), jnp.zeros((B,)))
    return {'t': context.t, 'eps': draws, 'losses': losses, 'seen': terms['quantity'],
            'before': jnp.cumsum(losses), 'times': aux['times'] + 1}

  empty = {'t': jnp.zeros(B), 'eps': jnp.zeros(B), 'losses': jnp.zeros(B), 'seen': jnp.zeros(B),
           'before': jnp.zeros(B), 'times': jnp.zeros((), jnp.int32)}
  _, state, _ = one_update(layout, remember, empty, accumulate=accumulate)
  np.testing.assert_array_equal(state.aux['seen'], Q)
  losses = 0.7 * Q - 1.5 * R
  np.testing.assert_allclose(state.aux['losses'], losses, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(state.aux['before'], np.cumsum(losses), rtol=1e-5, atol=1e-5)
  # As the examples of a probe told themselves, one by one.
  np.testing.assert_allclose(state.aux['t'], probe(times), rtol=1e-6)
  np.testing.assert_array_equal(state.aux['eps'], probe(noise))
  assert state.aux['times'] == 1


# ------------------------------------------------------ microbatches

ROWS = 16
EVERY = {**LAYOUTS, 'fsdp': (parallel.fsdp_layout, None)}


@pytest.fixture(scope='module')
def experiment():
  """With dropout, and SGD: Adam would hide a gradient that is too large by a factor."""
  config = tiny_config.get_config()
  config.data.batch_size = ROWS
  return tiny_config.build(config)._replace(tx=optax.sgd(0.02))


@pytest.fixture(scope='module')
def start(experiment):
  """Away from the initial state, where dropout, before layers that are zero, changes nothing."""
  leaves, tree = jax.tree.flatten(experiment.init(jax.random.key(0)))
  keys = jax.random.split(jax.random.key(1), len(leaves))
  leaves = [u + 0.1 * jax.random.normal(k, u.shape) for u, k in zip(leaves, keys, strict=True)]
  params = jax.tree.unflatten(tree, leaves)
  return jax.device_get(step_lib.init(params, experiment.tx, experiment.ema))


def made(experiment, layout, accumulate):
  make, devices = EVERY[layout]
  return make(step_lib.update_of(experiment, accumulate), devices)


def trained(experiment, start, layout, accumulate, steps=3):
  layout = made(experiment, layout, accumulate)
  state, rows = layout.put(start), []
  for k in range(steps):
    state, metrics = layout.step(state, layout.place(experiment.data.batch(k)), jax.random.key(2))
    rows.append(jax.device_get(metrics))
  return jax.device_get(layout.view(state)), rows


@pytest.fixture(scope='module')
def reference(experiment, start):
  return trained(experiment, start, 'one', 1)


@pytest.mark.long
@pytest.mark.parametrize('layout, accumulate', [
    ('one', ROWS), ('jit', 4), ('pmap', 2), ('fsdp', 2)])
def test_steps_in_microbatches_are_those_of_the_whole_batch(experiment, start, reference, layout,
                                                            accumulate, monkeypatch):
  monkeypatch.setattr(parallel, 'SMALLEST_SHARDED', 1)
  state, rows = trained(experiment, start, layout, accumulate)
  state2, rows2 = reference
  moved = jax.tree.map(lambda u, v: np.abs(u - v).max(), state2.params, start.params)
  assert min(jax.tree.leaves(moved)) > 1e-4
  jax.tree.map(lambda u, v: np.testing.assert_allclose(u, v, rtol=2e-5, atol=2e-6), state, state2)
  for row, row2 in zip(rows, rows2, strict=True):
    assert row.keys() == row2.keys()
    for name, value in row.items():
      np.testing.assert_allclose(value, row2[name], rtol=1e-4, atol=1e-6, err_msg=name)


def together(params, rows, context):
  """A term that tells example i the set of those it is computed with: sum of 2^row."""
  company = jnp.sum(2.0 ** rows['row'])
  return params['w'] * jnp.ones_like(context.t), {'company': jnp.full_like(context.t, company)}


@pytest.mark.parametrize('layout, groups', [
    ('one', [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]),
    ('jit', [[0, 4, 8, 12], [1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]),
    ('pmap', [[i] for i in range(ROWS)])])
def test_a_microbatch_has_rows_of_every_device(layout, groups):
  make, devices = EVERY[layout]
  tx = optax.sgd(1.0)
  update = step_lib.make_step(together, tx, {},
                              remember=lambda aux, context, losses, terms: terms['company'])
  layout = make(functools.partial(update, accumulate=4), devices)
  state = layout.put(step_lib.init({'w': jnp.ones(())}, tx, {}, jnp.zeros(ROWS)))
  state, _ = layout.step(state, layout.place({'row': np.arange(ROWS)}), jax.random.key(0))
  expected = np.zeros(ROWS)
  for group in groups:
    expected[group] = sum(2.0**i for i in group)
  np.testing.assert_array_equal(layout.view(state).aux, expected)


COLLECTIVES = r'\b(all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter)(?:-start)?\('


@pytest.mark.long
def test_no_row_of_a_batch_split_over_devices_moves(experiment, start):
  def collectives(accumulate):
    layout = made(experiment, 'jit', accumulate)
    args = layout.put(start), layout.place(experiment.data.batch(0)), jax.random.key(2)
    return set(re.findall(COLLECTIVES, layout.step.lower(*args).compile().as_text()))
  assert collectives(4) == collectives(1) == {'all-reduce'}


def test_four_microbatches_need_a_quarter_of_the_memory():
  """tanh(x W), ten times: what is kept is ten numbers for each of x, far more than W has."""
  n, features = 1024, 16

  def loss(params, rows, context):
    h = rows['x']
    for _ in range(10):
      h = jnp.tanh(h @ params['w'])
    return jnp.sum(h**2, axis=-1), {}

  def scratch(accumulate):
    update = step_lib.make_step(loss, optax.sgd(1.0), {})
    layout = parallel.jit_layout(functools.partial(update, accumulate=accumulate), ONE)
    args = (layout.put(step_lib.init({'w': jnp.eye(features)}, optax.sgd(1.0), {})),
            layout.place({'x': np.ones((n, features), np.float32)}), jax.random.key(0))
    return layout.step.lower(*args).compile().memory_analysis().temp_size_in_bytes

  kept = 10 * n * features * 4
  assert scratch(1) > kept
  # Beside a quarter of it the rows themselves, put apart.
  assert scratch(4) < kept / 4 + 3 * n * features * 4


def test_microbatches_that_do_not_divide_the_rows_are_refused():
  with pytest.raises(ValueError, match='accumulate = 3 does not divide the 8 rows'):
    one_update('one', accumulate=3)
  with pytest.raises(ValueError, match='accumulate = 4 does not divide the 2 rows'):
    one_update('pmap', accumulate=4)


def test_an_average_of_a_longer_memory_than_its_run_is_named_with_what_it_holds_of_the_start():
  """Weights that are 1 at the start and 0 after it leave their share in the average itself."""
  share = jnp.float32(1.0)
  for _ in range(200):
    share = step_lib.average(share, jnp.float32(0.0), 0.99)  # 0.134
  text = step_lib.caution('slow', 0.99, 200)
  assert text.startswith(f"The average 'slow' of rate 0.99 still holds {float(share):.0%} of the")
  assert '\n' not in text and "'raw'" in text
  assert step_lib.caution('slow', 0.99, 230) == ''  # 0.0991
  assert step_lib.caution('slow', 0.99, 0) == ''    # which are the weights, as imported ones
