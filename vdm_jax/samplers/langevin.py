"""Langevin dynamics: moves that keep the marginal q(z_t) of one level, and need only its score.

  z <- z + h score(z) + sqrt(2 h) noise,    score = -eps_hat / sigma

has q(z_t) as its stationary distribution in the limit of small h, from any start.  It has two uses.
*Annealed*, it is a sampler that goes down the levels and lets z settle at each (NCSN, NCSNv2).  As
the *corrector* of `predictor_corrector` and `denoising_mcmc`, it repairs the errors of other steps.
At a level of noise sigma the natural h is a multiple of sigma^2.  Then a move is the same on every
curve, since rescaling z rescales sigma too.

Some papers write h / 2 and sqrt(h), so their step sizes are twice ours.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.samplers.first_order import transition
from vdm_jax.typing import Array, Denoiser, Level, Process, Sampler
from vdm_jax.units import sum_over_data

# ----------------------------------------------------------------- correctors


class Corrector(NamedTuple):
  """A move at one noise level, made from a denoiser by `name(denoise, <options>)`."""
  step: Callable[..., Array]  # keys [B], z, at_t, at_s -> z; at_s: where the sampler goes next
  evaluations: int = 1        # calls of the denoiser


def langevin_corrector(denoise: Denoiser, snr: float = 0.16, over_batch: bool = False,
                       over_slices: bool = False) -> Corrector:
  """h = 2 (snr |noise| / |score|)^2 (alpha_t / alpha_s)^2, norms over one example.

  Song et al. (2021), algorithms 4 (VE, where the last factor is 1) and 5 (VP, their alpha_i =
  1 - beta_i).  With `over_batch` the norms are first averaged over the batch, as in their code; an
  image then depends on the other images of its batch.  Without `over_batch`, the step depends on z
  and on its own noise.  In D dimensions this makes the variance of a Gaussian too large by
  (1 + 2 / D)^2.  That is small for images, but not for D = 2; use `annealed_corrector` there.

  over_slices: examples are volumes [Z, H, W, C], and a norm is the mean of the norms of slices.
  """
  def norm(u):
    if not over_slices:
      return jnp.sqrt(sum_over_data(jnp.square(u)))
    return jnp.mean(jnp.sqrt(jnp.sum(jnp.square(u), axis=(2, 3, 4))), axis=1)

  def size(noise, score, at_t, at_s):
    norms = [norm(u) for u in (noise, score)]
    if over_batch:
      norms = [jnp.mean(u, keepdims=True) for u in norms]
    # A score of zero (the mode of a Gaussian) would make the step infinite, and move z nowhere.
    ratio = jnp.where(norms[1] > 0.0, norms[0] / norms[1], 0.0)
    ratio = jnp.reshape(ratio, ratio.shape + (1,) * (score.ndim - 1))
    return 2.0 * jnp.square(snr * ratio * at_t.alpha / at_s.alpha)
  return _unadjusted(denoise, size)


def annealed_corrector(denoise: Denoiser, snr: float = 0.16) -> Corrector:
  """h = 2 (snr sigma_t)^2 (alpha_t / alpha_s)^2: the step sizes of annealed Langevin dynamics, in
  the form of the public code of Song et al. (2021), where it is called `ald`."""
  return _unadjusted(denoise, lambda noise, score, at_t, at_s: 2.0 * jnp.square(
      snr * at_t.sigma * at_t.alpha / at_s.alpha))


def ula(denoise: Denoiser, step_size: float = 0.1) -> Corrector:
  """h = step_size sigma_t^2: the unadjusted Langevin algorithm (Roberts and Tweedie 1996).

  For a Gaussian, the stationary variance is too large by a share of step_size / (2 - step_size) at
  most.  From step_size = 2 on, it may diverge.
  """
  return _unadjusted(denoise, lambda noise, score, at_t, at_s: step_size * jnp.square(at_t.sigma))


def mala(denoise: Denoiser, log_prob: Callable[[Array, Level], Array] | None = None,
         step_size: float = 0.1) -> Corrector:
  """`ula` with a Metropolis test, so q(z_t) is kept exactly; it takes two evaluations.

  Roberts and Tweedie (1996).  log_prob: (z, level) -> [B], log q(z_t) up to a constant, for example
  `log_prob` of an oracle.
  Raises InputError without log_prob, since a denoiser does not determine it.
  """
  if log_prob is None:
    raise InputError('log_prob', None, 'mala compares densities in its Metropolis test, which a '
                     'denoiser does not give', 'pass log_prob(z, level), or take `ula`')

  def step(keys, z, at_t, at_s):
    del at_s
    h = step_size * jnp.square(at_t.expand(z).sigma)
    drift = lambda z: z + h * _score(denoise, z, at_t)
    log_kernel = lambda to, mean: -sum_over_data(jnp.square(to - mean) / (4.0 * h))
    mean = drift(z)
    proposal = mean + jnp.sqrt(2.0 * h) * random.normal(random.stream(keys, 'langevin'), z)
    log_ratio = (log_prob(proposal, at_t) + log_kernel(z, drift(proposal))
                 - log_prob(z, at_t) - log_kernel(proposal, mean))
    accepted = jnp.log(random.uniform(random.stream(keys, 'metropolis'), z)) < log_ratio
    return jnp.where(jnp.reshape(accepted, accepted.shape + (1,) * (z.ndim - 1)), proposal, z)

  return Corrector(step, evaluations=2)


def _score(denoise, z, level):
  return -denoise(z, level).eps / level.expand(z).sigma


def _unadjusted(denoise, size):
  """A Langevin move with h = size(noise, score, at_t, at_s), with the levels expanded."""
  def step(keys, z, at_t, at_s):
    score = _score(denoise, z, at_t)
    noise = random.normal(random.stream(keys, 'langevin'), z)
    h = size(noise, score, at_t.expand(z), at_s.expand(z))
    return z + h * score + jnp.sqrt(2.0 * h) * noise
  return Corrector(step)


# -------------------------------------------------- annealed Langevin dynamics


class _Plan(NamedTuple):
  step_size: Array    # [N]  h / sigma_s^2
  first_order: Array  # [N]  bool; whether logsnr is infinite at an end of the step


def annealed_langevin(denoise: Denoiser, process: Process, n_steps: int = 5,
                      epsilon: float | None = None) -> Sampler:
  """A step t -> s keeps u = z / alpha and makes n_steps Langevin moves at level s.

    u <- u + h score_u + sqrt(2 h) noise,    h = epsilon (sigma_s / alpha_s)^2 / sigma_L^2

  with sigma_L the smallest sigma / alpha > 0 of the grid.  Song and Ermon (2019), algorithm 1
  (whose epsilon is twice this one) and Song and Ermon (2020); u is their x, and is the same on
  every curve.  epsilon is in the squared units of the data.  None takes the `annealing_step_size`
  of each ratio of neighbouring levels, as NCSNv2 does.

  A step that ends at sigma = 0 is NCSNv2's final denoising, z_s = alpha_s x_hat; where alpha_t = 0,
  u is not defined and z_s = alpha_s x_hat + sigma_s eps_hat before the moves.  Each of these two
  takes one of the n_steps evaluations.  Raises InputError if n_steps < 1.
  """
  if n_steps < 1:
    raise InputError('n_steps', n_steps, 'annealed Langevin dynamics moves at every level',
                     'give 1 or more')

  def plan(times):
    level = process(times)
    ratio = level.sigma / level.alpha
    usable = (level.alpha > 0.0) & (level.sigma > 0.0)
    first_order = ~(usable[:-1] & usable[1:])
    if epsilon is not None:
      smallest = jnp.min(jnp.where(usable, ratio, jnp.inf))
      return _Plan(jnp.broadcast_to(epsilon / smallest**2, first_order.shape), first_order)
    growth = jnp.where(first_order, 1.0, ratio[:-1] / ratio[1:])
    # From alpha = 0 the ratio is infinite, and the largest of the others has to do.
    growth = jnp.where(first_order, jnp.max(growth), growth)
    return _Plan(annealing_step_size(growth, n_steps), first_order)

  def step(keys, z, t, s, now):
    at_t, at_s = process(t), process(s)
    z = z * jnp.where(now.first_order, 1.0, at_s.alpha / at_t.alpha)

    def move(i, z):
      jump = now.first_order & (i == 0)
      estimate = denoise(z, jax.tree.map(lambda a, b: jnp.where(jump, a, b), at_t, at_s))
      own = jax.vmap(lambda key: jax.random.fold_in(key, i))(random.stream(keys, 'langevin'))
      sigma = at_s.expand(z).sigma
      moved = z + sigma * (jnp.sqrt(2.0 * now.step_size) * random.normal(own, z)
                           - now.step_size * estimate.eps)
      # At sigma = 0 a denoiser need not be defined.
      settled = jnp.where(sigma > 0.0, moved, z)
      return jnp.where(jump, transition(estimate, at_t, at_s), settled)

    return jax.lax.fori_loop(0, n_steps, move, z)

  return Sampler(step, plan=plan, evaluations=n_steps)


def annealing_step_size(growth: Array, n_steps: int) -> Array:
  """epsilon / sigma_L^2 = h / sigma_i^2 of annealed Langevin dynamics, any shape.

  growth: sigma_{i-1} / sigma_i >= 1, constant in a geometric sequence.  For data at one point, u
  arrives at level i with variance sigma_{i-1}^2.  Its variance after n_steps, in units of
  sigma_i^2, is `annealed_variance`.  The result minimises this variance, where it is closest to 1:
  Song and Ermon (2020), technique 4.
  """
  slope = jax.grad(lambda a, g: annealed_variance(g, n_steps, a))
  slope = jnp.vectorize(slope)

  def halve(_, interval):
    low, high = interval
    middle = 0.5 * (low + high)
    falls = slope(middle, growth) < 0.0
    return jnp.where(falls, middle, low), jnp.where(falls, high, middle)

  growth = jnp.asarray(growth)
  zeros = jnp.zeros_like(growth)
  low, high = jax.lax.fori_loop(0, 53, halve, (zeros, zeros + 1.0))
  return 0.5 * (low + high)


def annealed_variance(growth: Array, n_steps: int, step_size: Array) -> Array:
  """Variance after n_steps Langevin moves in units of sigma_i^2, for data at one point.

  It starts from growth^2, and each move is v <- (1 - step_size)^2 v + 2 step_size: Song and Ermon
  (2020), the variance in technique 4.
  """
  stationary = 2.0 / (2.0 - step_size)
  return stationary + (1.0 - step_size)**(2 * n_steps) * (growth**2 - stationary)
