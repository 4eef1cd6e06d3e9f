"""Runs a sampler down a grid of times, or a deterministic sampler up the grid."""
from collections.abc import Callable
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vdm_jax.errors import InputError
from vdm_jax.typing import Array, ArrayLike, Process, PyTree, Sampler


@overload
def sample(sampler: Sampler, keys: Array, z: Array, times: ArrayLike, trace: None = None
           ) -> Array: ...
@overload
def sample(sampler: Sampler, keys: Array, z: Array, times: ArrayLike,
           trace: Callable[[PyTree], PyTree]) -> tuple[Array, PyTree]: ...
def sample(sampler: Sampler, keys: Array, z: Array, times: ArrayLike,
           trace: Callable[[PyTree], PyTree] | None = None) -> Array | tuple[Array, PyTree]:
  """Runs `sampler` down `times` = [1 = t_N > ... > t_0] from z_1 = `z`: [B, ...] -> z at t_0.

  keys: [B]; image i depends on keys[i] alone, however many are drawn together.  A step with equal
  times is the identity.  So a grid may be padded with its last time, and one program serves every
  N.  The denoiser is called N `sampler.evaluations` times for the whole batch, and at most
  `sampler.extra_evaluations` times more.

  trace: a function of the sampler's state, e.g. `sampler.value`.  The result is then (z at t_0,
  the function's values at all N + 1 times, stacked in front).

  Raises InputError if there is not one key for each image, if the grid does not decrease, or if it
  has fewer steps than the method needs.  Outside `jit`, where values are known, it also raises if z
  is not finite, and names the first such time.
  """
  check_grid(times)
  return run(sampler, keys, z, times, trace)


@overload
def encode(sampler: Sampler, keys: Array, x: Array, times: ArrayLike, trace: None = None
           ) -> Array: ...
@overload
def encode(sampler: Sampler, keys: Array, x: Array, times: ArrayLike,
           trace: Callable[[PyTree], PyTree]) -> tuple[Array, PyTree]: ...
def encode(sampler: Sampler, keys: Array, x: Array, times: ArrayLike,
           trace: Callable[[PyTree], PyTree] | None = None) -> Array | tuple[Array, PyTree]:
  """Runs a deterministic sampler up `times` = [0 = t_0 < ... < t_N] from z_0 = `x`: -> z at t_N.

  The inversion of Song, Meng and Ermon (2021), section 4.3, with any method for the probability
  flow.  A stochastic sampler cannot run upwards: its noise has the variance of a step down, and z
  would be NaN or wrong.  The rest is as for `sample`.
  """
  check_grid(times, up=True)
  return run(sampler, keys, x, times, trace)


def tempered(sampler: Sampler, temperature: float) -> Sampler:
  """`sampler`, which begins at temperature x z_1.

  A little less noise than in training makes smoother images.  The public code of GLIDE (Nichol et
  al. 2021) has 0.997 for its upsampler.
  """
  return sampler._replace(init=lambda z: sampler.init(temperature * z))


def check_grid(times: ArrayLike, up: bool = False) -> None:
  """Raises InputError unless `times` [N + 1] is a grid to sample along (`up`: to encode along).

  A grid is one-dimensional, monotone, within [0, 1] and has at least one step.  A time may be
  repeated: at the end this is padding; elsewhere a multistep method begins anew there.  If `jit`
  traces the times, only their shape is checked; a NumPy grid is checked in full.
  """
  if np.ndim(times) != 1 or np.shape(times)[0] < 2:
    raise InputError('times', None, f'their shape is {np.shape(times)}',
                     'give a grid of one dimension and at least two times')
  if isinstance(times, Tracer):
    return
  times = np.asarray(times)
  if not np.isfinite(times).all():
    raise InputError('times', None,
                     f'times[{np.flatnonzero(~np.isfinite(times))[0]}] is not finite',
                     'give finite ones')
  wrong = np.flatnonzero(np.diff(times) < 0 if up else np.diff(times) > 0)
  if wrong.size:
    i = wrong[0]
    does, other = ('increase', 'sample') if up else ('decrease', 'encode')
    raise InputError('times', None, f'times[{i + 1}] = {times[i + 1]:.6g} after times[{i}] = '
                     f'{times[i]:.6g}, where the grid must {does} (1 is noise, 0 is data)',
                     f'take `{other}` for the other way')
  if not 0.0 <= times.min() <= times.max() <= 1.0:
    raise InputError('times', None, f'they are from {times[0]:.6g} to {times[-1]:.6g}',
                     'give times in [0, 1]')
  if times[0] == times[-1]:
    raise InputError('times', None, f'they are all {times[0]:.6g}',
                     'give a grid of at least one step')


def as_latent(z: Array) -> Array:
  """z in float32, or in float64 if z is: rounding to bfloat16 is noise that no network removes."""
  z = jnp.asarray(z)
  return z.astype(jnp.promote_types(z.dtype, jnp.float32))


def require_one_step(sampler: Sampler, field: str, change: str) -> int:
  """The calls of the denoiser in a step of a sampler whose state is z.

  Raises InputError if the state holds more than z, which `change` makes stale.

  field: the name of the argument that is the sampler.
  """
  probe = jnp.zeros((1, 1))
  if sampler.evaluations is None or sampler.init(probe) is not probe:
    raise InputError(field, None, 'its state holds more than z (a multistep history), which '
                     f'{change} would make stale', 'take a one-step method, e.g. ddim or heun')
  return sampler.evaluations


def run(sampler: Sampler, keys: Array, z: Array, times: ArrayLike,
        trace: Callable[[PyTree], PyTree] | None = None) -> Any:
  """`sample` along times that are not checked: they may go down and up, as in `inpainting`."""
  if not np.shape(keys) or np.shape(keys)[:1] != np.shape(z)[:1]:
    raise InputError('keys', None, f'they are {np.shape(keys)}, and z {np.shape(z)}',
                     'give keys [B] and z [B, ...], a key for each image (jax.random.split(key, '
                     'B))')
  z = as_latent(z)
  times = jnp.asarray(times, z.dtype)  # also integers, and float64 of a NumPy grid
  look = trace or (lambda state: None)
  xs = jnp.arange(times.shape[0] - 1), times[:-1], times[1:], sampler.plan(times)
  state = sampler.init(z)
  first = look(state)
  state, (traced, finite) = jax.lax.scan(_body(sampler, keys, look), state, xs)
  check_finite(finite, times)
  z = sampler.value(state)
  if trace is None:
    return z
  return z, jax.tree.map(lambda a, b: jnp.concatenate([jnp.asarray(a)[None], b]), first, traced)


def part(sampler: Sampler, keys: Array, state: PyTree, times: Array, start: ArrayLike, count: int
         ) -> tuple[PyTree, Array]:
  """Steps start ... start + count - 1 of `sample`: the state, and whether z is finite [count].

  The parts one after another are the steps of `sample`.  So a long run can be kept and resumed.
  Beyond the end of the grid, nothing is evaluated.

  state: before step `start`.  Before step 0, it is `sampler.init(z)`.
  """
  numbers, last = start + jnp.arange(count), times.shape[0] - 1
  plan = jax.tree.map(lambda u: u[jnp.minimum(numbers, last - 1)], sampler.plan(times))
  t, s = (times[jnp.minimum(numbers + i, last)] for i in (0, 1))
  body = _body(sampler, keys, lambda state: None)

  def within(state, xs):
    return jax.lax.cond(xs[0] < last, body, lambda state, _: (state, (None, jnp.array(True))),
                        state, xs)
  state, (_, finite) = jax.lax.scan(within, state, (numbers, t, s, plan))
  return state, finite


def _body(sampler: Sampler, keys: Array, look: Callable[[PyTree], PyTree]) -> Callable:
  """A step for `lax.scan`: state, (its number, t, s, its plan) -> state, what is looked at."""
  def body(state, xs):
    i, t, s, plan = xs
    at_i = jax.vmap(lambda key: jax.random.fold_in(key, i))(keys)
    moved = sampler.step(at_i, state, t, s, plan)
    state = jax.tree.map(lambda old, new: jnp.where(t == s, old, new), state, moved)
    return state, (look(state), jnp.all(jnp.isfinite(sampler.value(state))))
  return body


def data_axes(process: Process) -> int:
  """The number of axes of the levels at one time: 0 if all numbers of an example share a level."""
  return jax.eval_shape(lambda t: process(t), jnp.zeros(())).logsnr.ndim


def one_time(process: Process) -> Process:
  """Wraps `process` for a sampler.  If a level has data axes, only one time may be given per call.

  A plan is made from the levels of all times.  With data axes, the axis of times would be confused
  with the axis of examples; the returned process raises InputError instead.
  """
  if not data_axes(process):
    return process

  def at(t):
    if jnp.ndim(t):
      raise InputError('sampler', None, 'it plans its steps from one noise level for all pixels, '
                       'and here every pixel has its own',
                       'choose one without a plan, e.g. ancestral, ddim')
    return process(t)
  return at


def check_finite(finite: ArrayLike, times: ArrayLike, process: Process | None = None) -> None:
  """Raises InputError naming the first step whose result is not finite.  finite: [N] bool.

  Does nothing under `jit`, where values are unknown.
  """
  if isinstance(finite, Tracer) or isinstance(times, Tracer) or np.all(finite):
    return
  i = int(np.flatnonzero(~np.asarray(finite))[0])
  t, s = (float(u) for u in np.asarray(times)[i:i + 2])
  what, level, cause = 'sample', '', (
      'the network gave NaN or infinity there (take another checkpoint or average), or its target '
      'cannot be inverted at an end (eps or score where alpha = 0, score where sigma = 0): begin '
      'or end the grid inside')
  if s > t:
    what = 'encoding'
    cause = f'the sampler is stochastic (encode with a deterministic one, e.g. ddim), {cause}'
  if process is not None and not data_axes(process):
    at_t, at_s = process(jnp.asarray(t)), process(jnp.asarray(s))
    level = f', logsnr = {float(at_t.logsnr):.6g},'
    if at_t.alpha == 0.0:
      cause = ('alpha = 0 there, where an eps or score target says nothing of x: begin the '
               f'grid below t = {t:.6g}, or train for v, x or flow')
    elif at_s.sigma > 0.0:
      cause = 'the network gave NaN or infinity there: take another checkpoint or average'
    else:
      cause = ('the network gave NaN or infinity there, or at sigma = 0, where a score target is '
               f'infinite: end the grid above t = {s:.6g}, or take another checkpoint')
  raise InputError(problem=f'the {what} is not finite from t = {t:.6g}{level} on (step {i} of '
                   f'{np.size(finite)}, to t = {s:.6g}): {cause}')
