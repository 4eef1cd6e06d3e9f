"""Random directions for products with a Jacobian, whose mean outer product is the identity."""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.typing import Array, Denoiser, Estimate, Level, PyTree

__all__ = ['Probes', 'along', 'basis', 'rademacher']


Probes = Callable[[Array, Array], Array]  # keys [B], like [B, ...] -> v [P, B, ...]


def rademacher(keys: Array, like: Array) -> Array:
  """One probe of random signs for each example: [1, B, ...]."""
  up = random.bernoulli(keys, jnp.full(like.shape, 0.5))
  return jnp.where(up, 1.0, -1.0).astype(like.dtype)[None]


def basis(keys: Array, like: Array) -> Array:
  """sqrt(d) times the basis: every term is then exact, at d products.  [d, B, ...]."""
  shape = like.shape[1:]
  d = like[0].size
  vectors = jnp.sqrt(float(d)) * jnp.eye(d, dtype=like.dtype).reshape(d, 1, *shape)
  return jnp.broadcast_to(vectors, (d, *like.shape))


def along(denoise: Denoiser, z: Array, level: Level, probes: Array,
          cond: PyTree = None) -> tuple[Estimate, Array]:
  """The estimate at z [B, ...], and sigma (d eps_hat / dz) v for each of the `probes` [P, B, ...].

  It takes one evaluation of the network, and one product with its Jacobian for each probe.
  """
  at = lambda z: denoise(z, level, cond)
  estimate, tangents = jax.vmap(lambda v: jax.jvp(at, (z,), (v,)), out_axes=(None, 0))(probes)
  return estimate, level.expand(z).sigma * tangents.eps
