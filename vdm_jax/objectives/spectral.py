"""Distillation of a small student by its teacher's spectrum: rare frequencies weigh more.

Yang et al. (2023), `Diffusion Probabilistic Model Made Slim`, cited from a secondary source; their
code is not public.  With Y the output of teacher or student at z, and F the Fourier transform of
images,

    L = L_simple + spatial sum |Y_T - Y_S|^2 + spectral sum w |F Y_T - F Y_S|^2,   w = 1 / |F x|,

so a frequency weighs more if the datum has little of it.  The transform is not normalised: with
w = 1 the last sum is H W times the sum before it (Parseval).  The weight has no limit where x has
nothing of a frequency, so |F x| is kept above a floor.  In the paper Y is outputs and features;
here Y is outputs.
"""
import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.objectives import vlb
from vdm_jax.processes import diffuse
from vdm_jax.typing import Array, Denoiser, Process, PyTree
from vdm_jax.units import sum_over_data


def inverse_spectrum(x: Array, floor: float) -> Array:
  """1 / max(|F x|, floor), [B, H, W, C].  x: [B, H, W, C]; floor: above 0, in units of F x."""
  return 1.0 / jnp.maximum(jnp.abs(_fourier(x)), floor)


def spectral_square(difference: Array, weight: Array | float = 1.0) -> Array:
  """sum w |F d|^2 over an image d, [B].  difference: [B, H, W, C]; weight: w, of that shape."""
  transformed = _fourier(difference)
  return sum_over_data(weight * (jnp.square(transformed.real) + jnp.square(transformed.imag)))


def _fourier(images: Array) -> Array:
  return jnp.fft.fft2(images, axes=(1, 2))


def distilled(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, teacher: Denoiser, steps: int, spatial: float = 0.1,
              spectral: float = 0.1, floor: float = 1.0, eps: Array | None = None
              ) -> tuple[Array, dict[str, Array]]:
  """The loss L above for a chain of T = `steps` and estimates Y of eps; `denoise` is the student.

  x: images [B, H, W, C]; t, keys: [B].  No gradient reaches the teacher.  Returns [B] and
  {'eps_error', 'spatial', 'spectral'}: L_simple and the two sums without their factors.
  """
  level = process(vlb.step_number(t, steps) / steps)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  z = diffuse(x, eps, level)
  own = denoise(z, level, cond).eps
  apart = jax.lax.stop_gradient(teacher(z, level, cond).eps) - own
  terms = {'eps_error': sum_over_data(jnp.square(eps - own)),
           'spatial': sum_over_data(jnp.square(apart)),
           'spectral': spectral_square(apart, inverse_spectrum(x, floor))}
  return terms['eps_error'] + spatial * terms['spatial'] + spectral * terms['spectral'], terms
