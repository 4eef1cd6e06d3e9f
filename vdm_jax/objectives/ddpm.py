"""Objectives of DDPM: L_simple, and the bound L of its chain.

Ho, Jain and Abbeel (2020).  The chain has T steps, and z_0 is the data.  The network estimates the
noise, and the variances of the reverse steps are fixed.

    L_simple = E |eps - eps_hat|^2,   t uniform among the steps              eq. 14
    L = E[L_T + sum_(t > 1) L_(t-1) + L_0]                                   eq. 5

L is `vlb.discrete` with the variance and the last step of the paper.  L_simple is no bound: it is L
with other weights of the steps.  In continuous time it is `weightings.simple`.  For another target
y = a x + b eps, |y - y_hat|^2 is one more weighting of the same error: see `weightings`.
"""
import jax
import jax.numpy as jnp

from vdm_jax import random, targets
from vdm_jax.objectives import vlb
from vdm_jax.processes import diffuse
from vdm_jax.typing import Array, Decoder, Denoiser, Process, PyTree, Target
from vdm_jax.units import sum_over_data


def simple(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
           cond: PyTree = None, *, steps: int | None = None, target: Target = targets.eps,
           eps: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """|y - y_hat|^2, a sum over the data: L_simple of Ho et al. (2020), eq. 14, where y is eps.

  x: [B, ...]; t, keys: [B].  steps: T, or None for continuous time.  target: y, see `targets`.
  Returns [B] and {'eps_error'}, |eps - eps_hat|^2.
  """
  level = process(t if steps is None else vlb.step_number(t, steps) / steps)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  estimate = denoise(diffuse(x, eps, level), level, cond)
  a, b = target(level.expand(x))
  error = eps - estimate.eps
  loss = sum_over_data(jnp.square(a * (x - estimate.x) + b * error))
  return loss, {'eps_error': sum_over_data(jnp.square(error))}


def bound(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
          cond: PyTree = None, *, steps: int, data: Array, last: vlb.LastStep,
          variance: vlb.Variance = vlb.fixed_large, eps: Array | None = None
          ) -> tuple[Array, dict[str, Array]]:
  """One-sample estimate of L, Ho et al. (2020), eq. 5, for a chain that begins at the data.

  last: log p(data | z_1) of their section 3.3, `decoders.DiscretisedNormal(levels).log_prob`.
  variance: beta_t, as published, or `vlb.fixed_small`.  The rest is as in `vlb.discrete`.
  """
  return vlb.discrete(denoise, process, x, t, keys, cond, steps=steps, data=data, decoder=None,
                      variance=variance, last=last, eps=eps)


def objective(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, steps: int, data: Array, decoder: Decoder,
              variance: vlb.Variance = vlb.fixed_large, last: vlb.LastStep | None = None,
              first: Array | None = None, eps: Array | None = None, eps_0: Array | None = None
              ) -> tuple[Array, dict[str, Array]]:
  """L_simple for T = `steps`, and the bound from the same evaluation of the network.

  No gradient of the bound reaches the estimate of x or eps, but it reaches a learned variance.
  x: [B, ...]; t, keys: [B]; variance, last, first, eps, eps_0 as in `vlb.discrete`.  Returns [B]
  and the terms: 'vlb' (the chain's bound in nats), its three terms, and 'eps_error' (L_simple).
  """
  at_t = process(vlb.step_number(t, steps) / steps)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  estimate = denoise(diffuse(x, eps, at_t), at_t, cond)
  loss, terms = simple(lambda *_: estimate, process, x, t, keys, steps=steps, eps=eps)
  mean = jax.lax.stop_gradient((estimate.x, estimate.eps))
  fixed = estimate._replace(x=mean[0], eps=mean[1])
  nats, parts = vlb.discrete(lambda *_: fixed, process, x, t, keys, steps=steps, data=data,
                             decoder=decoder, variance=variance, last=last, first=first, eps=eps,
                             eps_0=eps_0)
  return loss, {'vlb': nats, **parts, **terms}
