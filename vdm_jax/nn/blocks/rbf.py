"""Radial basis functions whose readout is different at each step of a chain.

This is the network of the swiss roll of Sohl-Dickstein et al. (2015), appendix D.1.1.  All steps
share one hidden layer.  In the paper, this layer has 16 units and is normalised.
"""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks.layers import require_points, require_sizes, zeros
from vdm_jax.typing import Array, PyTree


class RadialBasis(nn.Module):
  """y = W_i h + c_i,  h_k = exp(-|z - m_k|^2 / (2 w_k^2)), i the step: [B, D] -> [B, outputs D].

  Between two steps the readout is linear in i.  The readout starts at zero.
  """
  steps: int         # i = 0 ... steps - 1
  units: int = 16
  outputs: int = 2   # of each coordinate

  @nn.compact
  def __call__(self, z: Array, step: Array, cond: PyTree = None,
               keys: Array | None = None) -> Array:
    """z: [B, D]; step: [B]; cond, keys: not used.  Raises InputError: other data; no units."""
    require_points(z)
    require_sizes(self, steps=2, units=1, outputs=1)
    size = self.outputs * z.shape[-1]
    centres = self.param('centres', nn.initializers.normal(1.0), (self.units, z.shape[-1]))
    log_widths = self.param('log_widths', zeros, (self.units,))
    readout = self.param('readout', zeros, (self.steps, self.units + 1, size))
    distance = jnp.sum(jnp.square(z[:, None] - centres), axis=-1)
    h = jnp.exp(-0.5 * distance * jnp.exp(-2.0 * log_widths))
    h = jnp.concatenate([h, jnp.ones_like(h[:, :1])], axis=-1)
    below = jnp.clip(jnp.floor(step), 0, self.steps - 2).astype(jnp.int32)
    share = (step - below)[:, None, None]
    at = lambda i: jnp.take(readout, i, axis=0)
    weights = (1.0 - share) * at(below) + share * at(below + 1)
    return jnp.einsum('bk,bko->bo', h, weights)
