"""Classifier-free training: one network learns to estimate with labels and without labels.

Ho and Salimans (2022), algorithm 1: in training, a label is dropped with a probability of 0.1 or
0.2.  The network's estimate without a label is then the other half of `guidance.classifier_free`.
The network and the objective of an experiment stay the same.
"""
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, Experiment

NO_LABEL = -1


def drop(label: Array, keys: Array, probability: float) -> Array:
  """Each label, or -1 with this probability, independently.  label: integers [B]; keys: [B]."""
  u = random.uniform(random.stream(keys, 'label_dropping'), jnp.zeros(label.shape))
  return jnp.where(u < probability, NO_LABEL, label)


def experiment(base: Experiment, probability: float) -> Experiment:
  """`base`, trained with this share of its labels dropped, and validated with all labels.

  The model has `null`, so it can be guided.  The loss raises InputError if `base` is not
  conditioned on labels.
  """
  def loss(params, batch, context):
    if base.model(params).cond(batch) is None:
      raise InputError('config.model.class_conditional', False,
                       'a model without labels has none to drop', 'set it to True')
    if context.train:
      batch = batch | {'label': drop(batch['label'], context.keys, probability)}
    return base.loss(params, batch, context)

  return with_null(base)._replace(loss=loss)


def with_null(base: Experiment) -> Experiment:
  """`base`, whose network does without labels already: its model has `null`, the label -1."""
  def model(params, keys=None):
    return base.model(params, keys)._replace(
        null=lambda label: jnp.full_like(label, NO_LABEL))

  return base._replace(model=model)
