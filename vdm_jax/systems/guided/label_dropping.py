"""Classifier-free training: one network learns to estimate with its condition and without it.

Ho and Salimans (2022), algorithm 1: in training, a label or a text is dropped with a probability of
0.1 or 0.2.  The network's estimate without it is then the other half of
`guidance.classifier_free`.  The network and the objective of an experiment stay the same.

A label that is dropped is -1, and a text that is dropped is the empty text.
"""
import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.data.fields import LABEL
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, ArrayLike, Experiment

NO_LABEL = -1


def drop(values: Array, keys: Array, probability: float, untold: ArrayLike = NO_LABEL) -> Array:
  """Each value, or `untold` with this probability, independently.

  values: integers [B, ...], labels or the tokens of texts; keys: [B]; untold: [...].
  """
  u = random.uniform(random.stream(keys, 'label_dropping'), jnp.zeros(len(values)))
  dropped = (u < probability).reshape(-1, *(1,) * (values.ndim - 1))
  return jnp.where(dropped, jnp.asarray(untold), values)


def experiment(base: Experiment, probability: float, field: str = LABEL,
               untold: ArrayLike = NO_LABEL) -> Experiment:
  """`base`, trained with this share of its conditions dropped, and validated with all of them.

  field: the name of the condition in the data.  untold: the value that replaces a dropped one.

  The model has `null`, so it can be guided.  The loss raises InputError if `base` is not
  conditioned on labels.
  """
  def loss(params, batch, context):
    if base.model(params).cond(batch) is None:
      raise InputError('config.model.class_conditional', False,
                       'a model without labels has none to drop', 'set it to True')
    if context.train:
      batch = batch | {field: drop(batch[field], context.keys, probability, untold)}
    return base.loss(params, batch, context)

  return with_null(base, field, untold)._replace(loss=loss)


def with_null(base: Experiment, field: str = LABEL, untold: ArrayLike = NO_LABEL) -> Experiment:
  """`base`, whose network does without its condition already: its model has `null`.

  field, untold: as for `experiment`.
  """
  def model(params, keys=None):
    m = base.model(params, keys)

    def null(cond):
      beside = cond if isinstance(cond, dict) else {}  # images, which stay told
      nothing = m.cond({**beside, field: jnp.asarray(untold)[None]})
      return jax.tree.map(lambda one, u: jnp.broadcast_to(one, u.shape).astype(u.dtype), nothing,
                          cond)
    return m._replace(null=null)

  return base._replace(model=model)
