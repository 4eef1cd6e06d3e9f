"""Semantic diffusion guidance: towards a text, the content of an image, or its style.

Liu et al. (2023).  Each function returns a gradient (z, level, cond) -> [B, ...] for
`guidance.classifier`: the gradient by z of a similarity F(z, level).  The encoder has learned to
read noisy data, as a noisy classifier has.

  text    F = cos(f(z), g(words))                      "language guidance"
  image   F = cos(f(z), f(reference with new noise))   "image guidance", content
  style   F = - squared difference of Gram matrices    "image guidance", style

`together` adds them with weights.  The authors' code has the weights 160 for texts,
100 for images and 1e10 for styles.  Those of another encoder differ.
"""
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from optax import cosine_similarity

from vdm_jax import random
from vdm_jax.errors import require
from vdm_jax.processes import diffuse
from vdm_jax.typing import Array, Level, PyTree

Gradient = Callable[[Array, Level, PyTree], Array]
Encoder = Callable[[Array, Level], Array]             # z [B, ...], level -> features [B, D]
Stages = Callable[[Array, Level], Sequence[Array]]    # z, level -> maps [B, H, W, C] of each stage


def gram(maps: Array) -> Array:
  """Products of channels, their mean over positions, divided by C: [B, H, W, C] -> [B, C, C]."""
  flat = maps.reshape(len(maps), -1, maps.shape[-1])
  return jnp.einsum('bpc,bpd->bcd', flat, flat) / (flat.shape[1] * flat.shape[2])


def _gradient_of(similarity: Callable[[Array, Level], Array]) -> Gradient:
  def gradient(z, level, cond):
    return jax.grad(lambda z: jnp.sum(similarity(z, level)))(z)
  return gradient


def _renewed(reference: Array, keys: Array, level: Level) -> Array:
  """The reference at this level; each level has noise of its own, the same in every call."""
  bits = jax.lax.bitcast_convert_type(jnp.asarray(level.t, jnp.float32), jnp.uint32)
  keys = jax.vmap(jax.random.fold_in)(random.stream(keys, 'reference'),
                                      jnp.broadcast_to(bits, keys.shape))
  return diffuse(reference, random.normal(keys, reference), level)


def text(encode: Encoder, words: Array) -> Gradient:
  """The gradient of cos(f(z), words): Liu et al. (2023), language guidance.

  words: the embedding of the text, [B, D] or [D].
  """
  return _gradient_of(lambda z, level: cosine_similarity(encode(z, level), words))


def image(encode: Encoder, reference: Array, keys: Array) -> Gradient:
  """The gradient of cos(f(z), f(reference at the level of z)): Liu et al. (2023).

  reference: images, [B, ...] in the units of x.  keys: [B]; the noise of the reference is new at
  each level.
  """
  return _gradient_of(lambda z, level: cosine_similarity(
      encode(z, level), encode(_renewed(reference, keys, level), level)))


def style(stages: Stages, reference: Array, keys: Array) -> Gradient:
  """The gradient of - mean over stages of the mean of (gram(z) - gram(reference))^2.

  A Gram matrix forgets positions.  The arguments are those of `image`.
  """
  def similarity(z, level):
    pairs = zip(stages(z, level), stages(_renewed(reference, keys, level), level), strict=True)
    return -jnp.mean(jnp.stack([jnp.mean(jnp.square(gram(a) - gram(b)), axis=(1, 2))
                                for a, b in pairs]), axis=0)
  return _gradient_of(similarity)


def together(*weighted: tuple[Gradient, float]) -> Gradient:
  """The sum of weight times gradient, for pairs (gradient, weight).

  Raises InputError if there is no pair.
  """
  require(bool(weighted), 'weighted', None, 'there is no gradient', 'give (gradient, weight)')

  def gradient(z, level, cond):
    total = jnp.zeros_like(z)
    for each, weight in weighted:
      total += weight * each(z, level, cond)
    return total
  return gradient
