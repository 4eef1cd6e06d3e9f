"""The losses of stochastic interpolants: quadratic losses of the velocity and of the noise.

Albergo, Boffi and Vanden-Eijnden (2023), 2303.08797.  To learn E[y | z] of a target y, the loss is

    1/2 |y_hat|^2 - y_hat . y,

which equals 1/2 |y_hat - y|^2 up to a term that does not depend on y_hat.  The targets are

    velocity  da x + db y                          v
    drift     da x + db y + dgamma eps             b
    score     -eps / gamma                         s
    noise     eps                                  E[eps | z], and s = -noise / gamma

gamma' and 1 / gamma are infinite at the ends.  The authors' antithetic form, the mean over eps and
-eps, keeps the variance of `drift` and `score` finite there.  Their code has the sum over eps and
-eps instead of the mean.  The eta of their code estimates -eps.
"""
from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.interpolants import Coefficients, Interpolant, interpolate
from vdm_jax.typing import Array, PyTree
from vdm_jax.units import sum_over_data

Network = Callable[[Array, Array, PyTree], Array]  # z [B, ...], t [B], cond -> [B, ...]
Of = Literal['velocity', 'drift', 'score', 'noise']


def target(of: Of, x: Array, y: Array, eps: Array, at: Coefficients) -> Array:
  """The regression target of the table above: [B, ...]."""
  at = at.expand(x)
  if of == 'noise':
    return eps
  if of == 'score':
    return -eps / at.gamma
  velocity = at.da * x + at.db * y
  return velocity + at.dgamma * eps if of == 'drift' else velocity


def half_square(estimate: Array, of: Array) -> Array:
  """1/2 |estimate|^2 - estimate . of, a sum over the data: [B]."""
  return sum_over_data(0.5 * jnp.square(estimate) - estimate * of)


def objective(network: Network, interpolant: Interpolant, x: Array, y: Array, t: Array,
              keys: Array, cond: PyTree = None, *, of: Of, antithetic: bool = True,
              eps: Array | None = None) -> Array:
  """The quadratic loss of one network: [B].  Albergo et al. (2023), eq. 2.13, 2.16, 2.19, 2.29.

  x is at t = 0 and y at t = 1: [B, ...], of any coupling; t, keys: [B].  antithetic: take the mean
  over eps and -eps, at two evaluations of the network.
  """
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  at = interpolant(t)
  one = lambda eps: half_square(network(interpolate(x, y, eps, at), t, cond),
                                target(of, x, y, eps, at))
  return 0.5 * (one(eps) + one(-eps)) if antithetic else one(eps)


def joint(network: Network, interpolant: Interpolant, x: Array, y: Array, t: Array, keys: Array,
          cond: PyTree = None, *, eps: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """|v - v_hat|^2 + |eps - eps_hat|^2 of one network with two heads: [B] and its two terms.

  Returns [B] and {'velocity_error', 'noise_error'} [B].  Both targets are finite at both ends, so
  no antithetic pair is needed.  The drift is v - dgamma noise, and the score is -noise / gamma.
  network: -> [B, ..., 2 C], velocity and noise.
  """
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  at = interpolant(t)
  velocity, noise = jnp.split(network(interpolate(x, y, eps, at), t, cond), 2, axis=-1)
  error = lambda estimate, of: sum_over_data(jnp.square(estimate - target(of, x, y, eps, at)))
  of_velocity, of_noise = error(velocity, 'velocity'), error(noise, 'noise')
  return of_velocity + of_noise, {'velocity_error': of_velocity, 'noise_error': of_noise}
