"""Values of the mathematics, and modules bound to parameters: both may cross `jit`."""
import dataclasses
from typing import (
  Any,
  TypeVar,
  dataclass_transform,
)

import jax
import numpy as np
from flax import linen as nn
from jax.tree_util import GetAttrKey

from vdm_jax.typing import Array, PyTree

__all__ = ['Bound', 'static', 'value']


_T = TypeVar('_T')


def static(*, default: Any = dataclasses.MISSING) -> Any:
  """A field of a `value` that is structure: compared and hashed under `jit`, never traced."""
  return dataclasses.field(default=default, metadata={'pytree_node': False})


@dataclass_transform(frozen_default=True, field_specifiers=(static, dataclasses.field))
def value(cls: type[_T]) -> type[_T]:
  """Makes `cls` a frozen dataclass and a pytree, whose leaves are the fields that are not `static`.

  `value` is like flax.struct.dataclass, but two classes of `value` never have equal tree
  structures.  Two classes of flax may have equal structures (JAX 0.10.2: classes with equally many
  fields, none static).  A function under `jit` that meets both classes may then run the program of
  one class on the other.

  `dataclasses.replace(value, field=...)` returns a copy with another `field`.
  """
  frozen: Any = dataclasses.dataclass(frozen=True, eq=False)(cls)
  fields = dataclasses.fields(frozen)
  leaves = [f.name for f in fields if f.metadata.get('pytree_node', True)]
  others = [f.name for f in fields if f.name not in leaves]

  def flatten(self):
    return ([(GetAttrKey(name), getattr(self, name)) for name in leaves],
            tuple(getattr(self, name) for name in others))

  def unflatten(aux, children):
    return frozen(**dict(zip(leaves, children, strict=True)), **dict(zip(others, aux, strict=True)))

  jax.tree_util.register_pytree_with_keys(frozen, flatten, unflatten)
  frozen.__eq__, frozen.__hash__ = _equal, _hash
  return frozen


def _is_array(leaf: Any) -> bool:
  return isinstance(leaf, (jax.Array, np.ndarray))


def _equal(a: Any, b: Any) -> Any:
  """Whether two values are equal: numbers are compared, an array is equal to itself alone."""
  if type(a) is not type(b):
    return NotImplemented
  (leaves, tree), (others, other_tree) = map(jax.tree.flatten, (a, b))
  return tree == other_tree and all(
      u is v or not (_is_array(u) or _is_array(v)) and type(u) is type(v) and u == v
      for u, v in zip(leaves, others, strict=True))


def _hash(a: Any) -> int:
  leaves, tree = jax.tree.flatten(a)
  return hash((tree, *(id(u) if _is_array(u) else hash(u) for u in leaves)))


@value
class Bound:
  """A Linen module at a point in parameter space: a pure function, and a pytree.

  Build a `Bound` inside `jit`.  Every call makes a new object that equals the last one, because
  modules compare by their fields.  So `jit` does not retrace.  A module with a fresh lambda as a
  field does retrace.

  keys: one PRNG key per example [B] for a network's dropout, or None for none.
  """
  params: PyTree
  module: nn.Module = static()
  keys: Array | None = None

  def __call__(self, *args: Any) -> Any:
    random: dict[str, Any] = {} if self.keys is None else {'keys': self.keys}
    return self.module.apply({'params': self.params}, *args, **random)
