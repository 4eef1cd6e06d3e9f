"""A coupling of data and noise that is learned, so that trajectories bend less.

Lee, Kim and Ye (2023), 2301.12003: eps ~ q(eps | x) = N(mu(x), diag std(x)^2), learned with the
flow,

    1/D E|dalpha x + dsigma eps - u_hat|^2 + beta / D E KL(q(eps | x) || N(0, I)).

Both terms are means over the dimensions, as in the authors' code.  So beta weighs KL / D; it is 20
on CIFAR-10.  The gradient reaches q through eps, in the input and in the target.  After training,
the flow holds the coupling, and the encoder is dropped.

Samples start from N(0, I), but the divergence does not keep the marginal of eps at N(0, I).  For
data N(0, 1/4) the standard deviation of eps is 0.98088 at beta = 20, and 0.79342 at beta = 1.
"""
from collections.abc import Callable

import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.objectives import flow_matching
from vdm_jax.typing import Array, Denoiser, Process, PyTree
from vdm_jax.units import sum_over_data

Encoder = Callable[[Array], tuple[Array, Array]]  # x -> mean, log variance of eps: [B, ...] each


def divergence(mean: Array, log_variance: Array) -> Array:
  """KL(N(mean, exp(log_variance)) || N(0, I)) in nats: [B, ...] -> [B]."""
  return 0.5 * sum_over_data(jnp.square(mean) + jnp.expm1(log_variance) - log_variance)


def objective(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, encode: Encoder, beta: float = 20.0,
              noise: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """|u - u_hat|^2 + beta KL, sums over the data: [B], {'velocity_error', 'divergence'} [B].

  Lee et al. (2023).  Divided by D, the value is the authors' loss.
  x: [B, ...]; t, keys: [B].  noise: the standard normal numbers that make eps.
  """
  mean, log_variance = encode(x)
  if noise is None:
    noise = random.normal(random.stream(keys, 'eps'), x)
  eps = mean + jnp.exp(0.5 * log_variance) * noise
  error, _ = flow_matching.objective(denoise, process, x, t, keys, cond, eps=eps)
  kl = divergence(mean, log_variance)
  return error + beta * kl, {'velocity_error': error, 'divergence': kl}
