"""Denoising MCMC: a Markov chain on data and noise level together, then a few denoising steps.

The chain has the density q(u | t) p(t) of u = z / alpha at a random time t of the grid.  At high
noise the chain crosses between modes; at low noise it is near the data.  To get a sample, any
sampler denoises u from the current level of the chain, which is less work than from pure noise.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.samplers.langevin import Corrector, ula
from vdm_jax.samplers.runge_kutta import heun
from vdm_jax.samplers.sampling import check_grid, sample
from vdm_jax.typing import Array, ArrayLike, Denoiser, Level, Process, PyTree, Sampler
from vdm_jax.units import sum_over_data


class ChainState(NamedTuple):
  """The state of B chains.  Start with `ChainState(sample_prior(...), jnp.zeros(B, int))`."""
  z: Array      # [B, ...]  at the level of times[index]
  index: Array  # [B]       integers, into the grid of times


class Draw(NamedTuple):
  z: Array            # [B, ...]  denoised, at the last time of the grid
  chain: ChainState   # where the chains stopped, to go on from
  evaluations: Array  # [B]       calls of the denoiser that this draw of the chain needed


def denoising_mcmc(denoise: Denoiser, process: Process, keys: Array, chain: ChainState,
                   times: ArrayLike, level_logits: Callable[[Array], Array], moves: int, *,
                   corrector: Callable[[Denoiser], Corrector] = ula,
                   sampler: Callable[[Denoiser, Process], Sampler] = heun,
                   cond: PyTree = None) -> Draw:
  """`moves` moves of each chain, then `sampler` down from the level of each chain.

  A move is first a move of `corrector` in z at the chain's level, then a Gibbs draw of the level
  given u = z / alpha.  Kim and Ye (2023), Denoising Langevin Gibbs, on any curve.

  times: [N + 1], decreasing; the levels of the chain and the grid of the sampler.  level_logits: u
  [B, ...] -> [B, N + 1], log p(t | u) up to a constant: `level_posterior` of a known density, or a
  network that classifies noise levels; -inf where sigma = 0, as no chain can move there.  cond:
  leaves [B, ...], for the denoiser.

  All examples take N steps of the sampler together.  For examples that started lower, the last
  steps have length zero; `evaluations` counts the real steps of an example.
  Raises InputError if the grid does not decrease, or is at alpha = 0, where u is not defined; if
  the steps of the sampler differ in their calls of the denoiser (plms).
  """
  check_grid(times)
  times = jnp.asarray(times)
  alpha = process(times).alpha
  if not isinstance(alpha, Tracer) and np.any(np.asarray(alpha) == 0.0):
    raise InputError('times', None, 'alpha = 0 at t = '
                     f'{np.asarray(times)[np.asarray(alpha == 0.0).argmax()]:.6g}, where z / '
                     'alpha is undefined', 'begin the grid of the chain at a smaller t')
  descending = sampler(denoise, process)
  if descending.evaluations is None:
    raise InputError('sampler', None, 'its calls of the denoiser vary from step to step',
                     'take one whose number is known, e.g. heun')
  if descending.extra_evaluations:
    # `vmap` makes both branches of a condition run, so each step would take as many.
    raise InputError('sampler', None, 'one of its steps calls the denoiser more often than the '
                     'others, and here all steps would',
                     'take one whose steps are alike, e.g. heun')

  def move(i, chain):
    at_i = jax.vmap(lambda key: jax.random.fold_in(key, i))(random.stream(keys, 'chain'))
    here = process(times[chain.index])
    conditioned = lambda z, level, _=None: denoise(z, level, cond)
    z = corrector(conditioned).step(at_i, chain.z, here, here)
    u = z / here.expand(z).alpha
    below = jnp.cumsum(jax.nn.softmax(level_logits(u), axis=-1), axis=-1)
    draw = random.uniform(random.stream(at_i, 'level'), z)[:, None] * below[:, -1:]
    index = jnp.sum(below < draw, axis=-1, dtype=chain.index.dtype)
    return ChainState(u * process(times[index]).expand(z).alpha, index)

  def descend(key, z, grid, cond):
    one = jax.tree.map(lambda leaf: leaf[None], cond)
    conditioned = lambda z, level, _=None: denoise(z, level, one)
    return sample(sampler(conditioned, process), key[None], z[None], grid)[0]

  chain = jax.lax.fori_loop(0, moves, move, chain)
  last = times.shape[0] - 1
  grids = times[jnp.minimum(chain.index[:, None] + jnp.arange(last + 1), last)]
  z = jax.vmap(descend)(random.stream(keys, 'descent'), chain.z, grids, cond)
  steps = jnp.sum(grids[:, 1:] != grids[:, :-1], axis=1)
  return Draw(z, chain, moves * corrector(denoise).evaluations + steps * descending.evaluations)


def level_posterior(log_prob: Callable[[Array, Level], Array], process: Process, times: ArrayLike
                    ) -> Callable[[Array], Array]:
  """u [B, ...] -> log p(t | u) [B, N + 1] up to a constant, for t uniform over `times`.

  log q(u | t) = log q(z_t = alpha u) + D log alpha.  Levels at alpha = 0 or sigma = 0 are left out.
  For another p(t), add its logarithm.  log_prob: (z, level) -> [B], normalised, for example of an
  oracle.
  """
  def logits(u):
    def at(t):
      level = process(t)
      wide = level.expand(u)
      volume = sum_over_data(jnp.broadcast_to(jnp.log(wide.alpha), u.shape))
      known = (level.alpha > 0.0) & (level.sigma > 0.0)
      return jnp.where(known, log_prob(wide.alpha * u, level) + volume, -jnp.inf)
    return jax.vmap(at, out_axes=1)(jnp.asarray(times))
  return logits
