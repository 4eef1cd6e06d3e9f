"""Several players in one step: whose gradient moves what, in which order, and what is counted once.

min_a max_b a b by gradient steps in turn, a' = a - r b, b' = b + s a', turns in the plane: its
trajectory is a product of 2 x 2 matrices.
"""
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.train import parallel
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Experiment

B, RATES = 8, (0.1, 0.3)
LAYOUTS = {'one': (parallel.jit_layout, jax.devices()[:1]), 'jit': (parallel.jit_layout, None),
           'pmap': (parallel.pmap_layout, None), 'fsdp': (parallel.fsdp_layout, None)}


def first(params, rows, context):
  losses = params['a']['w'] * params['b']['w'] * rows['one']
  return losses, {'step': jnp.full(len(losses), context.step)}


def second(params, rows, context):
  return -first(params, rows, context)[0], {
      'draw': random.normal(random.stream(context.keys, 'draw'), rows['one'])}


GAME = {'left': step_lib.Player(first, optax.sgd(RATES[0]), ('a',)),
        'right': step_lib.Player(second, optax.sgd(RATES[1], momentum=0.0), ('b',))}
START = {'a': {'w': np.float32(1.0)}, 'b': {'w': np.float32(0.5)}, 'c': {'w': np.float32(3.0)}}


def play(players=GAME, steps=5, layout='one', accumulate=1, rate=0.5):
  make, devices = LAYOUTS[layout]
  update = step_lib.players(players, {'ema': rate})
  layout = make(functools.partial(update, accumulate=accumulate), devices)
  state = layout.put(step_lib.init(jax.tree.map(jnp.asarray, START),
                                   step_lib.optimisers(players)))
  seen = []
  for _ in range(steps):
    state, metrics = layout.step(state, layout.place({'one': np.ones(B, np.float32)}),
                                 jax.random.key(0))
    state_now = jax.device_get(layout.view(state))
    seen.append((state_now, jax.device_get(metrics)))
  return seen


@pytest.mark.first(3)
@pytest.mark.parametrize('accumulate', [1, 2])
@pytest.mark.parametrize('layout', LAYOUTS)
def test_players_move_in_turn_and_each_sees_who_moved_before(layout, accumulate):
  r, s = RATES
  turn = np.array([[1.0, -r], [s, 1.0 - r * s]])
  ab, ema = np.array([1.0, 0.5]), np.array([1.0, 0.5])
  for state, metrics in play(layout=layout, accumulate=accumulate):
    before, ab = ab, turn @ ab
    ema = 0.5 * (ema + ab)
    np.testing.assert_allclose([state.params[k]['w'] for k in 'ab'], ab, rtol=1e-6)
    np.testing.assert_allclose([state.ema['ema'][k]['w'] for k in 'ab'], ema, rtol=1e-6)
    np.testing.assert_allclose(metrics['loss'], before[0] * before[1], rtol=1e-5)
    np.testing.assert_allclose(metrics['right_loss'], -ab[0] * before[1], rtol=1e-5)
    np.testing.assert_allclose(metrics['grad_norm'], np.hypot(before[1], ab[0]), rtol=1e-5)


def test_a_step_of_several_counts_as_one_for_all_of_them():
  seen = play(steps=3)
  assert [int(state.step) for state, _ in seen] == [1, 2, 3]
  assert [int(metrics['left_step']) for _, metrics in seen] == [0, 1, 2]
  assert seen[0][1].keys() == {'loss', 'grad_norm', 'left_loss', 'left_step', 'left_grad_norm',
                               'right_loss', 'right_draw', 'right_grad_norm'}
  assert all(state.params['c']['w'] == 3.0 for state, _ in seen)


@pytest.mark.long
def test_players_draw_the_same_in_a_step_however_the_batch_is_split():
  draws = [[float(m['right_draw']) for _, m in play(steps=2, layout=layout, accumulate=k)]
           for layout, k in (('one', 1), ('one', 4), ('jit', 2))]
  np.testing.assert_allclose(draws, draws[:1] * 3, rtol=1e-5)
  assert draws[0][0] != draws[0][1]


def test_a_player_keeps_an_optimiser_of_what_it_moves_alone():
  """Adam's first step is as long as its rate."""
  players = GAME | {'left': GAME['left']._replace(tx=optax.adam(0.1))}
  (state, _), = play(players, steps=1)
  adam, = (part for part in jax.tree.leaves(
      state.opt['left'], is_leaf=lambda u: hasattr(u, 'mu')) if hasattr(part, 'mu'))
  assert adam.mu.keys() == {'a'}
  np.testing.assert_allclose(state.params['a']['w'], 0.9, rtol=1e-5)


def test_two_players_of_the_same_parameters_have_each_an_optimiser():
  """Both add their own momentum: -r (b + mu b_before ...) with b held still."""
  loss = lambda params, rows, context: (params['a']['w'] * rows['one'], {})
  players = {name: step_lib.Player(loss, optax.sgd(rate, momentum=0.9), ('a',))
             for name, rate in (('slow', 0.01), ('fast', 0.1))}
  seen = play(players, steps=2)
  np.testing.assert_allclose([s.params['a']['w'] for s, _ in seen],
                             [1 - 0.11, 1 - 0.11 - 0.11 * 1.9], rtol=1e-6)


def test_a_player_of_parameters_that_are_not_there_is_refused():
  players = GAME | {'right': GAME['right']._replace(moves=('d',))}
  with pytest.raises(InputError, match='it moves d, which are no parameters; choose among a, b'):
    step_lib.optimisers(players).init(START)


def test_microbatches_of_an_update_that_has_none_are_refused():
  experiment = Experiment(None, first, None, None, optax.sgd(0.1), {'ema': 0.5})
  assert step_lib.update_of(experiment, 4).keywords == {'accumulate': 4}
  experiment = experiment._replace(update=lambda state, batch, key, axis: (state, {}))
  step_lib.update_of(experiment)
  with pytest.raises(InputError, match='config.train.accumulate=4: .*no microbatches'):
    step_lib.update_of(experiment, 4)
