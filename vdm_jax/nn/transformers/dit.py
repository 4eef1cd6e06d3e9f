"""Diffusion transformers, DiT (Peebles and Xie 2023).

An image, or the latent of an image, is cut into patches, and each patch becomes a token.  All
tokens pass `depth` blocks of attention and a perceptron, conditioned by
c = embedding(time) + embedding(label):

    h <- h + g1 attention(s1 norm(h) + b1)
    h <- h + g2 mlp(s2 norm(h) + b2)

The shifts b, scales s and gates g are a linear map of swish(c).  The map starts at b = 0, s = 1 and
g = 0, so every block starts as the identity (adaLN-Zero, section 3.2).  A fixed table of sines and
cosines gives the position of each token, so the network takes images of any size.
"""
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.nn.blocks import stack
from vdm_jax.nn.blocks.layers import (
  Attention,
  require_labels,
  require_patches,
  require_sizes,
  sinusoidal_embedding,
  zeros,
)
from vdm_jax.nn.blocks.transformer import MLP, Labels, Patches, SelfAttention, unpatchify
from vdm_jax.typing import Array

_FREQUENCIES = 256  # of time, sines and cosines
_xavier = nn.initializers.xavier_uniform()


def positions(rows: int, columns: int, features: int) -> np.ndarray:
  """Sines and cosines of each token's column, then of its row: [rows columns, features], float32.

  For each position u the table has sin(w_k u), then cos(w_k u), with w_k = 10^(-4 k / K) and
  K = features / 4.  It extends Vaswani et al. (2017), section 3.5, to two dimensions.
  """
  require(features % 4 == 0, 'features', features, 'the positions of tokens need a multiple of 4')
  frequencies = 1e4 ** -(np.arange(features // 4) / (features // 4))
  row, column = np.divmod(np.arange(rows * columns), columns)
  waves = [wave(u[:, None] * frequencies) for u in (column, row) for wave in (np.sin, np.cos)]
  return np.concatenate(waves, axis=-1).astype(np.float32)


def _norm(dtype):
  return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False, use_fast_variance=False,
                      dtype=dtype)


def _modulated(h: Array, shift: Array, scale: Array) -> Array:
  return h * (1.0 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
  """One block of the module's equations: [B, tokens, C], c [B, C] -> [B, tokens, C]."""
  attention_heads: int
  dtype: jnp.dtype = jnp.float32
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, h: Array, c: Array, training: bool = False) -> Array:
    modulation = nn.Dense(6 * h.shape[-1], kernel_init=zeros, dtype=self.dtype,
                          name='modulation')(nn.swish(c))
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
    attention = SelfAttention(self.attention_heads, kernel_init=_xavier, dtype=self.dtype,
                              attention=self.attention, name='attention')
    mlp = MLP('tanh', kernel_init=_xavier, dtype=self.dtype, name='mlp')
    x = attention(_modulated(_norm(self.dtype)(h), shift1, scale1), training)
    h = h + gate1[:, None] * x
    return h + gate2[:, None] * mlp(_modulated(_norm(self.dtype)(h), shift2, scale2))


class DiT(nn.Module):
  """The network of Peebles and Xie (2023), for images whose sides are multiples of `patch`.

  patch, features, depth p, d and N of their table 1
  attention_heads        of each block; divides `features`, itself a multiple of 4
  classes                number of class labels; 0: none
  label_dropout          probability that training hides a label; 0: every example has a label (see
                         `transformer.Labels`)
  heads                  further outputs of the shape of z, after y on the last axis; 0 at first.
                         The published networks have one, for a learned variance
  dtype                  of the trunk: float32, or bfloat16
  scan                   whether the blocks run as a loop, or are written out (see `stack`)
  remat                  how much of a block is kept for the backward pass (see `stack`)
  attention              how attention is computed (see `layers.attend`)
  """
  patch: int = 2
  features: int = 384
  depth: int = 12
  attention_heads: int = 6
  classes: int = 0
  label_dropout: float = 0.1
  heads: int = 0
  dtype: jnp.dtype = jnp.float32
  scan: bool = True
  remat: stack.Remat = 'dots'
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: Array | None = None,
               keys: Array | None = None) -> Array:
    """y: [B, H, W, (1 + heads) C], float32, 0 at first.  z: [B, H, W, C]; time, keys: [B].

    time: the step of a chain of 1000 in the published networks.  cond: integers [B], -1 for no
    label.  Raises InputError: settings that do not fit each other or the images.
    """
    require_patches(z, self.patch)
    require_sizes(self, features=4, depth=1, heads=0)
    _, height, width, channels = z.shape
    require_labels(cond, self.classes, time)

    h = Patches(self.patch, self.features, _xavier, name='patches')(z)
    h += positions(height // self.patch, width // self.patch, self.features)
    c = Time(self.features, name='time')(time)
    if self.classes:
      c += Labels(self.classes, self.features, self.label_dropout, name='label')(cond, time, keys)

    h = h.astype(self.dtype)
    training = keys is not None
    block = Block(self.attention_heads, self.dtype, self.attention, parent=None)
    params = stack.parameters(self, 'blocks', block, self.depth, h, c)
    apply = lambda params, h, each: block.apply({'params': params}, h, c, training)
    with jax.named_scope('blocks'):
      h, _ = stack.run(apply, params, h, {}, self.scan, self.remat)

    dense = lambda features, name: nn.Dense(features, kernel_init=zeros, name=name)
    shift, scale = jnp.split(dense(2 * self.features, 'modulation_out')(nn.swish(c)), 2, axis=-1)
    h = _modulated(_norm(jnp.float32)(h.astype(jnp.float32)), shift, scale)
    y = dense(self.patch**2 * (1 + self.heads) * channels, 'out')(h)
    return unpatchify(y, self.patch, height, width)


class Time(nn.Module):
  """An MLP of the sinusoidal embedding of time: [B] -> [B, features], float32."""
  features: int

  @nn.compact
  def __call__(self, time: Array) -> Array:
    dense = lambda name: nn.Dense(self.features, kernel_init=nn.initializers.normal(0.02),
                                  name=name)
    h = sinusoidal_embedding(time, _FREQUENCIES, endpoint=False, cosine_first=True)
    return dense('dense1')(nn.swish(dense('dense0')(h)))
