"""A captioner as an experiment: a network that says what an image shows.

It is the other direction of a diffusion model that is told texts.  It is trained by teacher
forcing, by scheduled sampling, or by DySI: see `objectives.dysi`.  The commands that train a
diffusion model also train a captioner.  But the run gives a `Captioner`, not a `Model`, and nothing
can be drawn from it.  `evaluate.py` measures its captions.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from vdm_jax import data
from vdm_jax.data import tokenisers
from vdm_jax.data.fields import CAPTION
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError, require_choice
from vdm_jax.nn.text.captioner import CaptionDecoder, ImageGrid
from vdm_jax.objectives import dysi, scheduled_sampling
from vdm_jax.systems import compose
from vdm_jax.typing import Array, Experiment, brief

TRAININGS = ('teacher_forcing', 'scheduled', 'imitation')


class Captioner(NamedTuple):
  """A trained captioner."""
  caption: Callable[[Array], Array]           # data, integers [B, H, W, C] -> tokens [B, L], each
                                              # the most probable one after those before it
  text_nats: Callable[[Array, Array], Array]  # the same, tokens [B, L] -> -log p(text | image), [B]
  shape: tuple[int, ...]                      # of one image
  levels: int                                 # of its pixels

  def __repr__(self) -> str:
    return brief(self)


def default_config(**model) -> ml_collections.ConfigDict:
  return compose.default_config(**{
      'training': 'teacher_forcing',  # or scheduled, imitation
      'probability': 0.5,   # of an own token: at the end of its rise, or at an accuracy of 1
      'rise_steps': 1000,   # of `scheduled`: over which the probability rises from 0
      'imitation': 0.5,     # of `imitation`: the weight of the divergence
      'channels': (32, 64), 'features': 64, 'depth': 2, 'attention_heads': 4,
  } | model)


def greedy(decode: Callable[[Array], Array], batch: int, length: int, padding: int) -> Array:
  """The text whose every token is the most probable one after those before it: int32 [B, L].

  decode: see `objectives.dysi`.  After the first `padding` all tokens are `padding`.
  """
  def say(i, state):
    tokens, ended = state
    best = jnp.argmax(decode(tokens)[:, i], axis=-1).astype(jnp.int32)
    best = jnp.where(ended, padding, best)
    return tokens.at[:, i].set(best), ended | (best == padding)

  start = jnp.full((batch, length), padding, jnp.int32), jnp.zeros(batch, bool)
  return jax.lax.fori_loop(0, length, say, start)[0]


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """-log p(text | image) in nats, trained as config.model.training says.

  The terms are 'nats' and 'accuracy' under teacher forcing, and 'divergence' of `imitation`.
  Validation measures teacher forcing, whatever was trained.  `Experiment.model` gives a
  `Captioner`.

  Raises InputError for data without images or texts, for no such training, and for numbers that are
  out of range.
  """
  m = config.model
  _check(config)
  spec = data.resolve(config.data)
  field = spec[CAPTION]
  if field.texts is None or field.levels is None:
    raise InputError('config.data.name', spec.name, 'its captions are no texts',
                     'choose data with texts, such as shapes')
  length, padding = field.shape[0], int(tokenisers.nothing(field)[-1])
  grid = ImageGrid(m.features, tuple(m.channels))
  net = CaptionDecoder(m.features, m.depth, m.attention_heads, levels=field.levels, length=length)
  encode = Pixels(spec.levels).encode

  def decoder(params, images) -> Callable[..., Any]:
    seen = grid.apply({'params': params['grid']}, encode(images))
    return lambda tokens: net.apply({'params': params['net']}, seen, tokens)

  def init(key):
    key_grid, key_net = jax.random.split(key)
    one = spec.zeros(1)
    seen, params = grid.init_with_output(key_grid, encode(jnp.asarray(one[spec.x.name])))
    return {'grid': params['params'], 'net': net.init(key_net, seen, one[CAPTION])['params']}

  def loss(params, batch, context):
    of = decoder(params, batch[spec.x.name]), batch[CAPTION], padding
    if not context.train or m.training == 'teacher_forcing':
      return dysi.teacher_forcing(*of)
    if m.training == 'scheduled':
      rising = scheduled_sampling.rising(context.step, m.rise_steps, m.probability)
      return dysi.scheduled(*of, context.keys, probability=rising)
    return dysi.imitation(*of, context.keys, share=m.probability, weight=m.imitation)

  def model(params, keys=None):
    return Captioner(
        lambda images: greedy(decoder(params, images), len(images), length, padding),
        lambda images, tokens: dysi.teacher_forcing(decoder(params, images), tokens, padding)[0],
        spec.shape, spec.levels)

  return compose.assemble(config, init=init, loss=loss, model=model)


def _check(config: ml_collections.ConfigDict) -> None:
  m = config.model
  require_choice('config.model.training', m.training, TRAININGS)
  compose.require(config, 'probability', 0.0 <= m.probability <= 1.0, 'it is not a probability',
                  'give a number from 0 to 1, such as 0.5')
  compose.require(config, 'rise_steps', m.rise_steps >= 1, 'it must be at least 1')
  compose.require(config, 'imitation', m.imitation >= 0.0, 'it is negative', 'give 0 or more')
  compose.require(config, 'channels', all(channels % 8 == 0 for channels in m.channels),
                  'the group norms need multiples of 8', 'give multiples of 8')
