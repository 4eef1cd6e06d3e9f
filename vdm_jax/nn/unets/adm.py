"""The U-Nets of Nichol and Dhariwal (2021) and of Dhariwal and Nichol (2021, ADM); a classifier.

Both U-Nets are one family, which begins at the U-Net of Ho et al. (2020).  There are L resolutions,
each half of the one before.  With C = `features`:

    conv_in  ->  N blocks at each resolution  ->  block, attention, block
             ->  N + 1 blocks at each resolution  ->  conv_out

A block on the way up reads its input and one output of the way down, last in first out.  That is an
output of a block, of a change of size or of conv_in.

Nichol and Dhariwal (2021, section 3 and appendix A) added learned variances, several attention
heads, and attention at 16x16 and 8x8.  They also let the embedding scale and shift a normalisation:
(1 + w) norm(h) + b instead of h + b.  ADM (section 3) chose heads of 64 channels and attention at
32x32 too.  Its residual blocks change the size, as in BigGAN (Brock et al. 2019).

`UNetClassifier` has only the way down, with attention over the pixels that are left.  It gives
p(label | z), for guidance (ADM, section 4).  The super-resolution network sees a small image too.
The image is brought to the size of z, and becomes further channels of the input.

GLIDE (Nichol et al. 2021) tells ADM's U-Net a text, by two ways (section 3.1).  One vector for the
text is added to the embedding of the step.  And wherever pixels attend to pixels, they also attend
to the tokens: each attention has further keys and values.  For inpainting, the network also reads
the known part of the image and its mask (section 3.3).

The small image of an upsampler may be noisy, and the network is then told its noise by a second
embedding (Ho et al. 2022, section 3.3).
"""
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from flax import linen as nn

from vdm_jax.errors import require
from vdm_jax.nn.blocks import stack
from vdm_jax.nn.blocks.convolution import Conv, WeightGradient
from vdm_jax.nn.blocks.layers import (
  Attends,
  Attention,
  Dropout,
  GroupNorm,
  attend,
  downsample,
  require_choices,
  require_groups,
  require_halvable,
  require_heads,
  require_labels,
  require_sizes,
  sinusoidal_embedding,
  torch_init,
  upsample,
  zeros,
)
from vdm_jax.typing import Array, PyTree

QKVOrder = Literal['legacy', 'new']


class StepEmbedding(nn.Module):
  """An MLP of the sinusoids of `time`, plus a vector for each label: [B] -> [B, 4 features].

  Labels are integers [B].  For -1 and None, which mean no label, no vector is added.  endpoint,
  cosine_first: see `layers.sinusoidal_embedding`.
  """
  features: int
  classes: int = 0
  endpoint: bool = False
  cosine_first: bool = True
  kernel_init: nn.initializers.Initializer = torch_init

  @nn.compact
  def __call__(self, time: Array, label: Array | None = None) -> Array:
    require_labels(label, self.classes, time)
    dense = lambda name: nn.Dense(4 * self.features, kernel_init=self.kernel_init, name=name)
    h = sinusoidal_embedding(time, self.features, endpoint=self.endpoint,
                             cosine_first=self.cosine_first)
    h = dense('dense1')(nn.swish(dense('dense0')(h)))
    if self.classes:
      label = jnp.full(time.shape, -1) if label is None else label
      vectors = nn.Embed(self.classes, 4 * self.features, name='label',
                         embedding_init=nn.initializers.normal(1.0))(jnp.maximum(label, 0))
      h += jnp.where(label[:, None] >= 0, vectors, 0.0)
    return h


class ResBlock(nn.Module):
  """Two convolutions around the conditioning: [B, H, W, C'] -> [B, H, W, features].

  h + conv(dropout(swish(norm(conv(swish(norm(h))) + W swish(embedding))))).  A linear map is
  applied to h where C' differs from `features`.

  scale_shift   uses (1 + w) norm(.) + b instead, where W swish(embedding) is (w, b)
  resample      'down' or 'up': halves or doubles H and W of h and of the first convolution's input
  epsilon       of the normalisations
  """
  features: int
  groups: int = 32
  dropout: float = 0.0
  scale_shift: bool = False
  resample: Literal['none', 'down', 'up'] = 'none'
  epsilon: float = 1e-5
  kernel_init: nn.initializers.Initializer = torch_init
  dtype: jnp.dtype = jnp.float32
  weight_gradient: WeightGradient = 'auto'

  @nn.compact
  def __call__(self, h: Array, embedding: Array, keys: Array | None = None) -> Array:
    norm = lambda name: GroupNorm(self.groups, self.dtype, True, self.epsilon, name=name)
    conv = lambda name, init: Conv(self.features, self.dtype, kernel_init=init, name=name,
                                   weight_gradient=self.weight_gradient)
    resample = {'none': lambda u: u, 'down': downsample, 'up': upsample}[self.resample]
    x = conv('conv1', self.kernel_init)(resample(norm('norm1')(h)))
    h = resample(h)
    shift = nn.Dense((1 + self.scale_shift) * self.features, kernel_init=self.kernel_init,
                     dtype=self.dtype, name='embedding')(nn.swish(embedding))
    if self.scale_shift:
      scale, shift = jnp.split(shift, 2, axis=-1)
      x = norm('norm2')(x, modulation=(scale, shift))
    else:
      x = norm('norm2')(x + shift[:, None, None])
    x = conv('conv2', zeros)(Dropout(self.dropout, name='dropout')(x, keys))
    if h.shape[-1] != self.features:
      h = nn.Conv(self.features, (1, 1), kernel_init=self.kernel_init, dtype=self.dtype,
                  name='shortcut')(h)
    return h + x


def _apart(u: Array, heads: int, order: QKVOrder, parts: int = 3) -> list[Array]:
  """Splits [B, positions, parts C], into q, k and v say: [B, positions, heads, C / heads] each."""
  if order == 'legacy':
    x = u.reshape(*u.shape[:2], heads, parts, -1)
    return [x[:, :, :, i] for i in range(parts)]
  x = u.reshape(*u.shape[:2], parts, heads, -1)
  return [x[:, :, i] for i in range(parts)]


def number_of_heads(features: int, attention_heads: int, head_features: int) -> int:
  """Of an attention of so many features, by the fields of `UNet`.

  Raises InputError if the heads do not divide the features.
  """
  if head_features:
    require_heads('head_features', head_features, features)
    return features // head_features
  require_heads('attention_heads', attention_heads, features)
  return attention_heads


class AttentionBlock(Attends):
  """h + W softmax(q k^T / sqrt(C)) v in each head, over all positions: [B, H, W, C'], as h.

  text: None, or [B, L, D]; the positions attend to these L tokens too, by one softmax.  The tokens
  come first.

  attention_heads, head_features, qkv_order: see `UNet`.  attention, training: see `layers.attend`.
  The block starts as the identity.  Raises InputError if the heads do not divide C'.
  """
  attention_heads: int = 1
  head_features: int = 0
  qkv_order: QKVOrder = 'legacy'
  groups: int = 32
  dtype: jnp.dtype = jnp.float32
  attention: Attention = 'auto'
  training: bool = False

  @nn.compact
  def __call__(self, h: Array, text: Array | None = None) -> Array:
    features = h.shape[-1]
    heads = number_of_heads(features, self.attention_heads, self.head_features)
    x = GroupNorm(self.groups, self.dtype, epsilon=1e-5, name='norm')(h)
    x = x.reshape(h.shape[0], -1, features)
    qkv = nn.Dense(3 * features, kernel_init=torch_init, dtype=self.dtype, name='qkv')(x)
    query, key, value = _apart(qkv, heads, self.qkv_order)
    if text is not None:
      told = nn.Dense(2 * features, kernel_init=torch_init, dtype=self.dtype, name='text')(text)
      told_key, told_value = _apart(told, heads, self.qkv_order, parts=2)
      key = jnp.concatenate([told_key, key], axis=1)
      value = jnp.concatenate([told_value, value], axis=1)
    tokens = 0 if text is None else text.shape[1]
    x = attend(query, key, value, self.attention, self.training,
               attended=lambda maps: self.attended(maps, tokens))
    x = nn.Dense(features, kernel_init=zeros, dtype=self.dtype, name='out')(x.reshape(
        h.shape[0], -1, features))
    return h + x.reshape(h.shape)


class AttentionPool(nn.Module):
  """The output of attention at the mean over the positions: [B, H, W, C] -> [B, outputs].

  The mean is one more position, and only the mean attends.  Every position has a learned vector,
  [C, 1 + H W].  CLIP's image encoder pools in this way (Radford et al. 2021, section 2.4).
  """
  outputs: int
  head_features: int = 64

  @nn.compact
  def __call__(self, h: Array) -> Array:
    batch, *_, features = h.shape
    require_heads('head_features', self.head_features, features)
    h = h.reshape(batch, -1, features)
    h = jnp.concatenate([jnp.mean(h, axis=1, keepdims=True), h], axis=1)
    h += self.param('positional_embedding', nn.initializers.normal(features**-0.5),
                    (features, h.shape[1])).T
    qkv = nn.Dense(3 * features, kernel_init=torch_init, name='qkv')(h)
    query, key, value = _apart(qkv, features // self.head_features, 'new')
    x = attend(query[:, :1], key, value, 'xla')
    return nn.Dense(self.outputs, kernel_init=torch_init, name='out')(x.reshape(batch, features))


class Trunk(nn.Module):
  """The fields and the ways down and up of all these networks; see `UNet` for the fields.

  A network says by two methods of its own where it attends, and what its attention is.
  """
  features: int = 128
  multipliers: tuple[float, ...] = (1, 2, 3, 4)
  blocks: int = 3
  attention_heads: int = 1
  head_features: int = 0
  scale_shift: bool = True
  resblock_updown: bool = False
  groups: int = 32
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32
  remat: stack.Remat = 'dots'
  weight_gradient: WeightGradient = 'auto'
  attention: Attention = 'auto'

  def _width(self, level: int) -> int:
    return int(self.multipliers[level] * self.features)

  def _check(self, z: Array):
    require_halvable(z, len(self.multipliers) - 1)
    require_sizes(self, features=1, blocks=0, head_features=0)
    require_groups(self.groups, *map(self._width, range(len(self.multipliers))))

  def _block(self, h: Array, embedding: Array, keys: Array | None, width: int, name: str,
             resample: str = 'none') -> Array:
    block = stack.rematerialised(ResBlock, self.remat)
    return block(width, self.groups, self.dropout, self.scale_shift, resample, dtype=self.dtype,
                 weight_gradient=self.weight_gradient, name=name)(h, embedding, keys)

  def _attends(self, h: Array, level: int) -> bool:
    """Whether attention follows the blocks of this resolution, whose output is h."""
    raise NotImplementedError

  def _attention(self, h: Array, keys: Array | None, name: str, context: Array | None) -> Array:
    """h after attention, under this name; context: what it reads beside h, or None."""
    raise NotImplementedError

  def _attended_block(self, h: Array, embedding: Array, keys: Array | None, level: int,
                      name: str, context: Array | None) -> Array:
    h = self._block(h, embedding, keys, self._width(level), name)
    return self._attention(h, keys, f'{name}_attention', context) if self._attends(h, level) else h

  def _encode(self, z: Array, embedding: Array, keys: Array | None,
              context: Array | None = None) -> tuple[Array, list[Array]]:
    """The middle's output, and the outputs that the blocks on the way up read."""
    # The first convolution is float32: it touches z itself, and costs little.
    h = Conv(self._width(0), kernel_init=torch_init, name='conv_in',
             weight_gradient=self.weight_gradient)(z).astype(self.dtype)
    outs = [h]
    for level in range(len(self.multipliers)):
      for _ in range(self.blocks):
        h = self._attended_block(h, embedding, keys, level, f'down_{len(outs)}', context)
        outs.append(h)
      if level < len(self.multipliers) - 1:
        name = f'downsample_{len(outs)}'
        if self.resblock_updown:
          h = self._block(h, embedding, keys, self._width(level), name, 'down')
        else:
          # A zero on either side, of which a stride of 2 leaves out the last.
          h = nn.Conv(self._width(level), (3, 3), 2, padding=1, kernel_init=torch_init,
                      dtype=self.dtype, name=name)(h)
        outs.append(h)
    h = self._block(h, embedding, keys, self._width(-1), 'mid_0')
    h = self._attention(h, keys, 'mid_attention', context)
    return self._block(h, embedding, keys, self._width(-1), 'mid_1'), outs

  def _decode(self, h: Array, outs: list[Array], embedding: Array, keys: Array | None,
              channels: int, context: Array | None = None) -> Array:
    """The way up, to an output of so many channels.  h, outs: of `_encode`."""
    n = 0
    for level in reversed(range(len(self.multipliers))):
      for _ in range(self.blocks + 1):
        h = jnp.concatenate([h, outs.pop()], axis=-1)
        h = self._attended_block(h, embedding, keys, level, f'up_{n}', context)
        n += 1
      if level:
        name, width = f'upsample_{n - 1}', self._width(level)
        if self.resblock_updown:
          h = self._block(h, embedding, keys, width, name, 'up')
        else:
          h = Conv(width, self.dtype, kernel_init=torch_init, name=name,
                   weight_gradient=self.weight_gradient)(upsample(h))

    h = nn.GroupNorm(self.groups, epsilon=1e-5, name='norm_out')(h.astype(jnp.float32))
    return Conv(channels, kernel_init=zeros, name='conv_out',
                weight_gradient=self.weight_gradient)(nn.swish(h))


class _SelfAttending(Trunk):
  """Attention of the positions to each other, at resolutions of given heights."""
  attention_resolutions: tuple[int, ...] = (32, 16, 8)
  qkv_order: QKVOrder = 'legacy'

  def _check(self, z: Array):
    super()._check(z)
    require_choices(qkv_order=(self.qkv_order, get_args(QKVOrder)))

  def _attends(self, h: Array, level: int) -> bool:
    return h.shape[1] in self.attention_resolutions

  def _attention(self, h: Array, keys: Array | None, name: str, context: Array | None) -> Array:
    block = stack.rematerialised(AttentionBlock, self.remat)
    return block(self.attention_heads, self.head_features, self.qkv_order, self.groups, self.dtype,
                 self.attention, keys is not None, name=name)(h, context)


class UNet(_SelfAttending):
  """The networks of Nichol and Dhariwal (2021) and ADM; `time` is the step of the chain.

  features                C above
  multipliers             the features at each resolution, in multiples of C
  blocks                  N above
  attention_resolutions   heights of the images at which attention follows each block
  attention_heads         number of heads, where `head_features` is 0
  head_features           channels of each head, so that the number of heads grows with the features
  qkv_order               order of the 3 C outputs of the map to queries, keys and values: 'legacy'
                          [heads, 3, channels], 'new' [3, heads, channels]
  scale_shift             see `ResBlock`; 'adaptive group normalisation' in ADM
  resblock_updown         residual blocks change the size.  Otherwise a convolution of stride 2
                          halves it, and a convolution follows each doubling
  classes                 number of class labels; 0 for none
  groups                  of the normalisations; divides the features at every resolution
  dropout                 rate of dropout, per example; dropout is on where keys are given
  dtype                   of the trunk: float32, or bfloat16
  remat                   how much of a block is kept for the backward pass (see `stack`)
  weight_gradient         how a convolution's weight gradient is computed (see `convolution.Conv`)
  attention               how attention is computed (see `layers.attend`)
  heads                   further outputs of the shape of y, after y on the last axis.  Published
                          networks have one, the variance's v (Nichol and Dhariwal 2021, eq. 15)
  super_resolution        whether a small image is part of the condition
  low_res_noise           whether the noise of the small image is part of the condition too
  outputs                 channels of y; 0: those of z.  A network for inpainting reads more
                          channels than it returns
  text                    whether a text is part of the condition, as in GLIDE
  inpainting              whether a part of the image is part of the condition, as in GLIDE

  cond is the label, integers [B], -1 for none; or None.  With `super_resolution`, `text` or
  `inpainting` it is a dict, but a text may also stand alone:

    label          as above; it may be left out
    text           `nn.text.trunk.Encoded`: a sequence [B, L, D], and a pooled vector [B, 4 C]
    low_res        the small image [B, h, w, c], for `super_resolution`
    low_res_time   the time of its noise [B], on the scale of `time`, for `low_res_noise`
    known, mask    an image [B, H, W, channels of z], and [B, H, W, 1] or as z: 1 where it is known,
                   and 0 where it is not.  The network reads no more of it.  For `inpainting`
  """
  classes: int = 0
  heads: int = 0
  super_resolution: bool = False
  low_res_noise: bool = False
  outputs: int = 0
  text: bool = False
  inpainting: bool = False

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: PyTree = None,
               keys: Array | None = None) -> Array:
    """y: [B, H, W, (1 + heads) outputs], float32.  z: [B, H, W, C]; time, keys: [B].

    Raises InputError: settings that do not fit each other or the images; a wrong `cond`.
    """
    self._check(z)
    require_sizes(self, outputs=0)
    told = self._told(z, cond)
    embedding = StepEmbedding(self.features, self.classes, name='embedding')(
        time, told.get('label'))
    text = told.get('text')
    if text is not None:
      embedding += text.pooled
    if self.low_res_noise:
      embedding += StepEmbedding(self.features, name='low_res_embedding')(told['low_res_time'])
    tokens = None if text is None else text.sequence
    h, outs = self._encode(jnp.concatenate([z, *self._images(z, told)], axis=-1), embedding, keys,
                           tokens)
    channels = (1 + self.heads) * (self.outputs or z.shape[-1])
    return self._decode(h, outs, embedding, keys, channels, tokens)

  def _told(self, z: Array, cond: PyTree) -> dict[str, PyTree]:
    """The parts of `cond` by name.  Raises InputError unless they are those of this network."""
    require(self.super_resolution or not self.low_res_noise, 'low_res_noise', True,
            'this network reads no small image', 'set super_resolution too')
    parts = {'text': self.text, 'low_res': self.super_resolution,
             'low_res_time': self.low_res_noise, 'known': self.inpainting, 'mask': self.inpainting}
    names = [name for name, needed in parts.items() if needed]
    if not names:
      return {'label': cond}
    if names == ['text'] and not isinstance(cond, dict) and cond is not None:
      cond = {'text': cond}
    listed = ', '.join(names)
    require(isinstance(cond, dict) and set(names) <= set(cond) <= {*names, 'label'}, 'cond', None,
            f'this network is conditioned on {listed}' + ' and a label' * bool(self.classes),
            f'give a dict of {listed}')
    assert isinstance(cond, dict)
    if self.text:
      require(hasattr(cond['text'], 'pooled'), 'cond', None, 'the text is not encoded',
              'give what a network of texts returns: nn.text.trunk.Encoded')
      sequence, pooled = cond['text'].sequence, cond['text'].pooled
      count, width = len(z), 4 * self.features
      fits = sequence.ndim == 3 and len(sequence) == count
      require(fits and pooled is not None and pooled.shape == (count, width), 'cond', None,
              'the text does not fit this network',
              f'give a sequence [{count}, L, D], and a pooled vector [{count}, {width}]')
    if self.inpainting:
      shapes = cond['known'].shape, cond['mask'].shape
      require(shapes in ((z.shape, (*z.shape[:-1], 1)), (z.shape, z.shape)), 'cond', None,
              f'the known part and its mask have the shapes {shapes}',
              f'give {z.shape} and {(*z.shape[:-1], 1)}')
    return cond

  def _images(self, z: Array, told: dict[str, PyTree]) -> list[Array]:
    """The further channels of the input."""
    images = []
    if self.inpainting:
      images += [told['known'] * told['mask'], told['mask']]
    if self.super_resolution:
      small = told['low_res']
      images.append(jax.image.resize(small, (*z.shape[:-1], small.shape[-1]), 'bilinear'))
    return images


class UNetClassifier(_SelfAttending):
  """Logits of the label of noisy images; ADM, section 4.  The fields are `UNet`'s.

  classes: the number of labels.  head_features: channels of each attention head, including the
  pooling head; must not be 0.
  The parameters fit images of one size.
  """
  classes: int = 1000
  head_features: int = 64

  @nn.compact
  def __call__(self, z: Array, time: Array, cond: None = None,
               keys: Array | None = None) -> Array:
    """Logits: [B, classes], float32.  z: [B, H, W, C]; time, keys: [B]; cond is not used."""
    self._check(z)
    require_sizes(self, classes=1, head_features=1)
    embedding = StepEmbedding(self.features, name='embedding')(time)
    h, _ = self._encode(z, embedding, keys)
    h = nn.GroupNorm(self.groups, epsilon=1e-5, name='norm_out')(h.astype(jnp.float32))
    return AttentionPool(self.classes, self.head_features, name='pool')(nn.swish(h))
