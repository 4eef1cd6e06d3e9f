"""Channel simulation: a sample of q is sent as the number of a candidate that was drawn from p.

Both sides draw the same candidates x_1, x_2, ... ~ p from a seed.  The sender gives the candidates
the arrival times t_1 < t_2 < ... of a Poisson process of rate 1, and sends the number

  argmin_n t_n / w(x_n),  w = q / p.

Then x_n ~ q, and the mean of log2 n is at most about KL(q || p) + 1.  This is the Poisson
functional representation of Li and El Gamal (2018).  Under Zipf's law, the number costs the
divergence, plus log2(KL + 1), plus about one bit.  So steps of little divergence are expensive.

The search ends where no later candidate can win, or else after `count` candidates.  log w has the
variance 2 KL in nats.  With too few candidates the sample is therefore not one of q: its mean falls
short.  With 2^(KL + 11) candidates, up to KL = 4 bits, no test along the mean could tell the sample
from one of q.

Here p and q are Gaussians, in the units of p: p = N(0, 1), q = N(shift, ratio^2) in each dimension.
"""
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ['SPARE', 'Choice', 'candidate', 'choose', 'count_for', 'divergence',
           'sample_candidates', 'scale_for', 'zipf']

SPARE = 11      # bits of candidates beyond the divergence that an exact sample takes
_CHUNK = 1024   # candidates that are drawn together
_OCTAVES = 40   # of numbers: up to 2^40
_SINGLE = 8     # numbers below have cells of their own; above, each octave has four


class Choice(NamedTuple):
  number: int           # from 1
  sample: np.ndarray    # [D]  the candidate of that number
  tried: int            # candidates that were looked at


def divergence(shift: np.ndarray, ratio: np.ndarray) -> np.ndarray:
  """KL(N(shift, ratio^2) || N(0, 1)) in bits, element by element."""
  return 0.5 * (np.square(shift) + np.square(ratio) - 1.0 - 2.0 * np.log(ratio)) / math.log(2.0)


def count_for(bits: float, spare: int = SPARE, most: int = 22) -> int:
  """The number of candidates: 2^(bits + spare), rounded up, and at most 2^most."""
  return math.ceil(2.0**min(bits + spare, most))


def _candidates(seed: int, stream: int, chunk: int, size: int) -> np.ndarray:
  """Candidates number `_CHUNK` chunk + 1, ..., float32 [_CHUNK, size], of N(0, 1).

  They are pairs of Box and Muller, made of the raw output of Philox, which no version changes.
  Another machine may round logarithms and angles otherwise.  That moves a sample, but changes no
  number.
  """
  # A generator counts blocks in its first word; the second is the chunk, the third names the use.
  bits = np.random.Philox(key=np.array([seed, stream], np.uint64),
                          counter=np.array([0, chunk, 0, 0], np.uint64))
  raw = np.asarray(bits.random_raw(_CHUNK * size // 2), '<u8').view('<u4')
  u, angle = np.split((raw.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32), 2)
  radius = np.sqrt(np.float32(-2.0) * np.log(u))
  angle *= np.float32(2.0 * np.pi)
  return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).reshape(_CHUNK, size)


def candidate(number: int, seed: int, stream: int, size: int) -> np.ndarray:
  """The candidate with this number, counted from 1: float32 [size]."""
  chunk, row = divmod(number - 1, _CHUNK)
  return _candidates(seed, stream, chunk, size)[row]


def sample_candidates() -> np.ndarray:
  """A few candidates in quarters, int8 [64]: equal where programs draw the same candidates.

  None of them is within 0.002 of the middle between two quarters.  So all machines round alike.
  """
  drawn = [candidate(number, 0, stream, 16)
           for number, stream in ((1, 0), (2, 1), (1025, 3 << 24 | 1), (5000, 7 << 24))]
  return np.rint(4.0 * np.concatenate(drawn)).astype(np.int8)


def choose(shift: np.ndarray, ratio: np.ndarray, count: int, seed: int, stream: int) -> Choice:
  """A sample of N(shift, ratio^2), [D], and its number among at most `count` candidates.

  The sample is exact if the search ends by itself.  It does so where every ratio is below 1, since
  w is bounded then, and `count` is large enough.  Each pair (seed, stream) has its own candidates.
  """
  shift, ratio = np.asarray(shift, np.float64), np.asarray(ratio, np.float64)
  # log w = linear x + square x^2 + constant, of which the constant is the same for all.
  linear = (shift / ratio**2).astype(np.float32)
  square = (0.5 * (1.0 - ratio**-2)).astype(np.float32)
  largest = np.inf
  if (ratio < 1.0).all():
    largest = float(0.5 * np.sum(np.square(shift) / (ratio**2 * (1.0 - ratio**2))))
  # The sender's own: nobody else needs the times.
  times = np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64),
                                               counter=np.array([0, 0, 1, 0], np.uint64)))
  best, found, sample, time = np.inf, 0, shift, 0.0
  tried = 0
  while tried < count:
    x = _candidates(seed, stream, tried // _CHUNK, len(shift))
    arrivals = time + np.cumsum(times.standard_exponential(_CHUNK))
    time = arrivals[-1]
    score = np.log(arrivals) - (x @ linear + np.square(x) @ square)
    score = score[:count - tried]
    n = int(np.argmin(score))
    if score[n] < best:
      best, found, sample = score[n], tried + n + 1, x[n]
    tried += len(score)
    if math.log(time) - largest > best:
      break
  return Choice(found, sample, tried)


# -------------------------------------------------------- the law of a number


@functools.lru_cache(maxsize=256)
def zipf(scale: float) -> np.ndarray:
  """The probabilities n^-(1 + 1 / scale), summed over cells of numbers: float32 [cells].

  The probabilities are multiples of 2^-22.  So both sides have the same table, however they round.
  """
  inverse = 1.0 / scale
  single = np.arange(1.0, _SINGLE)**-(1.0 + inverse)
  first = np.exp2(np.arange(3, _OCTAVES)[:, None] + np.log2(1.0 + np.arange(4) / 4.0)).ravel()
  edges = np.append(first, 2.0**_OCTAVES) - 0.5  # a sum as the integral between the halves
  mass = np.concatenate([single, (edges[:-1]**-inverse - edges[1:]**-inverse) / inverse])
  return (np.maximum(np.rint(mass / mass.sum() * 2.0**22), 1.0) * 2.0**-22).astype(np.float32)


def scale_for(numbers: Sequence[int]) -> float:
  """The scale of Zipf's law under which these numbers cost least.

  Li and El Gamal (2018) take KL + log2(e) / e + 1, which serves all p and q.  Gaussians need less.
  """
  cells = np.bincount([cell_of(number)[0] for number in numbers], minlength=len(zipf(1.0)))
  choices = np.round(np.geomspace(0.2, 20.0, 60), 3).tolist()
  return min(choices, key=lambda scale: -cells @ np.log2(zipf(scale).astype(np.float64)))


def cell_of(number: int) -> tuple[int, int, int]:
  """The cell of a number, its place in the cell, and the bits that the place needs."""
  if number < _SINGLE:
    return number - 1, 0, 0
  octave = number.bit_length() - 1
  quarter = (number >> (octave - 2)) & 3
  return (_SINGLE - 1 + 4 * (octave - 3) + quarter, number & ((1 << (octave - 2)) - 1),
          octave - 2)


def place_bits(cell: int) -> int:
  """The number of bits that a place in this cell needs."""
  return 0 if cell < _SINGLE - 1 else (cell - _SINGLE + 1) // 4 + 1


def number_of(cell: int, place: int) -> int:
  """The inverse of `cell_of`."""
  if cell < _SINGLE - 1:
    return cell + 1
  octave, quarter = divmod(cell - _SINGLE + 1, 4)
  return (4 + quarter << octave + 1) + place
