"""A classifier as an experiment: its features can be used to judge samples.

The commands that train a diffusion model also train a classifier, and keep its run in the same way.
But the run gives a `Classifier`, not a `Model`, and nothing can be drawn from it.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import ml_collections
import optax

from vdm_jax import data
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.nn.small.classifier import ConvClassifier
from vdm_jax.systems import compose
from vdm_jax.typing import Array, Experiment, brief


class Classifier(NamedTuple):
  """A trained classifier of images.  Samples may be judged by its features."""
  logits: Callable[[Array], Array]    # data, integers [B, ...] -> [B, classes]
  features: Callable[[Array], Array]  # the same -> [B, D], the penultimate layer
  shape: tuple[int, ...]              # of one image
  levels: int

  def __repr__(self) -> str:
    return brief(self)


def default_config(**model) -> ml_collections.ConfigDict:
  return compose.default_config(
      **{'channels': (32, 64), 'features': 64, 'dropout': 0.2} | model)


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """Cross-entropy -log p(label | image) in nats, with the term 'accuracy'.

  `Experiment.model` gives a `Classifier`.  Raises InputError for data without labels.
  """
  spec, m = data.resolve(config.data), config.model
  if not spec.classes:
    raise InputError('config.data.name', spec.name, 'it has no labels to train a classifier on',
                     'choose data that have some')
  if any(channels % 8 for channels in m.channels):
    raise InputError('config.model.channels', m.channels, 'the group norms need multiples of 8',
                     'give multiples of 8')
  net = ConvClassifier(spec.classes, tuple(m.channels), m.features, m.dropout)
  encode = Pixels(spec.levels).encode

  def apply(params, images, keys=None):
    return net.apply({'params': params['net']}, encode(images), keys)

  def init(key):
    return {'net': net.init(key, jnp.zeros((1, *spec.shape)))['params']}

  def loss(params, batch, context):
    logits, _ = apply(params, batch[spec.x.name], compose.dropout_keys(context))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
    right = jnp.argmax(logits, axis=-1) == batch['label']
    return nats, {'accuracy': right.astype(jnp.float32)}

  def model(params, keys=None):
    return Classifier(lambda images: apply(params, images, keys)[0],
                      lambda images: apply(params, images)[1], spec.shape, spec.levels)

  return compose.assemble(config, init=init, loss=loss, model=model)
