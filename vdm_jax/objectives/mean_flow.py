"""MeanFlow: the average velocity between two times, with which one step makes the whole flow.

Geng, Deng, Bai, Kolter and He (2025), 2505.13447; their time is ours.  On straight lines,
z_t = (1 - t) x + t eps and v = eps - x, the average velocity

    u(z_t, r, t) = 1 / (t - r) int_r^t v dtau    obeys    u = v - (t - r) du/dt

(their eq. 3 and 6), with du/dt = v d_z u + d_t u along the path: one product with the Jacobian.
The network is regressed on the right side, without its gradient.  Where r = t the loss is flow
matching.  A step from t to r is z_r = z_t - (t - r) u, so one step from noise to data is
z_1 - u(z_1, 0, 1).

An average velocity has two times, so it is no estimate of x and eps at one level.  So the network
here is a function of (z, r, t), and no `Denoiser`.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.typing import Array
from vdm_jax.units import sum_over_data

Network = Callable[[Array, Array, Array], Array]  # z [B, ...], r [B], t [B] -> [B, ...]


def times(t: Array, keys: Array, same: float = 0.75) -> tuple[Array, Array]:
  """(r, t) with r <= t: the smaller and the larger of t [B] and another uniform time.

  same: the share of examples with r = t, for which only t is kept; 0.75 in the paper's best
  configurations.
  """
  other, u = (random.uniform(random.stream(keys, name), t) for name in ('r', 'same'))
  first, last = jnp.minimum(t, other), jnp.maximum(t, other)
  alone = u < same
  return jnp.where(alone, t, first), jnp.where(alone, t, last)


def objective(network: Network, x: Array, r: Array, t: Array, keys: Array, *, power: float = 1.0,
              eps: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """|u_hat - (v - (t - r) du/dt)|^2, adaptively weighted: [B], {'velocity_error'} [B].

  Geng et al. (2025), eq. 9, 10.  x: [B, ...]; r, t, keys: [B].  power: p of their adaptive weight
  1 / (error + 1e-3)^p, through which no gradient goes; 0 gives no weight.  'velocity_error' has no
  weight.
  """
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  wide = lambda u: u.reshape(-1, *[1] * (x.ndim - 1))
  z, v = (1.0 - wide(t)) * x + wide(t) * eps, eps - x
  u, slope = jax.jvp(network, (z, r, t), (v, jnp.zeros_like(r), jnp.ones_like(t)))
  target = jax.lax.stop_gradient(v - wide(t - r) * slope)
  error = sum_over_data(jnp.square(u - target))
  weight = jax.lax.stop_gradient((error + 1e-3) ** -power)
  return weight * error, {'velocity_error': error}


def step(network: Network, z: Array, t: Array, r: Array) -> Array:
  """z_r = z_t - (t - r) u(z_t, r, t).  z: [B, ...]; t, r: [B].  Geng et al. (2025), algorithm 2."""
  length = (t - r).reshape(-1, *[1] * (z.ndim - 1))
  return z - length * network(z, r, t)
