"""Scores of symbolic music: n-grams of notes, and overlap areas of pitches and durations.

Music is a grid of MIDI pitches [T, voices], 0 for a rest, as `data.chorales` has it.  An n-gram is
fitted to pieces, and gives the bits of other pieces: a baseline for a model's bound, and a judge of
samples.  Overlap areas compare how pitches and durations change within a piece (Choi et al. 2020;
Mittal et al. 2021, section 5.1).
"""
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from vdm_jax.errors import InputError, require

__all__ = ['Consistency', 'NGram', 'Voices', 'areas', 'areas_of_voices', 'consistency',
           'histories', 'kernel_mmd', 'notes', 'overlap_area', 'polynomial',
           'published_overlap_area', 'rbf']


# ------------------------------------------------------------------------ n-grams


class NGram:
  """p(symbol | context) with absolute discounting, interpolated (Ney, Essen and Kneser 1994).

  With c the counts of a context of j symbols and N the number of different symbols after it,

      p_j(k | h) = (max(c(h, k) - d, 0) + d N(h) p_{j-1}(k | h')) / c(h),

  where h' is h without its last column.  The context of no symbols falls back to 1 / levels.  A
  context that was never seen has the probabilities of the shorter one.

  symbols: int [N].  contexts: int [N, n], the most important column first; of a row that has -1,
  only the columns before it are used.  levels: the number of symbols.  discount: d, above 0 and
  below 1.

  Raises InputError for another discount, and for no symbols.
  """

  def __init__(self, symbols: np.ndarray, contexts: np.ndarray, levels: int = 128,
               discount: float = 0.75):
    require(0.0 < discount < 1.0, 'discount', discount, 'it is taken from counts of 1 and more',
            'give a number above 0 and below 1')
    require(len(symbols) > 0, 'symbols', None, 'there are none to count', 'give at least one')
    self.levels, self.discount, self.order = levels, discount, contexts.shape[1]
    self.pairs: Counter = Counter()
    for key in _keys(symbols, contexts):
      self.pairs.update(key)
    self.counts: Counter = Counter()
    self.kinds: Counter = Counter()
    for (context, _), n in self.pairs.items():
      self.counts[context] += n
      self.kinds[context] += 1

  def bits(self, symbols: np.ndarray, contexts: np.ndarray) -> np.ndarray:
    """-log2 p(symbol | context) of each symbol: [N]."""
    out = np.empty(len(symbols))
    for i, keys in enumerate(_keys(symbols, contexts)):
      p = 1.0 / self.levels
      for context, symbol in keys:
        count = self.counts[context]
        if not count:
          break
        seen = max(self.pairs[context, symbol] - self.discount, 0.0)
        p = (seen + self.discount * self.kinds[context] * p) / count
      out[i] = -math.log2(p)
    return out


def _keys(symbols: np.ndarray, contexts: np.ndarray) -> Iterator[list[tuple[tuple, int]]]:
  """For each symbol, (context, symbol) for the contexts of 0, 1, ... symbols."""
  for symbol, row in zip(symbols.tolist(), contexts.tolist(), strict=True):
    known = row.index(-1) if -1 in row else len(row)
    yield [(tuple(row[:j]), symbol) for j in range(known + 1)]


def histories(sequence: np.ndarray, n: int) -> np.ndarray:
  """The n symbols before each symbol, the last one first: [T] -> int [T, n].  -1: there is none."""
  padded = np.concatenate([np.full(n, -1, np.int64), sequence.astype(np.int64)])
  columns = [padded[n - j:len(padded) - j] for j in range(1, n + 1)]
  return np.stack(columns, 1) if columns else np.zeros((len(sequence), 0), np.int64)


class Voices(NamedTuple):
  """An n-gram of each of four voices, given the step before and the voices that are known already.

  The voices of a step are known in the order soprano, bass, alto, tenor.
  """
  each: tuple[NGram, ...]  # in this order

  @classmethod
  def fit(cls, grids: Sequence[np.ndarray], levels: int = 128, discount: float = 0.75) -> 'Voices':
    """The n-grams of grids [T, 4]."""
    parts = [_of_voices(grid) for grid in grids]
    joined = lambda i, j: np.concatenate([part[i][j] for part in parts])
    return cls(tuple(NGram(joined(i, 0), joined(i, 1), levels, discount)
                     for i in range(len(_ORDER))))

  def bits(self, grid: np.ndarray) -> np.ndarray:
    """The bits of each note of a grid: [T, 4], columns as in the grid."""
    out = np.empty(grid.shape)
    for voice, ngram, (symbols, contexts) in zip(_ORDER, self.each, _of_voices(grid), strict=True):
      out[:, voice] = ngram.bits(symbols, contexts)
    return out


_ORDER = (0, 3, 1, 2)


def _of_voices(grid: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
  """(symbols [T], contexts [T, n]) of each voice, in the order of `_ORDER`."""
  grid = grid.astype(np.int64)
  before = np.concatenate([np.full((1, grid.shape[1]), -1), grid[:-1]])
  out = []
  for i, voice in enumerate(_ORDER):
    known = [grid[:, other] for other in _ORDER[:i]]
    others = [before[:, other] for other in _ORDER if other != voice]
    out.append((grid[:, voice], np.stack([before[:, voice], *known, *others], 1)))
  return out


# ------------------------------------------------------------------ overlap areas


def overlap_area(mean1: np.ndarray, variance1: np.ndarray, mean2: np.ndarray,
                 variance2: np.ndarray) -> np.ndarray:
  """The area below both of two normal densities: the integral of their minimum, 0 .. 1.

  Two densities of unlike variances cross twice.  A variance of 0 is a point: it shares no area with
  a density, nor with another point, and all of it with the same point.
  """
  m1, v1, m2, v2 = np.broadcast_arrays(*(np.asarray(u, np.float64)
                                         for u in (mean1, variance1, mean2, variance2)))
  points = (v1 == 0) | (v2 == 0)
  out = np.where((m1 == m2) & (v1 == v2), 1.0, 0.0)
  rest = ~points
  out[rest] = _overlap(m1[rest], np.sqrt(v1[rest]), m2[rest], np.sqrt(v2[rest]))
  return out


def _overlap(m1, s1, m2, s2):
  # In the units of the narrower density, around its mean.
  swap = s1 > s2
  m1, m2, s1, s2 = (np.where(swap, a, b) for a, b in ((m2, m1), (m1, m2), (s2, s1), (s1, s2)))
  d, r = (m2 - m1) / s1, s2 / s1
  wide = r > 1.0 + 1e-9
  safe = np.where(wide, r, 2.0)
  root = safe * np.sqrt(d**2 + 2.0 * (safe**2 - 1.0) * np.log(safe))
  low, high = ((-d - root) / (safe**2 - 1.0), (-d + root) / (safe**2 - 1.0))
  inside = (_phi(high) - _phi(low)) - (_phi((high - d) / safe) - _phi((low - d) / safe))
  return np.where(wide, 1.0 - inside, 2.0 * _phi(-np.abs(d) / 2.0))


def published_overlap_area(mean1: np.ndarray, variance1: np.ndarray, mean2: np.ndarray,
                           variance2: np.ndarray) -> np.ndarray:
  """The overlap area of the public code of Mittal et al. (2021), for comparison with their numbers.

  It takes one crossing of the densities, between the means or beside them, and 1 for equal
  variances, whatever the means.  For a variance of 0 it is NaN.
  """
  m1, v1, m2, v2 = np.broadcast_arrays(*(np.asarray(u, np.float64)
                                         for u in (mean1, variance1, mean2, variance2)))
  swap = m1 > m2
  m1, m2, v1, v2 = (np.where(swap, a, b) for a, b in ((m2, m1), (m1, m2), (v2, v1), (v1, v2)))
  equal = np.isclose(v1, v2, rtol=1e-12, atol=0.0)
  s1, s2 = np.sqrt(v1), np.sqrt(np.where(equal, v1 + 1.0, v2))
  with np.errstate(divide='ignore', invalid='ignore'):
    root = np.sqrt((m1 - m2)**2 + 2.0 * (s1**2 - s2**2) * np.log(s1 / s2))
    crossing = (m2 * s1**2 - s2 * (m1 * s2 + s1 * root)) / (s1**2 - s2**2)
    area = 1.0 - _phi((crossing - m1) / s1) + _phi((crossing - m2) / s2)
  return np.where(equal, 1.0, area)


def _phi(u: np.ndarray) -> np.ndarray:
  return 0.5 * np.vectorize(math.erfc, otypes=[float])(-np.asarray(u) / math.sqrt(2.0))


def notes(voice: np.ndarray) -> np.ndarray:
  """The notes of one voice [T]: int [N, 3] of (first step, pitch, steps).  Rests are left out.

  A pitch that goes on is one note, since a grid does not tell a repeated note from a held one.
  """
  voice = np.asarray(voice).reshape(-1)
  firsts = np.flatnonzero(np.r_[True, voice[1:] != voice[:-1]]) if len(voice) else np.array([], int)
  lengths = np.diff(np.r_[firsts, len(voice)])
  found = np.stack([firsts, voice[firsts], lengths], 1).astype(np.int64)
  return found[found[:, 1] > 0]


def areas(voice: np.ndarray, frame: int, hop: int, published: bool = False) -> np.ndarray:
  """Overlap areas of neighbouring frames of one voice [T]: [K, 2], of pitch and of duration.

  A frame has `frame` steps, and begins `hop` steps after the frame before.  It holds the notes that
  begin in it, and each frame is a normal distribution of pitches and of durations.  Frames of less
  than two notes are left out.  published: see `published_overlap_area`.
  """
  every = notes(voice)
  area = published_overlap_area if published else overlap_area
  frames = []
  for first in range(0, len(np.asarray(voice)) - frame + 1, hop):
    inside = every[(every[:, 0] >= first) & (every[:, 0] < first + frame), 1:].astype(np.float64)
    frames.append((inside.mean(0), inside.var(0)) if len(inside) > 1 else None)
  found = [area(*a, *b) for a, b in zip(frames, frames[1:], strict=False)
           if a is not None and b is not None]
  return np.stack(found) if found else np.zeros((0, 2))


def areas_of_voices(grids: Iterable[np.ndarray], frame: int, hop: int, published: bool = False
                    ) -> np.ndarray:
  """`areas` of all voices of grids [T, voices]: [K, 2], without those that are undefined."""
  found = np.concatenate([areas(grid[:, voice], frame, hop, published)
                          for grid in grids for voice in range(grid.shape[1])])
  return found[np.isfinite(found).all(axis=1)]


class Consistency(NamedTuple):
  """How close overlap areas are to those of real music, 0 .. 1: of the means and the variances."""
  consistency: np.ndarray
  variance: np.ndarray


def consistency(areas: np.ndarray, real: np.ndarray) -> Consistency:
  """max(0, 1 - |m - m_real| / m_real) of the mean m of areas [K, ...], and of their variance.

  Mittal et al. (2021), section 5.1.  Raises InputError for no areas.
  """
  if not len(areas) or not len(real):
    raise InputError('areas', None, 'there are none', 'give longer pieces, or shorter frames')
  near = lambda a, b: np.maximum(0.0, 1.0 - np.abs(a - b) / b)
  return Consistency(near(areas.mean(0), real.mean(0)), near(areas.var(0), real.var(0)))


# ------------------------------------------------------------ distances of latents


def rbf(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """exp(-|a - b|^2): [n, D], [m, D] -> [n, m], as in the public code of Mittal et al. (2021)."""
  squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2.0 * a @ b.T
  return np.exp(-np.maximum(squares, 0.0))


def polynomial(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """(a . b)^2: [n, D], [m, D] -> [n, m], as in the public code of Mittal et al. (2021)."""
  return (a @ b.T)**2


def kernel_mmd(real: np.ndarray, samples: np.ndarray, kernel=rbf) -> float:
  """The square of the maximum mean discrepancy (Gretton et al. 2012, eq. 5), which is biased.

  real, samples: [n, D] and [m, D].  `distances.kernel_distance` is without the bias.
  """
  return float(kernel(real, real).mean() + kernel(samples, samples).mean()
               - 2.0 * kernel(real, samples).mean())
