"""Bits-back coding over a chain, in the order of Bit-Swap: pop a latent, push the one below.

  encode x:  pop k_0 ~ q(z_0 | x), push x under p(x | z_0);
             for i = 1 .. T: pop k_i ~ q(z_i | z_{i-1}), push k_{i-1} under p(z_{i-1} | z_i);
             push k_T under p(z_T).

The pushed bits less the popped bits are, in expectation, the bound of the chain.  A latent is
pushed as soon as the next latent is popped.  So an image borrows the bits of two latents, not of T
(F. Kingma, Abbeel and Ho 2019).  The decoder does the same in reverse order.  It ends with the
words with which the encoder began.

The sources: Townsend, Bird and Barber (2019), bits back with ANS; F. Kingma, Abbeel and Ho (2019),
Bit-Swap; Kingma et al. (2021), section 6.3 and appendix N, for this model.
"""
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tqdm

from vdm_jax.codec.chain import FRACTIONS, SAFE, Chain
from vdm_jax.codec.stack import Stack, seed_words
from vdm_jax.errors import InputError, require
from vdm_jax.typing import PyTree

__all__ = ['Coded', 'Lane', 'decode', 'encode', 'net_bits']

_Window = tuple[np.ndarray, np.ndarray, int]  # mean and std of a residual [D], half its width


class Lane(NamedTuple):
  """The state of a stack after all its images are coded."""
  words: np.ndarray  # uint32, those above the low-water mark
  lowest: int        # the mark: so many words of the seed lie below, as they were


class Coded(NamedTuple):
  lanes: list[Lane]
  net: np.ndarray      # [n]  bits of each image: what it has added to its stack
  initial: float       # bits that were borrowed at first, of all lanes together


def _start(chain: Chain) -> int:
  """The words of a new stack: more than it can borrow.  Words that are never popped cost nothing.
  """
  return 64 + 2 * int(np.prod(chain.shape))


def _entropy(chain: Chain, i: int) -> int:
  """The expected number of whole words that a pop of z_i takes."""
  bits = np.log2(chain.forward_std[i] / chain.bins[i] * np.sqrt(2.0 * np.pi * np.e))
  return int(np.ceil(np.prod(chain.shape) * bits / 32.0))


def _residual_of(mean: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """A mean in bins: the nearest integer, and the rest in 64ths, so small rounding does no harm."""
  nearest = np.rint(mean)
  return nearest.astype(np.int64), np.rint((mean - nearest) * FRACTIONS) / FRACTIONS


def _half(std: np.ndarray, factor: float = 1.0) -> int:
  return int(np.ceil(factor * SAFE * std.max())) + 2


class _Coder:
  """The moves of one image on one stack; each move has an inverse."""

  def __init__(self, chain: Chain, stack: Stack, seed: int):
    self._chain, self.stack, self._seed = chain, stack, seed

  def whiten(self, group: int, i: int) -> None:
    """Whitens before z_i of a group is popped.  After z_i is pushed, the same call takes this back.
    """
    number = group * (self._chain.steps + 1) + i
    self.stack.whiten(self._seed, number, _entropy(self._chain, i))

  def _forward(self, i: int, before: np.ndarray) -> tuple[np.ndarray, _Window]:
    """q(z_i | z_{i-1}) with before = k_{i-1} [D], or q(z_0 | x) with before = the levels of x."""
    c = self._chain
    if i:
      mean = before * (c.alpha[i] / c.alpha[i - 1] * (c.bins[i - 1] / c.bins[i]))
    else:
      mean = c.centres[before] * (c.alpha[0] / c.bins[0])
    nearest, fraction = _residual_of(mean)
    std = np.full(len(before), c.forward_std[i] / c.bins[i])
    return nearest, (fraction, std, _half(std))

  def pop_latent(self, i: int, before: np.ndarray) -> np.ndarray:
    nearest, window = self._forward(i, before)
    return nearest + self.stack.pop_within(*window)

  def push_latent(self, i: int, k: np.ndarray, before: np.ndarray) -> None:
    nearest, window = self._forward(i, before)
    self.stack.push_within(k - nearest, *window)

  def _backward(self, mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, _Window]:
    nearest, fraction = _residual_of(np.asarray(mean, np.float64))
    std = np.asarray(std, np.float64)
    return nearest, (fraction, std, _half(std, 1.5))

  def push_given(self, k: np.ndarray, mean: np.ndarray, std: np.ndarray) -> None:
    nearest, window = self._backward(mean, std)
    self.stack.push_residual(k - nearest, *window)

  def pop_given(self, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    nearest, window = self._backward(mean, std)
    return nearest + self.stack.pop_residual(*window)

  def prior(self, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and std of p(z_T) in bins, [D]."""
    return np.zeros(size), np.full(size, self._chain.prior_std / self._chain.bins[-1])


def _groups(count: int, lanes: int) -> Iterator[np.ndarray]:
  """The images of a group, one for each lane; the last group may be smaller."""
  for start in range(0, count, lanes):
    yield np.arange(start, min(start + lanes, count))


def _padded(chain: Chain, ks: list[np.ndarray], i: int) -> np.ndarray:
  """z_i [lanes, ...] float32 of integers, where lanes without an image are 0."""
  z = np.zeros((chain.lanes, *chain.shape), np.float32)
  for lane, k in enumerate(ks):
    z[lane] = (k * chain.bins[i]).astype(np.float32).reshape(chain.shape)
  return z


def _bar(count: int, what: str, progress: bool):
  return tqdm.tqdm(total=count, desc=what, unit='example', dynamic_ncols=True, disable=not progress)


def encode(chain: Chain, read: Callable[[np.ndarray], np.ndarray], count: int, *,
           conditions: Callable[[np.ndarray], PyTree] = lambda rows: {}, seed: int = 0,
           progress: bool = True) -> Coded:
  """Images 0 .. count - 1 as bits.

  Args:
    read: numbers [n] -> integers [n, ...].
    conditions: numbers [lanes] -> the batch that conditions the model.
    seed: it determines the first words of the stacks, and the keystream.

  Raises InputError: an image that does not fit the chain.
  """
  coders = [_Coder(chain, Stack(seed_words(seed + lane, _start(chain))), seed + lane)
            for lane in range(min(chain.lanes, count))]
  net = np.zeros(count)
  with _bar(count, 'encoding', progress) as bar:
    for group, rows in enumerate(_groups(count, chain.lanes)):
      images = check_images(read(rows), chain.shape, chain.levels)
      batch = conditions(np.resize(rows, chain.lanes))
      before = [coder.stack.bits for coder in coders[:len(rows)]]
      ks = []
      for coder, image in zip(coders, images, strict=False):
        coder.whiten(group, 0)
        k = coder.pop_latent(0, image)
        coder.stack.push_levels(image, chain.decoder(k))
        ks.append(k)
      for i in range(1, chain.steps + 1):
        above = []
        for coder, k in zip(coders, ks, strict=False):
          coder.whiten(group, i)
          above.append(coder.pop_latent(i, k))
        means, stds = chain.reverse(_padded(chain, above, i), i, batch)
        for lane, (coder, k) in enumerate(zip(coders, ks, strict=False)):
          coder.push_given(k, means[lane].reshape(-1), stds[lane].reshape(-1))
        ks = above
      for coder, k in zip(coders, ks, strict=False):
        coder.push_given(k, *coder.prior(len(k)))
      net[rows] = [coder.stack.bits - bits for coder, bits in zip(coders, before, strict=False)]
      bar.update(len(rows))
  lanes = [Lane(coder.stack.words()[coder.stack.lowest:], coder.stack.lowest) for coder in coders]
  return Coded(lanes, net, sum(32.0 * (_start(chain) - lane.lowest) for lane in lanes))


def decode(chain: Chain, lanes: list[Lane], count: int, *,
           conditions: Callable[[np.ndarray], PyTree] = lambda rows: {}, seed: int = 0,
           progress: bool = True) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Yields (numbers [n], integers [n, ...]) of one group of images at a time, last group first.

  Raises InputError at the end unless every stack is again the stack with which the encoder began.
  """
  started = [seed_words(seed + lane, _start(chain)) for lane in range(len(lanes))]
  coders = []
  for lane, (words, lowest) in enumerate(lanes):
    stack = Stack(np.concatenate([started[lane][:lowest], words]))
    coders.append(_Coder(chain, stack, seed + lane))
  groups = list(_groups(count, chain.lanes))
  size = int(np.prod(chain.shape))
  with _bar(count, 'decoding', progress) as bar:
    for group, rows in reversed(list(enumerate(groups))):
      batch = conditions(np.resize(rows, chain.lanes))
      here = coders[:len(rows)]
      ks = [coder.pop_given(*coder.prior(size)) for coder in here]
      for i in range(chain.steps, 0, -1):
        means, stds = chain.reverse(_padded(chain, ks, i), i, batch)
        below = []
        for lane, (coder, k) in enumerate(zip(here, ks, strict=True)):
          under = coder.pop_given(means[lane].reshape(-1), stds[lane].reshape(-1))
          coder.push_latent(i, k, under)
          coder.whiten(group, i)
          below.append(under)
        ks = below
      images = []
      for coder, k in zip(here, ks, strict=True):
        image = coder.stack.pop_levels(chain.decoder(k))
        coder.push_latent(0, k, image)
        coder.whiten(group, 0)
        images.append(image.reshape(chain.shape))
      bar.update(len(rows))
      yield rows, np.stack(images).astype(np.int32)
  for coder, words in zip(coders, started, strict=True):
    require(np.array_equal(coder.stack.words(), words), None, None, 'the words that the encoder '
            'began with did not come back: the images are not those that were encoded',
            'decode with the same program on the same kind of machine as the encoder')


def check_images(images: Any, shape: tuple[int, ...], levels: int) -> np.ndarray:
  """Integers [n, D].  Raises InputError unless they are images of this shape and with these levels.
  """
  images = np.asarray(images)
  if images.shape[1:] != shape:
    raise InputError('images', None, f'their shape is {list(images.shape[1:])}, and the model '
                     f'codes {list(shape)}', 'resize them')
  if not np.issubdtype(images.dtype, np.integer) or images.min() < 0 or images.max() >= levels:
    raise InputError('images', None, f'they have values of {images.dtype} from {images.min()} to '
                     f'{images.max()}', f'give integers from 0 to {levels - 1}, the levels of the '
                     'model')
  return images.reshape(len(images), -1).astype(np.int64)


def net_bits(coded: Coded, chain: Chain) -> float:
  """bits/dim without the bits that were borrowed at first; the bound is its expectation."""
  return float(coded.net.mean() / np.prod(chain.shape))
