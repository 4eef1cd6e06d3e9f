"""The parts that networks on patches share: tokens, the attention between tokens, and labels.

An image [B, H, W, C] is cut into patches of p x p pixels, row by row.  A linear map makes each
patch a token, and in the end each token becomes a patch again (Dosovitskiy et al. 2021, section
3.1).
"""
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from flax import linen as nn

from vdm_jax import random
from vdm_jax.errors import require
from vdm_jax.nn.blocks.layers import (
  Attends,
  Attention,
  attend,
  require_choices,
  require_heads,
  require_labels,
  require_patches,
  zeros,
)
from vdm_jax.typing import Array


def patchify(z: Array, patch: int) -> Array:
  """[B, H, W, C] -> [B, (H / p) (W / p), p p C], p = `patch`.

  Patches are ordered row by row, and so are the pixels of a patch.
  Raises InputError: a side is no multiple of p.
  """
  require_patches(z, patch)
  batch, height, width, channels = z.shape
  h = z.reshape(batch, height // patch, patch, width // patch, patch, channels)
  return h.swapaxes(2, 3).reshape(batch, -1, patch * patch * channels)


def unpatchify(h: Array, patch: int, height: int, width: int) -> Array:
  """The inverse of `patchify` for an image of height x width."""
  h = h.reshape(h.shape[0], height // patch, width // patch, patch, patch, -1)
  return h.swapaxes(2, 3).reshape(h.shape[0], height, width, -1)


class Patches(nn.Module):
  """The linear map of each patch: [B, H, W, C] -> [B, (H / p) (W / p), features], float32."""
  patch: int
  features: int
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()  # of [p p C, features]
  bias: bool = True

  @nn.compact
  def __call__(self, z: Array) -> Array:
    h = patchify(z, self.patch)
    shape = (self.patch, self.patch, z.shape[-1], self.features)
    # Kept as the kernel of a convolution with stride p, which it is too.
    kernel = self.param('kernel', lambda key: self.kernel_init(
        key, (h.shape[-1], self.features)).reshape(shape))
    h = h @ kernel.reshape(-1, self.features)
    return h + self.param('bias', zeros, (self.features,)) if self.bias else h


class Labels(nn.Module):
  """A vector for each class, and a last one for "no label": [B] -> [B, features], float32.

  dropout: the probability that a label is hidden, if keys are given.  This trains one network both
  with and without labels (Ho and Salimans 2022, section 3.2).  At 0 there is no vector for "no
  label": a missing `cond` raises InputError, and -1 gives nan.
  """
  classes: int
  features: int
  dropout: float
  std: float = 0.02  # of the vectors at first

  @nn.compact
  def __call__(self, cond: Array | None, like: Array, keys: Array | None = None) -> Array:
    """cond: integers [B], -1 for no label; None means -1 for all.  like, keys: [B]."""
    null = self.dropout > 0.0
    if cond is None:
      require(null, 'cond', None, 'with label_dropout = 0 the network has no vector for a '
              'missing label',
              'give labels, or set label_dropout above 0')
      cond = jnp.full(like.shape, -1)
    require_labels(cond, self.classes, like)
    table = self.param('embedding', nn.initializers.normal(self.std),
                       (self.classes + null, self.features))
    if null and keys is not None:
      own = random.stream(keys, '/'.join(self.path))
      cond = jnp.where(random.uniform(own, like) < self.dropout, -1, cond)
    return jnp.take(table, jnp.where(cond < 0, self.classes, cond), axis=0, mode='fill')


class SelfAttention(Attends):
  """W softmax(q k^T / sqrt(D)) v of all tokens: [B, tokens, C] -> the same shape.

  One linear map gives q, k and v of all heads, in this order.  D is the number of features of a
  head.  attention, training: see `layers.attend`.
  """
  heads: int
  bias: bool = True  # of that one map
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  dtype: jnp.dtype = jnp.float32
  attention: Attention = 'auto'
  head_features: int = 0  # D; 0: C / heads
  key_bias: bool = True  # False: k has no bias, on which the output never depends
  causal: bool = False  # whether a token reads only itself and the tokens before it

  @nn.compact
  def __call__(self, h: Array, training: bool = False) -> Array:
    batch, tokens, features = h.shape
    if not self.head_features:
      require_heads('attention_heads', self.heads, features)
    inner = self.heads * (self.head_features or features // self.heads)
    dense = lambda features, name, **kw: nn.Dense(
        features, dtype=self.dtype, kernel_init=self.kernel_init, name=name, **kw)
    qkv = dense(3 * inner, 'qkv', use_bias=self.bias and self.key_bias)(h)
    if self.bias and not self.key_bias:
      of_query, of_value = self.param('query_value_bias', zeros, (2, inner)).astype(self.dtype)
      qkv += jnp.concatenate([of_query, jnp.zeros_like(of_query), of_value])
    qkv = qkv.reshape(batch, tokens, 3, self.heads, -1)
    query, key, value = (qkv[:, :, i] for i in range(3))
    x = attend(query, key, value, self.attention, training, self.causal, self.attended)
    return dense(features, 'out')(x.reshape(batch, tokens, inner))


Gelu = Literal['exact', 'tanh', 'quick']
_GELUS: dict[str, Callable[[Array], Array]] = {
    'exact': lambda h: nn.gelu(h, approximate=False),
    'tanh': nn.gelu,
    'quick': lambda h: h * nn.sigmoid(1.702 * h),  # Hendrycks and Gimpel (2016), section 2
}


class MLP(nn.Module):
  """W2 gelu(W1 h), with 4 C numbers in the hidden layer: [..., C] -> [..., C].

  gelu: 'exact', or one of its two approximations, by tanh or by a sigmoid ('quick').
  """
  gelu: Gelu
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, h: Array) -> Array:
    require_choices(gelu=(self.gelu, tuple(_GELUS)))
    dense = lambda features, name: nn.Dense(
        features, dtype=self.dtype, kernel_init=self.kernel_init, name=name)
    x = _GELUS[self.gelu](dense(4 * h.shape[-1], 'dense0')(h))
    return dense(h.shape[-1], 'dense1')(x)


class Block(nn.Module):
  """h += attention(norm(h)); h += mlp(norm(h)): [B, tokens, C] -> the same shape.

  bias, head_features, key_bias, causal: see `SelfAttention`.
  """
  attention_heads: int
  dtype: jnp.dtype = jnp.float32
  attention: Attention = 'auto'
  gelu: Gelu = 'exact'
  bias: bool = True
  head_features: int = 0
  key_bias: bool = True
  causal: bool = False
  kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

  @nn.compact
  def __call__(self, h: Array, training: bool = False) -> Array:
    norm = lambda name: nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, dtype=self.dtype,
                                     name=name)
    attention = SelfAttention(self.attention_heads, self.bias, self.kernel_init, self.dtype,
                              self.attention, self.head_features, self.key_bias, self.causal,
                              name='attention')
    h = h + attention(norm('norm1')(h), training)
    return h + MLP(self.gelu, self.kernel_init, self.dtype, name='mlp')(norm('norm2')(h))
