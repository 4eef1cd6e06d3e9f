"""Vectors that a network is told, each of which may be hidden: returns, constraints, skills."""
from typing import NamedTuple

import jax
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.typing import Array, PyTree


class Told(NamedTuple):
  """The condition of a network that is told several vectors."""
  values: tuple[Array, ...]  # [B, K] each
  kept: Array                # [B, len(values)]  1: the network is told this one, 0: it is hidden


class Vectors(nn.Module):
  """An embedding of each vector of a `Told`, [B, features] each; zero where it is hidden.

  Ajay et al. (2023), with the sizes of their public code.

  count     the number of vectors
  """
  features: int
  count: int

  @nn.compact
  def __call__(self, cond: PyTree) -> tuple[Array, ...]:
    """Raises InputError: a condition that is no `Told` of so many vectors."""
    if not self.count:
      return ()
    found = len(cond.values) if isinstance(cond, Told) else None
    require(found == self.count, 'cond', found, f'this network is told {self.count} vectors',
            'give them as a `Told`, also where they are hidden')
    embedded = []
    for i, value in enumerate(cond.values):
      for k, width in enumerate((self.features, 4 * self.features)):
        value = jax.nn.mish(nn.Dense(width, name=f'told_{i}_{k}')(value))
      value = nn.Dense(self.features, name=f'told_{i}_2')(value)
      embedded.append(cond.kept[:, i, None] * value)
    return tuple(embedded)
