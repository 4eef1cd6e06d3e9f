"""Grids: the times [1 = t_N > ... > t_0 = 0] that a sampler steps down.

They are NumPy float64 [N + 1], so that `sample` can check them before anything runs.  Three kinds:

  in time        `uniform`, `quadratic`, `array`
  in noise       `logsnr`, `karras`: even in a function of the log-SNR of a process
  in a table     indices of a chain of T steps, as published; `on_table` turns them into times

A table has the levels i = 0 (data) .. T (noise) at the times i / T.  Published code counts the
steps of its network, k = 0 .. T - 1.  Step k is the level after k + 1 steps of noise: index k is at
the time (k + 1) / T, and is entry k + 1 of a `schedules.TableSchedule`.  Such a grid starts at the
largest index that is kept.  For `trailing` and `linspace` this is t = 1.  The other grids start
below t = 1, as if no data were left there: the flaw that Lin et al. (2024) found.
"""
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import InputError, require
from vdm_jax.processes import time_of
from vdm_jax.samplers.multistep import real_steps
from vdm_jax.samplers.sampling import check_grid
from vdm_jax.typing import Array, Process

# Beyond this |logsnr|, 5.5e-4 of data in noise or of noise in data, a process counts as infinite: a
# grid that is even in noise would spend most of its steps there.
FINITE = 15.0


def _check(n: int, least: int = 1) -> None:
  if n < least:
    raise InputError('steps', n, f'this grid needs at least {least}', 'give more')


# ---------------------------------------------------------------- in time


def uniform(n: int) -> np.ndarray:
  """t_i = i / n."""
  _check(n)
  return np.linspace(1.0, 0.0, n + 1)


def quadratic(n: int) -> np.ndarray:
  """t_i = (i / n)^2: finer towards the data."""
  return uniform(n)**2


def array(times) -> np.ndarray:
  """Any given times, decreasing in [0, 1]; equal times at the end are padding.

  Raises InputError if they do not decrease in [0, 1].
  """
  times = np.asarray(times, np.float64)
  check_grid(times)
  return times


# --------------------------------------------------------------- in noise


def _between(process: Process, levels: np.ndarray) -> np.ndarray:
  """1, the times of these log-SNRs, 0."""
  logsnr = jnp.asarray([-np.inf, *levels, np.inf], float)
  times = np.array(time_of(process, logsnr), np.float64)
  times[[0, -1]] = 1.0, 0.0
  return times


def _ends(process: Process) -> tuple[float, float]:
  """The log-SNR at t = 1 and t = 0.  Raises InputError if each pixel has its own log-SNR."""
  high = process(jnp.zeros(())).logsnr
  require(not jnp.ndim(high), 'grid', None, 'it is made of noise levels, and here every pixel has '
          'its own', 'choose one of times, e.g. uniform')
  return float(process(jnp.ones(())).logsnr), float(high)


def logsnr(process: Process, n: int, low: float = -FINITE, high: float = FINITE) -> np.ndarray:
  """Evenly spaced in log-SNR between the end points of the process.

  These are the logSNR steps of Lu et al. (2022), whose lambda is logsnr / 2.  If a process goes
  beyond [low, high], perhaps to infinity, the spacing is even within [low, high].  Then one of the
  n steps at that end leads from t = 1 or to t = 0.
  Raises InputError.
  """
  first, last = _ends(process)
  start, stop = max(first, low), min(last, high)
  if not start < stop:
    raise InputError('low', low, f'with high={high:.6g} it leaves nothing of the log-SNRs of the '
                     f'process, {first:.6g} to {last:.6g}', 'give bounds that overlap them')
  beyond = int(start > first), int(stop < last)
  _check(n, 1 + sum(beyond))
  levels = np.linspace(start, stop, n + 1 - sum(beyond))
  return _between(process, levels[1 - beyond[0]:len(levels) - 1 + beyond[1]])


def karras(process: Process, n: int, rho: float = 7.0, sigma_min: float | None = None,
           sigma_max: float | None = None) -> np.ndarray:
  """u^(1/rho) evenly spaced from sigma_max to sigma_min, where u = sigma / alpha; then t = 0.

  Karras et al. (2022), eq. 5.  None takes the level of the process at that end, or the paper's 80
  and 0.002 if log-SNR is beyond -+15.  If the process goes beyond sigma_min or sigma_max, as theirs
  goes to sigma = 0, one of the n steps at that end leads to t = 0 or from t = 1.
  Raises InputError.
  """
  first, last = _ends(process)
  own_max, own_min = np.exp(-0.5 * first), np.exp(-0.5 * last)
  highest = (own_max if first >= -FINITE else 80.0) if sigma_max is None else sigma_max
  lowest = (own_min if last <= FINITE else 0.002) if sigma_min is None else sigma_min
  near = 1e-5  # the end points are known to rounding
  if not own_min * (1 - near) <= lowest < highest <= own_max * (1 + near):
    raise InputError('sigma_min', float(lowest), f'with sigma_max={highest:.6g} it is not within '
                     f'the process, whose sigma / alpha is from {own_min:.6g} to {own_max:.6g}',
                     'choose values within it')
  beyond = int(highest < own_max * (1 - near)), int(lowest > own_min * (1 + near))
  _check(n, 1 + sum(beyond))
  u = np.linspace(highest**(1 / rho), lowest**(1 / rho), n + 1 - sum(beyond))**rho
  return _between(process, -2.0 * np.log(u[1 - beyond[0]:len(u) - 1 + beyond[1]]))


# ------------------------------------------------------------- in a table


def on_table(indices: np.ndarray, table: int) -> np.ndarray:
  """Indices k of a chain of `table` steps, increasing [n] -> (k + 1) / table, then 0: [n + 1].

  Raises InputError.
  """
  indices = np.asarray(indices)
  if not (indices.ndim == 1 and indices.size and indices[0] >= 0 and indices[-1] < table
          and np.all(np.diff(indices) > 0)):
    raise InputError('indices', indices.tolist(), f'they must increase within 0 .. {table - 1}',
                     'give increasing ones')
  return np.append((indices[::-1] + 1) / table, 0.0)


def stable_diffusion(n: int) -> np.ndarray:
  """The times of Stable Diffusion's samplers in a chain of 1000 levels.

  The indices are 1, 1 + c, 1 + 2 c, ... below 1000, with c = floor(1000 / n): those of `leading`,
  one level later.  The last step of sampling ends at the chain's lowest noise level, not at the
  data.  If n does not divide 1000, there are more than n steps, as in the public code
  (CompVis/stable-diffusion).
  """
  _check_table(n, 1000)
  indices = np.arange(1, 1000, 1000 // n)
  return np.append((indices[::-1] + 1) / 1000, 1 / 1000)


def stable_diffusion_dpm(n: int) -> np.ndarray:
  """The times of Stable Diffusion's DPM-Solver++, evenly spaced in a chain of 1000 levels.

  They go from 1 to 1 / 1000, the chain's lowest noise level.  Between two levels the public code
  (CompVis/stable-diffusion) interpolates log alpha, and a `TableSchedule` log-SNR.  If n divides
  999, all times are levels.
  """
  _check(n)
  return np.linspace(1.0, 1 / 1000, n + 1)


def _check_table(n: int, table: int) -> None:
  _check(n)
  if n > table:
    raise InputError('steps', n, f'the chain has {table} steps', 'choose no more')


def ddim_linear(n: int, table: int) -> np.ndarray:
  """floor(c i) for i = 0 .. n - 1, c = table / n: increasing indices [n].

  Song, Meng and Ermon (2021), appendix D.2.  If n does not divide the table, the authors' code
  rounds c down and continues to the end, with more than n steps.
  """
  _check_table(n, table)
  return np.arange(n) * table // n


def ddim_quadratic(n: int, table: int) -> np.ndarray:
  """floor(c i^2) for i = 0 .. n - 1, up to 0.8 table: increasing indices, at most n.

  Song, Meng and Ermon (2021), appendix D.2, with the 0.8 of their code.  If n is large beside the
  table's square root, rounding makes some indices equal; equal indices are taken once.
  """
  _check_table(n, table)
  _check(n, 2)
  return np.unique(np.floor(np.linspace(0.0, np.sqrt(0.8 * table), n)**2).astype(int))


def leading(n: int, table: int) -> np.ndarray:
  """i floor(table / n) for i = 0 .. n - 1: increasing indices [n].  Lin et al. (2024), table 2."""
  _check_table(n, table)
  return np.arange(n) * (table // n)


def trailing(n: int, table: int) -> np.ndarray:
  """round(table - i table / n) - 1: increasing indices [n].  Lin et al. (2024), table 2."""
  _check_table(n, table)
  return np.round(np.arange(table, 0, -table / n))[n - 1::-1].astype(int) - 1


def linspace(n: int, table: int) -> np.ndarray:
  """From 0 to table - 1, rounded: increasing indices [n].  Lin et al. (2024), table 2."""
  _check_table(n, table)
  _check(n, 2)
  return np.round(np.linspace(0.0, table - 1.0, n)).astype(int)


def iddpm(sections: str | Sequence[int], table: int) -> np.ndarray:
  """Respacing by sections: increasing indices of the steps that are kept.

  Nichol and Dhariwal (2021), section 4, and the `timestep_respacing` of their code.  '10,10,5' (or
  these numbers) splits the table into three sections of nearly equal length.  Each section keeps
  that many indices from its first step to its last, evenly spaced and rounded. 'ddim25' takes the
  smallest stride from 0 that keeps 25 indices.  'fast27' is '10,10,3,2,2' with its last index lower
  by 2, in the code of Nichol et al. (2021) for their upsampler.
  Raises InputError if a section has too few steps, or if no stride keeps that number.
  """
  text = sections if isinstance(sections, str) else ','.join(map(str, sections))
  if text == 'fast27':
    indices = iddpm('10,10,3,2,2', table)
    return np.append(indices[:-1], indices[-1] - 2)
  try:
    counts = [int(part) for part in text.removeprefix('ddim').split(',')]
  except ValueError:
    raise InputError('sections', text, 'they are not numbers of steps',
                     'give numbers such as 10,10,5, or ddim25') from None
  if text.startswith('ddim'):
    for stride in range(1, table + 1):
      if [len(range(0, table, stride))] == counts:
        return np.arange(0, table, stride)
    raise InputError('sections', text, f'no stride through {table} steps keeps this number',
                     'choose another number')
  sizes = [table // len(counts) + (i < table % len(counts)) for i in range(len(counts))]
  for count, size in zip(counts, sizes, strict=True):
    if not 1 <= count <= size:
      raise InputError('sections', text, f'{count} is not in 1 .. {size}, the steps of its section',
                       'choose another')
  indices = []
  for start, size, count in zip(np.cumsum([0, *sizes[:-1]]), sizes, counts, strict=True):
    stride = (size - 1) / max(count - 1, 1)
    # Added up one by one, as there: where a half is rounded, the last place decides.
    indices.append(start + np.round(np.cumsum([0.0, *[stride] * (count - 1)])).astype(int))
  return np.concatenate(indices)


# ---------------------------------------------------- for multistep methods


def warm_up(times: Array, order: int) -> Array:
  """The grid with order - 2 added times in its first step: [N + 1] -> [N + order - 1].

  A multistep method has no history at first: its k-th step is of order k.  With N the number of
  real steps the new times are at the fractions N^(1 - q_k) of the first step, so x_k ~ N^-q_k away
  from its start, where

    q_k = max(order / (k + 1), 1 + q_(k+1) + ... + q_(order-2)),      k = 1 ... order - 2:

  q = 3/2 for order 3, and 7/3, 4/3 for order 4.  For orders 1 and 2 the grid does not change.

  The k-th step leaves an error of x_k^(k+1).  By the first term of q_k it falls like N^-order.  A
  later step of length h = 1/N interpolates between points before and after that error.  It
  multiplies the error by h h^(order-2) / (x_k^k x_(k+1) ... x_(order-2)).  By the second term of
  q_k, the product falls like N^-order too.  Rounding is also multiplied: by N^(2/3) for order 4,
  and by N^4 for order 5, where it is visible in float64 from about N = 40.
  """
  distances = []
  for k in range(order - 2, 0, -1):
    distances.insert(0, max(order / (k + 1.0), 1.0 + sum(distances)))
  times = jnp.asarray(times)
  parts = real_steps(times).astype(times.dtype) ** (1.0 - jnp.asarray(distances, times.dtype))
  return jnp.concatenate([times[:1], times[0] + parts * (times[1] - times[0]), times[1:]])
