"""The networks of EDM (Karras et al. 2022): DDPM++, NCSN++ and ADM in one notation.

A network here is F(c_in z, c_noise) of the preconditioned denoiser, eq. 7, and its `time` is
c_noise = log(sigma) / 4.  `inputs.edm(sigma_data)` and `targets.edm(sigma_data)` have the other
factors of eq. 7.

`SongUNet` is the trunk of Song et al. (2021), nn/unets/ncsnpp.py.  `DhariwalUNet`, the network of
Dhariwal and Nichol (2021), is the same trunk with three changes.  Its blocks scale and shift, it
has several heads, and attention follows every block of a size.

Labels are integers, -1 for none.  Without a label the input is zeros, as in classifier-free
guidance.  Networks that were trained with augmentation read `augment` numbers, which describe the
changes of the image.  Here all of these are zero, as in sampling (section 5).  Their weights are
kept with the other weights.
"""
import math
from typing import Literal

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.nn.blocks import stack
from vdm_jax.nn.blocks.convolution import WeightGradient
from vdm_jax.nn.blocks.layers import (
  Attention,
  require_choices,
  require_labels,
  require_sizes,
  sinusoidal_embedding,
)
from vdm_jax.nn.unets.ncsnpp import FourierEmbedding, Initial, Trunk, initial
from vdm_jax.typing import Array

_SONG = initial._replace(qkv=nn.initializers.variance_scaling(0.2, 'fan_avg', 'uniform'))
_ADM_KERNEL = nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
_ADM = Initial(_ADM_KERNEL, _ADM_KERNEL, nn.initializers.zeros_init())


def _one_hot(cond: Array | None, classes: int, time: Array) -> Array:
  """[B, classes]: zeros for -1 and for None."""
  if cond is None:
    return jnp.zeros((*time.shape, classes))
  return jax.nn.one_hot(cond, classes)


def _augmented(e: Array, augment: int, init: nn.initializers.Initializer) -> Array:
  nothing = jnp.zeros((e.shape[0], augment))
  return e + nn.Dense(e.shape[-1], use_bias=False, kernel_init=init, name='augment')(nothing)


class SongUNet(nn.Module):
  """DDPM++ and NCSN++ as EDM trains them, for images [B, H, W, C].

  classes, augment    number of class labels and of augmentation labels; 0 for none
  embedding           of c_noise: 'positional' (DDPM++) or 'fourier' (NCSN++)
  fir                 the filter for changes of size: (1, 1) (DDPM++) or (1, 3, 3, 1) (NCSN++)
  encoder             the pyramid of inputs: 'standard', none (DDPM++), 'residual' (NCSN++), 'skip'
  decoder             the pyramid of outputs: 'standard', none (both), or 'skip'
  heads               further outputs of the shape of z, after y on the last axis

  `ncsnpp.NCSNpp` describes the fields from features to dropout, and `unets.vdm.UNet` those from
  dtype to attention.  The defaults are unconditional DDPM++ on CIFAR-10 (configuration F, VP).
  """
  features: int = 128
  multipliers: tuple[int, ...] = (2, 2, 2)
  blocks: int = 4
  attention_resolutions: tuple[int, ...] = (16,)
  dropout: float = 0.13
  classes: int = 0
  augment: int = 9
  embedding: Literal['positional', 'fourier'] = 'positional'
  fir: tuple[float, ...] = (1, 1)
  encoder: Literal['standard', 'skip', 'residual'] = 'standard'
  decoder: Literal['standard', 'skip'] = 'standard'
  heads: int = 0
  dtype: jnp.dtype = jnp.float32
  remat: stack.Remat = 'dots'
  weight_gradient: WeightGradient = 'auto'
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: Array | None = None,
               keys: Array | None = None) -> Array:
    """y: [B, H, W, (1 + heads) C], float32.  z: [B, H, W, C]; time, cond, keys: [B].

    Raises InputError: settings that do not fit each other or z; a wrong `cond`.
    """
    require_choices(embedding=(self.embedding, ('positional', 'fourier')),
                    encoder=(self.encoder, ('standard', 'skip', 'residual')),
                    decoder=(self.decoder, ('standard', 'skip')))
    require_sizes(self, features=1, classes=0, augment=0, heads=0)
    require_labels(cond, self.classes, time)
    if self.embedding == 'fourier':
      e = FourierEmbedding(self.features, name='fourier')(time)
    else:
      e = sinusoidal_embedding(time, self.features)
    dense = lambda size, name: nn.Dense(size, kernel_init=_SONG.kernel, name=name)
    if self.classes:
      labels = math.sqrt(self.classes) * _one_hot(cond, self.classes, time)
      e += dense(e.shape[-1], 'label')(labels)
    if self.augment:
      e = _augmented(e, self.augment, _SONG.kernel)
    for name in ('dense0', 'dense1'):
      e = nn.swish(dense(4 * self.features, name)(e))
    progressive_input = {'standard': 'none', 'skip': 'input_skip'}.get(self.encoder, self.encoder)
    progressive = {'standard': 'none', 'skip': 'output_skip'}[self.decoder]
    return Trunk((1 + self.heads) * z.shape[-1], self.features, self.multipliers, self.blocks,
                 self.attention_resolutions, self.dropout, self.fir, progressive=progressive,
                 progressive_input=progressive_input, fused=True, initial=_SONG, dtype=self.dtype,
                 remat=self.remat, weight_gradient=self.weight_gradient, attention=self.attention,
                 name='trunk')(z, e, keys)


class DhariwalUNet(nn.Module):
  """ADM as EDM trains it, for images [B, H, W, C].

  head_features   channels of an attention head

  The other fields are `SongUNet`'s.  The defaults with classes = 1000 are ADM on ImageNet 64x64.
  """
  features: int = 192
  multipliers: tuple[int, ...] = (1, 2, 3, 4)
  blocks: int = 3
  attention_resolutions: tuple[int, ...] = (32, 16, 8)
  dropout: float = 0.1
  classes: int = 0
  augment: int = 0
  head_features: int = 64
  heads: int = 0
  dtype: jnp.dtype = jnp.float32
  remat: stack.Remat = 'dots'
  weight_gradient: WeightGradient = 'auto'
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: Array | None = None,
               keys: Array | None = None) -> Array:
    """y: [B, H, W, (1 + heads) C], float32.  z: [B, H, W, C]; time, cond, keys: [B].

    Raises InputError: settings that do not fit each other or z; a wrong `cond`.
    """
    require_sizes(self, features=1, classes=0, augment=0, head_features=0, heads=0)
    require_labels(cond, self.classes, time)
    e = sinusoidal_embedding(time, self.features, endpoint=False, cosine_first=True)
    if self.augment:
      e = _augmented(e, self.augment, _ADM.last)
    dense = lambda name: nn.Dense(4 * self.features, kernel_init=_ADM.kernel, name=name)
    e = dense('dense1')(nn.swish(dense('dense0')(e)))
    if self.classes:
      labels = _one_hot(cond, self.classes, time)
      e += nn.Dense(e.shape[-1], use_bias=False, kernel_init=nn.initializers.normal(1.0),
                    name='label')(labels)
    return Trunk((1 + self.heads) * z.shape[-1], self.features, self.multipliers, self.blocks,
                 self.attention_resolutions, self.dropout, rescale=False, attention_up='every',
                 head_features=self.head_features, fused=True, scale_shift=True, project=False,
                 epsilon=1e-5, initial=_ADM, dtype=self.dtype, remat=self.remat,
                 weight_gradient=self.weight_gradient, attention=self.attention,
                 name='trunk')(z, nn.swish(e), keys)
