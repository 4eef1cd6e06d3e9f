"""Symbolic music: windows of four voices, pitches of 128 levels.

The direct route is a VDM on pitches.  A pitch is a level 0 .. 127, as a grey level of an image is,
and 0 is a rest.  So the bound is on -log p(notes), and compares with n-grams of notes.  The network
(`nn.small.voices`) knows that pitches are levels, and estimates odds of all of them.

Voices are columns of x [T, 4, 1].  `known` says which notes of a window are given: a melody to be
harmonised, or bars around a gap.  Replacement and RePaint (`samplers.conditioned`) keep them.
"""
from collections.abc import Callable

import jax.numpy as jnp
import ml_collections
import numpy as np

from vdm_jax import data, random, schedules, targets
from vdm_jax.errors import require, require_choice
from vdm_jax.nn.small.voices import Voices
from vdm_jax.systems import compose
from vdm_jax.typing import Array, Experiment, PyTree

__all__ = ['KNOWN', 'default_config', 'experiment', 'known', 'transposed', 'transposing', 'voices']

KNOWN = ('soprano', 'bass', 'ends')


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of a VDM on pitches."""
  return compose.default_config(**{
      'features': 128,
      'depth': 4,
      'attention_heads': 4,
      'dropout': 0.1,
      'class_conditional': False,
      'scan': True,
      'remat': 'none',
      'transpose': 0,        # most semitones by which training moves a window, up or down
      'logsnr_max': 14.0,    # of the schedule, for 256 levels; see `compose.end_points`
      'logsnr_min': -3.0,
      'timesteps': 0,        # T of the bound that is trained; 0: continuous time
  } | model)


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """The bound of `config` on the pitches of windows.

  In training, each window is transposed by up to `config.model.transpose` semitones.

  Raises InputError for data that are no voices, [T, voices, 1] of integers, for a transposition
  below 0, and as `compose.experiment` does.
  """
  m, x = config.model, voices(config)
  change = transposing(config, x)
  compose.require(config, 'class_conditional', not m.class_conditional,
                  'this network is told nothing', 'set it to False')
  net = Voices(x.levels or 0, m.features, m.depth, m.attention_heads, m.dropout, m.scan, m.remat)
  made = compose.experiment(config, net=net, schedule=schedules.Linear(*compose.end_points(config)),
                            target=targets.x)
  if change is None:
    return made

  def loss(params, batch, context):
    return made.loss(params, change(batch, context.keys) if context.train else batch, context)
  return made._replace(loss=loss)


def voices(config: ml_collections.ConfigDict) -> data.Field:
  """The field of the data, integers [T, voices, 1].  Raises InputError for data of another kind."""
  x = data.resolve(config.data).x
  require(len(x.shape) == 3 and x.shape[-1] == 1 and bool(x.levels), 'config.data.name',
          config.data.name, f'its field {x.name!r} is {x}, and voices are integers [T, voices, 1]',
          'choose chorales, or save windows as integers')
  return x


def transposing(config: ml_collections.ConfigDict, x: data.Field
                ) -> Callable[[PyTree, Array], PyTree] | None:
  """(batch, keys) -> the batch with each window moved by up to config.model.transpose semitones.

  None if this number is 0.  x: the field of the windows.  Raises InputError if the number is
  negative.
  """
  most = config.model.transpose
  compose.require(config, 'transpose', most >= 0, 'it is negative', 'give 0 or more')
  if not most:
    return None
  return lambda batch, keys: {
      **batch, x.name: transposed(batch[x.name], keys, most, x.levels or 0)}


def transposed(pitches: Array, keys: Array, most: int, levels: int) -> Array:
  """Windows of pitches [B, ...], each moved by -most .. most semitones, the same for all its notes.

  Rests (0) stay rests.  A window whose notes would leave 1 .. levels - 1 is not moved.
  """
  u = random.uniform(random.stream(keys, 'transposition'), jnp.zeros(len(pitches)))
  shift = jnp.clip(jnp.floor(u * (2 * most + 1)).astype(jnp.int32), 0, 2 * most) - most
  shift = shift.reshape(-1, *[1] * (pitches.ndim - 1))
  pitches = pitches.astype(jnp.int32)
  moved = jnp.where(pitches > 0, pitches + shift, 0)
  lost = ((moved < 1) | (moved >= levels)) & (pitches > 0)
  stays = jnp.any(lost, axis=tuple(range(1, pitches.ndim)), keepdims=True)
  return jnp.where(stays, pitches, moved)


def known(which: str, shape: tuple[int, ...]) -> np.ndarray:
  """Where the notes of a window are known: bool of `shape`, [T, voices, 1].

    soprano, bass  one voice, to be harmonised
    ends           the first and the last quarter of the steps, to be filled in

  For `inverse.kept`.  Raises InputError for another name.
  """
  require_choice('which', which, KNOWN)
  there = np.zeros(shape, bool)
  if which == 'ends':
    quarter = shape[0] // 4
    there[:quarter] = there[shape[0] - quarter:] = True
  else:
    there[:, 0 if which == 'soprano' else -1] = True
  return there
