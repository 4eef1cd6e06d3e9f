"""Layers shared by the networks.

A network is called as

    net(z, time, cond=None, keys=None) -> y        z, y: [B, ...], float32;  time: [B]

A network is a function of each example alone.  Its output for example i depends on z[i], time[i],
cond[i] and keys[i].  It does not depend on the rest of the batch, or on where it is computed.
`time` is the number that the network's paper calls time: logsnr for VDM's networks, the step of a
chain for DDPM and its descendants, a noise level for NCSN.  `vdm_jax.inputs` computes this number
from a `Level`.

Dropout is a function of the example too, so its randomness is an argument: `keys` has one PRNG key
per example of the global batch.  Every dropout layer draws from the stream named by the layer's
path in the network.  (Linen's `rngs` take one key for the whole batch, and their masks would change
with the layout.)  Without keys there is no dropout.

The trunk of a network may run in bfloat16 (`dtype`).  Parameters, z, its Fourier features, the
embedding of logsnr, normalisation statistics, the attention's softmax and the output stay float32.
They must, because near the data the noise is below the resolution of bfloat16.
"""
import math
from collections.abc import Callable
from functools import partial
from typing import Literal, cast

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from vdm_jax import random
from vdm_jax.errors import require
from vdm_jax.typing import Array, PyTree

MASK = 'dropout_mask'  # its name for the policies of `jax.checkpoint`
zeros = nn.initializers.zeros_init()
# PyTorch's own, which public code keeps: uniform with variance 1 / (3 inputs).
torch_init = nn.initializers.variance_scaling(1.0 / 3.0, 'fan_in', 'uniform')


# ------------------------------------------------- what a network asks of its settings and its data


def require_images(z: Array) -> None:
  """Raises InputError unless z is [B, H, W, C]."""
  _require_rank(z, 4, 'images [H, W, C]', 'points such as nn.small.mlp.MLP')


def require_points(z: Array) -> None:
  """Raises InputError unless z is [B, D]."""
  _require_rank(z, 2, 'points [D]', 'images such as nn.unets.vdm.UNet')


def _require_rank(z, rank, of, other):
  require(z.ndim == rank, None, None, f'this network takes {of}, and an example of the data has '
          f'shape {list(z.shape[1:])}',
          f'choose other data (config.data.name), or a network of {other}')


def require_sizes(net: nn.Module, **least: int) -> None:
  """Raises InputError if a field of `net` is smaller than the least value given here: blocks=0, ...
  """
  for field, number in least.items():
    value = getattr(net, field)
    require(value >= number, field, value, f'it must be at least {number}')


def require_labels(cond: PyTree, classes: int, like: Array) -> None:
  """Raises InputError unless `cond` is None or holds labels for a network of `classes` classes.

  Labels are integers with the shape of `like`, [B].
  """
  if cond is None:
    return
  require(classes > 0, 'cond', None, 'this network takes no labels',
          'give None, or set `classes` where the network has it')
  require(jnp.shape(cond) == like.shape and jnp.issubdtype(cond.dtype, jnp.integer), 'cond', None,
          f'it is {cond.dtype} {jnp.shape(cond)} for a network of {classes} classes',
          f'give one integer per example, {like.shape}')


def require_choices(**chosen: tuple[str, tuple[str, ...]]) -> None:
  """Raises InputError unless each field's value is one of its choices: field=(value, choices)."""
  for field, (value, choices) in chosen.items():
    require(value in choices, field, value, 'there is no such choice',
            f'choose one of {", ".join(choices)}')


def require_groups(groups: int, *features: int) -> None:
  """Raises InputError unless the groups of the normalisations divide all these features."""
  require(groups >= 1 and not any(width % groups for width in features), 'groups', groups,
          f'it does not divide {" and ".join(map(str, dict.fromkeys(features)))} features',
          'choose a divisor')


def require_heads(field: str, number: int, features: int) -> None:
  """Raises InputError unless `number` divides `features`.

  number: how many heads there are, or how many features a head has.
  """
  require(number >= 1 and features % number == 0, field, number,
          f'it does not divide the {features} features that attend', 'choose a divisor')


def require_halvable(z: Array, times: int) -> None:
  """Raises InputError unless z is images whose sides can be halved `times` times."""
  require_images(z)
  _require_multiples(z, 2**times, None, None, f'cannot be halved {times} times',
                     'fewer resolutions of the network')


def require_patches(z: Array, patch: int) -> None:
  """Raises InputError unless z is images that can be cut into squares of patch x patch pixels."""
  require_images(z)
  require(patch >= 1, 'patch', patch, 'it must be at least 1')
  _require_multiples(z, patch, 'patch', patch, f'cannot be cut into patches of {patch} x {patch}',
                     'a patch that divides both sides')


def _require_multiples(z, factor, field, value, problem, otherwise):
  height, width = z.shape[1:3]
  near = factor * max(1, round(min(height, width) / factor))
  require(not (height % factor or width % factor), field, value,
          f'images of {height} x {width} pixels {problem}',
          f'take images whose sides are multiples of {factor} (config.data.image_size={near} crops '
          f'and resizes them to {near} x {near}), or {otherwise}')


# ----------------------------------------------------------------------------------------- layers


def fourier_features(z: Array, exponents: tuple[float, ...]) -> Array:
  """sin(2^n 2 pi z), cos(2^n 2 pi z) for the N `exponents` n: [..., C] -> [..., 2 C N].

  The features show a network the low-order digits of z: Kingma et al. (2021), section 3.4.
  """
  frequencies = 2.0 * math.pi * 2.0 ** jnp.asarray(exponents, jnp.float32)
  phases = (z[..., None] * frequencies).reshape(*z.shape[:-1], -1)
  return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)


def sinusoidal_embedding(t: Array, features: int, *, endpoint: bool = True,
                         cosine_first: bool = False) -> Array:
  """sin(w_k t), cos(w_k t); w_k = 10^(-4 k / (K - 1)), k < K: [B] -> [B, 2 K = features].

  Ho et al. (2020); the positions of Vaswani et al. (2017), section 3.5.  Networks differ in two
  ways.  The last frequency is 10^-4 (`endpoint`), or w_k = 10^(-4 k / K), which ends one step
  earlier.  The sines come first, or the cosines do (`cosine_first`).
  Raises InputError: an odd number of features, or fewer than 4.
  """
  require(features >= 4 and features % 2 == 0, 'features', features,
          'the embedding of time needs an even number, 4 or more')
  half = features // 2
  spacing = math.log(1e4) / (half - 1 if endpoint else half)
  phases = t[:, None] * jnp.exp(-spacing * jnp.arange(half, dtype=jnp.float32))
  halves = [jnp.sin(phases), jnp.cos(phases)]
  return jnp.concatenate(halves[::-1] if cosine_first else halves, axis=-1)


_OF_GUIDANCE = (-3.0, -2.0, -1.0, 0.0)  # periods of 8, 4, 2 and 1


class Embedding(nn.Module):
  """The condition of every block of a network: (logsnr, cond) -> [B, 4 features].

  An MLP of the sinusoidal embedding of 1000 t, where t = (logsnr_max - logsnr) /
  (logsnr_max - logsnr_min).  The two end points are fixed, and a learned schedule may move beyond
  them.  `cond` is one of

    None                        nothing
    numbers [B]                 a scalar, appended to the embedding; None is the same as 0
    integers [B], classes > 0   a label, whose vector is added at the end; -1 and None are no label
    numbers [B, classes]        several labels, e.g. k-hot: the weighted sum of their vectors

  With `guided`, `cond` may also be a pair: (one of these, w [B]), with w the weight of a guidance
  in [0, 8).  A linear map of the Fourier features of w is then added.  The map is zero at first, so
  training can start from the weights of a network without it.  No w is the same as w = 0.
  """
  features: int
  classes: int
  logsnr_max: float
  logsnr_min: float
  guided: bool = False

  @nn.compact
  def __call__(self, logsnr: Array, cond: PyTree = None) -> Array:
    w = None
    if isinstance(cond, tuple):
      require(self.guided, 'cond', None, 'it is a pair, but this network reads no weight of '
              'guidance', 'give the first part of the pair only')
      cond, w = cond
    labelled = self.classes > 0
    several = labelled and cond is not None and cond.shape == (*logsnr.shape, self.classes)
    if labelled and not several:
      require_labels(cond, self.classes, logsnr)
    if not labelled and cond is not None:
      require(jnp.shape(cond) == logsnr.shape, 'cond', None, f'its shape is {jnp.shape(cond)}',
              f'give one number per example, {logsnr.shape}')
    nothing = jnp.zeros_like(logsnr)
    scalar = nothing if labelled or cond is None else cond.astype(jnp.float32)
    t = (self.logsnr_max - logsnr) / (self.logsnr_max - self.logsnr_min)
    h = sinusoidal_embedding(1000.0 * t, self.features)
    h = jnp.concatenate([h, scalar[:, None]], axis=-1)
    h = nn.swish(nn.Dense(4 * self.features, name='dense0')(h))
    h = nn.Dense(4 * self.features, name='dense1')(h)
    if labelled:
      label = jnp.full(logsnr.shape, -1) if cond is None else cond
      labels = label if several else jax.nn.one_hot(label, self.classes)
      h += nn.Dense(4 * self.features, use_bias=False, name='label')(labels)
    if self.guided:
      seen = fourier_features((nothing if w is None else w)[:, None], _OF_GUIDANCE)
      h += nn.Dense(4 * self.features, kernel_init=zeros, name='guidance')(seen)
    return nn.swish(h)


NORM = 'group_norm'  # the name of its statistics for the policies of `jax.checkpoint`


def _spread(u: Array, groups: int) -> Array:
  """The mean of each group of channels, for each of its channels: [B, C] -> [B, C]."""
  width = u.shape[-1] // groups
  return jnp.repeat(jnp.mean(u.reshape(len(u), groups, width), axis=-1), width, axis=-1)


def _statistics(h: Array, groups: int, epsilon: float) -> tuple[Array, Array]:
  """The mean and 1 / sqrt(variance + epsilon) of each group, for each of its channels: [B, C]."""
  wide, space = h.astype(jnp.promote_types(h.dtype, jnp.float32)), tuple(range(1, h.ndim - 1))
  # So the sums of a channel are computed once for all normalisations that read h.
  each = lax.optimization_barrier((jnp.mean(wide, axis=space),
                                   jnp.mean(jnp.square(wide), axis=space)))
  mean, square = (_spread(u, groups) for u in each)
  rate = lax.rsqrt(jnp.maximum(square - jnp.square(mean), 0.0) + epsilon)
  return checkpoint_name(mean, NORM), checkpoint_name(rate, NORM)


def group_norm(h: Array, scale: Array, bias: Array, groups: int, epsilon: float = 1e-6,
               swish: bool = False) -> Array:
  """`GroupNorm` with a derivative that moves few bytes: h [B, ..., C]; scale, bias [C] or [B, C].

  The backward pass keeps h and the statistics, and computes the rest again.  It reads h and the
  gradient of the result once for all sums, and once for the gradient of h.
  """
  own = jax.checkpoint(partial(_group_norm, groups=groups, epsilon=epsilon, swish=swish),
                       policy=jax.checkpoint_policies.save_only_these_names(NORM),
                       prevent_cse=False)
  return own(h, scale, bias)


def _over(a: Array, h: Array) -> Array:
  """[C], or [B, C] -> [B, 1, ..., C], for h [B, ..., C]."""
  return a if a.ndim == 1 else lax.expand_dims(a, range(1, h.ndim - 1))


@partial(jax.custom_jvp, nondiff_argnums=(3, 4, 5))
def _group_norm(h, scale, bias, groups, epsilon, swish):
  return _applied(h, *_statistics(h, groups, epsilon), scale, bias, swish)[1].astype(h.dtype)


def _applied(h, mean, rate, scale, bias, swish):
  """(u, the normalised numbers; y, the result; dy / dv, where v = scale u + bias)."""
  over = lambda a: _over(a.astype(rate.dtype), h)
  u = (h.astype(rate.dtype) - over(mean)) * over(rate)
  v = u * over(scale) + over(bias)
  if not swish:
    return u, v, jnp.ones_like(v)
  sigmoid = nn.sigmoid(v)
  return u, v * sigmoid, sigmoid * (1.0 + v * (1.0 - sigmoid))


def _group_norm_jvp(groups, epsilon, swish, primals, tangents):
  (h, scale, bias), (dh, dscale, dbias) = primals, tangents
  space = tuple(range(1, h.ndim - 1))
  mean, rate = _statistics(h, groups, epsilon)
  own = lambda a: jnp.broadcast_to(a.astype(rate.dtype), rate.shape)
  y = _applied(h, mean, rate, scale, bias, swish)[1]
  slope, dh = rate * own(scale), dh.astype(rate.dtype)
  within = lambda w: slope * _spread(jnp.mean(w, axis=space), groups)
  # XLA reads an array twice rather than compute it twice.  Behind the barriers it cannot see that
  # it could: so nothing of the size of h is written in between.
  h1, mean1, rate1 = lax.optimization_barrier((h, mean, rate))
  u, _, gate = _applied(h1, mean1, rate1, scale, bias, swish)
  dy = gate * lax.expand_dims(slope, space) * dh
  # The transpose of this broadcast is the sum of both parts in one pass.
  shift = lax.complex(own(dbias) - within(dh), own(dscale) - within(u * dh))
  shift = jnp.broadcast_to(lax.expand_dims(shift, space), h.shape)
  h2, mean2, rate2 = lax.optimization_barrier((h1, mean1, rate1))
  u, _, gate = _applied(h2, mean2, rate2, scale, bias, swish)
  return y.astype(h.dtype), (dy + gate * (shift.real + u * shift.imag)).astype(h.dtype)


_group_norm.defjvp(_group_norm_jvp)


class GroupNorm(nn.Module):
  """Normalises groups of channels (Wu and He 2018), then applies swish if asked: [B, ..., C].

  The parameters are those of Flax's GroupNorm.  In bfloat16, with which networks train on
  accelerators, the derivative is that of `group_norm`; otherwise it is Flax's.

  groups  divides C
  swish   whether swish is applied to the result
  """
  groups: int
  dtype: jnp.dtype = jnp.float32
  swish: bool = False
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, *parts: Array, modulation: tuple[Array, Array] | None = None) -> Array:
    """The normalised concatenation of the parts by channels.  The parts are not joined before.

    modulation: (w, b), [B, C] each: the result is times 1 + w, plus b, before swish.
    """
    widths = [part.shape[-1] for part in parts]
    total = sum(widths)
    scale = self.param('scale', nn.initializers.ones_init(), (total,))
    bias = self.param('bias', zeros, (total,))
    if any(width * self.groups % total for width in widths):  # a group has channels of two parts
      parts, widths = (jnp.concatenate(parts, axis=-1),), [total]
    out, start = [], 0
    for part, width in zip(parts, widths, strict=True):
      there = slice(start, start + width)
      start += width
      own = modulation and (modulation[0][:, there], modulation[1][:, there])
      out.append(self._of(part, scale[there], bias[there], width * self.groups // total, own))
    return out[0] if len(out) == 1 else jnp.concatenate(out, axis=-1)

  def _of(self, h, scale, bias, groups, modulation):
    if self.dtype == jnp.bfloat16:
      if modulation is not None:
        w, b = (u.astype(scale.dtype) for u in modulation)
        scale, bias = scale * (1.0 + w), bias * (1.0 + w) + b
      return group_norm(h.astype(self.dtype), scale, bias, groups, self.epsilon, self.swish)
    y = cast(Array, nn.GroupNorm(
        groups, dtype=self.dtype, epsilon=self.epsilon, parent=None).apply(
            {'params': {'scale': scale, 'bias': bias}}, h))
    if modulation is not None:
      w, b = (_over(u, h) for u in modulation)
      y = y * (1.0 + w) + b
    return nn.swish(y) if self.swish else y


class DenseOfParts(nn.Module):
  """A linear map of the concatenation of parts by channels, which is not made: [..., features].

  The parameters are those of `nn.Dense`.
  """
  features: int
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, *parts: Array) -> Array:
    kernel = self.param('kernel', nn.initializers.lecun_normal(),
                        (sum(part.shape[-1] for part in parts), self.features))
    out = self.param('bias', zeros, (self.features,)).astype(self.dtype)
    start = 0
    for part in parts:
      there = kernel[start:start + part.shape[-1]].astype(self.dtype)
      start += part.shape[-1]
      out = part.astype(self.dtype) @ there + out
    return out


class Dropout(nn.Module):
  """Zeroes each number with probability `rate` and divides the rest by 1 - rate; off without keys.

  The rate is rounded to a multiple of 2^-16.  keys: [B].  The mask of example i depends only on
  keys[i] and on the path of this layer.  Raises InputError: a rate outside of [0, 1).
  """
  rate: float

  def __call__(self, h: Array, keys: Array | None) -> Array:
    threshold = round((1.0 - self.rate) * 2**16) if 0.0 <= self.rate < 1.0 else 0
    require(threshold > 0, 'dropout', self.rate, 'it must be a probability, 0 or more and below 1')
    if keys is None or self.rate == 0.0:
      return h
    own = random.stream(keys, '/'.join(self.path))
    # Sixteen random bits a number: making them is what dropout costs.
    size = math.prod(h.shape[1:])
    words = jax.vmap(lambda key: jax.random.bits(key, (-(-size // 2),), jnp.uint32))(own)
    bits = jax.lax.bitcast_convert_type(words, jnp.uint16).reshape(len(h), -1)[:, :size]
    keep = checkpoint_name((bits < threshold).reshape(h.shape), MASK)
    return jnp.where(keep, h * (2**16 / threshold), 0.0)


Attention = Literal['auto', 'xla', 'cudnn']


def _flash_attention_exists() -> bool:
  """Whether cuDNN has flash attention here, forwards and backwards."""
  device = jax.local_devices()[0]
  return (device.platform == 'gpu' and 'cuda' in device.client.platform_version
          and float(device.compute_capability) >= 8.0)


class Attends(nn.Module):
  """A layer whose attention maps can be read and changed from outside, by one method.

  `flax.linen.intercept_methods` replaces the method `attended`; see `vdm_jax.editing.attention`.
  """

  def attended(self, maps: Array, told: int = 0) -> Array:
    """The maps that are multiplied by the values: `maps` themselves, [B, heads, positions, read].

    Each row is a softmax over what a position reads.  told: how many of the first columns are
    tokens of the condition.  The other columns are positions of the image.
    """
    return maps


def attend(query: Array, key: Array, value: Array, attention: Attention = 'auto',
           training: bool = False, causal: bool = False,
           attended: Callable[[Array], Array] | None = None) -> Array:
  """softmax(q k^T / sqrt(C)) v for each head, the softmax float32: [B, positions, heads, C] each.

  causal: whether a position reads only itself and the positions before it.
  attended: the softmax, [B, heads, positions, read] -> what multiplies v, see `Attends`.  A fused
  kernel never calls it.
  attention: 'cudnn' never holds the [positions, positions] scores in memory.  It needs a GPU and
  bfloat16, and it has no forward derivative, which the flow's likelihood needs.  'auto' takes
  'cudnn' where it exists and `training` is set.  A loss that takes derivatives forwards needs
  'xla'.
  """
  features = query.shape[-1]
  if attention == 'auto':
    fits = query.dtype == jnp.bfloat16 and features <= 128 and features % 8 == 0
    attention = 'cudnn' if training and fits and _flash_attention_exists() else 'xla'
  if attended is None or attention == 'cudnn':
    return jax.nn.dot_product_attention(query, key, value, is_causal=causal,
                                        implementation=attention)
  wide = jnp.promote_types(query.dtype, jnp.float32)
  # Named, because the default of mixed precisions is not the same in the backward pass.
  precision = (jax.lax.DotAlgorithmPreset.BF16_BF16_F32 if query.dtype == jnp.bfloat16 else None)
  scores = jnp.einsum('bqhc,bkhc->bhqk', query, key, precision=precision,
                      preferred_element_type=wide) * features**-0.5
  if causal:
    scores = jnp.where(jnp.tril(jnp.ones(scores.shape[2:], bool)), scores, -jnp.inf)
  maps = attended(nn.softmax(scores, axis=-1))
  return jnp.einsum('bhqk,bkhc->bqhc', maps.astype(value.dtype), value, precision=precision)


class AttentionBlock(Attends):
  """h + W softmax(q k^T / sqrt(C)) v over all positions, one head: [B, ..., C] -> [B, ..., C].

  The block starts as the identity.  attention, training: see `attend`.
  """
  groups: int
  dtype: jnp.dtype = jnp.float32
  attention: Attention = 'auto'

  @nn.compact
  def __call__(self, h: Array, training: bool = False) -> Array:
    features = h.shape[-1]
    x = nn.GroupNorm(self.groups, dtype=self.dtype, name='norm')(h)
    x = x.reshape(h.shape[0], -1, 1, features)  # one head
    dense = lambda name: nn.Dense(features, dtype=self.dtype, name=name)(x)
    x = attend(dense('query'), dense('key'), dense('value'), self.attention, training,
               attended=self.attended)
    x = nn.Dense(features, dtype=self.dtype, kernel_init=zeros, name='out')(x)
    return h + x.reshape(h.shape)


def upsample(h: Array) -> Array:
  """Every pixel becomes four of the same value: [B, H, W, C] -> [B, 2 H, 2 W, C]."""
  return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)


def downsample(h: Array) -> Array:
  """The mean of every 2x2 pixels: [B, H, W, C] -> [B, H / 2, W / 2, C]."""
  return nn.avg_pool(h, (2, 2), (2, 2))
