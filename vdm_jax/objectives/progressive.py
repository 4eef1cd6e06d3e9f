"""Progressive distillation: one step of the student (of N steps) replaces two of its teacher.

Salimans and Ho (2022), section 3 and algorithm 2.  At z_t, t = i/N, the teacher makes two half
steps of DDIM, to t' = (i - 1/2)/N and s = (i - 1)/N.  The student's target is x~.  With x~ as its
estimate, one step of DDIM leads to the same z_s:

    x~ = (z_s - (sigma_s / sigma_t) z_t) / (alpha_s - (sigma_s / sigma_t) alpha_t).

Let r = alpha / sigma, and let x_1 and x_2 be the teacher's estimates at t and at t'.  Then x~ is a
weighted mean,

    x~ = ((r_t' - r_t) x_1 + (r_s - r_t') x_2) / (r_s - r_t).

This mean loses no digits where the steps are short, and it is x_2 where sigma_s = 0.  For a sampler
that ends in x_hat (`samplers.first_order.ddim_to_x`), the target of the last step, i = 1, is x_2 on
every process.

Then the student becomes the teacher, and N is halved.
"""
import jax.numpy as jnp
import numpy as np

from vdm_jax import random, weightings
from vdm_jax.errors import InputError, require
from vdm_jax.objectives.vlb import step_number
from vdm_jax.processes import diffuse
from vdm_jax.typing import Array, Denoiser, Level, Process, PyTree, Scalar, Weighting
from vdm_jax.units import sum_over_data


def target(teacher: Denoiser, process: Process, z: Array, grid: Array, steps: Scalar,
           cond: PyTree = None, *, ends_in_x: bool = True) -> Array:
  """x~, the target of a student of N = `steps` at z [B, ...] and the times grid / N, [B].

  Salimans and Ho (2022), algorithm 2.  grid: 1 ... N.  ends_in_x: whether the sampler ends in
  x_hat, as in the paper, or in z_0.  It takes two evaluations of `teacher`.
  """
  at_t, middle, at_s = (process((grid - back) / steps) for back in (0.0, 0.5, 1.0))
  first = teacher(z, at_t, cond)
  second = teacher(diffuse(first.x, first.eps, middle), middle, cond)
  share = _share(at_t, middle, at_s)
  if ends_in_x:
    share = jnp.where(grid == 1.0, 0.0, share)
  share = jnp.reshape(share, share.shape + (1,) * (z.ndim - share.ndim))
  return share * first.x + (1.0 - share) * second.x


def _share(at_t: Level, middle: Level, at_s: Level) -> Array:
  """(r_t' - r_t) / (r_s - r_t), r = alpha / sigma; 0 where r_s is infinite, r_t may be 0."""
  ratio = lambda a, b: 0.5 * (a.logsnr - b.logsnr)  # log r_a / r_b
  return (jnp.exp(ratio(middle, at_s)) * jnp.expm1(ratio(at_t, middle))
          / jnp.expm1(ratio(at_t, at_s)))


def objective(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, teacher: Denoiser, steps: Scalar,
              weight: Weighting = weightings.OF_X['truncated_snr'], ends_in_x: bool = True,
              eps: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """w |x~ - x_hat(z_t)|^2 at t rounded up to i/N, N = `steps`; a sum over the data.

  Salimans and Ho (2022), algorithm 2, with the weights of section 4 (`weightings.OF_X`).  Their
  truncated SNR takes the larger of two mean squares over an image: the error of x and the error of
  eps.  Here the weight is the same, as an image has one SNR.

  Args:
    x: [B, ...]; t, keys: [B].
    teacher: gets no gradient if its parameters get none.
    steps: N, which may be traced; a power of two if N is halved.
    ends_in_x: see `target`.
    eps: the noise [B, ...], drawn from `keys` if not given.
  Returns [B] and {'x_error'}, |x~ - x_hat|^2.
  """
  grid = step_number(t, steps)
  at_t = process(grid / steps)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  z = diffuse(x, eps, at_t)
  wanted = target(teacher, process, z, grid, steps, cond, ends_in_x=ends_in_x)
  error = sum_over_data(jnp.square(wanted - denoise(z, at_t, cond).x))
  return weight(at_t) * error, {'x_error': error}


# ------------------------------------------------------------------ halving


def require_power_of_two(field: str, steps: int) -> None:
  """Raises InputError unless `steps` can be halved down to 1."""
  below = 1 << max(int(steps).bit_length() - 1, 0)
  require(steps >= 1 and below == steps, field, steps, 'the steps of a student are halved, so they '
          'must be a power of two', f'give {below} or {2 * below}')


def phases(first: int, last: int, length: int, few: int = 1) -> tuple[np.ndarray, np.ndarray]:
  """(N of each phase, the update at which it begins): N is halved from `first` to `last`.

  length: the updates of a phase.  few: the factor by which the phases with N = 2 and N = 1 are
  longer.  It is 2 in the public code of Song et al. (2023), which has this method for comparison.

  Raises InputError if an N is no power of two, if `last` is larger than `first`, or if a phase has
  no updates.
  """
  for name, steps in (('first', first), ('last', last)):
    require_power_of_two(name, steps)
  if last > first:
    raise InputError('last', last, f'the steps are halved from first={first} on', 'give fewer')
  require(length >= 1, 'length', length, 'a phase needs an update', 'give 1 or more')
  steps = first >> np.arange(first.bit_length() - last.bit_length() + 1)
  lengths = np.where(steps <= 2, few * length, length)
  return steps, np.concatenate([[0], np.cumsum(lengths)[:-1]])


def steps_at(update: Array, steps: np.ndarray, begins: np.ndarray) -> Array:
  """N at this update, by `phases`; the last N remains.  update: [], an integer -> []."""
  return jnp.asarray(steps)[jnp.sum(update >= jnp.asarray(begins)) - 1]
