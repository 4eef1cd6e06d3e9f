"""Volumes that are measured slice by slice: operators, and reconstructions without a prior.

A volume is one example, [Z, H, W, C].  The operators are those of `inverse`:

  `parallel_beams`   sums along parallel beams (a tomograph), as scikit-image's `radon`
  `fourier`          a part of the Fourier transform of each slice (magnetic resonance)

The reconstructions are baselines of `samplers.mbir`, which shares the ADMM:

  `filtered_back_projection`   as scikit-image's `iradon`
  `least_squares`              by conjugate gradients
  `total_variation`            1/2 |A x - y|^2 + weight |D x|_1, by ADMM
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import require, require_at_least
from vdm_jax.inverse import Operator, Problem, conjugate_gradients, require_linear
from vdm_jax.typing import Array, ArrayLike

__all__ = ['Split', 'TV', 'admm', 'angles_of', 'differences', 'filtered_back_projection', 'fourier',
           'least_squares', 'parallel_beams', 'require_volume', 'start', 'total_variation',
           'transposed_differences']

# Up to so many numbers, the projector is a matrix; else a list of what is not 0 in it.
_DENSE = 2**22


def require_volume(shape: tuple[int, ...]) -> tuple[int, int, int, int]:
  """(Z, H, W, C).  Raises InputError for another number of axes, and for an axis of length 0."""
  require(len(shape) == 4 and min(shape) > 0, 'shape', shape, 'it is no volume',
          'give slices, rows, columns and channels: (Z, H, W, C)')
  depth, height, width, channels = shape
  return depth, height, width, channels


# ---------------------------------------------------------------- tomography


def angles_of(views: int) -> np.ndarray:
  """[views] angles in radians, evenly over 180 degrees, from 0.  Raises InputError below 1."""
  require_at_least('views', views)
  return np.pi * np.arange(views) / views


def _rotation(side: int, angles: np.ndarray, circle: bool
              ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
  """The projector as a sparse matrix: length of a projection, rows, columns, weights.

  A row is (place in the projection, view), a column a pixel.  The picture is rotated about its
  pixel (n // 2, n // 2) by bilinear interpolation, 0 outside, and summed over rows.
  """
  size = side if circle else int(np.ceil(np.sqrt(2.0) * side))
  pad, centre = size // 2 - side // 2, size // 2
  row, column = np.mgrid[:size, :size] - centre
  views, pixels, weights = [], [], []
  for view, angle in enumerate(angles):
    at = [np.cos(angle) * row - np.sin(angle) * column + centre - pad,
          np.sin(angle) * row + np.cos(angle) * column + centre - pad]
    low = [np.floor(u).astype(int) for u in at]
    for up in np.ndindex(2, 2):
      y, x = (corner + i for corner, i in zip(low, up, strict=True))
      share = np.prod([1.0 - np.abs(u - v) for u, v in zip(at, (y, x), strict=True)], axis=0)
      some = (np.minimum(y, x) >= 0) & (np.maximum(y, x) < side) & (share != 0.0)
      views.append(((column + centre) * len(angles) + view)[some])
      pixels.append((y * side + x)[some])
      weights.append(share[some])
  return size, np.concatenate(views), np.concatenate(pixels), np.concatenate(weights)


def parallel_beams(shape: tuple[int, ...], angles: np.ndarray, circle: bool = True) -> Operator:
  """The sums of each slice along parallel beams: y [B, Z, P, views, C].

  Each view is scikit-image's `radon` of each slice.  shape: [Z, H, W, C], with H = W.  angles:
  [views], in radians.  circle: the slices are 0 outside of the circle that fits into the square,
  and P = W; otherwise P = ceil(sqrt(2) W).

  Raises InputError for slices that are not square, and for angles that are no finite [views].
  """
  depth, height, side, channels = require_volume(shape)
  require(height == side, 'shape', shape, 'the slices are not square', 'pad them with zeros')
  angles = np.asarray(angles, float)
  require(angles.ndim == 1 and angles.size > 0 and bool(np.isfinite(angles).all()), 'angles', None,
          f'their shape is {angles.shape}, or they are not finite', 'give one angle for each view')
  size, rows, columns, weights = _rotation(side, angles, circle)
  count = size * len(angles)
  matrix = None
  if count * side * side <= _DENSE:
    matrix = np.zeros((count, side * side))
    np.add.at(matrix, (rows, columns), weights)

  def apply(x):
    flat = x.reshape(-1, side * side, channels)
    if matrix is not None:
      sums = jnp.einsum('pi,bic->bpc', jnp.asarray(matrix, x.dtype), flat,
                        precision=jax.lax.Precision.HIGHEST)
    else:
      parts = flat[:, columns] * jnp.asarray(weights, x.dtype)[:, None]
      sums = jnp.zeros((len(flat), count, channels), x.dtype).at[:, rows].add(parts)
    return sums.reshape(-1, depth, size, len(angles), channels)
  return Operator(f'views:{len(angles)}', apply, (depth, height, side, channels))


def _ramp(size: int) -> np.ndarray:
  """[size] the filter |frequency|, from its exact kernel in space: Kak and Slaney (1988), eq. 61.
  """
  n = np.minimum(np.arange(size), size - np.arange(size))
  kernel = np.where(n % 2 == 1, -1.0 / np.square(np.pi * np.maximum(n, 1)), 0.0)
  kernel[0] = 0.25
  return 2.0 * np.real(np.fft.fft(kernel))


def filtered_back_projection(y: Array, angles: np.ndarray, side: int, circle: bool = True) -> Array:
  """Slices from their projections: [B, Z, P, views, C] -> [B, Z, side, side, C].

  It is scikit-image's `iradon` with its ramp filter and linear interpolation.  With `circle`, it is
  0 outside of the circle.  Raises InputError for y of another number of views or places.
  """
  size = side if circle else int(np.ceil(np.sqrt(2.0) * side))
  require(np.ndim(y) == 5 and np.shape(y)[2:4] == (size, len(angles)), 'y', None,
          f'its shape is {np.shape(y)}', f'give [B, Z, {size}, {len(angles)}, C]')
  if circle:
    wide = int(np.ceil(np.sqrt(2.0) * side))
    before = wide // 2 - side // 2
    y = jnp.pad(y, ((0, 0), (0, 0), (before, wide - side - before), (0, 0), (0, 0)))
    size = wide
  padded = max(64, int(2**np.ceil(np.log2(2 * size))))
  ramp = jnp.asarray(_ramp(padded), y.dtype)[:, None, None]
  filtered = jnp.real(jnp.fft.ifft(jnp.fft.fft(y, padded, axis=2) * ramp, axis=2))[:, :, :size]
  row, column = np.mgrid[:side, :side] - side // 2
  at = np.stack([column * np.cos(a) - row * np.sin(a) for a in angles]).reshape(len(angles), -1)
  places = np.arange(size) - size // 2
  one = lambda at, column: jnp.interp(at, places, column, left=0.0, right=0.0)
  columns = jnp.moveaxis(filtered, 2, -1)                      # [B, Z, views, C, P]
  rows = columns.reshape(-1, len(angles), columns.shape[-2], size)
  back = jax.vmap(jax.vmap(jax.vmap(one, (None, 0)), (0, 0)), (None, 0))(
      jnp.asarray(at, y.dtype), rows).sum(axis=1)              # [B Z, C, pixels]
  x = jnp.moveaxis(back, 1, -1).reshape(*y.shape[:2], side, side, -1)
  x = x * (np.pi / (2.0 * len(angles)))
  inside = np.square(row) + np.square(column) <= (side // 2)**2
  return x * jnp.asarray(inside, x.dtype)[:, :, None] if circle else x


# -------------------------------------------------------- magnetic resonance


def fourier(shape: tuple[int, ...], known: np.ndarray) -> Operator:
  """The known part of the Fourier transform of each slice: y [B, Z, H, W, C, 2], 0 elsewhere.

  The last axis has the real and the imaginary part.  The transform is unitary.  Pixel (H // 2,
  W // 2) is the origin, and the zero frequency is at the same place, as in scanners.  shape: [Z, H,
  W, C].  known: bool [W] or [H, W].

  Raises InputError for another shape of `known`, and if nothing is known.
  """
  depth, height, width, channels = require_volume(shape)
  known = np.asarray(known, bool)
  require(known.shape in ((width,), (height, width)), 'known', None, f'its shape is {known.shape}',
          f'give {(width,)} or {(height, width)} booleans')
  require(bool(known.any()), 'known', None, 'nothing is known', 'keep some frequencies')
  mask = np.broadcast_to(known, (height, width))[:, :, None]

  def apply(x):
    x = jnp.fft.ifftshift(x, axes=(2, 3))
    k = jnp.fft.fftshift(jnp.fft.fft2(x, axes=(2, 3), norm='ortho'), axes=(2, 3)) * mask
    return jnp.stack([jnp.real(k), jnp.imag(k)], axis=-1)
  return Operator(f'frequencies:{known.mean():.3g}', apply, (depth, height, width, channels))


# ------------------------------------------------------------ total variation


class TV(NamedTuple):
  """weight |D x|_1, as ADMM treats it.  D x is the difference of neighbours, and periodic."""
  weight: float = 0.04
  rho: float = 10.0                     # of the augmented Lagrangian
  axes: tuple[int, ...] = (1,)          # of [B, Z, H, W, C]: 1 is across slices
  isotropic: bool = False               # |D x| is the length of the vector of all differences

  def check(self) -> None:
    """Raises InputError for a weight below 0, a rho that is not above 0, and for wrong axes."""
    require(0.0 <= self.weight < np.inf, 'weight', self.weight, 'it must be at least 0, and finite',
            'give 0.04, for example')
    require(0.0 < self.rho < np.inf, 'rho', self.rho, 'it must be above 0, and finite',
            'give 10, for example')
    require(len(self.axes) > 0 and set(self.axes) <= {1, 2, 3}, 'axes', self.axes,
            'they are of [B, Z, H, W, C]', 'choose among 1, 2 and 3')


class Split(NamedTuple):
  """The variables of ADMM beside x: [B, Z, H, W, C, axes] each."""
  d: Array   # stands for D x
  u: Array   # the scaled multipliers


def differences(x: Array, axes: tuple[int, ...]) -> Array:
  """D x: [B, Z, H, W, C] -> [..., axes], the next along each axis less this one; periodic."""
  return jnp.stack([jnp.roll(x, -1, axis) - x for axis in axes], axis=-1)


def transposed_differences(v: Array, axes: tuple[int, ...]) -> Array:
  """D^T v."""
  parts = (jnp.roll(v[..., i], 1, axis) - v[..., i] for i, axis in enumerate(axes))
  return sum(parts, jnp.zeros_like(v[..., 0]))


def _shrunk(v: Array, threshold: float, isotropic: bool) -> Array:
  """v, moved towards 0 by the threshold: each number, or each vector along the last axis."""
  length = jnp.linalg.norm(v, axis=-1, keepdims=True) if isotropic else jnp.abs(v)
  return v * (jnp.maximum(length - threshold, 0.0) / jnp.where(length > 0.0, length, 1.0))


def start(x: Array, tv: TV) -> Split:
  """The variables at the start: zeros.  x: [B, Z, H, W, C]."""
  zeros = jnp.zeros((*x.shape, len(tv.axes)), x.dtype)
  return Split(zeros, zeros)


def admm(problem: Problem, tv: TV, x: Array, split: Split, iterations: int = 1,
         near: ArrayLike = 0.0) -> tuple[Array, Split]:
  """A step of ADMM for 1/2 |A x - y|^2 + weight |D x|_1: x, d, u -> x, d, u.

  x makes (A^T A + rho D^T D) x = A^T y + rho D^T (d - u) nearer, by `iterations` steps of conjugate
  gradients; d = D x + u, moved towards 0 by weight / rho; u = u + D x - d.  Chung et al. (2023),
  DiffusionMBIR, section 3.  It takes at most 1 + iterations products with A, and with A^T.

  near: the weight of 1/2 |x - x_given|^2, which is added.
  """
  a, axes = problem.operator, tv.axes
  back = lambda v: tv.rho * transposed_differences(v, axes)
  matrix = lambda p: a.adjoint(a(p)) + back(differences(p, axes)) + near * p
  slope = a.adjoint(problem.residual(x)) + back(split.d - split.u - differences(x, axes))
  x = x + conjugate_gradients(matrix, slope, iterations)
  moved = differences(x, axes) + split.u
  d = _shrunk(moved, tv.weight / tv.rho, tv.isotropic)
  return x, Split(d, moved - d)


# -------------------------------------------------------------- without a prior


def least_squares(problem: Problem, iterations: int = 50) -> Array:
  """x that makes |A x - y|^2 small: conjugate gradients from 0, so many steps.  [B, Z, H, W, C].

  Few steps regularise: directions that are hardly measured stay 0.  Raises InputError for an
  operator that is not linear, and below one step.
  """
  require_at_least('iterations', iterations)
  require_linear(problem.operator)
  a = problem.operator
  return conjugate_gradients(lambda p: a.adjoint(a(p)), a.adjoint(problem.y), iterations)


def total_variation(problem: Problem, tv: TV, steps: int = 30, iterations: int = 5,
                    each: Callable[[Array], Array] = lambda x: x) -> Array:
  """The minimum of 1/2 |A x - y|^2 + weight |D x|_1, by `steps` of `admm` from 0.

  each: a function of x after each step, such as a limit.  Raises InputError for an operator that is
  not linear, below one step, and as `TV.check`.
  """
  tv.check()
  require_at_least('steps', steps)
  require_at_least('iterations', iterations)
  require_linear(problem.operator)

  def body(carried, _):
    x, split = admm(problem, tv, carried[0], carried[1], iterations)
    return (each(x), split), None
  x = jnp.zeros((len(problem.y), *problem.operator.shape), problem.y.dtype)
  return jax.lax.scan(body, (x, start(x, tv)), None, steps)[0][0]
