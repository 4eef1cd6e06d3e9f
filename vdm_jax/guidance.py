"""Denoiser -> Denoiser: wrappers that replace the network's estimate by another.

A wrapper changes the estimate and nothing else, so every sampler takes every wrapper.  The x and
the eps of an estimate always change together: z = alpha x + sigma eps holds after a wrapper
wherever it held before.  A wrapper keeps `extra`.

  limits on x_hat             `clip`, `dynamic_threshold`
  a known part of x           `known`, `pinned`
  another condition           `conditioned_on`
  guidance                    `classifier`, `classifier_free`, `composed`
  guidance at some levels     `guided_between` two values of log-SNR

Wrappers nest, and the outermost wrapper acts last.  Guidance extrapolates, so clip its result
(`clip(classifier_free(...))`), not its input.
"""
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax.errors import InputError, require
from vdm_jax.typing import Array, ArrayLike, Denoiser, Estimate, Level, Model, PyTree

__all__ = ['Guidance', 'classifier', 'classifier_free', 'clip', 'composed', 'conditioned_on',
           'dynamic_threshold', 'guided_between', 'known', 'label_gradient', 'parse', 'pinned',
           'revise', 'untold']


def revise(estimate: Estimate, x: Array, level: Level) -> Estimate:
  """The estimate with x as its x_hat, and with the eps_hat that this x implies at the same z.

  eps = eps_hat + alpha (x_hat - x) / sigma, which is exactly eps_hat where x is x_hat.  At
  sigma = 0 no eps fits another x, so eps_hat is kept.  x: [B, ...].
  """
  level = level.expand(x)
  noisy = level.sigma > 0.0
  ratio = jnp.where(noisy, level.alpha / jnp.where(noisy, level.sigma, 1.0), 0.0)
  return estimate._replace(x=x, eps=estimate.eps + ratio * (estimate.x - x))


# ---------------------------------------------------- where x_hat may be


def clip(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
  """x_hat clipped to the range of the data: static thresholding.

  The sampling code of Ho et al. (2020) clips; Saharia et al. (2022), section 2.3, coin the name.
  """
  def clipped(z, level, cond=None):
    estimate = denoise(z, level, cond)
    return revise(estimate, jnp.clip(estimate.x, low, high), level)
  return clipped


def dynamic_threshold(denoise: Denoiser, percentile: float = 99.5) -> Denoiser:
  """x_hat clipped to [-s, s] and divided by s, where s = max(percentile of |x_hat|, 1) per image.

  Saharia et al. (2022), section 2.3.  It is meant for data in [-1, 1] and strong guidance.
  percentile: 0 .. 100.
  """
  def thresholded(z, level, cond=None):
    estimate = denoise(z, level, cond)
    data_axes = tuple(range(1, z.ndim))
    s = jnp.percentile(jnp.abs(estimate.x), percentile, axis=data_axes, keepdims=True)
    s = jnp.maximum(s, 1.0)
    return revise(estimate, jnp.clip(estimate.x, -s, s) / s, level)
  return thresholded


def known(denoise: Denoiser, part: Callable[[PyTree], tuple[ArrayLike, ArrayLike]]) -> Denoiser:
  """x_hat with the known part of x: mask y + (1 - mask) x_hat.

  The public sampling code of GLIDE (Nichol et al. 2021) does so for its models for inpainting,
  after guidance and before clipping: clip(known(classifier_free(...), part)).  The model itself
  must know the known part, or the rest will not fit it.

  part: cond -> (y, mask), which broadcast against z.  y: x where it is known, in the units of x.
  mask: 1 where it is known, 0 where it is not.
  """
  def completed(z, level, cond=None):
    estimate = denoise(z, level, cond)
    y, mask = (jnp.asarray(u, estimate.x.dtype) for u in part(cond))
    return revise(estimate, mask * y + (1.0 - mask) * estimate.x, level)
  return completed


def pinned(denoise: Denoiser, y: ArrayLike, mask: ArrayLike) -> Denoiser:
  """A part of x is known to the network: it reads y there, without noise, at all levels.

  So the estimate of the rest is conditioned on y, as far as the network was trained to be read so.
  Janner et al. (2022) and Ajay et al. (2023) overwrite the first state of a plan in this way, in
  training and in sampling.  There the estimate of x is y, with the eps that belongs to it at z.  So
  any sampler may be used, and it needs no step of its own.

  y, mask: bool, broadcast to z.  y may be anything where the mask is false.
  """
  def completed(z, level, cond=None):
    wide = level.expand(z)
    estimate = denoise(jnp.where(mask, y, z), level, cond)
    sigma = jnp.where(wide.sigma > 0.0, wide.sigma, 1.0)
    eps = jnp.where(wide.sigma > 0.0, (z - wide.alpha * jnp.where(mask, y, 0.0)) / sigma, 0.0)
    return estimate._replace(x=jnp.where(mask, y, estimate.x),
                             eps=jnp.where(mask, eps, estimate.eps))
  return completed


# ------------------------------------------------------ what it is led to


def conditioned_on(denoise: Denoiser, change: Callable[[PyTree], PyTree]) -> Denoiser:
  """`denoise` with change(cond) instead of cond.  `Model.null` as `change` drops the condition."""
  return lambda z, level, cond=None: denoise(z, level, change(cond))


def classifier_free(conditional: Denoiser, unconditional: Denoiser, w: ArrayLike) -> Denoiser:
  """eps = (1 + w) eps_c - w eps_u, and so x = (1 + w) x_c - w x_u.

  Ho and Salimans (2022), eq. 6.  w = 0 gives `conditional`; others call 1 + w the guidance scale.
  `extra` comes from the conditional denoiser.  Each call makes two evaluations, and both denoisers
  get the same `cond`.

  w: a number, or anything that broadcasts against z.
  """
  def guided(z, level, cond=None):
    with_label, without = conditional(z, level, cond), unconditional(z, level, cond)
    return with_label._replace(x=with_label.x + w * (with_label.x - without.x),
                               eps=with_label.eps + w * (with_label.eps - without.eps))
  return guided


def composed(unconditional: Denoiser, conditionals: Sequence[Denoiser], weights: Sequence[ArrayLike]
             ) -> Denoiser:
  """eps = eps_u + sum_i w_i (eps_i - eps_u): several conditions at once, by their estimates.

  Liu et al. (2022), composable diffusion; Ajay et al. (2023), eq. 8, for constraints and skills.
  With w_i = 1 the score is that of p(z) prod_i p(c_i | z), in which the conditions are independent
  given z; a weight below 0 leads away from a condition.  One condition of weight w is
  `classifier_free` of weight w - 1.  `extra` comes from the unconditional denoiser.

  Raises InputError unless there is a weight for each condition.
  """
  require(len(weights) == len(conditionals), 'weights', len(weights),
          f'there are {len(conditionals)} conditions', 'give one for each')

  def guided(z, level, cond=None):
    base = unconditional(z, level, cond)
    x, eps = base.x, base.eps
    for one, w in zip(conditionals, weights, strict=True):
      estimate = one(z, level, cond)
      x, eps = x + w * (estimate.x - base.x), eps + w * (estimate.eps - base.eps)
    return base._replace(x=x, eps=eps)
  return guided


def classifier(denoise: Denoiser, gradient: Callable[[Array, Level, PyTree], Array],
               scale: float = 1.0) -> Denoiser:
  """eps = eps_hat - scale sigma grad_z log p(y | z_t): the score plus `scale` times the gradient.

  Dhariwal and Nichol (2021), algorithm 2.  The matching x is x_hat + scale sigma^2 / alpha
  gradient.  At alpha = 0, z says nothing about y, and x_hat is kept.

  gradient: (z, level, cond) -> [B, ...].
  """
  def guided(z, level, cond=None):
    estimate = denoise(z, level, cond)
    wide = level.expand(z)
    push = scale * wide.sigma * gradient(z, level, cond)
    some = wide.alpha > 0.0
    ratio = jnp.where(some, wide.sigma / jnp.where(some, wide.alpha, 1.0), 0.0)
    return estimate._replace(x=estimate.x + ratio * push, eps=estimate.eps - push)
  return guided


def label_gradient(logits: Callable[[Array, Level], Array]
                   ) -> Callable[[Array, Level, Array], Array]:
  """The `gradient` of `classifier`: (z, level, label) -> grad_z log p(label | z_t).

  logits: a noisy classifier, (z [B, ...], level) -> [B, classes].  The logits are log p(label |
  z_t) up to a constant.  label: [B]; -1 means no label, and its gradient is 0.
  """
  def gradient(z, level, label):
    def log_prob(z):
      each = jax.nn.log_softmax(logits(z, level), axis=-1)
      chosen = jnp.take_along_axis(each, jnp.maximum(label, 0)[:, None], axis=-1)
      return jnp.sum(jnp.where(label[:, None] < 0, 0.0, chosen))
    return jax.grad(log_prob)(z)
  return gradient


# ----------------------------------------------------- where that applies


def guided_between(plain: Denoiser, guided: Denoiser, low: float, high: float) -> Denoiser:
  """`guided` where low <= logsnr <= high, and `plain` elsewhere.

  The `extra` of both must have the same structure.  Kynkäänniemi et al. (2024) restrict guidance to
  the middle noise levels in this way.  Their interval of sigma at alpha = 1 is an interval of
  logsnr = -2 log sigma.  Both denoisers are evaluated at every level, because the choice may differ
  within a batch.  Under `jit`, the parts that they share are computed once.
  """
  def chosen(z, level, cond=None):
    def choose(there, here):
      logsnr = level.expand(there).logsnr
      return jnp.where((low <= logsnr) & (logsnr <= high), there, here)
    return jax.tree.map(choose, guided(z, level, cond), plain(z, level, cond))
  return chosen


# ---------------------------------------------------------- of a whole model


class Guidance(NamedTuple):
  """Classifier-free guidance of weight w where low <= logsnr <= high.

  channels: how many channels of z are guided, the first ones.  0: all.  The published code of DiT
  (Peebles and Xie 2023) guides 3 of its 4 channels.
  """
  weight: float
  low: float = -math.inf
  high: float = math.inf
  channels: int = 0

  def of(self, model: Model) -> Model:
    """`model` with this guidance.

    Its `cond` returns a pair: the condition, and the condition that tells nothing.  So a sampler
    computes both once, before its first step.

    Raises InputError if the model has not learned to do without a label, if the model clips its
    estimates before guidance, or if it has fewer channels.
    """
    require(not model.clips, 'guidance', self.weight, 'this model clips its estimates '
            '(config.model.clip), and clipping must come after guidance', 'guide its denoiser '
            'from Python, and clip last: vdm_jax.guidance')
    if model.null is None:
      raise InputError('guidance', self.weight, 'this model has not learned to do without a label',
                       'train one that has (configs/digits/networks.py:cfg)')
    most = model.shape[-1]
    require(0 <= self.channels <= most, 'guidance', f'channels={self.channels}',
            f'z has {most} channels', f'choose 1 .. {most}, or leave it out for all')
    weight = (jnp.where(jnp.arange(most) < self.channels, self.weight, 0.0) if self.channels else
              self.weight)
    null = model.null

    def pair(batch: PyTree) -> tuple[PyTree, PyTree]:
      told = model.cond(batch)
      return told, null(told)

    told, untold = (conditioned_on(model.denoise, operator.itemgetter(i)) for i in (0, 1))
    guided = classifier_free(told, untold, weight)
    latent = model.latent
    return model._replace(cond=pair, denoise=guided_between(told, guided, self.low, self.high),
                          latent=None if latent is None else lambda keys: self.of(latent(keys)))

  def recorded(self) -> tuple[float, ...]:
    """The numbers that samples depend on, as files of samples keep them."""
    return self if self.channels else self[:3]


def untold(model: Model) -> Model:
  """`model` without its label or text: `cond` drops it, as in a part of the training.

  Raises InputError if the model has not learned to do without, or if it brings its own bound, which
  reads the label by itself.
  """
  if model.null is None:
    raise InputError('untold', True, 'this model has not learned to do without a label or a text',
                     'train one that has (configs/text/glide_shapes.py)')
  require(model.bound is None, 'untold', True, 'this model has a bound of its own, as models of '
          'latents have, and that bound reads the label or the text',
          'leave it out, or name a run whose bound is that of objectives.vlb')
  null = model.null
  return model._replace(cond=lambda batch: null(model.cond(batch)))


def parse(texts: Sequence[str]) -> Guidance | None:
  """The Guidance of a flag --guidance=W or W,LOW,HIGH; None if the flag is empty.

  `,channels=N` may follow.
  texts: the flag's value, split at the commas.  Raises InputError.
  """
  try:
    *rest, last = texts or ['']
    named = last.startswith('channels=')
    channels = int(last.removeprefix('channels=')) if named else 0
    numbers = [float(number) for number in (rest if named else texts)]
    if (len(numbers) not in ((1, 3) if named else (0, 1, 3)) or (named and channels < 1)
        or (len(numbers) == 3 and not numbers[1] < numbers[2])):
      raise ValueError
  except ValueError:
    raise InputError('guidance', texts, 'it must be W, or W,LOW,HIGH with LOW < HIGH; '
                     'channels=N may follow', 'give one number or three') from None
  if not numbers:
    return None
  weight, low, high = numbers if numbers[1:] else (numbers[0], -math.inf, math.inf)
  return Guidance(weight, low, high, channels)
