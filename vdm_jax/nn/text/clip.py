"""CLIP (Radford et al. 2021): a tower for texts and a tower for images, whose outputs are compared.

A tower is a transformer, and its `features` are a linear map of one of its vectors: for a text the
vector at its end, for an image a vector that stands before the patches.  exp(logit_scale) times the
cosine of the features of an image and of a text is their logit.

The text tower without its last map is the text encoder of Stable Diffusion.  GLIDE's noise-aware
CLIP (Nichol et al. 2021, section 3.4) reads noisy images and their step; see `NoisyCLIP`.
"""
import math
from typing import cast

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from optax import cosine_similarity

from vdm_jax.errors import require
from vdm_jax.nn.blocks.layers import require_sizes
from vdm_jax.nn.blocks.transformer import Gelu, Patches
from vdm_jax.nn.text.trunk import Encoded, Tokens, Trunk, norm
from vdm_jax.typing import Array

# Of the red, green and blue of its training images, on a scale from 0 to 1.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def standardised(images: Array) -> Array:
  """Images as the image tower reads them: [B, H, W, 3], from -1 to 1 -> (u - mean) / std."""
  return (0.5 * (images + 1.0) - MEAN) / STD


class TextTower(Trunk):
  """The tower for texts, in which a token reads only itself and the tokens before it.

  levels    tokens are 0 .. levels - 1
  length    L, tokens of a text
  outputs   D of the features; 0: no linear map, so the features are the vector at the end
  gelu      of the blocks, see `transformer.MLP`
  key_bias  see `transformer.SelfAttention`

  The defaults are the text encoder of Stable Diffusion.
  """
  features: int = 768
  attention_heads: int = 12
  levels: int = 49_408
  length: int = 77
  outputs: int = 0
  gelu: Gelu = 'quick'
  key_bias: bool = True

  @nn.compact
  def __call__(self, tokens: Array, lengths: Array | None = None) -> Encoded:
    """The normalised vectors of all tokens, and the features.

    tokens: integers [B, L].  lengths: integers [B], how many tokens a text has, its end included;
    None: the end is the first of the largest token, which in CLIP's vocabulary means the end.
    Raises InputError: tokens of another shape or type.
    """
    require_sizes(self, features=1, depth=1, levels=1, length=1, outputs=0)
    h = Tokens(self.levels, self.length, self.features, name='tokens')(tokens)
    h = self._blocks(h, gelu=self.gelu, key_bias=self.key_bias, causal=True)
    sequence = norm('norm_out')(h)
    last = jnp.argmax(tokens, axis=1) if lengths is None else lengths - 1
    pooled = jnp.take_along_axis(sequence, last[:, None, None], axis=1)[:, 0]
    if self.outputs:
      pooled = nn.Dense(self.outputs, use_bias=False, name='out')(pooled)
    return Encoded(sequence, pooled)


class ImageTower(Trunk):
  """The tower for images of one size, a vision transformer (Dosovitskiy et al. 2021).

  patch     p: patches of p x p pixels are the tokens
  outputs   D of the features
  steps     0, or the number of noise levels: the vector before the patches is then the step's own
  scaled    whether the images are from -1 to 1, and the network applies `standardised`
  gelu, key_bias as of `TextTower`

  The defaults are ViT-B/32.
  """
  features: int = 768
  attention_heads: int = 12
  patch: int = 32
  outputs: int = 512
  steps: int = 0
  gelu: Gelu = 'quick'
  key_bias: bool = True
  scaled: bool = False

  @nn.compact
  def __call__(self, images: Array, time: Array | None = None, stages: bool = False
               ) -> Array | list[Array]:
    """The features [B, D], float32.  With `stages`: the patches after each block instead.

    images: [B, H, W, 3], see `standardised`.  time: [B], the step 0 .. steps - 1 of the noise, of
    which the nearest whole number is taken.  A stage is [B, H / p, W / p, C].
    Raises InputError: images that cannot be cut into patches; a time where there are no steps, or
    none where there are.
    """
    require_sizes(self, features=1, depth=1, outputs=1, steps=0)
    require((time is not None) == (self.steps > 0), 'time', None,
            f'this network has {self.steps} steps', 'give the steps [B], or None for 0 steps')
    read = standardised(images) if self.scaled else images
    h = Patches(self.patch, self.features, bias=False, name='patches')(read)
    start = nn.initializers.normal(self.features ** -0.5)
    if time is not None:
      table = self.param('time', start, (self.steps, self.features))
      first = jnp.take(table, jnp.rint(time).astype(jnp.int32), axis=0, mode='fill')
    else:
      first = jnp.broadcast_to(self.param('class', start, (self.features,)),
                               (len(h), self.features))
    h = jnp.concatenate([first[:, None], h], axis=1)
    h += self.param('positions', start, h.shape[1:])
    h, each = self._each_block(norm('norm_in')(h), gelu=self.gelu, key_bias=self.key_bias)
    if stages:
      rows = images.shape[1] // self.patch
      return [u[:, 1:].astype(jnp.float32).reshape(len(h), rows, -1, self.features) for u in each]
    return nn.Dense(self.outputs, use_bias=False, name='out')(norm('norm_out')(h[:, 0]))


class CLIP(nn.Module):
  """Both towers and the scale of their logits."""
  text: TextTower
  image: ImageTower

  @nn.compact
  def __call__(self, images: Array, tokens: Array) -> Array:
    """The logits [images, texts].  images: see `ImageTower`; tokens: see `TextTower`.

    Raises InputError as the towers do.
    """
    scale = self.param('logit_scale', nn.initializers.constant(math.log(1.0 / 0.07)), ())
    text = self.text(tokens).pooled
    assert text is not None
    image = cast(Array, self.image(images))
    return jnp.exp(scale) * cosine_similarity(image[:, None], text)


class NoisyCLIP(nn.Module):
  """GLIDE's noise-aware CLIP: the defaults are its published towers."""
  text: TextTower = TextTower(features=512, attention_heads=8, levels=65_536, outputs=512,
                              gelu='exact', key_bias=False)
  image: ImageTower = ImageTower(patch=4, steps=1000, gelu='exact', key_bias=False)

  @nn.compact
  def __call__(self, z: Array, time: Array, tokens: Array, lengths: Array | None = None) -> Array:
    """The cosine [B] of each noisy image and its text.

    z: [B, H, W, 3], alpha x + sigma eps, where x is from -1 to 1; time: [B], the step of z.
    tokens, lengths: see `TextTower`.  Raises InputError as the towers do.
    """
    text = self.text(tokens, lengths).pooled
    assert text is not None
    return cosine_similarity(cast(Array, self.image(standardised(z), time)), text)
