"""UQDM: each level as integers, by universal quantisation whose noise has the variance of q.

Let w be sqrt(12) times the std of q(z_i | z_{i+1}, x).  Let m be the mean of q less the mean of p.
Let u be uniform on [-1/2, 1/2], from a seed that both sides have.  Then

  k = round(m / w + u),   y = k - u = m / w + U exactly,   z_i = mean of p + w y.

U is uniform and independent of m, so w U has mean 0 and the variance of q.  k is coded under a
Gaussian for m / w.  The scale of this Gaussian, for each step and pixel, is measured on training
data and kept in the file.

Suppose a Gaussian channel sends a Gaussian m in R bits.  Here m costs `rate(R)`, for each dimension
and step.  At large R this is 1/2 log2(2 pi e / 12) = 0.25 bits more than R, and at small R it is
O(sqrt R).  So few steps are best.  No search is needed.

Yang, Will and Mandt (2025), Progressive Compression with Universally Quantized Diffusion Models,
section 3.3, algorithms 1 and 2, with the widths w of section 3.1.  Their k is coded under a density
with the variance of q, or with a learned one (eq. 5 to 7), instead of a measured scale.
"""
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tqdm
from scipy.special import ndtr, ndtri

from vdm_jax.codec.kernels import Conditions, Kernels, nothing
from vdm_jax.codec.queue import Reader, Writer

__all__ = ['Coded', 'calibrate', 'decode', 'encode', 'quantise', 'rate']

_PARTS = 4  # of an octave: scales are 2^(number / 4)
_LIMITS = -24, 48  # of these numbers


class Coded(NamedTuple):
  words: np.ndarray   # uint32
  ends: list[int]     # [T]  how many words hold a level and all before; the first is z_{T-1}
  cost: np.ndarray    # [T]  bits, of all images


def quantise(m: np.ndarray, u: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(k, y): integers k = round(m + u), and y = k - u, within 1/2 of m.  u: in [-1/2, 1/2]."""
  k = np.rint(m + u).astype(np.int64)
  return k, k - u


def rate(bits: float) -> float:
  """Bits of k for a Gaussian m that a Gaussian channel would send in `bits`.

  The result is the entropy of N(0, (4^bits - 1) / 12) convolved with the uniform density on
  [-1/2, 1/2], by quadrature.  Universal quantisation costs exactly this entropy if k is coded under
  its own density (their section 2).
  """
  std = math.sqrt((4.0**bits - 1.0) / 12.0)
  # y = 1/2 + std v, y > 0: the density changes on the scale of std around 1/2 alone.
  v = np.linspace(max(-0.5 / std, -12.0), 12.0, 100_001)
  density = ndtr(v + 1.0 / std) - ndtr(v)
  integrand = np.where(density > 0.0, -density * np.log2(np.maximum(density, 1e-300)), 0.0)
  return 2.0 * std * float(np.trapezoid(integrand, v))


def _shared(seed: int, image: int, i: int, size: int) -> np.ndarray:
  """u of an image and level, float64 [size], in [-1/2, 1/2]: raw output of Philox."""
  bits = np.random.Philox(key=np.array([seed, image], np.uint64),
                          counter=np.array([0, i, 2, 0], np.uint64))
  raw = np.asarray(bits.random_raw((size + 1) // 2), '<u8').view('<u4')[:size]
  return (raw + 0.5) * 2.0**-32 - 0.5


def _all(seed: int, count: int, i: int, size: int) -> np.ndarray:
  return np.stack([_shared(seed, image, i, size) for image in range(count)])


def _first(kernels: Kernels, seed: int, count: int) -> np.ndarray:
  """z_T [n, D]: a draw from p(z_T) that both sides have, and that costs nothing.

  It is no draw from q(z_T | x), but at this level nothing of x is visible.
  """
  u = _all(seed, count, kernels.steps, kernels.size)
  return kernels.prior_std * ndtri(u + 0.5)


def _steps(kernels: Kernels, x: np.ndarray, seed: int, conditions: Conditions):
  """(i, k, u, m / w) of each level, each [n, D]: the work of a sender."""
  x = np.asarray(x, np.float64)
  z = _first(kernels, seed, len(x))
  for i in range(kernels.steps - 1, -1, -1):
    (mean, _), (target, std) = kernels.predicted(z, i, conditions), kernels.given(x, z, i)
    w, u = math.sqrt(12.0) * std, _all(seed, len(x), i, kernels.size)
    m = (target - mean) / w
    k, y = quantise(m, u)
    yield i, k, u, m
    z = mean + w * y


def calibrate(kernels: Kernels, x: np.ndarray, *, seed: int = 0, conditions: Conditions = nothing
              ) -> np.ndarray:
  """Scales of m / w for each level and pixel, [T, D], in quarters of an octave; the first is T - 1.

  x: training data [n, D].
  """
  squares = [np.square(m).mean(axis=0) for _, _, _, m in _steps(kernels, x, seed, conditions)]
  octaves = 0.5 * np.log2(np.maximum(squares, 1e-12))
  return np.clip(np.rint(_PARTS * octaves), *_LIMITS).astype(int)


def _std(scale: np.ndarray) -> np.ndarray:
  """2^(scale / 4) from a table, so that both sides have the same number."""
  table = np.array([float.fromhex(each) for each in (
      '0x1p0', '0x1.306fe0a31b715p0', '0x1.6a09e667f3bcdp0', '0x1.ae89f995ad3adp0')])
  return np.ldexp(table[scale % _PARTS], scale // _PARTS)


def encode(kernels: Kernels, x: np.ndarray, scales: np.ndarray, *, seed: int = 0,
           conditions: Conditions = nothing, progress: bool = True) -> Coded:
  """Images x [n, D], as the model sees them, encoded as words.  scales: the result of `calibrate`.
  """
  writer, ends, cost = Writer(), [], []
  with tqdm.tqdm(total=kernels.steps, desc='encoding', unit='level', dynamic_ncols=True,
                 disable=not progress) as bar:
    for scale, (_, ks, us, _) in zip(scales, _steps(kernels, x, seed, conditions), strict=True):
      before = writer.bits
      for k, u in zip(ks, us, strict=True):
        writer.integers(k, u, _std(scale))
      cost.append(writer.bits - before)
      ends.append(writer.needed())
      bar.update()
  words = writer.words()
  return Coded(words, [min(end, len(words)) for end in ends], np.array(cost))


def decode(kernels: Kernels, words: np.ndarray, scales: np.ndarray, count: int, *, seed: int = 0,
           conditions: Conditions = nothing) -> Iterator[tuple[int, np.ndarray]]:
  """(i, z_i [n, D]) of `count` images, from level T, which costs nothing, down to 0."""
  reader, z = Reader(words), _first(kernels, seed, count)
  yield kernels.steps, z
  for i, scale in zip(range(kernels.steps - 1, -1, -1), scales, strict=False):
    u = _all(seed, count, i, kernels.size)
    k = np.stack([reader.integers(each, _std(scale)) for each in u])
    mean, _ = kernels.predicted(z, i, conditions)
    _, std = kernels.given(z, z, i)
    z = mean + math.sqrt(12.0) * std * (k - u)
    yield i, z
