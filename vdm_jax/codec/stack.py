"""A stack of bits, from which symbols are popped and onto which they are pushed.

The stack uses asymmetric numeral systems (Duda 2009), from the library constriction (Bamler 2022).
A push of a symbol of probability p adds -log2 p bits.  A pop under the same distribution takes the
symbol and its bits off again.  A pop of random bits is a draw from the distribution.  Bits-back
coding draws its latents in this way (Townsend, Bird and Barber 2019).

The bits are random only if they are made random.  A pop reads the bits of the last push.  So the
noise of a latent would be the residual of the latent before, and the rate would miss the bound by
some percent.  Therefore `whiten` adds a keystream to the words that are popped next.  The same call
takes the keystream off.
"""
import functools
from typing import Any

import constriction
import numpy as np

from vdm_jax.errors import InputError

__all__ = ['MAX_OVERFLOW', 'Stack', 'sample_words', 'seed_words']

MAX_OVERFLOW = 1 << 20  # how far beyond its window a residual may be
KEPT_BITS = 6  # leading bits of the state that `whiten` leaves: a state is log-uniform
_CHUNK = 1 << 14  # words that are looked at; those below rest in chunks
_stream: Any = constriction.stream  # type: ignore[attr-defined]  # a module of Rust
_gaussian = _stream.model.QuantizedGaussian
_uniform = _stream.model.Uniform
_categorical = _stream.model.Categorical(perfect=False)


def _keystream(seed: int, number: int, count: int) -> np.ndarray:
  """`count` words, uint32, from (seed, number): raw output of Philox, which no version changes."""
  raw = np.random.Philox(key=np.array([seed, number], np.uint64)).random_raw((count + 1) // 2)
  return np.asarray(raw, '<u8').view('<u4')[:count].astype(np.uint32)


def seed_words(seed: int, count: int) -> np.ndarray:
  """The first words of a stack: uint32 [count]; the last word is not 0."""
  words = _keystream(seed, 2**64 - 1, count)
  words[-1] |= 1 << 31
  return words


@functools.lru_cache(maxsize=1024)
def _window(half: int):
  return _gaussian(-half, half)


class Stack:
  """A stack that begins with `words`, uint32.  The first `lowest` words have never been touched."""

  def __init__(self, words: np.ndarray):
    self._below: list[np.ndarray] = []
    self._coder = _stream.stack.AnsCoder(np.ascontiguousarray(words, np.uint32))
    self.lowest = len(words)
    self._settle()

  # ------------------------------------------------------------- the words

  def words(self) -> np.ndarray:
    """All words, uint32; the top of the stack comes last."""
    return np.concatenate([*self._below, self._coder.get_compressed()])

  @property
  def bits(self) -> float:
    """The number of bits of information.  The state counts as log2 of its value."""
    _, state = self._coder.pos()
    below = sum(map(len, self._below)) + self._coder.num_words() - 2
    return 32.0 * below + float(np.log2(float(state)))

  def _depth(self) -> int:
    return sum(map(len, self._below)) + self._coder.num_words()

  def _settle(self) -> None:
    """Sets words aside that are far below the top, as every operation is at the top."""
    if self._coder.num_words() > 3 * _CHUNK:
      words = self._coder.get_compressed()
      self._below.append(words[:-_CHUNK].copy())
      self._coder = _stream.stack.AnsCoder(words[-_CHUNK:].copy())

  def _require(self, count: int) -> None:
    """Takes words back until `count` can be popped.  Raises InputError if the stack is empty."""
    while self._below and self._coder.num_words() < count + 3:
      words = np.concatenate([self._below.pop(), self._coder.get_compressed()])
      self._coder = _stream.stack.AnsCoder(words)
    self._require_words()

  def _require_words(self) -> None:
    # The library itself pops from an empty stack without an error.
    if self._coder.num_words() < 2:
      raise InputError(problem='the stack of bits is empty',
                       remedy='ask for the images that it holds')

  # ------------------------------------------------------------- symbols

  def whiten(self, seed: int, number: int, count: int) -> None:
    """Adds (XOR) the keystream of (seed, number) to the state and to `count` words below it.

    A second call takes the keystream off.  The leading bits of the state stay as they are.  If only
    the first bit stayed, uniform bits below it would make a log-uniform state uniform.  That would
    cost 0.05 bits each time.
    """
    self._require(count + 2)
    words = self._coder.get_compressed().copy()
    count = min(count, len(words) - 2)
    key = _keystream(seed, number, count + 2)
    state = int(words[-2]) | int(words[-1]) << 32
    mask = (1 << max(state.bit_length() - KEPT_BITS, 0)) - 1
    state ^= (int(key[0]) | int(key[1]) << 32) & mask
    words[-2], words[-1] = state & 0xFFFFFFFF, state >> 32
    if count:
      words[-2 - count:-2] ^= key[2:]
    self._coder = _stream.stack.AnsCoder(words)
    self._touched(count)

  def _touched(self, below: int = 0) -> None:
    self.lowest = min(self.lowest, max(self._depth() - 2 - below, 0))

  def _pop(self, model, *parameters) -> np.ndarray:
    count = len(parameters[0]) if np.ndim(parameters[0]) else int(parameters[0])
    self._require(count)
    out = self._coder.decode(model, *parameters)
    self._require_words()
    self._touched()
    return np.asarray(out, np.int64)

  def _push(self, symbols: np.ndarray, model, *parameters) -> None:
    self._coder.encode_reverse(np.ascontiguousarray(symbols, np.int32), model, *parameters)
    self._settle()

  def pop_within(self, mean: np.ndarray, std: np.ndarray, half: int) -> np.ndarray:
    """Pops integers [D] of a Gaussian cut to -half .. half.  If the bits are fresh, this is a draw.
    """
    return self._pop(_window(half), mean, std)

  def push_within(self, residual: np.ndarray, mean: np.ndarray, std: np.ndarray, half: int) -> None:
    """Pushes the integers that `pop_within` gave."""
    self._push(residual, _window(half), mean, std)

  def push_residual(self, residual: np.ndarray, mean: np.ndarray, std: np.ndarray, half: int
                    ) -> None:
    """Pushes any integers [D]: likely ones within a window, all others by an escape at its ends.

    A wide window would cost more than an escape, because each of its symbols has a probability of
    at least 2^-24.
    """
    beyond = np.abs(residual) - half
    escaped = beyond >= 0
    if escaped.any():
      if beyond.max() >= MAX_OVERFLOW:
        raise InputError(problem='a latent is further from its prediction than can be coded',
                         remedy='use a model that was trained on such images')
      self._push(beyond[escaped], _uniform(MAX_OVERFLOW))
    self._push(np.clip(residual, -half, half), _window(half), mean, std)

  def pop_residual(self, mean: np.ndarray, std: np.ndarray, half: int) -> np.ndarray:
    """Pops the integers that `push_residual` pushed."""
    residual = self._pop(_window(half), mean, std)
    escaped = np.abs(residual) == half
    if escaped.any():
      beyond = self._pop(_uniform(MAX_OVERFLOW), int(escaped.sum()))
      residual[escaped] += np.sign(residual[escaped]) * beyond
    return residual

  def push_levels(self, levels: np.ndarray, probabilities: np.ndarray) -> None:
    """Pushes levels, integers [D], under probabilities, float32 [D, levels]."""
    self._push(levels, _categorical, probabilities)

  def pop_levels(self, probabilities: np.ndarray) -> np.ndarray:
    return self._pop(_categorical, probabilities)


def sample_words() -> np.ndarray:
  """The words, uint32, of a few symbols of every kind: equal where the libraries code alike."""
  stack = Stack(seed_words(0, 64))
  means, stds = np.arange(-8, 8) / 16.0, 0.3 * 1.5**np.arange(16)
  stack.push_residual(np.arange(-64, 64, 8), means, stds, 40)
  stack.pop_within(means[::-1].copy(), stds, 300)
  # Multiples of 1/256, so that every machine has the same table.
  table = np.tile(np.array([100, 60, 50, 30, 10, 5, 1, 0], np.float32) / 256, (8, 1))
  stack.push_levels(np.arange(8), table)
  return stack.words()
