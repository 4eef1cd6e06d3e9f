"""Features of images, from a network or the pixels themselves, on which sets are compared.

Real numbers are their own features.

A score belongs to its extractor.  Scores of two extractors are not comparable, not even of two
conversions of one network's weights.  So an extractor has a name and a checksum, which scores
repeat.
"""
import functools
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import numpy as np
import tqdm

from vdm_jax.machine import devices
from vdm_jax.typing import Array, PyTree


class Extractor(NamedTuple):
  """Maps images to features; an image's features do not depend on the rest of the batch."""
  name: str
  checksum: str                                 # of its weights; '' where it has none
  features: Callable[[np.ndarray], np.ndarray]  # integers (or reals) [B, ...] -> float32 [B, D]
  shape: tuple[int, ...] = ()                   # of the images it takes; (): any
  levels: int | None = 0                        # of their values; 0: any; None: real numbers


class Statistics(NamedTuple):
  """The first two moments of `count` features, float64."""
  count: int
  mean: np.ndarray        # [D]
  covariance: np.ndarray  # [D, D]  divided by count - 1


class Summary(NamedTuple):
  """The result of a pass over images: the moments of all, and the features of some."""
  statistics: Statistics
  features: np.ndarray    # float32 [n, D]


def pixels() -> Extractor:
  """The extractor of the grey levels themselves, in a row."""
  return Extractor('pixels', '', _in_a_row)


def values() -> Extractor:
  """The extractor of real numbers themselves, in a row, in their own units."""
  return Extractor('values', '', _in_a_row, levels=None)


def _in_a_row(examples: np.ndarray) -> np.ndarray:
  return examples.reshape(len(examples), -1).astype(np.float32)


def of_network(name: str, checksum: str, apply: Callable[[PyTree, Array], Array], params: PyTree,
               shape: tuple[int, ...] = (), levels: int = 0) -> Extractor:
  """The extractor apply(params, images) on all devices, for `devices.global_batch_size` images."""
  replicated, program = devices.replicate(params), devices.over_rows(apply)

  def features(images):
    out = program(replicated, devices.place(devices.local_rows(images)))
    return np.asarray(jax.device_get(out), np.float32)
  return Extractor(name, checksum, features, shape, levels)


def checksum(tree: PyTree) -> str:
  """The first 16 digits of the SHA-256 of all arrays in a tree, one after another."""
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(tree):
    digest.update(np.ascontiguousarray(leaf).data)
  return digest.hexdigest()[:16]


def extract(extractor: Extractor, read: Callable[[np.ndarray], np.ndarray], count: int, *,
            batch_size: int = 128, what: str = 'examples') -> Iterator[np.ndarray]:
  """The features of images 0 .. count - 1, a batch [b, D] at a time, with a progress bar.

  read: numbers [n] -> integers [n, ...].  Every batch is whole: one program serves all.
  """
  with tqdm.tqdm(total=count, desc=f'{extractor.name}: {what}', unit='example', dynamic_ncols=True,
                 disable=jax.process_index() != 0) as bar:
    for rows, mask in devices.padded_rows(0, count, devices.global_batch_size(batch_size)):
      yield extractor.features(read(rows))[mask]
      bar.update(int(mask.sum()))


def statistics(features: np.ndarray) -> Statistics:
  """Mean and unbiased covariance of features [n, D], in float64.  For n = 1 the covariance is 0."""
  x = np.asarray(features, np.float64)
  mean = x.mean(axis=0)
  x = x - mean
  return Statistics(len(x), mean, x.T @ x / max(len(x) - 1, 1))


def merge(a: Statistics, b: Statistics) -> Statistics:
  """The statistics of two sets together: Chan, Golub and LeVeque (1983)."""
  n = a.count + b.count
  apart = b.mean - a.mean
  scatter = ((a.count - 1) * a.covariance + (b.count - 1) * b.covariance
             + np.outer(apart, apart) * (a.count * b.count / n))
  return Statistics(n, a.mean + apart * (b.count / n), scatter / (n - 1))


def some(count: int, n: int) -> np.ndarray:
  """n numbers out of `count`, in random order: always the same numbers."""
  # Data sets are sorted by class, samples have the labels in turn: chance is fair to both.
  return np.random.RandomState(0).permutation(count)[:n]


def _regrouped(batches: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
  """The same rows in batches of `size`, and the rest."""
  waiting, n = [], 0
  for batch in batches:
    waiting.append(batch)
    n += len(batch)
    if n >= size:
      joined = np.concatenate(waiting)
      for start in range(0, n - n % size, size):
        yield joined[start:start + size]
      waiting, n = [joined[n - n % size:]], n % size
  if n:
    yield np.concatenate(waiting)


def summarise(batches: Iterable[np.ndarray], count: int, keep: int) -> Summary:
  """The statistics of `count` features, and at most `keep` of them (`some`), in one pass.

  The result is the same to the last digit for all batch sizes, so its hash tells data apart.
  """
  chosen = some(count, keep)
  of_chosen = np.full(count, -1)
  of_chosen[chosen] = np.arange(len(chosen))
  sample, start = None, 0

  def take(batch):
    nonlocal sample, start
    if sample is None:
      sample = np.empty((len(chosen), batch.shape[1]), np.float32)
    to = of_chosen[start:start + len(batch)]
    sample[to[to >= 0]] = batch[to >= 0]
    start += len(batch)
    return statistics(batch)

  return Summary(functools.reduce(merge, map(take, _regrouped(batches, 1000))), sample)
