"""Matching of the score's derivatives, on which the likelihood of the probability flow depends.

The bound of `vlb` is for the reverse SDE, and depends on the score alone.  The probability flow is
another model.  Its -log density is bounded by the errors of the score, of the score's Jacobian, and
of the gradient of the Jacobian's trace.  Source: Lu et al. (2022), `Maximum Likelihood Training for
Score-Based Diffusion ODEs by High-Order Denoising Score Matching`.  Let s be the score of z.  Given
z, the noise has the mean eps_hat = -sigma s, the covariance I + sigma^2 ds and the third cumulant
-sigma^3 dds.  Let l = eps - eps_hat, which is sigma s + eps, and J = sigma d eps_hat / dz, which is
-sigma^2 ds.  The errors

    matrix   | I - J - l l^T |_F^2
    trace    ( tr(I - J) - |l|^2 )^2
    third    | -sigma d tr(J)/dz + (|l|^2 - tr(I - J) - 2 (I - J)) l |^2

are, at a true s, least in expectation where J and d tr(J)/dz are also true.  l is treated as a
constant, and so is the J beside l in `third`: no gradient flows through them.  The equations, and
the estimates from random probes, are as in the public code of the paper.  The probes v enter only
through averages of v v^T, with E[v v^T] = I.  So sqrt(d) times the basis gives the exact terms.
"""

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.objectives import proposals, vlb
from vdm_jax.objectives.probes import Probes, along, rademacher
from vdm_jax.processes import diffuse
from vdm_jax.typing import Array, Decoder, Denoiser, Estimate, Level, Process, PyTree
from vdm_jax.units import sum_of_terms, sum_over_data


def _dot(u, v):
  """[P, B, ...], [.., B, ...] -> [P, B]."""
  return jax.vmap(sum_over_data)(u * v)


def errors(denoise: Denoiser, z: Array, eps: Array, level: Level, probes: Array,
           cond: PyTree = None, *, third: bool = True) -> tuple[Estimate, dict[str, Array]]:
  """The estimate at z = alpha x + sigma eps, and {'matrix', 'trace', 'third'} [B], defined above.

  Lu et al. (2022), as in their public code.  z, eps: [B, ...]; probes: [P, B, ...].  With one
  random probe, 'trace' is the square of v^T (I - J - l l^T) v.  Its expectation contains more than
  the square of the trace, but is least at the same J.  third: False leaves out 'third', and with it
  a second derivative.
  """
  def square(z):  # v^T J v summed over all examples, each of which has its own z
    estimate, moved = along(denoise, z, level, probes, cond)
    return jnp.sum(jnp.mean(_dot(probes, moved), axis=0)), (estimate, moved)

  if third:
    slope, (estimate, moved) = jax.grad(square, has_aux=True)(z)
  else:
    _, (estimate, moved) = square(z)
  fixed = jax.lax.stop_gradient
  miss = eps - fixed(estimate.eps)
  wide = lambda u: u.reshape(*u.shape, *(1,) * (z.ndim - 1))  # [P, B] -> [P, B, 1 ...]
  share = _dot(probes, miss)
  residual = probes - moved - wide(share) * miss
  terms = {'matrix': jnp.mean(_dot(residual, residual), axis=0),
           'trace': jnp.square(jnp.mean(_dot(probes, residual), axis=0))}
  if third:
    unexplained = fixed(probes - moved)  # (I - J) v
    target = (wide(jnp.square(share) - _dot(probes, unexplained)) * miss
              - 2.0 * wide(share) * unexplained)
    off = jnp.mean(target, axis=0) - level.expand(z).sigma * slope
    terms['third'] = sum_over_data(jnp.square(off))
  return estimate, terms


def objective(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, data: Array, decoder: Decoder, second: float = 1.0,
              third: float = 0.0, probes: Probes = rademacher,
              propose: proposals.Proposal = proposals.uniform, eps: Array | None = None,
              eps_0: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """`vlb.continuous` with |l|^2 + second (matrix + trace) / d + third (third) / d^2 for |l|^2.

  The terms are `errors` in d dimensions, divided so that each grows like |l|^2.  With
  second = third = 1, the loss is the loss of the public code of Lu et al. (2022), up to a constant
  factor of the diffusion part: for images, with likelihood weighting and importance-sampled times,
  which are uniform in logsnr.  Their runs start from trained weights.

  Returns nats [B] and the terms: 'vlb' (the bound alone), its three terms, and the added terms.
  """
  t, weight = propose(t)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  level = process(t)
  estimate, more = errors(denoise, diffuse(x, eps, level), eps, level,
                          probes(random.stream(keys, 'probes'), x), cond, third=third != 0.0)
  d = x[0].size
  scale = -0.5 * level.dlogsnr * weight
  added = {'second_order': second * scale * (more['matrix'] + more['trace']) / d}
  if third:
    added['third_order'] = third * scale * more['third'] / d**2
  return with_bound(estimate, process, x, t, keys, weight, added, data=data, decoder=decoder,
                    eps=eps, eps_0=eps_0)


def with_bound(estimate: Estimate, process: Process, x: Array, t: Array, keys: Array,
               weight: Array, added: dict[str, Array], *, data: Array, decoder: Decoder,
               eps: Array, eps_0: Array | None) -> tuple[Array, dict[str, Array]]:
  """The continuous bound from a given estimate, with other terms added.

  weight: 1 / density of t, [B].  The results are as for `objective`.
  """
  _, terms = vlb.continuous(lambda *_: estimate, process, x, t, keys, data=data, decoder=decoder,
                            eps=eps, eps_0=eps_0)
  terms['diffusion'] = weight * terms['diffusion']
  bound = sum_of_terms(terms)
  return sum_of_terms({'vlb': bound, **added}), {'vlb': bound, **terms, **added}
