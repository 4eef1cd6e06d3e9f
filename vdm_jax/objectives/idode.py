"""Velocity objectives of i-DODE: a target of unit scale, importance-sampled times, second order.

Zheng, Lu, Chen and Zhu (2023), `Improved Techniques for Maximum Likelihood Estimation for Diffusion
ODEs`; formulae as in their public code.  The network is the network of VDM, with gamma linear and
fixed.  It predicts F with eps = c z + k F, on one of two curves:

    vp     (alpha^2 + sigma^2 = 1)   F = (eps - sigma z) / alpha          k = alpha
    flow   (alpha + sigma = 1)       F = (eps - z) / (sqrt(2) alpha)      k = sqrt(2) alpha

On `vp`, F is v = alpha eps - sigma x; on `flow`, F is (eps - x) / sqrt(2).  For data of unit
variance both have unit variance.  In the bound, |eps - eps_hat|^2 is k^2 |F - F_hat|^2.  If logsnr
is drawn with a density in proportion to k^2, the weight is constant, 1/2 int k^2 dlogsnr
|F - F_hat|^2.  This is importance sampling of the same integral (`proposals.by_mass` with
`vp_mass`, `sp_mass`).  A schedule with that density does the same.

The second-order term, for fine-tuning, fits sigma div F to |F - F_hat|^2.  In units of F, the term
is (sigma div F - alpha (d - |F - F_hat|^2))^2 / d on `vp`.  With its weight k^2 it is

    ( tr(J) - (d - |eps - eps_hat|^2) )^2 / d,    J = sigma d eps_hat / dz,

for either target: the `trace` of `score_ode`.  For tr(J) the authors take one random v^T J v, but
the exact |eps - eps_hat|^2.  So the expectation is the square of the trace, plus the variance of
the probe, 2 sum_(i != j) J_ij^2 (J symmetric).  The variance draws the off-diagonals of J towards
0, but they are not 0 unless the data's dimensions are independent.  In the `trace` of `score_ode`
the probe sees l l^T too, and the minimum is at the true J.
"""
import math

import jax
import jax.numpy as jnp

from vdm_jax import random, targets
from vdm_jax.objectives.probes import Probes, along, rademacher
from vdm_jax.objectives.proposals import Proposal
from vdm_jax.objectives.score_ode import with_bound
from vdm_jax.processes import diffuse
from vdm_jax.typing import Array, Decoder, Denoiser, Level, Process, PyTree, Target
from vdm_jax.units import sum_over_data

vp_target: Target = targets.v


def sp_target(level: Level) -> tuple[Array, Array]:
  """(eps - x) / sqrt(2), which on the `flow` curve is (eps - z) / (sqrt(2) alpha)."""
  a, b = targets.flow(level)
  return math.sqrt(0.5) * a, math.sqrt(0.5) * b


def vp_mass(logsnr: Array) -> Array:
  """int alpha^2 dlogsnr on the `vp` curve, log(1 + SNR): k^2 of `vp_target`."""
  return jax.nn.softplus(logsnr)


def sp_mass(logsnr: Array) -> Array:
  """int 2 alpha^2 dlogsnr on the `flow` curve: k^2 of `sp_target`."""
  return 4.0 * (jax.nn.softplus(0.5 * logsnr) - jax.nn.sigmoid(0.5 * logsnr))


def objective(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, propose: Proposal, data: Array, decoder: Decoder,
              second: float = 0.0, probes: Probes = rademacher, eps: Array | None = None,
              eps_0: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """The bound by velocities, Zheng et al. (2023); second > 0 adds their second-order term.

  The caller must pass a denoiser that predicts a velocity, and a `propose` with its density.
  x: [B, ...]; t, keys: [B].  second: 0.1 in their public code.  Returns nats [B] and the terms:
  'vlb' (the bound alone), its three terms, and 'second_order'.
  """
  t, weight = propose(t)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  level = process(t)
  z = diffuse(x, eps, level)
  added = {}
  if second:
    v = probes(random.stream(keys, 'probes'), x)
    estimate, moved = along(denoise, z, level, v, cond)
    trace = jnp.mean(jax.vmap(sum_over_data)(v * moved), axis=0)
    # The error is what the trace is fitted to, and is not fitted to the trace.
    error = sum_over_data(jnp.square(eps - jax.lax.stop_gradient(estimate.eps)))
    d = x[0].size
    added['second_order'] = (second * weight * -0.5 * level.dlogsnr
                             * jnp.square(trace - (d - error)) / d)
  else:
    estimate = denoise(z, level, cond)
  return with_bound(estimate, process, x, t, keys, weight, added, data=data, decoder=decoder,
                    eps=eps, eps_0=eps_0)
