"""Score distillation: the parameters of a picture, found by the denoiser of a trained model.

Poole, Jain, Barron and Mildenhall (2023), DreamFusion, eq. 3.  The gradient for a picture x =
g(theta) is

    E_(t, eps)  w(t) (eps_hat(z_t) - eps) dx / dtheta,    z_t = alpha x + sigma eps.

The denoising loss w |eps_hat - eps|^2 would have the Jacobian of the network as a further
factor.  Here the network is only evaluated, so a theta costs one evaluation of the network for each
picture, and guidance two.

The mean of the residual eps_hat - eps is sigma alpha (x - m) / (alpha^2 s^2 + sigma^2) for data
N(m, s^2), and sigma times the negative score of z_t in general.  So x goes to a mode of the noisy
densities, and is no sample of the data.  A guided denoiser moves the mode away from the data:
colours are then too saturated.  DreamFusion guides by eps_u + 100 (eps_c - eps_u), which is
`guidance.classifier_free` with w = 99.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.processes import diffuse
from vdm_jax.typing import Array, Denoiser, Level, Process, PyTree, Weighting
from vdm_jax.units import sum_over_data


def variance(level: Level) -> Array:
  """sigma^2 of the `vp` curve at this logsnr: the w of DreamFusion's public reimplementation."""
  return jax.nn.sigmoid(-level.logsnr)


def objective(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, weight: Weighting = variance, first: float = 0.02,
              last: float = 0.98, eps: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """The inner product of x with w (eps_hat - eps), which is held constant: [B].

  Poole et al. (2023), eq. 3.  The gradient of this number is the gradient of score distillation,
  for any parameters of which x is a function.  The number itself says nothing; the denoising loss
  does: the terms are {'diffusion': w |eps_hat - eps|^2, 'eps_error': |eps_hat - eps|^2}.

  Args:
    x: [B, ...], the pictures.
    t: [B], uniform on [0, 1]; the times are first + (last - first) t.
    keys: [B].
    weight: the factor w of eps_hat - eps, and not of the bound as in `weightings`.
    eps: the noise; drawn from `keys` by default.
  """
  level = process(first + (last - first) * t)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  estimate = denoise(diffuse(jax.lax.stop_gradient(x), eps, level), level, cond)
  residual = jax.lax.stop_gradient(estimate.eps - eps)
  w = jax.lax.stop_gradient(weight(level.expand(x)))
  square = jnp.square(residual)
  return sum_over_data(x * w * residual), {'diffusion': sum_over_data(w * square),
                                           'eps_error': sum_over_data(square)}


def gradient(denoise: Denoiser, process: Process, render: Callable[[PyTree], Array], theta: PyTree,
             t: Array, keys: Array, cond: PyTree = None, **options
             ) -> tuple[PyTree, dict[str, Array]]:
  """The gradient of score distillation for x = render(theta) [B, ...]: the mean over the B draws.

  options: of `objective`, which describes t, keys and the terms [B].  Returns a tree like theta.
  """
  def loss(theta):
    each, terms = objective(denoise, process, render(theta), t, keys, cond, **options)
    return jnp.mean(each), terms
  return jax.grad(loss, has_aux=True)(theta)
