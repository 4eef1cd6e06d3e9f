"""U-ViT (Bao et al. 2023): a vision transformer with the long skip connections of a U-Net.

The label, the time and the patches of an image are all tokens.  The tokens pass `depth` / 2 shallow
blocks, one block in the middle and `depth` / 2 deep blocks.  Each deep block first joins its input
with the output of the shallow block that mirrors it,

    h <- W [h, skip]
    h <- h + attention(norm(h))
    h <- h + mlp(norm(h))

In the end the tokens of the patches become an image, to which a 3x3 convolution may be applied.
The position of a token is a learned vector, so the parameters belong to one size of image.
"""
import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.nn.blocks import stack, transformer
from vdm_jax.nn.blocks.convolution import Conv, WeightGradient
from vdm_jax.nn.blocks.layers import (
  Attention,
  require_labels,
  require_patches,
  require_sizes,
  sinusoidal_embedding,
)
from vdm_jax.nn.blocks.transformer import Labels, Patches, unpatchify
from vdm_jax.typing import Array

# Initial values as in the published code, whose convolutions have PyTorch's own.
_normal = nn.initializers.normal(0.02)
_uniform = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')


class Block(transformer.Block):
  """One block of the module's equations: [B, tokens, C] -> [B, tokens, C].

  skip: None, or of that shape too; h is then joined with it.
  """
  bias: bool = False
  kernel_init: nn.initializers.Initializer = _normal

  @nn.compact
  def __call__(self, h: Array, skip: Array | None = None, training: bool = False) -> Array:
    if skip is not None:
      h = nn.Dense(h.shape[-1], kernel_init=self.kernel_init, dtype=self.dtype, name='skip')(
          jnp.concatenate([h, skip], axis=-1))
    return super().__call__(h, training)


class UViT(nn.Module):
  """Bao et al. (2023), section 3.1, for images of one size whose sides are multiples of `patch`.

  patch, features        p, and the length D of a token
  depth                  blocks beside the one in the middle, an even number
  attention_heads        of each block; divides `features`
  classes                number of class labels; 0: none
  label_dropout          probability that training hides a label; 0: every example has a label (see
                         `transformer.Labels`)
  conv                   whether a 3x3 convolution comes last
  heads                  further outputs of the shape of z, after y on the last axis
  dtype                  of the trunk: float32, or bfloat16
  scan                   whether the blocks run as loops, or are written out (see `stack`)
  remat                  how much of a block is kept for the backward pass (see `stack`)
  weight_gradient        how the convolution's weight gradient is computed (see `convolution.Conv`)
  attention              how attention is computed (see `layers.attend`)
  """
  patch: int = 2
  features: int = 512
  depth: int = 12
  attention_heads: int = 8
  classes: int = 0
  label_dropout: float = 0.1
  conv: bool = True
  heads: int = 0
  dtype: jnp.dtype = jnp.float32
  scan: bool = True
  remat: stack.Remat = 'dots'
  weight_gradient: WeightGradient = 'auto'
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: Array | None = None,
               keys: Array | None = None) -> Array:
    """y: [B, H, W, (1 + heads) C], float32.  z: [B, H, W, C]; time, keys: [B].

    time: the published networks of pixels take 999 times the VP SDE's time.  The published networks
    of latents take the step of a chain of 1000, counted from 1.  cond: integers [B], -1 for no
    label.
    Raises InputError: settings that do not fit each other or the images.
    """
    require_patches(z, self.patch)
    require_sizes(self, features=4, depth=0, heads=0)
    require(self.depth % 2 == 0, 'depth', self.depth, 'half of the blocks are before the middle '
            'one and half after it', 'choose an even number')
    batch, height, width, channels = z.shape
    require_labels(cond, self.classes, time)

    tokens = [sinusoidal_embedding(time, self.features, endpoint=False, cosine_first=True)]
    if self.classes:
      label = Labels(self.classes, self.features, self.label_dropout, 1.0, name='label')
      tokens.insert(0, label(cond, time, keys))
    extras = len(tokens)
    h = jnp.concatenate([jnp.stack(tokens, axis=1),
                         Patches(self.patch, self.features, _uniform, name='patches')(z)], axis=1)
    h += self.param('positions', _normal, (1, *h.shape[1:]))

    h = h.astype(self.dtype)
    training = keys is not None
    block = Block(self.attention_heads, self.dtype, self.attention, parent=None)

    def blocks(name, h, skips=None):
      """Runs half of the blocks on h, each joined with one of `skips`; see `stack.run`."""
      skip = None if skips is None else h
      params = stack.parameters(self, name, block, self.depth // 2, h, skip)
      apply = lambda params, h, each: block.apply({'params': params}, h, each['skip'], training)
      with jax.named_scope(name):
        return stack.run(apply, params, h, {'skip': skips}, self.scan, self.remat)

    skips = []
    if self.depth:
      h, skips = blocks('shallow', h)
    h = block.clone(name='middle', parent=self)(h, None, training)
    if self.depth:
      h, _ = blocks('deep', h, skips[::-1])

    h = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name='norm_out')(
        h.astype(jnp.float32))[:, extras:]
    outputs = (1 + self.heads) * channels
    y = nn.Dense(self.patch**2 * outputs, kernel_init=_normal, name='out')(h)
    y = unpatchify(y, self.patch, height, width)
    if self.conv:
      y = Conv(outputs, name='conv_out', kernel_init=_uniform,
               weight_gradient=self.weight_gradient)(y)
    return y
