"""Randomness, per example: a draw depends on (example, name), never on batch layout.

Draws are float32, even where JAX has 64 bits and the draws are used in float64.  In another
precision, a key would draw other numbers.  With float32 draws, a run has the same noise in both
modes, and the same results up to rounding.
"""
import zlib
from collections.abc import Sequence
from operator import index

import jax
import jax.numpy as jnp

from vdm_jax.errors import InputError
from vdm_jax.typing import Array

__all__ = ['bernoulli', 'each', 'key', 'normal', 'per_example', 'stratified', 'stream', 'streams',
           'uniform', 'unit']


def key(seed: int, field: str = 'seed') -> Array:
  """The key of a seed, 0 .. 2^32 - 1, whatever implementation the environment prefers.

  The implementation is Threefry.  It is JAX's only implementation whose draws for an example do not
  depend on how many examples are drawn together (under vmap).

  field: the name of the seed in an error.  Raises InputError.
  """
  try:
    seed = index(seed)
  except TypeError:
    raise InputError(field, seed, 'a seed is one whole number',
                     f'choose one from 0 to {2**32 - 1}') from None
  if not 0 <= seed < 2**32:  # a larger one would be cut to 32 bits, unless JAX has 64
    raise InputError(field, seed, 'it is out of range', f'choose one from 0 to {2**32 - 1}')
  return jax.random.key(seed, impl='threefry2x32')


def per_example(key: Array, i: Array) -> Array:
  """One key per example, by its index in the global batch or the data set.  i: [B] -> [B]."""
  return jax.vmap(lambda j: jax.random.fold_in(key, j))(i)


def each(key: Array, n: int | None = None) -> Array:
  """A key for each of n examples, [n]: by `per_example`, or `key` itself if it holds n keys.

  Raises InputError.
  """
  if not (hasattr(key, 'dtype') and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
    raise InputError('key', None, 'it is not a typed key', 'use jax.random.key(0)')
  if key.ndim and n in (None, *key.shape):
    return key
  if key.ndim or n is None or n < 1:
    raise InputError('n', n, f'it does not match keys of shape {key.shape}',
                     'give one key and a number of examples from 1 on, or as many keys as examples')
  return per_example(key, jnp.arange(n))


def stream(keys: Array, name: str) -> Array:
  """One key per example for the quantity called `name`.  keys: [B]."""
  salt = zlib.crc32(name.encode())
  return jax.vmap(lambda key: jax.random.fold_in(key, salt))(keys)


def streams(keys: Array, names: Sequence[str]) -> Array:
  """`stream` for each of several names, as one operation.  keys: [B] -> [len(names), B]."""
  salts = jnp.array([zlib.crc32(name.encode()) for name in names], jnp.uint32)
  return jax.vmap(lambda salt: jax.vmap(lambda key: jax.random.fold_in(key, salt))(keys))(salts)


def normal(keys: Array, like: Array) -> Array:
  """Standard normal of the shape and precision of `like`: [B, ...]; example i uses keys[i] alone.
  """
  drawn = jnp.float32 if like.dtype == jnp.float64 else like.dtype
  return jax.vmap(lambda k: jax.random.normal(k, like.shape[1:], drawn))(keys).astype(like.dtype)


def uniform(keys: Array, like: Array) -> Array:
  """Uniform on [0, 1], one for each example: [B], of the precision of `like`, [B, ...].

  A number is Phi(normal draw), with Phi the normal distribution function.  So a sampler uses normal
  draws only.
  """
  return jax.scipy.special.ndtr(normal(keys, jnp.zeros(like.shape[:1], like.dtype)))


def unit(key: Array, shape: Sequence[int] = ()) -> Array:
  """Uniform on [0, 1) from one key, of this shape: float32."""
  return jax.random.uniform(key, shape, jnp.float32)


def bernoulli(keys: Array, p: Array) -> Array:
  """True with probability p, of the shape of p: [B, ...]; example i uses keys[i] alone."""
  return jax.vmap(lambda k, p: unit(k, p.shape) < p)(keys, p.astype(jnp.float32))


def stratified(u: Array, i: Array, n: int) -> Array:
  """(u + i/n) mod 1: times of examples `i` of `n`, each uniform, and evenly spread together.

  Kingma et al. (2021), appendix I.1.  u: [] or like i, uniform on [0, 1).

  In float32, t = 0 is drawn about once in 10^7 times.  All times are kept half a rounding step away
  from 0 and 1, so a long run never meets an infinity at an end.
  """
  t = jnp.mod(u + i / n, 1.0)
  half = 0.5 * jnp.finfo(t.dtype).eps
  return jnp.clip(t, half, 1.0 - half)
