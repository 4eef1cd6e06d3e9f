"""The rate of a chain on many images; each image is decoded again."""
from collections.abc import Callable
from typing import Any

import numpy as np
import tqdm

from vdm_jax.codec import bits_back
from vdm_jax.codec.chain import Chain
from vdm_jax.errors import require
from vdm_jax.typing import PyTree

__all__ = ['ONE_AFTER_ANOTHER', 'net']

ONE_AFTER_ANOTHER = 4  # images of a lane, between the starts of which it has bits of a seed


def net(chain: Chain, read: Callable[[np.ndarray], tuple[np.ndarray, PyTree]], count: int, *,
        seed: int, label: str, progress: bool = True) -> np.ndarray:
  """The number of bits [count] that each of the images 0 .. count - 1 has added to its stack.

  The bits that a stack borrows at first are not counted.  All images are decoded again.  Memory
  holds `chain.lanes` times `ONE_AFTER_ANOTHER` images at a time.

  Args:
    read: numbers [n] -> integers [n, ...] and the batch that conditions the model.
    seed: it determines the first words of the stacks, and the keystream.
    label: of the progress bar, which counts each image twice.

  Raises InputError: an image that does not fit the chain, or whose decoding differs from it.
  """
  bits, many = np.zeros(count), chain.lanes * ONE_AFTER_ANOTHER
  with tqdm.tqdm(total=2 * count, desc=label, unit='example', dynamic_ncols=True,
                 disable=not progress) as bar:
    for first in range(0, count, many):
      rows = np.arange(first, min(first + many, count))
      images, conditions = read(rows)

      def encoded(of, images=images):
        bar.update(len(of))
        return images[of]

      options: dict[str, Any] = {'conditions': _of(conditions), 'seed': seed + first,
                                 'progress': False}
      coded = bits_back.encode(chain, encoded, len(rows), **options)
      for of, decoded in bits_back.decode(chain, coded.lanes, len(rows), **options):
        require(np.array_equal(decoded, images[of]), None, None, 'a decoded image is not the one '
                'that was encoded', 'report this')
        bar.update(len(of))
      bits[rows] = coded.net
  return bits


def _of(conditions: PyTree) -> Callable[[np.ndarray], PyTree]:
  return lambda rows: {name: values[rows] for name, values in conditions.items()}
