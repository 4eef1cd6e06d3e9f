"""Schedules from a table of levels: published chains and ladders."""
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize
from scipy.special import ndtr

from vdm_jax.errors import InputError
from vdm_jax.schedules.fixed import as_float
from vdm_jax.typing import Array, ArrayLike
from vdm_jax.values import value

__all__ = ['TableSchedule', 'cosine_betas', 'largest_distance', 'linear_betas', 'ncsnv2_sigmas',
           'scaled_linear_betas', 'zero_terminal_snr']


@value
class TableSchedule:
  """A published chain: N + 1 values of logsnr at the times i / N, and linear in between.

  logsnr: [N + 1], decreasing; the first value (clean data) and the last (no signal) may be
  infinite.  Next to an infinite value sigma / alpha, or alpha / sigma, is linear in t instead.  The
  slope at an entry is the slope of the step which ends there.

  In a table of `from_alphas`, `from_betas` or `from_sigmas` with `clean`, the indices follow Ho et
  al. (2020): z_0 are the data, and z_1, ..., z_N are noisy.  The zero-based `timestep` of public
  code is the index minus one.
  """
  logsnr: Array | np.ndarray

  @classmethod
  def from_alphas(cls, alphas: np.ndarray, clean: bool = True) -> 'TableSchedule':
    """alphas: alpha_i^2 on the `vp` curve, i = 1 ... T: `alpha bar` of Ho et al. (2020), [T].

    clean: if true, entry 0 is the data themselves, sigma = 0; else it is the first alpha.
    Raises InputError unless 1 >= alpha_1^2 > ... >= 0.
    """
    alphas = np.asarray(alphas, np.float64)
    if (alphas < 0.0).any() or (alphas > 1.0).any():
      raise InputError('alphas', None, 'the squared alphas of a table lie in [0, 1]',
                       'give alpha_i^2, or give betas to `from_betas`')
    with np.errstate(divide='ignore'):
      return cls._of(np.log(alphas) - np.log1p(-alphas), clean)

  @classmethod
  def from_betas(cls, betas: np.ndarray, clean: bool = True) -> 'TableSchedule':
    """alpha_i^2 = prod_{j <= i} (1 - beta_j): Ho et al. (2020), eq. 4.  betas: [T]."""
    return cls.from_alphas(np.cumprod(1.0 - np.asarray(betas, np.float64)), clean)

  @classmethod
  def from_sigmas(cls, sigmas: np.ndarray, clean: bool = True) -> 'TableSchedule':
    """sigmas: sigma_i / alpha_i in either order, as from `ncsnv2_sigmas`.  [T]."""
    with np.errstate(divide='ignore'):
      return cls._of(-2.0 * np.log(np.sort(np.asarray(sigmas, np.float64))), clean)

  @classmethod
  def _of(cls, logsnr, clean):
    logsnr = np.concatenate([[np.inf], logsnr]) if clean else logsnr
    wrong = np.flatnonzero(~(logsnr[1:] < logsnr[:-1]))
    if len(logsnr) < 2 or wrong.size:
      raise InputError(problem='a table needs two entries or more, of decreasing logsnr', remedy=(
          f'entry {wrong[0] + 1} does not decrease: change it' if wrong.size else 'give more'))
    return cls(logsnr)

  @property
  def steps(self) -> int:
    """N: the last index, at t = 1."""
    return len(self.logsnr) - 1

  def time(self, index: Array) -> Array:
    """The time of an entry, index / N, where the schedule has exactly the value of that entry."""
    return index / self.steps

  def index(self, logsnr: Array) -> Array:
    """The index of a logsnr, a real number between entries; a network of discrete time reads it.

    `index` is the inverse of the schedule.  A logsnr beyond the table has the index of the nearer
    end.
    """
    dtype = jnp.result_type(logsnr, 0.0)
    table = jnp.asarray(self.logsnr, dtype)
    logsnr = jnp.clip(logsnr, table[-1], table[0])
    i = jnp.clip(jnp.searchsorted(-table, -logsnr) - 1, 0, self.steps - 1)
    a, b, up, down = self._step(table, i)
    return i + jnp.select(
        [up & down, up, down],
        [jax.nn.sigmoid(-0.5 * logsnr), jnp.exp(0.5 * (a - logsnr)),
         -jnp.expm1(0.5 * (logsnr - a))],
        (a - logsnr) / (a - b))

  def respaced(self, indices: Array | np.ndarray | Sequence[int]) -> 'TableSchedule':
    """The chain of these entries alone, with exactly their alphas.  indices: [n + 1], increasing.

    Nichol and Dhariwal (2021), section 4, `strided` sampling.  To end in clean data, keep index 0.
    The steps of the new chain are longer, so its betas differ.  A network still reads `index` of
    this table.
    Raises InputError if there are fewer than two indices, or if they do not increase within 0 .. N.
    """
    indices = np.asarray(indices)
    if (indices.size < 2 or (np.diff(indices) <= 0).any() or indices[0] < 0
        or indices[-1] > self.steps):
      raise InputError('indices', indices.tolist(), 'a respaced table needs two or more',
                       f'give indices that increase within 0 .. {self.steps}')
    return TableSchedule(self.logsnr[indices])

  def __call__(self, t: ArrayLike) -> Array:
    t = as_float(t)
    table = jnp.asarray(self.logsnr, jnp.result_type(t, 0.0))
    u = t * self.steps
    entry = jnp.round(u)
    # i / N N may round to a neighbour of i, but the entries are to be exact.
    close = jnp.abs(u - entry) <= 2.0 * jnp.finfo(table.dtype).eps * entry
    u += jax.lax.stop_gradient(jnp.where(close, entry - u, 0.0))
    i = jnp.clip(jnp.ceil(u) - 1.0, 0.0, self.steps - 1.0).astype(jnp.int32)
    u -= i
    a, b, up, down = self._step(table, i)
    return (a * (1.0 - u) + b * u + 2.0 * jnp.log(jnp.where(down, 1.0 - u, 1.0))
            - 2.0 * jnp.log(jnp.where(up, u, 1.0)))

  @staticmethod
  def _step(table, i):
    """The values of entries i and i + 1, made finite, and which of the two are infinite."""
    first, last = table[i], table[i + 1]
    up, down = jnp.isinf(first), jnp.isinf(last)
    a = jnp.where(up, jnp.where(down, 0.0, last), first)
    return a, jnp.where(down, a, last), up, down


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
  """beta_1, ..., beta_T in equal steps, [T].  Ho et al. (2020), section 4; float64.

  As a `TableSchedule`, the noisy entries have logsnr 9.2102 to -10.1177.
  """
  return np.linspace(first, last, steps)


def scaled_linear_betas(steps: int = 1000, first: float = 0.00085,
                        last: float = 0.012) -> np.ndarray:
  """beta_1, ..., beta_T whose square roots go in equal steps, [T]; float64.

  The "linear" chain in the public code of latent diffusion (Rombach et al. 2022), which diffusers
  calls `scaled_linear`.  The defaults are those of Stable Diffusion v1, whose noisy entries have
  logsnr 7.0694 to -5.3640: the last level still has some signal.
  """
  return np.square(np.linspace(np.sqrt(first), np.sqrt(last), steps))


def cosine_betas(steps: int = 1000, offset: float = 0.008, highest: float = 0.999) -> np.ndarray:
  """alpha_i^2 = f(i / T) / f(0), f(u) = cos^2(pi/2 (u + offset) / (1 + offset)), as betas [T].

  The betas are clipped at `highest`; without the clipping, the last alpha would vanish.  Nichol and
  Dhariwal (2021), eq. 17 and the text below it; float64.
  """
  angle = 0.5 * np.pi * (np.arange(steps + 1) / steps + offset) / (1.0 + offset)
  alpha_bar = np.square(np.cos(angle))
  return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], highest)


def zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
  """The betas [T] of a chain whose last alpha becomes 0, and last beta 1; the first alpha is kept.

  All alphas (not squared) go through one affine map.  Lin et al. (2024), algorithm 1.
  """
  alpha = np.sqrt(np.cumprod(1.0 - np.asarray(betas, np.float64)))
  alpha_bar = np.square((alpha - alpha[-1]) * (alpha[0] / (alpha[0] - alpha[-1])))
  return 1.0 - alpha_bar / np.concatenate([[1.0], alpha_bar[:-1]])


def largest_distance(data: np.ndarray, block: int = 1000) -> float:
  """The largest distance between two examples.  data: [N, ...]; N^2 pairs, `block` rows at a time.

  Technique 1 of Song and Ermon (2020) takes it as the largest sigma.
  """
  data = np.reshape(np.asarray(data, np.float64), (len(data), -1))
  data = data - np.mean(data, axis=0)
  norm = np.sum(np.square(data), axis=1)
  most = 0.0
  for i in range(0, len(data), block):
    for j in range(i, len(data), block):
      a, b = slice(i, i + block), slice(j, j + block)
      most = max(most, np.max(norm[a, None] + norm[b] - 2.0 * data[a] @ data[b].T))
  return float(np.sqrt(most))


def ncsnv2_sigmas(sigma_max: float, sigma_min: float, dim: int,
                  overlap: float = 0.5) -> np.ndarray:
  """Noise levels from sigma_max to sigma_min in equal ratios, as many as techniques 1 and 2 need.

  The ratio gamma is at most the root of Phi(c (gamma - 1) + 3 gamma) - Phi(c (gamma - 1)
  - 3 gamma) = overlap with c = sqrt(2 dim).  This is the chance that the radius of the noise at a
  level is within three standard deviations of the radius at the next larger level.  Song and Ermon
  (2020), technique 2.  They ask for about 0.5, and their numbers of levels follow from 0.567.
  sigma_max: `largest_distance` of the data; dim: the numbers in one example.  Returns [L],
  decreasing.  The step size that belongs to them is `samplers.langevin.annealing_step_size`.

  Raises InputError if dim is below 5, where the equation has no root, or unless
  0 < sigma_min < sigma_max.
  """
  if not 0.0 < sigma_min < sigma_max:
    raise InputError(problem=f'sigma_max = {sigma_max:.6g}, sigma_min = {sigma_min:.6g}: noise '
                     'levels go from the larger to the smaller, which is above 0',
                     remedy='exchange them, or give positive ones')
  if dim < 5:
    raise InputError('dim', dim, 'the ratio of noise levels is determined for 5 dimensions or more',
                     'choose GeometricSigma and a number of levels instead')
  c = np.sqrt(2.0 * dim)
  excess = lambda gamma: (ndtr(c * (gamma - 1.0) + 3.0 * gamma)
                          - ndtr(c * (gamma - 1.0) - 3.0 * gamma) - overlap)
  gamma = optimize.root_scalar(excess, bracket=(1.0, (c + 9.0) / (c - 3.0)), method='brentq').root
  ratios = np.log(sigma_max / sigma_min) / np.log(gamma)
  return np.geomspace(sigma_max, sigma_min, int(np.ceil(ratios)) + 1)
