"""Blurring diffusion models: an image loses its detail while noise comes in.

z_t = a_t B_t x + sigma_t eps, where B_t is a Gaussian blur.  A blur multiplies the coefficients of
the cosine transform, u = DCT(x), so each frequency has its own alpha,

  alpha_t = a_t d_t,   d_t = (1 - least) exp(-frequency^2 width_t^2 / 2) + least,
  width_t = blur_max sin^2(pi t / 2),

and one sigma_t.  The model's x and z are these coefficients; its network sees the image.
Hoogeboom and Salimans (2022), `Blurring diffusion models`, sections 4.1 and 4.2, appendix A.
"""
import jax.numpy as jnp
import ml_collections
from jax.scipy import fft

from vdm_jax import data, random, schedules
from vdm_jax.processes import diffuse, from_alpha_sigma
from vdm_jax.systems import compose, networks
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Array, ArrayLike, Estimate, Experiment, Level, Process, Scalar
from vdm_jax.units import sum_over_data
from vdm_jax.values import static, value


def transform(images: Array) -> Array:
  """The orthonormal cosine transform of images [B, H, W, C]."""
  return fft.dctn(images, axes=(1, 2), norm='ortho')


def inverse(u: Array) -> Array:
  """Images [B, H, W, C] from their cosine transform."""
  return fft.idctn(u, axes=(1, 2), norm='ortho')


@value
class Blurring:
  """`process`, and a blur whose width in pixels is `blur_max` at t = 1: levels [B, H, W, 1].

  A number t has levels [1, H, W, 1].  least: what the blur leaves of every frequency.
  """
  process: Process
  size: tuple[int, int] = static()
  blur_max: Scalar = 20.0
  least: Scalar = 0.001

  def scales(self, t: ArrayLike) -> Array:
    """d_t of each frequency: [B, H, W, 1]."""
    height, width = (jnp.pi * jnp.arange(n) / n for n in self.size)
    squared = jnp.square(height)[:, None, None] + jnp.square(width)[:, None]
    blur = self.blur_max * jnp.square(jnp.sin(0.5 * jnp.pi * jnp.reshape(t, (-1, 1, 1, 1))))
    return (1.0 - self.least) * jnp.exp(-0.5 * jnp.square(blur) * squared) + self.least

  def __call__(self, t: ArrayLike) -> Level:
    each = lambda u: jnp.reshape(u, (-1, 1, 1, 1))
    return from_alpha_sigma(
        lambda t: each(self.process(t).alpha) * self.scales(t),
        lambda t: each(self.process(t).sigma) * jnp.ones((*self.size, 1)))(t)


def objective(denoise, process, x, t, keys, cond=None):
  """|eps - eps_hat|^2 of an image, in nats [B]; of its frequencies, as the transform is a rotation.

  Hoogeboom and Salimans (2022), algorithm 1.
  """
  level = process(t)
  eps = transform(random.normal(random.stream(keys, 'eps'), x))
  error = sum_over_data(jnp.square(eps - denoise(diffuse(x, eps, level), level, cond).eps))
  return error, {'eps_error': error}


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of a VDM, and those of the blur."""
  return vdm.default_config(**{'blur_max': 20.0, 'least': 0.001} | model)


def experiment(config: ml_collections.ConfigDict) -> Experiment:
  """The noise estimate of a U-Net, on a cosine schedule with a blur."""
  m, shape = config.model, data.resolve(config.data).shape
  base = compose.experiment(config, net=networks.unet(config),
                            schedule=schedules.Cosine(*compose.end_points(config)))

  def model(params, keys=None):
    image = base.model(params, keys)  # of the image, as if nothing were blurred

    def denoise(u, level, cond=None):
      eps = transform(image.denoise(inverse(u), image.process(level.t), cond).eps)
      level = level.expand(u)
      return Estimate(x=(u - level.sigma * eps) / level.alpha, eps=eps)

    return image._replace(
        denoise=denoise, process=Blurring(image.process, shape[:2], m.blur_max, m.least),
        encode=lambda pixels: transform(image.encode(pixels)),
        decode=lambda u: image.decode(inverse(u)),
        decoder=lambda pixels, u, level: image.decoder(pixels, inverse(u), image.process(level.t)))

  return base._replace(model=model, loss=compose.loss_of(objective, model, shape))
