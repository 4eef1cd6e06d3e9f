"""The cross-attention U-Net of latent diffusion and Stable Diffusion (Rombach et al. 2022).

It is the U-Net of `adm` with a transformer where that one has attention.  A transformer of C
features reads the positions of h, and the tokens of a context (a text, a label):

    u = W norm(h)
    u += self-attention(norm(u));  u += cross-attention(norm(u), context);  u += GEGLU(norm(u))
    h += W' u

The last two lines of its blocks repeat `depth` times.  GEGLU (Shazeer 2020) is W (a gelu(b)), where
a and b are linear maps to 4 C features.  W' is zero at first.
"""
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.nn.blocks import stack
from vdm_jax.nn.blocks.layers import (
  Attends,
  Attention,
  attend,
  require_labels,
  require_sizes,
  torch_init,
  zeros,
)
from vdm_jax.nn.unets import adm
from vdm_jax.typing import Array


class HeadsAttention(Attends):
  """W softmax(q k^T / sqrt(C)) v in each head: [B, positions, C'], [B, tokens, C''] -> as h.

  q is a linear map of h; k and v are linear maps of what h reads.  told: whether h reads tokens of
  the condition.
  """
  heads: int
  dtype: jnp.dtype = jnp.float32
  attention: Attention = 'auto'
  training: bool = False

  @nn.compact
  def __call__(self, h: Array, read: Array, told: bool = False) -> Array:
    features = h.shape[-1]
    split = lambda u: u.reshape(*u.shape[:2], self.heads, features // self.heads)
    dense = lambda name, u: split(nn.Dense(features, use_bias=False, kernel_init=torch_init,
                                           dtype=self.dtype, name=name)(u))
    x = attend(dense('query', h), dense('key', read), dense('value', read), self.attention,
               self.training, attended=lambda maps: self.attended(maps, told * read.shape[1]))
    return nn.Dense(features, kernel_init=torch_init, dtype=self.dtype, name='out')(
        x.reshape(h.shape))


class TransformerBlock(nn.Module):
  """Self-attention, cross-attention and GEGLU, each around a normalised h: as h.

  h: [B, positions, C]; context: [B, tokens, D], or None, where h reads itself a second time.
  """
  heads: int
  dtype: jnp.dtype = jnp.float32
  attention: Attention = 'auto'
  training: bool = False

  @nn.compact
  def __call__(self, h: Array, context: Array | None = None) -> Array:
    norm = lambda name: nn.LayerNorm(epsilon=1e-5, dtype=self.dtype, name=name)(h)
    attention = lambda name: HeadsAttention(self.heads, self.dtype, self.attention, self.training,
                                            name=name)
    dense = lambda features, name: nn.Dense(features, kernel_init=torch_init, dtype=self.dtype,
                                            name=name)
    x = norm('norm_self')
    h += attention('self')(x, x)
    x = norm('norm_cross')
    read = x if context is None else context.astype(self.dtype)
    h += attention('cross')(x, read, context is not None)
    a, b = jnp.split(dense(8 * h.shape[-1], 'mlp_in')(norm('norm_mlp')), 2, axis=-1)
    return h + dense(h.shape[-1], 'mlp_out')(a * nn.gelu(b, approximate=False))


class SpatialTransformer(nn.Module):
  """The transformer above, of images: [B, H, W, C], [B, tokens, D] -> [B, H, W, C].

  Starts as the identity.
  """
  heads: int
  depth: int = 1
  groups: int = 32
  dtype: jnp.dtype = jnp.float32
  attention: Attention = 'auto'
  training: bool = False

  @nn.compact
  def __call__(self, h: Array, context: Array | None = None) -> Array:
    features = h.shape[-1]
    x = nn.GroupNorm(self.groups, epsilon=1e-6, dtype=self.dtype, name='norm')(h)
    x = x.reshape(h.shape[0], -1, features)
    x = nn.Dense(features, kernel_init=torch_init, dtype=self.dtype, name='in')(x)
    for i in range(self.depth):
      x = TransformerBlock(self.heads, self.dtype, self.attention, self.training,
                           name=f'block_{i}')(x, context)
    x = nn.Dense(features, kernel_init=zeros, dtype=self.dtype, name='out')(x)
    return h + x.reshape(h.shape)


class LatentUNet(adm.Trunk):
  """The networks of latent diffusion that read a context; the defaults are Stable Diffusion v1's.

  attention_levels  the resolutions at which a transformer follows each block; 0 is the resolution
                    of z.  So the network takes latents of any size
  depth             blocks of each transformer
  outputs           channels of y; 0: those of z.  An inpainting network sees more than it returns

  The other fields are those of `adm.UNet`.  cond is the context, numbers [B, tokens, D], or None.
  Without a context the positions attend to each other twice, and parameters of such a network do
  not fit a context of another width.
  """
  features: int = 320
  multipliers: tuple[float, ...] = (1, 2, 4, 4)
  blocks: int = 2
  attention_heads: int = 8
  scale_shift: bool = False
  attention_levels: tuple[int, ...] = (0, 1, 2)
  depth: int = 1
  outputs: int = 0

  def _attends(self, h: Array, level: int) -> bool:
    return level in self.attention_levels

  def _attention(self, h: Array, keys: Array | None, name: str, context: Array | None) -> Array:
    block = stack.rematerialised(SpatialTransformer, self.remat)
    heads = adm.number_of_heads(h.shape[-1], self.attention_heads, self.head_features)
    return block(heads, self.depth, self.groups, self.dtype, self.attention, keys is not None,
                 name=name)(h, context)

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: Array | None = None,
               keys: Array | None = None) -> Array:
    """y: [B, H, W, outputs], float32.  z: [B, H, W, C]; time, keys: [B]; cond: [B, tokens, D].

    Raises InputError: settings that do not fit each other or z; a cond of another rank.
    """
    self._check(z)
    require_sizes(self, depth=1, outputs=0)
    if cond is not None:
      require(cond.ndim == 3 and len(cond) == len(z), 'cond', None, f'its shape is {cond.shape}, '
              'and this network reads vectors of tokens, not labels',
              f'give [{len(z)}, tokens, features]')
    embedding = adm.StepEmbedding(self.features, name='embedding')(time)
    h, outs = self._encode(z, embedding, keys, cond)
    return self._decode(h, outs, embedding, keys, self.outputs or z.shape[-1], cond)


class LabelledUNet(nn.Module):
  """A `LatentUNet` that is told a class: the vector of the label is its only token.

  features  of a vector
  untold    whether "no label" has a vector too, the last one; without it, its vector is 0, which
            the network has not seen in training
  """
  net: LatentUNet
  classes: int
  features: int = 512
  untold: bool = True

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: Array | None = None,
               keys: Array | None = None) -> Array:
    """y as from `net`.  cond: integers [B], -1 for no label; None: no example has one.

    Raises InputError as `LatentUNet` does, and for labels that are no integers [B].
    """
    require_sizes(self, classes=1, features=1)
    require_labels(cond, self.classes, time)
    label = jnp.full(time.shape, -1) if cond is None else cond
    vectors = nn.Embed(self.classes + self.untold, self.features, name='label',
                       embedding_init=nn.initializers.normal(1.0))
    token = vectors(jnp.where(label < 0, self.classes if self.untold else 0, label))
    if not self.untold:
      token = jnp.where(label[:, None] < 0, 0.0, token)
    return self.net(z, time, token[:, None], keys)
