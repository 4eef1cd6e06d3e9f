"""EDM's stochastic sampler: raise the noise level a little, then integrate the flow down.

Karras et al. (2022), section 4.  With r = sigma / alpha their equations hold on every curve:
noise is added in the coordinate z / alpha, where the level is r, and the flow is integrated in r.
"""
from typing import NamedTuple

import jax.numpy as jnp
from jax.core import Tracer

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.processes import time_of
from vdm_jax.samplers.multistep import real_steps
from vdm_jax.samplers.runge_kutta import HEUN, RhoPlan, Tableau, check, rho_plan, rho_step
from vdm_jax.typing import Array, Denoiser, Process, Sampler


class _Plan(NamedTuple):
  keep: Array     # [N] alpha_hat / alpha, what becomes of z
  fresh: Array    # [N] standard deviation of the noise that is added
  flow: RhoPlan


def edm(denoise: Denoiser, process: Process, s_churn: float = 0.0, s_tmin: float = 0.0,
        s_tmax: float = float('inf'), s_noise: float = 1.0, tableau: Tableau = HEUN) -> Sampler:
  """z_hat / alpha_hat = z / alpha + s_noise sqrt(r_hat^2 - r^2) noise; then the flow, r_hat -> r_s.

  Karras et al. (2022), algorithm 2: r_hat = (1 + gamma) r, gamma = min(s_churn / N, sqrt(2) - 1)
  where r = sigma / alpha is in [s_tmin, s_tmax] and 0 elsewhere; N, the number of steps of the
  grid.  s_churn = 0 is algorithm 1.  The flow is integrated by `rho_rk`, in the paper with Heun's
  method.  A step takes two evaluations; so does the last step, where the paper needs one.

  A level above the largest level of the process is lowered to it, so the network sees only levels
  that it was trained on.  So a step from the very start of a process adds no noise, and neither
  does a step where r is infinite.
  Raises InputError if s_churn < 0.
  """
  check(tableau)
  if not isinstance(s_churn, Tracer) and s_churn < 0.0:
    raise InputError('s_churn', s_churn, 'it is negative', 'give 0 (no noise is added) or more')

  def plan(times):
    t, s = times[:-1], times[1:]
    level = process(t)
    ratio = level.sigma / level.alpha
    gamma = jnp.minimum(s_churn / real_steps(times), 2.0**0.5 - 1.0)
    raised = (gamma > 0.0) & (ratio >= s_tmin) & (ratio <= s_tmax) & jnp.isfinite(level.logsnr)
    t_hat = jnp.where(raised, time_of(process, level.logsnr - 2.0 * jnp.log1p(gamma)), t)
    hat = process(t_hat)
    # r_hat^2 - r^2 from logsnr, which does not cancel; times alpha_hat, for z itself.
    change = jnp.where(raised, jnp.maximum(level.logsnr - hat.logsnr, 0.0), 0.0)
    return _Plan(keep=jnp.where(raised, hat.alpha / level.alpha, 1.0),
                 fresh=s_noise * hat.sigma * jnp.sqrt(-jnp.expm1(-change)),
                 flow=rho_plan(process, tableau, t_hat, s))

  def step(keys, z, t, s, plan):
    del t
    noise = random.normal(random.stream(keys, 'noise'), z)
    return rho_step(denoise, process, tableau, plan.keep * z + plan.fresh * noise, s, plan.flow)

  return Sampler(step, plan=plan, evaluations=len(tableau.c))
