"""Autoencoders, the first stage of latent diffusion: of images, and of integers in general.

Esser et al. (2021), section 3.1, and Rombach et al. (2022), section 3.1 and eq. 25.  The loss of an
image x, of n numbers in [-1, 1], is

  KL kind   sum |x - x'| + n w_p LPIPS(x, x') + w_KL KL(q(y | x) || N(0, 1)) + d w_a g
  VQ kind   mean |x - x'| + w_p LPIPS(x, x') + w_c codebook(h, q) + d w_a g

with g = -mean D(x') of a discriminator D of patches.  d makes the gradients of the reconstruction
and of g equally long in the last kernel of the decoder, so g needs no scale of its own.  See
`objectives.autoencoding`.  D is a second player with the hinge loss.  Both begin at step
`adversarial_from`.  d is of the global batch, so it depends neither on the devices nor on
microbatches.

A density is left out of these losses: p(x | y), the probability of an image given its latent.  Here
it is a normal of mean D(y) and of one standard deviation, cut into the levels of the data.  The
standard deviation is fitted beside the training, by the likelihood: its gradient reaches nothing
else, and no other gradient reaches it.  So an autoencoder bounds the likelihood of its images,

  -log P(x) <= E[-log p(x | y)] + KL(q(y | x) || N(0, 1))          KL kind
  -log P(x) <= -log p(x | q) + h w log(entries)                    VQ kind, indices of equal odds

and a latent diffusion replaces the last term by its own, `systems.latent.latent`.

A network of integers that are no brightness, such as pitches, may have a method `logits`.  Then
p(x | y) is no normal: it is the network's own, with log-odds of every level, and it is trained
(`of_levels`).
"""
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn
from jax.scipy.stats import norm

from vdm_jax import data, random
from vdm_jax.data import Field
from vdm_jax.decoders import DiscretisedNormal, Pixels, log_normal
from vdm_jax.errors import InputError, renamed, require, require_choice
from vdm_jax.nn.autoencoders.compvis import KLAutoencoder, Trunk, VQAutoencoder
from vdm_jax.nn.autoencoders.patchgan import Norm, PatchDiscriminator
from vdm_jax.nn.autoencoders.taesd import TinyAutoencoder
from vdm_jax.nn.autoencoders.tiling import decode_tiled
from vdm_jax.nn.lpips import LPIPS, require_channels
from vdm_jax.objectives import autoencoding
from vdm_jax.systems import compose, networks
from vdm_jax.train import optimizer, step
from vdm_jax.typing import Array, Experiment, PyTree, Update, brief
from vdm_jax.units import bits_per_dim, mean_over_data, sum_over_data
from vdm_jax.values import Bound

KINDS = 'kl', 'vq', 'tiny'
LAST_KERNEL = 'decoder', 'conv_out', 'kernel'  # of the networks of `nn.autoencoders.compvis`
FIRST_STD = 0.1                                # of p(x | y), before it is fitted


def drawn(mean: Array, log_variance: Array | None, keys: Array) -> tuple[Array, Array | None]:
  """y ~ N(mean, exp(log_variance)), [B, ...], and its log density in nats [B].

  Without a variance, y is the mean and has no density, which is None.
  """
  if log_variance is None:
    return mean, None
  eps = random.normal(random.stream(keys, 'y'), mean)
  return (mean + jnp.exp(0.5 * log_variance) * eps,
          sum_over_data(norm.logpdf(eps) - 0.5 * log_variance))


class Autoencoder(NamedTuple):
  """A trained autoencoder.  Data are integers, or real numbers; y are its latents."""
  encode: Callable[[Array], tuple]       # data [B, ...] -> m, log v of q(y | data), [B, ...] each;
                                         # log v is None if y is a function of the data
  decode: Callable[[Array], Array]       # y -> the nearest data
  mean: Callable[[Array], Array]         # y -> x', the mean of p(x | y), x in [-1, 1]
  log_prob: Callable[[Array, Array], Array]  # data, y -> log p(data | y) in nats, [B]
  prior_nats: Callable[[Array], Array]   # data -> nats [B] that y costs under the prior of the kind
  shape: tuple[int, ...]                 # of an example
  latent_shape: tuple[int, ...]          # of its y
  levels: int | None = None              # of the data; None: real numbers
  field: str = 'image'                   # which field of a batch is the data
  index: Callable[[Array], Array] | None = None  # y -> the indices of its codebook, [B, h, w]
  codebook: Array | None = None          # [entries, latent channels]
  odds: Callable[[Array], Array] | None = None  # y -> log-odds of every level, [B, ..., levels]

  def draw(self, data: Array, keys: Array) -> tuple[Array, Array | None]:
    """y ~ q(y | data), and log q(y | data) in nats [B], which is None if y has no density."""
    mean, log_variance = self.encode(data)
    return drawn(mean, log_variance, keys)

  def vectors(self, y: Array) -> Array:
    """The vectors q of its codebook that are nearest to y."""
    if self.codebook is None or self.index is None:
      raise ValueError('this autoencoder has no codebook')
    return jnp.take(self.codebook, self.index(y), axis=0)

  def of_vectors(self) -> 'Autoencoder':
    """The same autoencoder, but y are the vectors q of its codebook, not h before the codebook."""
    return self._replace(encode=lambda data: (self.vectors(self.encode(data)[0]), None))

  def in_tiles(self, tile: int, overlap: int) -> 'Autoencoder':
    """The same autoencoder, which decodes large latents by `nn.autoencoders.tiling.decode_tiled`.

    Its `log_prob` still decodes whole images.
    """
    def mean(y):
      return decode_tiled(self.mean, y, tile, overlap)
    return self._replace(mean=mean, decode=lambda y: _nearest(mean(y), self.levels))

  def reconstruct(self, data: Array, keys: Array) -> Array:
    """The data nearest to D(y), or of the largest odds, for one draw of y for each example."""
    return self.decode(self.draw(data, keys)[0])

  def quality(self, batch: PyTree, keys: Array) -> dict[str, Array]:
    """What one draw of y keeps of each example, and its cost, {name: [B]}.

    'nats': the bound of the module's docstring, the sum of 'reconstruction' and 'latent'.  'psnr':
    in dB, of x' clipped to the range of the data, if they are integers.  'l1': mean |x - x'|, for x
    in [-1, 1].  'accuracy', in the place of these two if there are odds of levels: the share of
    numbers whose level has the largest odds.  'y' and 'y_squared': means over the numbers of y.
    'index': the indices of y [B, h, w], if there is a codebook.
    """
    images = batch[self.field]
    y, _ = self.draw(images, keys)
    terms = {'reconstruction': -self.log_prob(images, y), 'latent': self.prior_nats(images)}
    index = {} if self.index is None else {'index': self.index(y)}
    return {'nats': terms['reconstruction'] + terms['latent'], **terms, **self._near(images, y),
            'y': mean_over_data(y), 'y_squared': mean_over_data(jnp.square(y)), **index}

  def _near(self, images: Array, y: Array) -> dict[str, Array]:
    """How near the data are that y gives, {name: [B]}."""
    if self.odds is not None:
      return {'accuracy': mean_over_data((self.decode(y) == images).astype(jnp.float32))}
    return _distances(_x(images, self.levels), self.mean(y), self.levels)

  def nats(self, batch: PyTree, *, key: Array) -> Array:
    """One draw of the bound on -log p of each example: nats [B]."""
    return self.quality(batch, random.each(key, len(batch[self.field])))['nats']

  def __repr__(self) -> str:
    return brief(self)


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of an autoencoder, those of `kl-f8` of Rombach et al. (2022) but for two.

  The published weights of the losses are 1.0 (`perceptual`) and 0.5 (`adversarial`).  Both are 0
  here: LPIPS needs the weights of VGG-16, from a file that you have (`vgg`).
  """
  how = networks.how_computed()
  return compose.default_config(**{
      'kind': 'kl',               # 'vq', or 'tiny', the kind of TAESD: it is imported alone
      'features': 128,            # of the first resolution; see `compvis.Trunk`
      'multipliers': (1, 2, 4, 4),
      'blocks': 2,
      'attention_levels': (),
      'middle_attention': True,
      'groups': 32,
      'latent_channels': 4,
      'entries': 8192,            # of the codebook of the VQ kind
      'kl': 1e-6,                 # w_KL
      'codebook': 1.0,            # w_c
      'beta': 0.25,               # of the codebook's loss
      'legacy': False,            # beta on the other term, as in the published training
      'perceptual': 0.0,          # w_p; above 0 it needs `vgg`
      'vgg': '',                  # FILES of VGG-16 and of the layers' weights, with a comma
      'adversarial': 0.0,         # w_a; 0: no discriminator
      'adversarial_from': 50_001,  # the step at which it begins
      'discriminator_features': 64,
      'discriminator_layers': 3,
      'discriminator_norm': 'example',  # 'batch', as published: see `PatchDiscriminator`
      'discriminator_learning_rate': 0.0,  # 0: that of the autoencoder
      **how, 'remat': 'none',
  } | model)


def small_config(**model) -> ml_collections.ConfigDict:
  """`default_config` of a small network of the KL kind: 28x28 pixels become 7x7 latents."""
  return default_config(**{'features': 16, 'multipliers': (1, 2, 2), 'blocks': 1, 'groups': 8,
                           'middle_attention': False, 'kl': 0.01} | model)


# ------------------------------------------------------------ the network


def network(settings: ml_collections.ConfigDict, channels: int) -> nn.Module:
  """The autoencoder that the fields `settings` of config.model describe, for these channels.

  Raises InputError for an unknown kind.
  """
  require_choice('config.model.kind', settings.kind, KINDS)
  if settings.kind == 'tiny':
    return TinyAutoencoder(channels, settings.latent_channels, settings.features,
                           len(settings.multipliers) - 1, settings.weight_gradient)
  trunk = Trunk(features=settings.features, multipliers=tuple(settings.multipliers),
                blocks=settings.blocks, attention_levels=tuple(settings.attention_levels),
                middle_attention=settings.middle_attention, groups=settings.groups,
                dtype=jnp.dtype(settings.dtype), remat=settings.remat,
                weight_gradient=settings.weight_gradient, attention=settings.attention)
  common = {'channels': channels, 'latent_channels': settings.latent_channels, 'trunk': trunk}
  if settings.kind == 'kl':
    return KLAutoencoder(**common)
  return VQAutoencoder(**common, entries=settings.entries)


def _to_ends(levels: int | None) -> float:
  """The factor from our x to the coding of the networks, where the outermost levels are -1 and 1.
  """
  return Pixels(levels).to_ends if levels else 1.0


def _x(images: Array, levels: int | None) -> Array:
  return Pixels(levels).encode(images) if levels else images.astype(jnp.float32)


def _nearest(x: Array, levels: int | None) -> Array:
  return Pixels(levels).decode(x) if levels else x


def _log_prob(images: Array, mean: Array, std: Array, levels: int | None) -> Array:
  """log p(x | y), [B], of the mean x' in our coding of x."""
  if levels:
    return DiscretisedNormal(levels).log_prob(images, mean, std)
  return log_normal(_x(images, levels), mean, std)


def _method(net: nn.Module, params: PyTree, name: str) -> Callable:
  """A method of a module at its parameters."""
  return functools.partial(net.apply, {'params': params}, method=name)


def _encoder(net: nn.Module, params: PyTree, levels: int | None) -> Callable[[Array], tuple]:
  """data -> (m, log v), or (y, None) for a network without a log v."""
  def encode(images):
    found = _method(net, params, 'encode')(_to_ends(levels) * _x(images, levels))
    return found if isinstance(found, tuple) else (found, None)
  return encode


def latent_shape(net: nn.Module, x: Field) -> tuple[int, ...]:
  """The shape of y for examples of the field `x`.  Nothing is computed.

  Raises InputError for images that the network cannot halve so often.
  """
  def shape():
    images = jnp.zeros((1, *x.shape), x.dtype)
    params = net.init(random.key(0), 1.0 * _x(images, x.levels))['params']
    return _encoder(net, params, x.levels)(images)[0]
  return jax.eval_shape(shape).shape[1:]


def init(net: nn.Module, x: Field, key: Array) -> dict[str, PyTree]:
  """{'net': the network's parameters, 'log_std': of p(x | y)}, before training.

  A network with odds of levels has no log_std.
  """
  images = jnp.zeros((1, *x.shape), x.dtype)
  width = {} if has_odds(net) else {'log_std': jnp.full((), math.log(FIRST_STD))}
  return {'net': net.init(key, _x(images, x.levels))['params'], **width}


def of(net: nn.Module, params: PyTree, x: Field, shape: tuple[int, ...]) -> Autoencoder:
  """The autoencoder of these parameters, as from `init`, for data of the field `x`.

  net: has the methods `encode`, x -> (m, log v) or y alone, and `decode`, y -> x'.  Images are in
  [-1, 1] for it, and the outermost levels are -1 and 1.  With a method `quantise`, y -> (q,
  indices), it also has the array `codebook`.  With a method `logits`, y -> [B, ..., levels],
  p(x | y) has these log-odds.  shape: its `latent_shape`.
  """
  levels = x.levels
  encode = _encoder(net, params['net'], levels)

  def mean(y):
    return _method(net, params['net'], 'decode')(y) / _to_ends(levels)

  def odds(y):
    return _method(net, params['net'], 'logits')(y)

  def log_prob(images, y):
    if has_odds(net):
      levels_of = images[..., None].astype(jnp.int32)
      each = jnp.take_along_axis(jax.nn.log_softmax(odds(y)), levels_of, axis=-1)
      return sum_over_data(each)
    return _log_prob(images, mean(y), jnp.exp(params['log_std']), levels)

  def decode(y):
    if has_odds(net):
      return jnp.argmax(odds(y), axis=-1).astype(jnp.int32)
    return _nearest(mean(y), levels)

  def prior_nats(images):
    m, log_variance = encode(images)
    if log_variance is not None:
      return autoencoding.kl(m, log_variance)
    return jnp.full(len(images), _index_nats(net, m.shape[1:]))

  index, codebook = None, None
  if quantises(net):
    index = lambda y: _method(net, params['net'], 'quantise')(y)[1]
    codebook: Any = net.apply({'params': params['net']}, method=lambda net: net.codebook)
  return Autoencoder(encode, decode, mean, log_prob, prior_nats, x.shape, shape, levels, x.name,
                     index, codebook, odds if has_odds(net) else None)


def quantises(net: nn.Module) -> bool:
  """Whether the latents of a network become vectors of a codebook."""
  return hasattr(net, 'quantise')


def has_odds(net: nn.Module) -> bool:
  """Whether a network gives log-odds of every level of the data."""
  return hasattr(net, 'logits')


def _index_nats(net: nn.Module, shape: tuple[int, ...]) -> float:
  """The nats of an image's indices of equal odds; NaN for a network without a codebook."""
  return math.prod(shape[:-1]) * math.log(getattr(net, 'entries', math.nan))


def _distances(x: Array, found: Array, levels: int | None) -> dict[str, Array]:
  """'l1' and 'psnr' of x' = `found`, {name: [B]}; of real numbers 'l1' alone.

  The peak of the PSNR is the range of the data, 2 in [-1, 1].
  """
  ends = _to_ends(levels)
  l1 = {'l1': mean_over_data(jnp.abs(ends * (x - found)))}
  if not levels:
    return l1
  square = mean_over_data(jnp.square(ends * x - jnp.clip(ends * found, -1.0, 1.0)))
  return l1 | {'psnr': 10.0 * jnp.log10(4.0 / jnp.maximum(square, 1e-10))}


# ----------------------------------------------------------- the experiment


class Forward(NamedTuple):
  """An image through the autoencoder, in training."""
  x: Array        # [B, ...]  in the coding of the network
  found: Array    # [B, ...]  x'
  cost: Array     # [B]  w_KL KL, or w_c codebook
  nats: Array     # [B]  of y under the prior
  terms: dict[str, Array]


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               judge: nn.Module | None = None, distance: Callable[[], PyTree] | None = None,
               last_kernel: tuple[str, ...] = LAST_KERNEL) -> Experiment:
  """The training of an autoencoder.  `Experiment.model` gives an `Autoencoder`.

  The losses of an image are those of the module's docstring.  Its terms are 'bits_per_dim', the
  bound, with its parts 'reconstruction' and 'latent' in bits/dim; 'l1' and 'psnr', as in
  `Autoencoder.quality`; 'kl' in nats, or 'codebook'; 'perceptual' and 'adversarial', without their
  weights.

  Args:
    net: of the class `KLAutoencoder` or `VQAutoencoder`, or alike.  Default: `network`.
    judge: images -> logits [B, h, w].  Default: `PatchDiscriminator`.  Its parameters are
      params['discriminator'].
    distance: returns the parameters of `nn.lpips.LPIPS`, such as `published.lpips.reader` of
      `config.model.vgg`.  It is called when a training begins or goes on, and not by `load`.
    last_kernel: the path of the last kernel of the decoder in params['net'].

  Raises InputError for weights below 0, an unknown kind or norm of the discriminator, and a
  perceptual weight without `distance`.
  """
  m, x = config.model, data.resolve(config.data).x
  _check(config, distance, x)
  net = net or network(m, x.shape[-1])
  judge = judge or PatchDiscriminator(m.discriminator_features, m.discriminator_layers, _norm(m))
  is_vq = quantises(net)
  sized = sum_over_data if not is_vq else mean_over_data
  numbers = 1 if is_vq else math.prod(x.shape)  # the KL kind adds LPIPS at every number
  own = 'net', 'log_std'
  with renamed({'groups': 'config.model.groups'}):
    shape = latent_shape(net, x)

  def initial(key):
    params = init(net, x, key)
    if m.adversarial:
      params['discriminator'] = judge.init(jax.random.fold_in(key, 1),
                                           jnp.zeros((1, *x.shape)))['params']
    return params

  def forward(params, images, keys) -> Forward:
    to_ends = _to_ends(x.levels)
    coded = to_ends * _x(images, x.levels)
    if is_vq:
      h = _method(net, params['net'], 'encode')(coded)
      q, _ = _method(net, params['net'], 'quantise')(h)
      found = _method(net, params['net'], 'decode_quantised')(h + jax.lax.stop_gradient(q - h))
      apart = autoencoding.codebook(h, q, beta=m.beta, legacy=m.legacy)
      nats = jnp.full(len(images), _index_nats(net, h.shape[1:]))
      return Forward(coded, found, m.codebook * apart, nats, {'codebook': apart})
    mean, log_variance = _method(net, params['net'], 'encode')(coded)
    eps = random.normal(random.stream(keys, 'y'), mean)
    found = _method(net, params['net'], 'decode')(mean + jnp.exp(0.5 * log_variance) * eps)
    nats = autoencoding.kl(mean, log_variance)
    return Forward(coded, found, m.kl * nats, nats, {'kl': nats})

  def reconstruction(coded, found, lpips) -> tuple[Array, dict[str, Array]]:
    """The first terms of the loss, [B], and 'perceptual'."""
    losses = sized(jnp.abs(coded - found))
    if not m.perceptual:
      return losses, {}
    apart = Bound(lpips['lpips'], LPIPS())(coded, found)
    return losses + numbers * m.perceptual * apart, {'perceptual': apart}

  def log_prob(images, found, log_std):
    """log p(x | y), [B], of a mean without a gradient."""
    mean = jax.lax.stop_gradient(found) / _to_ends(x.levels)
    return _log_prob(images, mean, jnp.exp(log_std), x.levels)

  def on(context):
    return (context.step >= m.adversarial_from).astype(jnp.float32)

  def generator(params, batch, context):
    images, aux = batch[x.name], context.aux
    one = forward(params, images, context.keys)
    losses, terms = reconstruction(one.x, one.found, aux)
    losses, terms = losses + one.cost, terms | one.terms
    fit = -log_prob(images, one.found, params['log_std'])
    # Only its gradient is added, and that reaches log_std alone.
    losses += (fit - jax.lax.stop_gradient(fit)) / math.prod(x.shape)
    if m.adversarial:
      g = autoencoding.generator(Bound(params['discriminator'], judge)(one.found))
      losses += on(context) * m.adversarial * aux['weight'] * g
      terms['adversarial'] = g
    bits = lambda nats: bits_per_dim(nats, x.shape)
    inner = one.found / _to_ends(x.levels)
    return losses, {'bits_per_dim': bits(fit + one.nats), 'reconstruction': bits(fit),
                    'latent': bits(one.nats), **terms,
                    **_distances(_x(images, x.levels), inner, x.levels)}

  def discriminator(params, batch, context):
    one = forward(params, batch[x.name], context.keys)
    of_judge = Bound(params['discriminator'], judge)
    real, fake = of_judge(one.x), of_judge(jax.lax.stop_gradient(one.found))
    return on(context) * autoencoding.hinge(real, fake), {
        'real': mean_over_data(real), 'fake': mean_over_data(fake)}

  def gradients(params, batch, context, aux):
    """Of the means of reconstruction and of g over these rows, by the last kernel."""
    def means(kernel):
      moved = params | {'net': _with_leaf(params['net'], last_kernel, kernel)}
      one = forward(moved, batch[x.name], context.keys)
      g = autoencoding.generator(Bound(params['discriminator'], judge)(one.found))
      return jnp.mean(reconstruction(one.x, one.found, aux)[0]), jnp.mean(g)

    (first, _), pull_back = jax.vjp(means, _leaf(params['net'], last_kernel))
    one, zero = jnp.ones_like(first), jnp.zeros_like(first)
    return pull_back((one, zero)) + pull_back((zero, one))

  def model(params, keys=None):
    return of(net, params, x, shape)

  def aux(params):
    return ({'weight': jnp.zeros(())} if m.adversarial else {}) | (
        {'lpips': distance()} if distance is not None and m.perceptual else {})

  if m.kind == 'tiny':
    return compose.assemble(config, init=initial, loss=_untrained, model=model)
  base = compose.assemble(config, init=initial, loss=generator, model=model)
  if m.adversarial or m.perceptual:
    base = base._replace(aux=aux)
  if not m.adversarial:
    return base
  _leaf(jax.eval_shape(initial, random.key(0))['net'], last_kernel)  # refused now
  players = {
      'autoencoder': step.Player(generator, base.tx, own),
      'discriminator': step.Player(discriminator, _optimiser(config), ('discriminator',))}
  return base._replace(tx=step.optimisers(players), settled=m.adversarial_from,
                       update=_balanced(step.players(players, base.ema), gradients))


def of_levels(config: ml_collections.ConfigDict, net: nn.Module, *,
              change: Callable[[PyTree, Array], PyTree] | None = None) -> Experiment:
  """The training of an autoencoder with odds of levels.  `Experiment.model` gives an `Autoencoder`.

  The loss is the bound itself, in bits per dimension, with another weight of its last term (Higgins
  et al. 2017):

    -log p(x | y) + w_KL KL(q(y | x) || N(0, 1))

  The terms are 'bits_per_dim', the bound (where w_KL is 1), with its parts 'reconstruction' and
  'latent', and 'accuracy'; see `Autoencoder.quality`.

  Args:
    config: with config.model.kl, w_KL.
    net: as the argument of `of`, with the method `logits` and a log v.
    change: (batch, keys) -> batch, what training does to a batch first.

  Raises InputError for data without levels, and for a weight that is not above 0.
  """
  x = data.resolve(config.data).x
  require(bool(x.levels), 'config.data.name', config.data.name, f'its field {x.name!r} is {x}, and '
          'this autoencoder has odds of levels', 'choose data that are integers')
  compose.require(config, 'kl', 0.0 < config.model.kl < math.inf, 'it is no weight',
                  'give a number above 0, such as 1 for the bound itself')
  shape = latent_shape(net, x)

  def loss(params, batch, context):
    if change is not None and context.train:
      batch = change(batch, context.keys)
    found = of(net, params, x, shape).quality(batch, context.keys)
    bits = {name: bits_per_dim(found[name], x.shape) for name in ('reconstruction', 'latent')}
    return bits['reconstruction'] + config.model.kl * bits['latent'], {
        'bits_per_dim': bits['reconstruction'] + bits['latent'], **bits,
        'accuracy': found['accuracy']}

  return compose.assemble(config, init=lambda key: init(net, x, key), loss=loss,
                          model=lambda params, keys=None: of(net, params, x, shape))


def _untrained(params, batch, context):
  raise InputError('config.model.kind', 'tiny', 'this kind is distilled from another autoencoder, '
                   'which no system here does', 'import its weights, or choose kl or vq')


def _balanced(update: Update, gradients: Callable) -> Update:
  """`update` with the weight d of the global batch as aux['weight'], and as a metric.

  gradients: (params, batch, context, aux) -> the two gradients of `autoencoding.balance`, of means
  over these rows.
  """
  def balanced(state, batch, key, axis, accumulate: int = 1):
    params = axis.gather_params(state.params)
    context = step.context_of(state, key, jax.tree.leaves(batch)[0].shape[0], axis)

    def of_rows(batch, t, keys):
      return gradients(params, batch, context._replace(t=t, keys=keys), state.aux)

    rows = (batch, context.t, context.keys)
    weight = autoencoding.balance(*axis.mean(step.mean_of_microbatches(of_rows, rows, accumulate)))
    state, metrics = update(dataclasses.replace(state, aux=state.aux | {'weight': weight}), batch,
                            key, axis, accumulate=accumulate)
    return state, metrics | {'adversarial_weight': weight}
  return balanced


def _leaf(tree: PyTree, path: tuple[str, ...]) -> Array:
  """The leaf at `path`.  Raises InputError if there is none."""
  for i, name in enumerate(path):
    if name not in tree:
      raise InputError('last_kernel', path, f'the network has no {"/".join(path[:i + 1])}',
                       f'name the last kernel of the decoder; here are {", ".join(sorted(tree))}')
    tree = tree[name]
  return tree


def _with_leaf(tree: PyTree, path: tuple[str, ...], leaf: Array) -> PyTree:
  name, *rest = path
  return tree | {name: _with_leaf(tree[name], tuple(rest), leaf) if rest else leaf}


def _optimiser(config: ml_collections.ConfigDict):
  """The discriminator's optimiser: that of the config, with a rate of its own."""
  own = config.optimizer.copy_and_resolve_references()
  own.update(learning_rate=config.model.discriminator_learning_rate or own.learning_rate)
  return optimizer.named(own)


def _norm(settings: ml_collections.ConfigDict) -> Norm:
  return settings.get('discriminator_norm', 'example')  # runs before it had that field


def _check(config: ml_collections.ConfigDict, distance: Callable | None, x: Field) -> None:
  """Raises InputError for fields of config.model that no training can have."""
  m = config.model
  for name in ('kl', 'codebook', 'beta', 'perceptual', 'adversarial', 'adversarial_from',
               'discriminator_learning_rate'):
    compose.require(config, name, m[name] >= 0, 'it is negative', 'give 0 or more')
  require_choice('config.model.discriminator_norm', _norm(m), get_args(Norm))
  if m.perceptual:
    compose.require(config, 'vgg', bool(m.vgg), 'LPIPS needs the weights of VGG-16, from a file '
                    'that you have', 'name it, or set config.model.perceptual=0')
    compose.require(config, 'perceptual', distance is not None, 'this config reads no weights of '
                    'LPIPS', 'pass `distance`, or set it to 0')
    require_channels('config.model.perceptual', m.perceptual, x.shape)
