"""DiffEdit: finds the region that a new text changes, and keeps the rest.  Couairon et al. (2023).

1. `difference`: noise is added to the image.  How much do the estimates of noise differ between the
   text that is asked for (the query) and the text of the image (the reference)?
2. `mask`: the region where the difference is large.
3. `edit`: the image is inverted by DDIM, and decoded with the query.  Outside the mask, z follows
   the inversion.

After each step, z and the inversion are blended at the same level.  diffusers blends z with the
inversion of the level before.  There the mask has one mean over the batch; here each image has its
own.  For the reference and the query, `conditioned_on` or `classifier_free` of `vdm_jax.guidance`
give denoisers.
"""
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vdm_jax import random
from vdm_jax.errors import InputError, require
from vdm_jax.processes import diffuse
from vdm_jax.samplers.first_order import ddim, noisier_ddim
from vdm_jax.samplers.inpainting import blended
from vdm_jax.samplers.sampling import check_grid, encode, sample
from vdm_jax.typing import Array, ArrayLike, Denoiser, Process, PyTree, SamplerMaker


def noises(keys: Array, like: Array, n: int = 10) -> Array:
  """The noises of `difference`: [n, B, ...], n of each example.  keys: [B]."""
  return jnp.stack([random.normal(random.stream(keys, f'mask_{i}'), like) for i in range(n)])


def difference(query: Denoiser, reference: Denoiser, process: Process, x: Array, eps: Array,
               t: ArrayLike = 0.5, cond: PyTree = None) -> Array:
  """Mean of |eps_hat(query) - eps_hat(reference)| over noises and channels: [B, H, W].

  Couairon et al. (2023), step 1.  x: [B, H, W, C]; eps: [n, B, H, W, C], `noises`.  t:
  the time of the noise.
  """
  level = process(t)

  def add(total, one):
    z = diffuse(x, one, level)
    apart = jnp.abs(query(z, level, cond).eps - reference(z, level, cond).eps)
    return total + jnp.mean(apart, axis=-1), None
  return jax.lax.scan(add, jnp.zeros(x.shape[:-1], x.dtype), eps)[0] / len(eps)


def mask(maps: Array, ratio: float = 3.0) -> Array:
  """Where the map is above half of `ratio` times its mean: bool [B, H, W, 1].  maps: [B, H, W].

  In diffusers, values above ratio times the mean are set to it, the map is divided by it, and the
  threshold is 1/2: this is the same region.  The paper (step 1) removes outliers, scales to
  [0, 1] and has the threshold 1/2.

  If the map is constant in a region, and 0 elsewhere, the region's share of the image must be below
  2 / ratio.  A larger region also has a larger mean, so it is not above ratio / 2 times this mean.

  Raises InputError if the mask of an image is empty.  Under `jit`, where values are unknown, the
  mask stays empty, and `edit` then returns the image.
  """
  require(ratio > 0.0, 'ratio', ratio, 'it must be above 0')
  found = maps > 0.5 * ratio * jnp.mean(maps, axis=(1, 2), keepdims=True)
  if not isinstance(found, Tracer):
    empty = np.flatnonzero(~np.asarray(found).any(axis=(1, 2)))
    if empty.size:
      i = int(empty[0])
      even = np.ptp(np.asarray(maps[i])) == 0.0
      raise InputError(
          'ratio', ratio, f'the mask of image {i} is empty: ' + (
              'both texts have the same estimate at all pixels' if even else 'no pixel is above '
              f'{ratio / 2:g} times the mean, perhaps because the texts differ in a share of the '
              f'image of 2 / ratio = {2 / ratio:.2g} or more'),
          'choose other texts' if even else 'choose a smaller ratio')
  return found[..., None]


def edit(query: Denoiser, reference: Denoiser, process: Process, keys: Array, x: Array,
         where: Array, times: Array | np.ndarray, invert: SamplerMaker = noisier_ddim,
         decode: SamplerMaker = ddim) -> Array:
  """The edited image, z at the last time: x, redrawn by the query where `where` is True: [B, ...].

  Couairon et al. (2023), steps 2 and 3.  The paper inverts without a text: then
  `reference` is the denoiser without a text.

  x: z at the last time of the grid.  where: bool, broadcasts to x.  times: down from the strength
  of the edit, for example 0.8.  invert, decode: deterministic samplers of one step; the inversion
  runs up the same times.  Raises InputError as `sample` does.
  """
  check_grid(times)
  up = invert(reference, process)
  _, path = encode(up, keys, x, times[::-1], trace=up.value)
  start = path[-1]
  return sample(blended(decode(query, process), path[::-1], where), keys, start, times)
