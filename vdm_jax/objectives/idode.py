"""Velocity objectives of i-DODE: a target of unit scale, times that suit it, and its divergence.

Zheng, Lu, Chen and Zhu (2023), `Improved Techniques for Maximum Likelihood Estimation for Diffusion
ODEs`; formulae as in their public code.  The network is VDM's, gamma linear and fixed; it
predicts F with eps = c z + k F, on one of two curves:

    vp     (alpha^2 + sigma^2 = 1)   F = (eps - sigma z) / alpha          k = alpha
    flow   (alpha + sigma = 1)       F = (eps - z) / (sqrt(2) alpha)      k = sqrt(2) alpha

which are v = alpha eps - sigma x, and (eps - x) / sqrt(2): for data of unit variance both have unit
variance.  The bound's |eps - eps_hat|^2 is k^2 |F - F_hat|^2, so that logsnr drawn with a density
in proportion to k^2 leaves a constant weight, 1/2 int k^2 dlogsnr |F - F_hat|^2: importance
sampling of the same integral (`times.by_mass` with `vp_mass`, `sp_mass`), and hence what a schedule
with that density does.

Second order, for fine-tuning: sigma div F is to be what |F - F_hat|^2 says it is.  In units of F
that is (sigma div F - alpha (d - |F - F_hat|^2))^2 / d on `vp`; with its weight k^2 it is

    ( tr(J) - (d - |eps - eps_hat|^2) )^2 / d,    J = sigma d eps_hat / dz,

for either target, the `trace` of `score_ode`.  For tr(J) they take one random v^T J v but the exact
|eps - eps_hat|^2, so that the expectation holds, beside the square of the trace, the variance
2 sum_(i != j) J_ij^2 (J symmetric) of the probe: it draws the off-diagonals of J towards 0, which
are not 0 unless the data's dimensions are independent.  The `trace` of `score_ode`, whose probe
sees l l^T as well, has its minimum at the true J.
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

  That the denoiser predicts a velocity, and that `propose` has its density, is up to the caller.
  x: [B, ...]; t, keys: [B].  second: 0.1 in their public code.  Returns nats [B]; 'vlb', the
  bound alone, its three terms, and 'second_order'.
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
