"""Inverse dynamics: the action between two states."""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.layers import require_sizes
from vdm_jax.typing import Array


class InverseDynamics(nn.Module):
  """a(s, s'), a perceptron of two hidden layers, as in the public code of Ajay et al. (2023).

  actions   the numbers of an action
  hidden    the width of the layers
  """
  actions: int
  hidden: int = 256

  @nn.compact
  def __call__(self, state: Array, following: Array) -> Array:
    """[..., actions].  state, following: [..., O]."""
    require_sizes(self, actions=1, hidden=1)
    h = jnp.concatenate([state, following], axis=-1)
    for i in range(2):
      h = nn.relu(nn.Dense(self.hidden, name=f'dense_{i}')(h))
    return nn.Dense(self.actions, name='dense_2')(h)
