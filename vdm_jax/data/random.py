"""Randomness of the data: counters, without state.

Philox maps (key, counter) to bits (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3").  So epoch 7 or step 90,000 needs no draw of the earlier ones.  Only the raw bits are
used, because a run may resume under another version of NumPy.  NumPy keeps the bit stream of
Philox fixed, but not the numbers that `Generator` makes from it.
"""
import functools

import numpy as np

# The third word of the counter; the low words count the draws, so purposes never overlap.
ORDER, AUGMENT, POINTS = 0, 1, 2


def bits(seed: int, index: int, purpose: int, n: int) -> np.ndarray:
  """uint64 [n], a pure function of its arguments; `index` is an epoch or a step."""
  return np.random.Philox(key=[seed % 2**64, index], counter=[0, 0, purpose, 0]).random_raw(n)


def uniform(seed: int, index: int, purpose: int, n: int) -> np.ndarray:
  """float64 [n], uniform on [0, 1) in steps of 2^-53."""
  return (bits(seed, index, purpose, n) >> np.uint64(11)) * 2.0**-53


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
  """perm(seed, epoch): a uniformly random order of 0 .. n - 1, int64 [n], read-only."""
  order = np.argsort(bits(seed, epoch, ORDER, n), kind='stable')
  order.flags.writeable = False
  return order
