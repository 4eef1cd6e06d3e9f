"""Guided distillation, first stage: one network whose input is the weight of the guidance.

Meng, Rombach, Gao, Kingma, Ermon, Ho and Salimans (2023), On Distillation of Guided Diffusion
Models.  Classifier-free guidance evaluates a network twice, with the label and without it.  The
student makes one evaluation.  It reads the weight w beside the label, and learns

    x_hat(z, label, w) = (1 + w) x_hat_c(z) - w x_hat_u(z),    w ~ U[w_min, w_max].

The second stage halves the steps of that student's sampler: `progressive`, with w drawn anew.
"""
import jax.numpy as jnp

from vdm_jax import random, weightings
from vdm_jax.processes import diffuse, inside
from vdm_jax.typing import Array, Denoiser, Process, PyTree, Weighting
from vdm_jax.units import sum_over_data


def draw_weights(keys: Array, low: float = 0.0, high: float = 4.0) -> Array:
  """w ~ U[low, high], one for each example: keys [B] -> [B]."""
  return low + (high - low) * random.uniform(random.stream(keys, 'guidance'),
                                             jnp.zeros(keys.shape[:1]))


def objective(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, teacher: Denoiser,
              weight: Weighting = weightings.OF_X['truncated_snr'], eps: Array | None = None
              ) -> tuple[Array, dict[str, Array]]:
  """w(level) |x_hat_teacher(z_t) - x_hat(z_t)|^2 at t ~ U[0, 1]: a sum over the data.

  Meng et al. (2023), section 3.1.  teacher: the guided denoiser, `guidance.classifier_free`,
  given the same `cond`.  weight: of `weightings.OF_X`.  x: [B, ...]; t, keys: [B].  eps: the noise,
  drawn from `keys` if not given.  Returns [B] and {'x_error'}, without the weight.
  """
  level = process(inside(process, t))
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  z = diffuse(x, eps, level)
  error = sum_over_data(jnp.square(teacher(z, level, cond).x - denoise(z, level, cond).x))
  return weight(level) * error, {'x_error': error}
