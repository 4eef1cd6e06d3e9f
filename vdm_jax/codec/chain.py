"""A model as a chain of T steps that a codec can follow: grids, reverse kernels, tables.

Level i = 0 .. T of the chain is at time i / T; z_i = k_i d_i with integers k_i.  Two kernels meet
in z_i: q(z_i | z_{i-1}) and p(z_i | z_{i+1}).  The bin d_i is the smaller of their standard
deviations, divided by `BINS`.  Rounding is noise of variance d_i^2 / 12 in q and in p alike, so it
hardly changes the divergence of the two.

Everything that both sides must know to the last bit is here: the program of the network, and NumPy
tables.  The program is the same for encoding and decoding, and has one shape of batch.  The file
holds digests of the tables and of the network's outputs.  A machine that rounds differently is
refused before it decodes.
"""
import hashlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.codec import stack
from vdm_jax.errors import InputError, require, require_at_least, require_choice
from vdm_jax.likelihood.bounds import level_axes
from vdm_jax.objectives import vlb
from vdm_jax.processes import posterior, prior_std
from vdm_jax.typing import Model, PyTree

__all__ = ['BINS', 'VARIANCES', 'Chain', 'chain', 'require_chain', 'require_kernel', 'timed']

BINS = 2  # to a standard deviation; 1 costs some 0.02 bits/dim at T = 100, more gains nothing
VARIANCES = ('small', 'analytic', 'learned')
FRACTIONS = 64  # a mean is rounded to this part of a bin
SAFE = 8.0  # standard deviations in a window


class Chain(NamedTuple):
  """The parts of a model that the codec uses; see the module."""
  shape: tuple[int, ...]          # of an image
  levels: int                     # values of a pixel
  steps: int                      # T
  lanes: int                      # images that the network sees together
  bins: np.ndarray                # [T + 1]  d_i
  alpha: np.ndarray               # [T + 1]
  forward_std: np.ndarray         # [T + 1]  of q(z_i | z_{i-1}); of q(z_0 | x)
  prior_std: float                # of p(z_T)
  centres: np.ndarray             # [levels]  x of a level
  table: np.ndarray               # float32 [2 H + 1, levels]  p(x | k_0), k_0 from -H to H
  # (z [lanes, ...], step, conditions) -> mean and std of p(z_{i-1} | z_i) in bins of i - 1
  reverse: Callable[[np.ndarray, int, PyTree], tuple[np.ndarray, np.ndarray]]

  def decoder(self, k_0: np.ndarray) -> np.ndarray:
    """p(x | z_0) for z_0 given as integers [D]: float32 [D, levels]."""
    half = len(self.table) // 2
    return self.table[np.clip(k_0, -half, half) + half]

  def digest(self) -> str:
    """The digest of all tables.  Chains with the same digest code alike, if their networks do.

    The stack's own tables are inside its library, so a few symbols that it codes stand for them.
    """
    sha = hashlib.sha256(repr((self.shape, self.levels, self.steps, self.lanes, BINS, FRACTIONS,
                               self.prior_std)).encode())
    for array in (self.bins, self.alpha, self.forward_std, self.centres, self.table,
                  stack.sample_words()):
      sha.update(np.ascontiguousarray(array).data)
    return sha.hexdigest()[:32]

  def probe(self, conditions: PyTree) -> str:
    """A digest of the network's outputs for a few fixed inputs, with the shape that is coded."""
    sha = hashlib.sha256()
    raw = np.random.Philox(key=1).random_raw(self.lanes * int(np.prod(self.shape)))
    noise = (np.asarray(raw >> 40, np.float32) / 2**23 - 1.0).reshape(self.lanes, *self.shape)
    for step in sorted({1, (self.steps + 1) // 2, self.steps}):
      for out in self.reverse(noise, step, conditions):
        sha.update(np.ascontiguousarray(out).data)
    return sha.hexdigest()[:32]


def require_chain(model: Model, levels: int | None) -> None:
  """Raises InputError for a model that has no chain of Gaussian steps.  Computes nothing."""
  for missing, problem in ((model.bound is not None, 'has a bound of its own'),
                           (model.prior is not None, 'has a prior of its own'),
                           (model.latent is not None, 'has latents of its own'),
                           (model.is_latent, 'draws latents'),
                           (model.distilled is not None, 'was distilled, and has no likelihood'),
                           (bool(model.no_likelihood), 'has no likelihood'),
                           (model.coupled, 'is a flow of coupled noise, which has no score'),
                           (bool(level_axes(model)), 'has a log-SNR for every pixel'),
                           (not levels, 'is one of real numbers'),
                           (not model.data_space, 'has x that are no pixels')):
    require(not missing, 'workdir', None, f'the model {problem}, so its chain cannot be coded',
            'name a run of configs/digits/vdm.py, for example')


def chain(model: Model, levels: int, steps: int, *, lanes: int = 1,
          variance: str = 'small', kernel: vlb.Variance | None = None) -> Chain:
  """The chain of T = `steps` steps of a model.

  Args:
    levels: the number of levels of the data.
    lanes: the number of images at a time.
    variance: of the reverse kernels: `small`, `learned`, or `analytic`, whose function is `kernel`.

  Raises InputError: a model that has no such chain.
  """
  require_at_least('T', steps)
  require_at_least('lanes', lanes)
  require_choice('variance', variance, VARIANCES)
  require_chain(model, levels)
  times = jnp.arange(steps + 1) / steps
  level = jax.tree.map(lambda u: np.asarray(u, np.float64), model.process(times))
  require(bool(np.isfinite(level.logsnr).all()), 'workdir', None, 'log-SNR is infinite at an end '
          'of this model, where there is no Gaussian to code', 'name a run whose ends are finite')
  tau = -np.expm1(np.diff(level.logsnr))  # of step i: 1 - SNR(i) / SNR(i - 1)
  require(bool((tau > 0.0).all()), 'T', steps, 'the log-SNR of this model does not fall in every '
          'step', 'choose fewer steps, or a run whose log-SNR falls everywhere')
  # q(z_i | z_{i-1}) = N(alpha_i / alpha_{i-1} z, sigma_i^2 tau); p(z_{i-1} | z_i) has
  # sigma_{i-1}^2 tau or more.
  forward = level.sigma * np.sqrt(np.concatenate([[1.0], tau]))
  backward = level.sigma[:-1] * np.sqrt(tau)
  prior = float(prior_std(model.process))
  bins = np.minimum(forward, np.append(backward, prior)) / BINS
  kernel = {'small': vlb.fixed_small, 'learned': vlb.learned, 'analytic': kernel}[variance]
  if kernel is None:
    raise InputError('variance', variance, 'it needs the argument `kernel`', 'give `kernel`')
  centres = np.asarray(model.encode(jnp.arange(levels)), np.float64)
  return Chain(tuple(model.shape), levels, steps, lanes, bins, level.alpha, forward, prior, centres,
               _table(model, levels, bins[0], level, centres),
               _reverse(model, steps, bins, kernel))


def _table(model: Model, levels: int, bin_: float, level, centres: np.ndarray) -> np.ndarray:
  reach = level.alpha[0] * np.abs(centres).max() + SAFE * level.sigma[0]
  half = int(np.ceil(reach / bin_))
  first = jax.tree.map(lambda u: u[None], model.process(jnp.zeros(())))

  @jax.jit
  def log_probs(z):
    every = jnp.tile(jnp.arange(levels), len(z))[:, None]
    repeated = jnp.repeat(z, levels)[:, None]
    at = jax.tree.map(lambda u: jnp.broadcast_to(u, (len(every),)), first)
    return model.decoder(every, repeated, at).reshape(len(z), levels)

  z = (np.arange(-half, half + 1) * bin_).astype(np.float32)
  size = max(1, (1 << 20) // levels)
  rows = []
  for start in range(0, len(z), size):
    part = z[start:start + size]
    padded = np.pad(part, (0, min(size, len(z)) - len(part)))  # one program for all
    rows.append(np.asarray(log_probs(padded))[:len(part)])
  return np.exp(np.concatenate(rows), dtype=np.float32)


def _reverse(model: Model, steps: int, bins: np.ndarray, variance: vlb.Variance):
  @jax.jit
  def program(z, step, bin_, batch):
    t = jnp.full(len(z), step / steps, z.dtype)
    at_t, at_s = model.process(t), model.process((step - 1.0) / steps * jnp.ones_like(t))
    estimate = model.denoise(z, at_t, model.cond(batch))
    mean, _ = posterior(z, estimate.x, at_t, at_s)
    std = jnp.sqrt(variance(estimate, at_t.expand(z), at_s.expand(z)))
    return mean / bin_, jnp.broadcast_to(std / bin_, z.shape)

  def reverse(z: np.ndarray, step: int, batch: PyTree) -> tuple[np.ndarray, np.ndarray]:
    mean, std = jax.device_get(program(jnp.asarray(z, jnp.float32), jnp.float32(step),
                                       jnp.float32(bins[step - 1]), batch))
    require_kernel(mean, std, step)
    return mean, std
  return reverse


def require_kernel(mean: np.ndarray, std: np.ndarray, step: int) -> None:
  """Raises InputError unless these are means and deviations of Gaussians."""
  require(bool(np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0.0).all()), None,
          None, f'the network gives no finite kernel at step {step}', 'choose another checkpoint')


def timed(chain: Chain) -> tuple[Chain, list[float]]:
  """The chain, and a list with one number: the seconds that its network has taken so far."""
  clock = [0.0]

  def reverse(*arguments):
    start = time.perf_counter()
    result = chain.reverse(*arguments)
    clock[0] += time.perf_counter() - start
    return result
  return chain._replace(reverse=reverse), clock
