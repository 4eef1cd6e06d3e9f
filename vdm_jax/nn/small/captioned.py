"""A network that is conditioned on texts: their tokens become one vector, the condition."""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.nn.blocks.layers import require_sizes
from vdm_jax.typing import Array, PyTree


class Captioned(nn.Module):
  """`net`, whose condition is swish(dense(the mean embedding of the tokens that are there)).

  The network does not see the order of the tokens.  It is a small network that can tell
  short texts apart.

  net       takes numbers [B, classes] as its `cond`, e.g. `unets.vdm.UNet`, `mlp.MLP`
  levels    tokens are 0 .. levels - 1, and 0 is padding; bytes need 257
  features  the length of an embedding
  """
  net: nn.Module
  levels: int = 257
  features: int = 64

  @nn.compact
  def __call__(self, z: Array, logsnr: Array, cond: PyTree = None,
               keys: Array | None = None) -> Array:
    """y, as `net` returns it.  cond: integers [B, L], any L; None is the empty text, all zeros.

    Raises InputError: a condition of another shape or type.
    """
    require_sizes(self, levels=2, features=1)
    tokens = jnp.zeros((len(z), 1), jnp.int32) if cond is None else cond
    fits = tokens.ndim == 2 and len(tokens) == len(z)
    require(fits and jnp.issubdtype(tokens.dtype, jnp.integer), 'cond', None,
            f'it is {tokens.dtype} {tokens.shape}', f'give integer tokens [{len(z)}, L]')
    there = (tokens > 0)[..., None]
    each = nn.Embed(self.levels, self.features, name='token')(tokens)
    count = jnp.maximum(jnp.sum(there, axis=1), 1)  # of the empty text the mean is 0
    mean = jnp.sum(jnp.where(there, each, 0.0), axis=1) / count
    return self.net(z, logsnr, nn.swish(nn.Dense(self.net.classes, name='dense')(mean)), keys)
