"""The VDM on pitches: its bound before training is known, and known notes stay as they are."""
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import data, inverse, processes, random, schedules
from vdm_jax.errors import InputError
from vdm_jax.inverse import Problem
from vdm_jax.nn.small.voices import Voices, smoothed
from vdm_jax.samplers import conditioned
from vdm_jax.systems.applications import music

SHAPE = (8, 4, 1)


def _config(**model):
  config = music.default_config(features=16, depth=1, attention_heads=2, **model)
  config.data.update(data.Spec('own', (data.fields.integers('pitches', SHAPE, 128),)).to_config())
  config.data.name = 'own'
  return config


@functools.cache
def _made():
  experiment = music.experiment(_config())
  return experiment, experiment.init(random.key(0))


def _pitches(n, seed=0):
  return np.random.default_rng(seed).integers(0, 128, (n, *SHAPE)).astype(np.uint8)


@pytest.mark.long
def test_before_training_a_note_costs_seven_bits():
  """The odds of 128 levels are equal at first, and the bound of the exact posterior is log2 128."""
  experiment, params = _made()
  nats = experiment.model(params).nats({'pitches': _pitches(64)}, key=random.key(1), draws=64)
  bits = nats / (32 * np.log(2))
  error = bits.std() / 8.0
  assert abs(bits.mean() - 7.0) < 4 * error + 0.01 and error < 0.05


@pytest.mark.long
def test_transposition_moves_all_notes_alike_and_leaves_rests():
  pitches = np.random.default_rng(0).integers(40, 80, (400, *SHAPE)).astype(np.uint8)
  pitches[:, 2, 1] = 0
  pitches[0, 0] = 126  # where some shifts would leave the levels
  keys = random.per_example(random.key(0), jnp.arange(400))
  moved = np.asarray(music.transposed(jnp.asarray(pitches), keys, 3, 128))
  assert (moved[:, 2, 1] == 0).all() and moved.max() < 128
  shift = (moved.astype(int) - pitches)[:, :2].reshape(400, -1)
  assert (shift == shift[:, :1]).all()
  counts = np.bincount(shift[1:, 0] + 3, minlength=7)
  assert len(counts) == 7 and np.abs(counts - 57).max() < 4 * np.sqrt(57 * 6 / 7)


@pytest.mark.long
@pytest.mark.parametrize('method', [conditioned.Replacement(), conditioned.RePaint(2, 2)])
@pytest.mark.parametrize('which', music.KNOWN)
def test_known_notes_are_kept_exactly(which, method):
  experiment, params = _made()
  model = experiment.model(params)
  pitches = _pitches(3, seed=2)
  there = music.known(which, SHAPE)
  operator = inverse.kept(there, which)
  keys = random.per_example(random.key(3), jnp.arange(3))
  y = operator(model.encode(jnp.asarray(pitches)))
  z = conditioned.sample_posterior(method, model.denoise, model.process, Problem(operator, y, 0.0),
                                   keys, random.normal(keys, jnp.zeros((3, *SHAPE))),
                                   np.linspace(1.0, 0.0, 5))
  drawn = np.asarray(model.decode(z / model.process(0.0).alpha))
  assert (drawn[:, there] == pitches[:, there]).all()
  assert (drawn[:, ~there] != pitches[:, ~there]).mean() > 0.9


def test_what_is_known_covers_one_voice_or_half_of_the_steps():
  assert music.known('soprano', SHAPE)[:, 0].all() and music.known('soprano', SHAPE).sum() == 8
  assert music.known('bass', SHAPE)[:, 3].all() and music.known('bass', SHAPE).sum() == 8
  assert music.known('ends', SHAPE)[[0, 1, 6, 7]].all() and music.known('ends', SHAPE).sum() == 16
  with pytest.raises(InputError, match='soprano'):
    music.known('sopran', SHAPE)


def test_data_that_are_no_voices_are_refused():
  config = music.default_config()
  config.data.update(data.Spec('own', (data.fields.reals('x', (8, 4)),)).to_config())
  with pytest.raises(InputError, match='voices are integers'):
    music.experiment(config)
  with pytest.raises(InputError, match='transpose'):
    music.experiment(_config(transpose=-1))


def test_the_windows_are_looked_up_once_when_an_experiment_is_built(monkeypatch):
  """Where nothing is configured yet, a look-up reads all windows."""
  calls, voices = [], music.voices
  monkeypatch.setattr(music, 'voices', lambda config: calls.append(1) or voices(config))
  music.experiment(_config(transpose=2))
  assert len(calls) == 1


def test_smoothed_odds_are_the_posterior_of_a_chain():
  """Against a sum over all paths."""
  rng = np.random.default_rng(7)
  odds = rng.random((2, 4, 2, 3))
  after = rng.random((2, 3, 3))
  after /= after.sum(axis=-1, keepdims=True)
  wanted = np.zeros(odds.shape)
  for path in itertools.product(range(3), repeat=4):
    p = np.ones((2, 2))  # [B, voices]
    for t, state in enumerate(path):
      p *= odds[:, t, :, state] * (after[:, path[t - 1], state] if t else 1.0)
    for t, state in enumerate(path):
      wanted[:, t, :, state] += p
  wanted /= wanted.sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(smoothed(jnp.asarray(odds), jnp.asarray(after)), wanted, atol=1e-5)
  same = odds / odds.sum(axis=-1, keepdims=True)
  np.testing.assert_allclose(smoothed(jnp.asarray(odds), jnp.full((2, 3, 3), 1 / 3)), same,
                             atol=1e-6)


@pytest.mark.long
def test_with_little_noise_the_network_rounds_to_the_nearest_level():
  """The exact likelihood of the noisy number decides, whatever the parameters."""
  net = Voices(features=16, depth=1, attention_heads=2)
  pitches = _pitches(4, seed=5)
  level = processes.GaussianProcess(schedules.Linear(14.0, 0.0))(jnp.zeros(4))
  x = 2.0 * (pitches + 0.5) / 128 - 1.0
  keys = random.per_example(random.key(6), jnp.arange(4))
  z = level.expand(x).alpha * x + level.expand(x).sigma * random.normal(keys, jnp.asarray(x))
  params = net.init(random.key(0), z, level.logsnr)
  loud = jax.tree.map(lambda u: u + 0.1 * jax.random.normal(random.key(1), u.shape), params)
  np.testing.assert_allclose(net.apply(loud, z, level.logsnr), x, atol=2e-3)
