"""Models that are told a small image: the upsamplers of a cascade (Ho et al. 2022).

A cascade draws a small image by one model, and then larger ones by models that are told the smaller
image.  The small image of an example is the mean of its pixels in blocks of F x F, as a level.

A model errs, so its small images are not those of the data.  Conditioning augmentation (Ho et al.
2022, section 3.3, "non-truncated") makes the upsampler robust.  In training it is told

    y_s = alpha_s y + sigma_s eps,   s uniform in [0, S],

and s, where y is the small image from -1 to 1, and the levels are those of a process.  In sampling
the small image is complete, and then gets the noise of an s that the user chooses, after training.
"""
from collections.abc import Callable

import jax.numpy as jnp
import ml_collections

from vdm_jax import data, random
from vdm_jax.data import fields
from vdm_jax.data.images import block_means
from vdm_jax.errors import InputError
from vdm_jax.nn.unets.glide import LOW_RES, LOW_RES_NOISE
from vdm_jax.processes import diffuse
from vdm_jax.systems import compose
from vdm_jax.systems.guided import parts
from vdm_jax.typing import Array, Experiment, Process, PyTree


def experiment(config: ml_collections.ConfigDict, factor: int, process: Process, noise: float,
               build: Callable[[ml_collections.ConfigDict], Experiment]) -> Experiment:
  """The experiment of `build` with the small image as the field `low_res`.

  The network reads it as real numbers from -1 to 1.  With noise > 0, the network also reads the
  field `low_res_noise`, s.  In sampling, s is 0 unless it is given, which is the least noise of the
  process.  The noise is drawn with `Model.latent`.  Models are evaluated without noise.

  Args:
    factor: F.
    process: the levels of s.
    noise: S, the largest s of training.  0: the small image has no noise.
    build: as in `parts.experiment`.

  Raises InputError: images that blocks of F x F do not fill; a noise that is no time.
  """
  x = data.resolve(config.data).x
  compose.require(config, 'upsampling', len(x.shape) == 3 and factor > 1 and not any(
      side % factor for side in x.shape[:2]), f'blocks of so many pixels do not fill {x}',
                  'choose a divisor of both sides, above 1')
  compose.require(config, 'low_res_noise', 0.0 <= noise <= 1.0, 'it is the largest time of the '
                  'noise in training', 'give a number from 0 to 1')
  if x.levels is None:
    raise InputError('config.data.name', str(x), 'small images are made of integers',
                     'name data of images')
  height, width, channels = x.shape
  shape = height // factor, width // factor, channels
  told = (fields.integers(LOW_RES, shape, x.levels),
          *[fields.reals(LOW_RES_NOISE, ())] * (noise > 0.0))
  unit = 2.0 / (x.levels - 1)
  scaled = lambda image: image.astype(jnp.float32) * unit - 1.0

  def noised(image: Array, s: Array, keys: Array) -> Array:
    y = scaled(image)
    return diffuse(y, random.normal(random.stream(keys, LOW_RES), y), process(s))

  def make(images: Array, keys: Array | None) -> dict[str, Array]:
    small = block_means(images, factor)
    if not noise:
      return {LOW_RES: small if keys is None else scaled(small)}
    if keys is None:
      return {LOW_RES: small, LOW_RES_NOISE: jnp.zeros(len(small))}
    s = noise * random.uniform(random.stream(keys, LOW_RES_NOISE), jnp.zeros(len(small)))
    return {LOW_RES: noised(small, s, keys), LOW_RES_NOISE: s}

  base = parts.experiment(config, told, make, build)

  def model(params, keys=None):
    m = base.model(params, keys)

    def reading(change: Callable[[PyTree], Array]):
      """The model whose network reads `change` of its condition as the small image."""
      def cond(batch):
        own = m.cond(batch)
        return {**own, LOW_RES: change(own)}
      return m._replace(cond=cond)

    clean = reading(lambda own: scaled(own[LOW_RES]))
    noisy = lambda keys: reading(lambda own: noised(own[LOW_RES], own[LOW_RES_NOISE], keys))
    return clean._replace(latent=noisy) if noise else clean

  return base._replace(model=model)
