"""Recovery: z_s is drawn given the noisier z_t by Langevin dynamics, one level after another.

The marginal q(z_s) alone determines the law of z_s given z_t, up to a factor:

  p(z_s | z_t)  ~  q(z_s) N(z_t; alpha_{t|s} z_s, sigma_{t|s}^2),
  alpha_{t|s} = alpha_t / alpha_s,    sigma_{t|s}^2 = sigma_t^2 tau.

If the two levels are near each other, this law is nearly Gaussian, however many modes q(z_s) has.
So a short Langevin chain draws from it.  `recovery` is a sampler that makes one chain in a step.
The same chain draws the negatives of `objectives.recovery`, which trains an energy.

Gao, Song, Poole, Wu and Kingma (2021), Learning Energy-Based Models by Diffusion Recovery
Likelihood.  Their y is alpha_{t|s} z_s.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.errors import require, require_at_least
from vdm_jax.processes import tau
from vdm_jax.samplers.first_order import transition
from vdm_jax.samplers.langevin import Corrector, mala, ula
from vdm_jax.typing import Array, Denoiser, Level, Process, Sampler
from vdm_jax.units import sum_over_data

# (z, level) -> log q(z) at this level, up to a number for each level: [B]
LogProb = Callable[[Array, Level], Array]


def check(moves: int, step_size: float) -> None:
  """Raises InputError for no moves, and for a step size at which the chain diverges."""
  require_at_least('moves', moves)
  require(0.0 < step_size < 2.0, 'step_size', step_size, 'the chain stays where it is, or diverges',
          'choose a number between 0 and 2, such as 0.2')


def natural(at_t: Level, at_s: Level) -> Level:
  """The level s with sigma_s sqrt(tau), the standard deviation of q(z_s | z_t, x), as its sigma.

  The curvature of -log p(z_s | z_t) is 1 / sigma^2 at most, for any data.  So this sigma is the
  unit of a Langevin step.
  """
  return at_s._replace(sigma=at_s.sigma * jnp.sqrt(tau(at_t, at_s)))


def conditional(denoise: Denoiser, z_t: Array, at_t: Level, at_s: Level) -> Denoiser:
  """The denoiser of p(z_s | z_t): (z_s, natural(at_t, at_s)) -> an Estimate whose score is its own.

  The score is -eps / sigma, with the sigma of `natural`.  x is E[x | z_s].  It needs alpha_s,
  sigma_s > 0 and s < t.
  """
  def denoiser(z, level, cond=None):
    t, s, unit = at_t.expand(z), at_s.expand(z), level.expand(z)
    ratio, std = t.alpha / s.alpha, t.sigma * unit.sigma / s.sigma  # alpha_{t|s}, sigma_{t|s}
    estimate = denoise(z, at_s, cond)
    slope = estimate.eps / s.sigma + ratio * (ratio * z - z_t) / jnp.square(std)
    return estimate._replace(eps=unit.sigma * slope)
  return denoiser


def log_conditional(log_prob: LogProb, z_t: Array, at_t: Level, at_s: Level) -> LogProb:
  """log p(z_s | z_t) up to a number for each example, from log q(z_s) up to such a number."""
  def log_density(z, level):
    t, s, unit = at_t.expand(z), at_s.expand(z), level.expand(z)
    ratio, std = t.alpha / s.alpha, t.sigma * unit.sigma / s.sigma
    return log_prob(z, at_s) - 0.5 * sum_over_data(jnp.square((z_t - ratio * z) / std))
  return log_density


def chain(denoise: Denoiser, keys: Array, z_t: Array, at_t: Level, at_s: Level, *,
          moves: int = 30, step_size: float = 0.2, log_prob: LogProb | None = None) -> Array:
  """z_s after `moves` Langevin moves of p(z_s | z_t), from z_s = z_t / alpha_{t|s}: [B, ...].

  A move has h = step_size sigma_s^2 tau; the paper writes b^2 for 2 h.  With log_prob, a Metropolis
  test follows each move, so p(z_s | z_t) is kept exactly (`langevin.mala`, two evaluations).
  Without it, the variance is too large by a share of step_size / (2 - step_size) at most.

  keys: [B]; z_t: [B, ...].  It needs alpha_t, sigma_s > 0 and s < t.  Raises InputError as `check`.
  """
  check(moves, step_size)
  law, unit = conditional(denoise, z_t, at_t, at_s), natural(at_t, at_s)
  corrector: Corrector = (ula(law, step_size) if log_prob is None else
                          mala(law, log_conditional(log_prob, z_t, at_t, at_s), step_size))

  def move(i, z):
    own = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
    return corrector.step(own, z, unit, unit)

  t, s = at_t.expand(z_t), at_s.expand(z_t)
  return jax.lax.fori_loop(0, moves, move, s.alpha / t.alpha * z_t)


def recovery(denoise: Denoiser, process: Process, moves: int = 30, step_size: float = 0.2,
             log_prob: LogProb | None = None) -> Sampler:
  """A step t -> s is `chain`: z_s is drawn given z_t by Langevin dynamics.

  It takes any denoiser.  With log_prob, such as `energy.log_prob` of an energy, the moves have a
  Metropolis test.  The paper multiplies the noise of the moves by 0.99 when it samples; here the
  chain is the chain of training.

  Where the law is not defined, from alpha_t = 0 or to sigma_s = 0, a step is a step of `ddim`.
  Raises InputError as `check`.
  """
  check(moves, step_size)

  def step(keys, z, t, s, _):
    at_t, at_s = process(t), process(s)
    defined = jnp.all((at_t.alpha > 0.0) & (at_s.sigma > 0.0))
    own = random.stream(keys, 'recovery')
    return jax.lax.cond(
        defined,
        lambda z: chain(denoise, own, z, at_t, at_s, moves=moves, step_size=step_size,
                        log_prob=log_prob),
        lambda z: transition(denoise(z, at_t), at_t, at_s), z)

  return Sampler(step, evaluations=moves * (1 if log_prob is None else 2))
