"""Nats and bits per dimension: sums over the data, and means of weights in the log domain."""
import functools
import math
import operator
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.typing import Array

__all__ = ['BITS_PER_DIM', 'NATS_PER_DIM', 'Unit', 'bits_per_dim', 'log_mean_exp', 'mean_over_data',
           'nats_of', 'sum_of_terms', 'sum_over_data']


class Unit(NamedTuple):
  """A unit of -log p, for people to read."""
  name: str
  per_bit: float  # the number of these units in a bit/dim


BITS_PER_DIM = Unit('bits/dim', 1.0)
NATS_PER_DIM = Unit('nats/dim', math.log(2.0))


def nats_of(shape: tuple[int, ...]) -> Unit:
  """Nats of a whole example of this shape."""
  return Unit('nats', math.prod(shape) * math.log(2.0))


def sum_over_data(u: Array) -> Array:
  """[B, ...] -> [B]."""
  return jnp.sum(u.reshape(u.shape[0], -1), axis=-1)


def mean_over_data(u: Array) -> Array:
  """[B, ...] -> [B]."""
  return jnp.mean(u.reshape(u.shape[0], -1), axis=-1)


def sum_of_terms(terms: Mapping[str, Array]) -> Array:
  """The nats of a bound [B], from its terms {name: [B]}, one or more."""
  return functools.reduce(operator.add, terms.values())


def log_mean_exp(log_weights: Array, axis: int = 0) -> Array:
  """log (1/K sum_k exp log_weights_k) over `axis` of length K, here [K, B] -> [B].

  This is the importance-weighted estimate (Burda et al. 2016, section 3).  If the weights have the
  mean p(data), the expectation of the estimate is at most log p(data), and grows with K.  Without
  the term -log K, the estimate would be no bound.
  """
  return jax.nn.logsumexp(log_weights, axis=axis) - math.log(log_weights.shape[axis])


def bits_per_dim(nats, shape: tuple[int, ...]):
  """nats / (D ln 2), where D is the number of dimensions of one example of `shape`."""
  return nats / (math.prod(shape) * math.log(2.0))
