"""Normalisers by annealed importance sampling, and likelihoods of energy-based models.

An energy gives a density up to a factor: p(z_0) = exp(-E(z_0, 0)) / Z with Z = int exp(-E) dz.
Annealed importance sampling (Neal 2001) estimates Z.  Its chains begin at the prior p(z_1), go down
the levels of the diffusion by Markov moves, and carry weights w with E[w] = Z.  The log of the mean
weight is below log Z on average.  So the negative log-likelihood E(z_0, 0) + log Z is too small on
average, and the likelihood too large: the opposite of a variational bound.

All functions take a denoiser with Estimate.extra['energy'], such as `systems.scores.energy` makes.
"""
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import tqdm

from vdm_jax import processes, random
from vdm_jax.errors import require
from vdm_jax.likelihood.bounds import repeated
from vdm_jax.likelihood.passes import Estimator
from vdm_jax.samplers import langevin
from vdm_jax.typing import Array, ArrayLike, Denoiser, Model, Process, PyTree
from vdm_jax.units import log_mean_exp, sum_over_data

__all__ = ['Chains', 'Normaliser', 'advance', 'begin', 'log_normaliser', 'log_weights',
           'normaliser', 'unnormalised']

_PARTS = 20  # of the steps of chains, after which the progress is shown


class Chains(NamedTuple):
  """Chains of annealed importance sampling."""
  z: Array      # [K, ...]
  log_w: Array  # [K]  log weights


class Normaliser(NamedTuple):
  """An estimate of log Z, in nats."""
  log_z: float
  error: float       # standard error
  evaluations: int   # of the network, for single z


def begin(denoise: Denoiser, process: Process, keys: Array, like: Array, cond: PyTree = None
          ) -> Chains:
  """Chains at t = 1: z ~ p(z_1), and log w = -E(z, 1) - log p(z).  keys: [K]; like: [K, ...]."""
  std = processes.prior_std(process)
  z = processes.sample_prior(process, keys, like)
  log_prior = -0.5 * sum_over_data(jnp.square(z / std) + jnp.log(2.0 * jnp.pi * std**2))
  return Chains(z, -denoise(z, process(jnp.ones(())), cond).extra['energy'] - log_prior)


def advance(denoise: Denoiser, process: Process, keys: Array, chains: Chains, times: Array,
            first: ArrayLike, last: ArrayLike, *, moves: int = 1, step_size: float | None = None,
            cond: PyTree = None) -> Chains:
  """The chains after steps first ... last - 1, of which step i goes from times[i] to times[i + 1].

  A step t -> s makes `moves` of `mala` at level t, with h = step_size sigma_t^2, and then adds
  E(z, t) - E(z, s) to log w.  Default of step_size: D^(-1/3), so that the share of accepted moves
  does not fall with the dimension D (Roberts and Rosenthal 1998).  Draws depend on the keys and the
  number of the step alone.
  """
  size = math.prod(chains.z.shape[1:])**(-1.0 / 3.0) if step_size is None else step_size
  log_density = lambda z, level: -denoise(z, level, cond).extra['energy']
  move = langevin.mala(lambda z, level, _=None: denoise(z, level, cond), log_density, size).step
  levels = process(jnp.asarray(times))
  at = lambda i: jax.tree.map(lambda u: u[i], levels)

  def step(i, chains):
    z, log_w = chains
    at_t, at_s = at(i), at(i + 1)
    for j in range(moves):
      z = move(jax.vmap(jax.random.fold_in, (0, None))(keys, moves * i + j), z, at_t, at_s)
    return Chains(z, log_w + log_density(z, at_s) - log_density(z, at_t))

  return jax.lax.fori_loop(first, last, step, chains)


def log_weights(denoise: Denoiser, process: Process, keys: Array, like: Array, times: Array, *,
                moves: int = 1, step_size: float | None = None, cond: PyTree = None
                ) -> tuple[Array, Array]:
  """log w and z_0, [K] and [K, ...], with E[w] = Z = int exp(-E(z, 0)) dz: Neal (2001).

  `units.log_mean_exp` of log w estimates log Z from below.  With the weights w, the z_0 are draws
  of exp(-E(z, 0)) / Z.

  times: [N + 1], from 1 to 0.  like: [K, ...]; keys: [K].  The other arguments are as for
  `advance`.
  """
  chains = advance(denoise, process, keys, begin(denoise, process, keys, like, cond), times, 0,
                   len(times) - 1, moves=moves, step_size=step_size, cond=cond)
  return chains.log_w, chains.z


def log_normaliser(log_weights: Array) -> tuple[Array, Array]:
  """log Z from the log weights [K] of independent chains, and its standard error, in nats.

  The estimate is the log of a mean, and so below log Z on average, by about half the square of
  its error.  The error is of first order, std(w) / (mean(w) sqrt(K)).  If it is above some 0.3,
  few chains have most of the weight, and neither number is trustworthy: take more times or moves.
  Raises InputError for fewer than two chains.
  """
  n = log_weights.shape[0]
  require(n > 1, 'log_weights', n, 'one chain has no standard error', 'give the weights of more')
  log_z = log_mean_exp(log_weights)
  return log_z, jnp.std(jnp.exp(log_weights - log_z), ddof=1) / math.sqrt(n)


def normaliser(model: Model, keys: Array, steps: int, *, at_once: int, label: str = 'log Z',
               progress: bool = True) -> Normaliser:
  """log Z of a model, from one chain of `steps` even steps for each key: keys [K], at least two.

  at_once: the largest number of chains that run together.
  """
  total = len(keys)
  group = max(k for k in range(1, min(at_once, total) + 1) if not total % k)
  times, like = jnp.linspace(1.0, 0.0, steps + 1), jnp.zeros((group, *model.shape))
  start = jax.jit(lambda keys: begin(model.denoise, model.process, keys, like))
  go = jax.jit(lambda keys, chains, first, last: advance(
      model.denoise, model.process, keys, chains, times, first, last))
  found, part = [], -(-steps // _PARTS)
  with tqdm.tqdm(total=total * steps, unit='step', dynamic_ncols=True, desc=f'{label}: log Z',
                 disable=not progress) as bar:
    for own in keys.reshape(-1, group):
      chains = start(own)
      for first in range(0, steps, part):
        last = min(first + part, steps)
        chains = jax.block_until_ready(go(own, chains, first, last))
        bar.update(group * (last - first))
      found.append(chains.log_w)
  log_z, error = log_normaliser(jnp.concatenate(found))
  # A move and its test take two evaluations, and the weight two more.
  return Normaliser(float(log_z), float(error), total * (1 + 4 * steps))


def unnormalised(importance: int = 1) -> Estimator:
  """-log p(data) - log Z of each image, in nats: E(z_0, 0) + log q(z_0 | x) - log p(data | z_0).

  z_0 ~ q(z_0 | x) has the noise of t = 0, and p(data | z_0) is the model's decoder.  So with log Z
  itself, 'nats' is an upper bound on -log p(data) of the energy in expectation; it is tighter with
  more draws, -log 1/K sum_k exp(-nats_k) for K = `importance` (Burda et al. 2016).

  Returns {'nats', and the means over K of its parts 'energy', 'noise', 'reconstruction', and
  'evaluations' for all K: [n]}.
  """
  def estimate(model, batch, keys):
    batch, each = repeated(batch, keys, jnp.arange(importance))
    data = batch[model.field]
    x = model.encode(data)
    level = model.process(jnp.zeros(len(x), x.dtype))
    eps = random.normal(random.stream(each, 'z_0'), x)
    z, sigma = processes.diffuse(x, eps, level), level.expand(x).sigma
    parts = {'energy': model.denoise(z, level, None).extra['energy'],
             'noise': -0.5 * sum_over_data(
                 jnp.square(eps) + jnp.log(2.0 * jnp.pi * jnp.square(sigma))),
             'reconstruction': -model.decoder(data, z, level)}
    by_image = lambda u: u.reshape(-1, importance)
    return {'nats': -log_mean_exp(-by_image(sum(parts.values())), axis=1),
            **{name: by_image(u).mean(axis=1) for name, u in parts.items()},
            'evaluations': jnp.full(len(keys), float(importance))}
  return estimate
