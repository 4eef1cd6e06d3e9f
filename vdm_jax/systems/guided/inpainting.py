"""Models that are told a part of the image: their samples have this part.

Nichol et al. (2021), section 3.3.  The data have two fields beside x: `known`, integers like x, and
`mask`, which is 1 where they are known and 0 where they are not.  `trained` makes these fields of
data that lack them, by erasing random regions.
"""
from collections.abc import Callable

import jax.numpy as jnp
import ml_collections

from vdm_jax import data, guidance, random
from vdm_jax.data import fields
from vdm_jax.errors import InputError
from vdm_jax.systems.guided import parts
from vdm_jax.typing import Array, Experiment

KNOWN, MASK = 'known', 'mask'
ALL, OUTSIDE = 0.1, 0.45  # shares of training: all is erased, and all outside of a rectangle


def experiment(base: Experiment) -> Experiment:
  """`base` with a model whose estimates are exact in the known part; the loss is not changed.

  The condition of its network is a dict with `known` and `mask`, see `compose.experiment`.
  Guidance of two such estimates keeps the known part.
  """
  def model(params, keys=None):
    m = base.model(params, keys)
    part = lambda cond: (m.encode(cond[KNOWN]), cond[MASK].astype(float))
    return m._replace(denoise=guidance.known(m.denoise, part))
  return base._replace(model=model)


def erased(keys: Array, height: int, width: int) -> Array:
  """Random masks, int32 [B, height, width, 1]: 1 where an image stays known.

  A rectangle is erased; or all outside of it (a share `OUTSIDE`); or the whole image (`ALL`).  The
  rectangle is between two random rows and two random columns.
  """
  def draw(name: str) -> Array:
    return random.uniform(random.stream(keys, name), jnp.zeros(len(keys)))

  def between(name: str, size: int) -> Array:
    ends = [jnp.minimum(jnp.floor(size * draw(f'{name}_{i}')), size - 1) for i in range(2)]
    low, high = jnp.minimum(*ends), jnp.maximum(*ends)
    place = jnp.arange(size)
    return (low[:, None] <= place) & (place <= high[:, None])

  inside = between('rows', height)[:, :, None] & between('columns', width)[:, None, :]
  kind = draw('erased')[:, None, None]
  known = jnp.where(kind < ALL + OUTSIDE, inside, ~inside) & (kind >= ALL)
  return known[..., None].astype(jnp.int32)


def trained(config: ml_collections.ConfigDict,
            build: Callable[[ml_collections.ConfigDict], Experiment]) -> Experiment:
  """The `experiment` of the system `build`, trained on images of which regions are erased.

  build: as in `parts.experiment`.  Where the user gives no mask, nothing is known.
  Raises InputError for data that are no images of integers.
  """
  x = data.resolve(config.data).x
  if len(x.shape) != 3 or x.levels is None:
    raise InputError('config.data.name', str(x), 'regions are erased of images of integers',
                     'name data of images')
  height, width, _ = x.shape

  def make(images: Array, keys: Array | None) -> dict[str, Array]:
    mask = (jnp.zeros((len(images), height, width, 1), jnp.int32) if keys is None else
            erased(keys, height, width))
    return {KNOWN: images, MASK: mask}
  return experiment(parts.experiment(
      config, (fields.integers(KNOWN, x.shape, x.levels),
               fields.integers(MASK, (height, width, 1), 2)), make, build))
