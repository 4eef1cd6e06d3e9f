"""DiffC: an image as samples of its own noisy versions, at the rate of the bound plus a price.

  z_T ~ q(z_T | x), then z_i ~ q(z_i | z_{i+1}, x) for i = T - 1, ..., 0,

each sent by `channel` against p(z_i | z_{i+1}).  The ideal rate up to level i is the sum of the
divergences, which are the terms of the bound.  A receiver that stops at level i finishes by
ancestral sampling or along the flow.  For Gaussian data of variance s^2, the mean squared errors of
these two are 2 s^2 (1 - rho^2) and 2 s^2 (1 - rho), with rho^2 = s^2 SNR / (1 + s^2 SNR).

A search for one number takes 2^KL candidates, so a level is sent in blocks.  Each block has its own
number, which costs KL + log2(KL + 1) + about 1 bits.  So few steps and large blocks are cheap, but
only blocks of up to 4 bits are exact.  A pixel of more than 4 bits makes its block approximate, and
`Coded.large` counts such blocks.  Block b of B has every B-th pixel along a curve that keeps
neighbours together.  So the blocks of an image have about equal divergence.

Theis, Salimans, Hoffman and Mentzer (2022), Lossy Compression with Gaussian Diffusion.
"""
import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tqdm

from vdm_jax.codec import channel
from vdm_jax.codec.kernels import Conditions, Kernels, nothing
from vdm_jax.codec.queue import Reader, Writer

__all__ = ['APPROXIMATE', 'EXACT', 'Coded', 'Search', 'along_curve', 'decode', 'encode', 'ideal']


class Search(NamedTuple):
  """The limits of the search for numbers."""
  block: float  # bits of divergence that a block has at most; a pixel that has more is beside them
  most: int     # log2 of the candidates of a block at most; 2^(KL + 11) if that is less


EXACT = Search(4.0, 22)
APPROXIMATE = Search(8.0, 16)


class Coded(NamedTuple):
  words: np.ndarray      # uint32
  ends: list[int]        # [T + 1]  how many words hold a level and all before; the first is z_T
  tables: list[list]     # [T + 1]  [scale of the law, blocks of an image, their deviation]
  ideal: np.ndarray      # [T + 1, n]  bits of divergence
  cost: np.ndarray       # [T + 1]  bits, of all images
  blocks: int            # numbers that were sent
  large: int             # of these, blocks of more than `EXACT.block` bits: not exact
  noise: np.ndarray      # [blocks]  of each sample along its mean: N(0, 1) if it is one of q


def along_curve(shape: tuple[int, ...]) -> np.ndarray:
  """The pixels of an image, [D], in Morton's order, which keeps neighbours together."""
  places = np.indices(shape).reshape(len(shape), -1)
  key = np.zeros(places.shape[1], np.int64)
  bits = max(int(max(shape) - 1).bit_length(), 1)
  for bit in range(bits):
    for axis, place in enumerate(places):
      key |= (place >> bit & 1) << (bit * len(shape) + axis)
  return np.argsort(key, kind='stable')


def _blocks(bits: np.ndarray, most: float) -> int:
  """The number of blocks that share out `bits` [D] along the curve, at most `most` bits in each.

  A pixel that has more than `most` bits by itself is an exception.  A block has at most one such
  pixel, beside the `most` bits of its other pixels.
  """
  large = bits > most
  rest = np.where(large, 0.0, bits)
  count = max(1, math.ceil(rest.sum() / most))
  while count < len(bits):
    of_pixel = np.arange(len(bits)) % count
    if (np.bincount(of_pixel, rest).max() <= most and np.bincount(of_pixel, large).max() <= 1):
      return count
    count += 1
  return len(bits)


def _stream(image: int, i: int, block: int, steps: int) -> int:
  return (image * (steps + 1) + i) << 24 | block


def encode(kernels: Kernels, x: np.ndarray, *, search: Search = EXACT, seed: int = 0,
           conditions: Conditions = nothing, progress: bool = True) -> Coded:
  """Images x [n, D], as the model sees them, encoded as words.

  search: `EXACT` or `APPROXIMATE`.  No test along the mean tells samples of `EXACT` from samples of
  q, except in the blocks that `Coded.large` counts.  `APPROXIMATE` needs fewer bits and is biased:
  `Coded.noise` shows by how much.
  """
  x = np.asarray(x, np.float64)
  curve, steps = along_curve(kernels.shape), kernels.steps
  writer, ends, tables, noise, cost = Writer(), [], [], [], []
  ideal, large = np.zeros((steps + 1, len(x))), 0
  z = x
  with tqdm.tqdm(total=(steps + 1) * len(x), desc='encoding', unit='level', dynamic_ncols=True,
                 disable=not progress) as bar:
    for row, i in enumerate(range(steps, -1, -1)):
      (mean, std), (target, width) = kernels.predicted(z, i, conditions), kernels.given(x, z, i)
      shift, ratio = (target - mean) / std, width / std
      bits = channel.divergence(shift, ratio)
      ideal[row] = bits.sum(axis=1)
      sample, numbers = np.zeros_like(z), []
      for image in range(len(x)):
        count = _blocks(bits[image, curve], search.block)
        numbers.append([])
        for block in range(count):
          part = curve[block::count]
          u, v = shift[image, part], ratio[image, part]
          of_block = float(bits[image, part].sum())
          large += of_block > EXACT.block
          tries = channel.count_for(of_block, most=search.most)
          chosen = channel.choose(u, v, tries, seed, _stream(image, i, block, steps))
          sample[image, part] = chosen.sample
          numbers[-1].append(chosen.number)
          noise.append(np.dot((chosen.sample - u) / v, u / v)
                       / max(float(np.linalg.norm(u / v)), 1e-30))
        bar.update()
      z = mean + std * sample
      counts = np.array([len(each) for each in numbers])
      table = [channel.scale_for(sum(numbers, [])), int(np.rint(counts.mean())),
               round(float(counts.std()) + 0.1, 1)]
      before = writer.bits
      writer.integers(counts - table[1], *_of_counts(table, len(x)))
      for each in numbers:
        for number in each:
          writer.number(number, table[0])
      cost.append(writer.bits - before)
      ends.append(writer.needed())
      tables.append(table)
  words = writer.words()
  return Coded(words, [min(end, len(words)) for end in ends], tables, ideal, np.array(cost),
               len(noise), large, np.array(noise))


def _of_counts(table: list, n: int) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation of the number of blocks less its average, [n]."""
  return np.zeros(n), np.full(n, table[2])


def decode(kernels: Kernels, words: np.ndarray, tables: list[list], count: int, *, seed: int = 0,
           conditions: Conditions = nothing) -> Iterator[tuple[int, np.ndarray]]:
  """(i, z_i [n, D]) of `count` images, from level T down to 0.  Stop reading where the words end.
  """
  curve, steps = along_curve(kernels.shape), kernels.steps
  reader, z = Reader(words), np.zeros((count, kernels.size))
  for i, table in zip(range(steps, -1, -1), tables, strict=False):
    counts = table[1] + reader.integers(*_of_counts(table, count))
    sample = np.zeros_like(z)
    for image, blocks in enumerate(counts):
      for block in range(blocks):
        part = curve[block::blocks]
        sample[image, part] = channel.candidate(reader.number(table[0]), seed,
                                                _stream(image, i, block, steps), len(part))
    mean, std = kernels.predicted(z, i, conditions)
    z = mean + std * sample
    yield i, z


def ideal(kernels: Kernels, x: np.ndarray, *, seed: int = 0, conditions: Conditions = nothing
          ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
  """Yields (i, z_i, bits of divergence [n]) by a channel that costs exactly the divergence."""
  x = np.asarray(x, np.float64)
  rng, z = np.random.default_rng([seed, 1]), x  # not the stream of data made from the same seed
  for i in range(kernels.steps, -1, -1):
    (mean, std), (target, width) = kernels.predicted(z, i, conditions), kernels.given(x, z, i)
    bits = channel.divergence((target - mean) / std, width / std).sum(axis=1)
    z = target + width * rng.standard_normal(x.shape)
    yield i, z, bits
