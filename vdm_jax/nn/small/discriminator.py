"""A small network that tells real examples from others: one logit for each example."""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.layers import require_sizes
from vdm_jax.typing import Array


class Discriminator(nn.Module):
  """Dense layers and leaky relu on all numbers of an example: [B, ...] -> logits [B].

  Nothing is normalised over the batch.  So the gradient by an example depends on that example
  alone.
  """
  features: int = 128
  layers: int = 3

  @nn.compact
  def __call__(self, z: Array) -> Array:
    """z: [B, ...], points or small images.  Raises InputError: no features, no layers."""
    require_sizes(self, features=1, layers=1)
    h = z.reshape(z.shape[0], -1)
    for i in range(self.layers):
      h = nn.leaky_relu(nn.Dense(self.features, name=f'dense_{i}')(h), 0.2)
    return jnp.squeeze(nn.Dense(1, name='logit')(h), axis=-1)
