"""Checks, by shapes alone, that the parts of an experiment fit each other.

JAX broadcasts.  So a network of 3 channels would train on images of 1 channel, and its bound would
be three times too large.  Therefore each part is called once on a batch of the data before a run
begins.  The call is abstract: nothing is compiled, and nothing is computed.
"""
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from vdm_jax import random
from vdm_jax.errors import InputError, require
from vdm_jax.train.step import first_aux
from vdm_jax.typing import Array, Context, Experiment, Model, PyTree, denoises

MOST_NUMBERS = 2**28  # of a batch on one device: a gibibyte of float32, before any network sees it

Rows = Callable[[np.ndarray], PyTree]  # numbers of examples [n] -> a batch of them


def require_fits(field: str, count: int, shape: tuple[int, ...], devices: int) -> None:
  """Raises InputError if `count` examples of this shape at a time are more than memory can hold.

  The limit is `MOST_NUMBERS` on each device, for the input alone.  The memory of a network is many
  times the memory of its input.
  """
  most = MOST_NUMBERS * devices // math.prod(shape)
  require(count <= most, field, count, f'this many examples of {math.prod(shape):,} numbers take '
          f'{4 * count * math.prod(shape) / 2**30:,.1f} GiB before any network reads them',
          f'take {most:,} at most, and as a rule far fewer')


def experiment(built: Experiment, rows: Rows, config: ml_collections.ConfigDict, *,
               trained: bool = True) -> None:
  """Raises InputError if a part of an experiment returns a shape that its reader does not expect.

  The model's encoded data, its process, its denoiser and its decoder are compared with the data.
  If the experiment is `trained`, the loss and all its terms are compared with the batch, in
  training and in validation.  An error about a field of a network names the field of
  `config.model`.

  rows: numbers of examples [n] -> a batch of the data.
  """
  try:
    _check(built, rows, trained)
  except InputError as error:
    conditional = config.get('model', {}).get('class_conditional', False)
    if error.field == 'cond' and conditional:
      raise InputError('config.model.class_conditional', conditional, error.problem,
                       'set it to False, or choose a network that takes labels') from None
    field = _field(config.get('model', {}), error.field, error.value)
    if field is None:
      raise
    raise InputError(f'config.model.{field}', error.value, error.problem, error.remedy) from None


def _field(model, name: str | None, value) -> str | None:
  """The field of config.model that set a field of a network: it has its name, or e.g. encoder_name.
  """
  return next((field for field in sorted(model, key=len) if name is not None
               and (field == name or field.endswith(f'_{name}')) and model[field] == value), None)


def _check(built, rows, trained):
  params = jax.eval_shape(lambda: built.init(random.key(0)))
  # A number of examples that no axis of the data has: one could be taken for the other.
  one = rows(np.zeros(1, np.int64))
  sizes = {size for leaf in jax.tree.leaves(one) for size in leaf.shape[1:]}
  n = next(n for n in itertools.count(2) if n not in sizes)
  batch = rows(np.zeros(n, np.int64))

  def parts(params, batch):
    keys = jax.random.split(random.key(0), n)
    model = built.model(params)
    if denoises(model):
      _model(model if model.latent is None else model.latent(keys), batch, n)
    for train in (True, False) if trained else ():
      _loss(built, params, batch, keys, train)

  jax.eval_shape(parts, params, batch)


def _model(model: Model, batch: PyTree, n: int) -> None:
  """Raises InputError if a part of the model returns another shape than the data need."""
  images, shape = batch[model.field], (n, *model.shape)
  x = 1.0 * model.encode(images)  # latents are encoded as they are, whatever their type
  _require('what the model encodes the data as', x, shape, 'Model.shape and the number of examples')
  _require('what the model decodes from that', model.decode(x), jnp.shape(images), 'as the data')
  for t in (0.5, jnp.full(n, 0.5)):
    level = model.process(jnp.asarray(t, x.dtype))
    for name, u in level._asdict().items():
      fits = jnp.ndim(u) <= len(shape) and all(
          a in (1, b) for a, b in zip(jnp.shape(u), shape, strict=False))
      require(fits, None, None, f'the {name} of the process at times {list(jnp.shape(t))} is '
              f'{list(jnp.shape(u))}, which does not fit data of {list(shape)}',
              'let the schedule return one number for each time, or numbers [B, ...] that '
              'broadcast against the data')
  estimate = model.denoise(x, level, model.cond(batch))
  for name in ('x', 'eps'):
    _require(f'the {name} of the denoiser', getattr(estimate, name), shape, 'as its input: let the '
             'network return its target, and name further outputs in `heads`')
  log_prob = model.decoder(images, x, model.process(jnp.zeros((), x.dtype)))
  _require('the log-probability of the decoder', log_prob, (n,), _EACH)


def _loss(built, params, batch, keys, train: bool) -> None:
  n = len(keys)
  # The averages are shaped as the parameters, and the start of a run has its aux.
  context = Context(jnp.full(n, 0.5), keys, jnp.zeros((), jnp.int32),
                    dict.fromkeys(built.ema, params), first_aux(built.aux, params), train)
  losses, terms = built.loss(params, batch, context)
  when = '' if train else ' in validation'
  _require(f'the loss{when}', losses, (n,), _EACH)
  for name, u in terms.items():
    _require(f'the term {name!r} of the loss{when}', u, (n,), _EACH)


_EACH = 'one number for each example: sum, or take the mean, over the axes of the data'


def _require(what: str, array: Array, expected: tuple[int, ...], why: str) -> None:
  require(jnp.shape(array) == expected, None, None,
          f'{what} is {list(jnp.shape(array))} where {list(expected)} is wanted, {why}')
