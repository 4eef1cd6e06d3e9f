"""Inverse problems y = A(x) + noise: the operators A, and denoisers that are told y.

A denoiser that is told y is a wrapper, as in `guidance`, so every sampler takes it.  It moves x_hat
by an estimate of the score of p(y | z):

  x' = x_hat + C A^T R^-1 (y - A x_hat),   C = (sigma^2 / alpha) J^T,   J = d x_hat / d z

C is the covariance of x given z if the denoiser is exact.  The wrappers differ in R, the covariance
of y given z:

  `mmps`     noise^2 + A C A^T, by a few steps of an iterative solver: exact for Gaussian data
  `tmpd`     the diagonal noise^2 + A C A^T 1
  `pigdm`    noise^2 + r^2 A A^T, with a covariance r^2 of x given z that is known beforehand
  `point`    noise^2: x given z is taken for a point
  `diffpir`  no J: x' is the minimum of a sum of squares

None but `mmps` is exact in the limit of many steps, and `mmps` only for Gaussian data.  `point` is
far off at high noise.  For the posterior itself of data in closed form, see
`oracles.Correlated.given`.  The methods that change the step of the sampler are in
`samplers.conditioned`.

y and noise are in the units of A(x), for x in the units of the network (images: [-1, 1]).
"""
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from vdm_jax.errors import InputError, require, require_at_least, require_choice
from vdm_jax.guidance import revise
from vdm_jax.typing import Array, ArrayLike, Denoiser, Level
from vdm_jax.units import sum_over_data

__all__ = ['Operator', 'Problem', 'blur', 'conjugate_gradients', 'custom', 'diffpir', 'downsample',
           'gmres', 'gray', 'inpaint', 'kept', 'mmps', 'norm', 'phase', 'pigdm', 'point',
           'pseudo_inverse', 'require_linear', 'require_noise', 'scattered', 'slack',
           'tmpd']


# ---------------------------------------------------------------- operators


_SMALL = 2**22  # numbers of a matrix that may be made to find the range of y


class Operator(NamedTuple):
  """y = A(x), of a batch."""
  name: str
  apply: Callable[[Array], Array]     # x [B, ...] -> y [B, ...]
  shape: tuple[int, ...]              # of one x
  linear: bool = True
  known: np.ndarray | None = None     # bool, of the shape of one x: y are these numbers of x
  limits: tuple[float, float] | None = None  # of A(x) for images in [-1, 1]; None: not known

  def __call__(self, x: Array) -> Array:
    return self.apply(x)

  @property
  def measured(self) -> tuple[int, ...]:
    """The shape of one y.  Nothing is computed."""
    return jax.eval_shape(self.apply, jnp.zeros((1, *self.shape))).shape[1:]

  def adjoint(self, y: Array) -> Array:
    """A^T y, exact: y [B, ...] -> [B, *shape].  A must be linear."""
    x = jax.ShapeDtypeStruct((len(y), *self.shape), y.dtype)
    return jax.linear_transpose(self.apply, x)(y)[0]

  def matrix(self) -> np.ndarray:
    """A as a matrix, [numbers of y, numbers of x], in float64 where JAX has it.

    It takes the memory of as many images as x has numbers.
    """
    size = int(np.prod(self.shape))
    columns = jax.jit(self.apply)(jnp.eye(size, dtype=float).reshape(size, *self.shape))
    return np.asarray(columns).reshape(size, -1).T

  def spread(self, y: Array, other: ArrayLike = 0.0) -> Array:
    """y at its places in x, and `other` elsewhere: of an operator with `known`.  -> [B, *shape]."""
    assert self.known is not None
    where = np.flatnonzero(self.known)
    flat = jnp.full((len(y), self.known.size), other, y.dtype)
    return flat.at[:, where].set(y).reshape(len(y), *self.shape)


def _images(task: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
  require(len(shape) == 3, 'task', task, f'it is for images, and x has the shape {shape}',
          'give an operator of your own, FILE.py:NAME')
  height, width, channels = shape
  return height, width, channels


def kept(known: np.ndarray, name: str = 'mask') -> Operator:
  """y = the numbers of x where `known` is true, in their order, [B, n].  known: bool, of one x.

  Raises InputError if nothing is known, or all.
  """
  known = np.asarray(known, bool)
  require(bool(known.any()), 'task', name, 'nothing of the image is known', 'keep some pixels')
  require(not known.all(), 'task', name, 'all of the image is known', 'leave some pixels out')
  where = np.flatnonzero(known)
  return Operator(name, lambda x: x.reshape(len(x), -1)[:, where], known.shape, known=known,
                  limits=(-1.0, 1.0))


def inpaint(shape: tuple[int, ...]) -> Operator:
  """The central half x half of an image is missing.  shape: [H, W, C].  Raises InputError."""
  height, width, _ = _images('inpaint', shape)
  known = np.ones(shape, bool)
  known[height // 4:height // 4 + height // 2, width // 4:width // 4 + width // 2] = False
  return kept(known, 'inpaint')


def scattered(shape: tuple[int, ...], share: float) -> Operator:
  """A share of the pixels is known, at random places that depend on the shape and share alone.

  Raises InputError unless 0 < share < 1, and if this leaves no pixel, or all.
  """
  name = f'keep:{share:g}'
  height, width, _ = _images(name, shape)
  require(0.0 < share < 1.0, 'task', name, 'the share must be between 0 and 1',
          'give 0.3, for example')
  known = np.zeros(height * width, bool)
  known[np.random.default_rng(0).permutation(len(known))[:round(share * len(known))]] = True
  return kept(np.broadcast_to(known.reshape(height, width, 1), shape), name)


def downsample(shape: tuple[int, ...], factor: int) -> Operator:
  """The mean of every factor x factor pixels, [B, H / factor, W / factor, C].

  Raises InputError: a factor below 2, or one that does not divide the sides.
  """
  name = f'downsample:{factor}'
  height, width, channels = _images(name, shape)
  require(factor >= 2, 'task', name, 'the factor must be at least 2', 'give 2, for example')
  require(height % factor == width % factor == 0, 'task', name,
          f'{factor} does not divide the sides of {height} x {width} pixels', 'choose a divisor')
  blocks = (height // factor, factor, width // factor, factor, channels)
  return Operator(name, lambda x: jnp.mean(x.reshape(len(x), *blocks), axis=(2, 4)), shape,
                  limits=(-1.0, 1.0))


def _smoothing(size: int, sigma: float) -> np.ndarray:
  """The matrix [size, size] of a Gaussian filter that ends at 4 sigma; edges are mirrored."""
  reach = int(4.0 * sigma + 0.5)
  offsets = np.arange(-reach, reach + 1)
  weights = np.exp(-0.5 * np.square(offsets / sigma))
  weights /= weights.sum()
  at = (np.arange(size)[:, None] + offsets) % (2 * size)
  at = np.where(at < size, at, 2 * size - 1 - at)  # d c b a | a b c d | d c b a
  matrix = np.zeros((size, size))
  np.add.at(matrix, (np.arange(size)[:, None], at), np.broadcast_to(weights, at.shape))
  return matrix


def blur(shape: tuple[int, ...], sigma: float) -> Operator:
  """A Gaussian blur of standard deviation `sigma`, in pixels; edges are mirrored.  y as x.

  Raises InputError unless sigma is above 0.
  """
  name = f'blur:{sigma:g}'
  height, width, _ = _images(name, shape)
  require(0.0 < sigma < np.inf, 'task', name, 'sigma must be above 0', 'give 1, for example')
  rows, columns = _smoothing(height, sigma), _smoothing(width, sigma)

  def apply(x):
    return jnp.einsum('ih,jw,bhwc->bijc', jnp.asarray(rows, x.dtype), jnp.asarray(columns, x.dtype),
                      x)
  return Operator(name, apply, shape, limits=(-1.0, 1.0))


def gray(shape: tuple[int, ...]) -> Operator:
  """The mean of the channels, [B, H, W, 1].  Raises InputError for images of one channel."""
  _, _, channels = _images('gray', shape)
  require(channels > 1, 'task', 'gray', 'these images have one channel and are gray already',
          'choose another task')
  return Operator('gray', lambda x: jnp.mean(x, axis=-1, keepdims=True), shape, limits=(-1.0, 1.0))


def phase(shape: tuple[int, ...]) -> Operator:
  """The modulus of the Fourier transform of x between zeros, [B, 2 H, 2 W, C]: phase retrieval.

  Chung et al. (2022), section 4, with twice as many frequencies as pixels along each side.  The
  transform is unitary, so the largest modulus is that of frequency 0 of a constant image.  It is
  not linear.
  """
  height, width, _ = _images('phase', shape)
  pad = ((0, 0), (height // 2, height - height // 2), (width // 2, width - width // 2), (0, 0))
  return Operator('phase', lambda x: jnp.abs(jnp.fft.fft2(jnp.pad(x, pad), axes=(1, 2),
                                                          norm='ortho')), shape, linear=False,
                  limits=(0.0, 0.5 * float(np.sqrt(height * width))))


def custom(name: str, apply: Callable[[Array], Array], shape: tuple[int, ...]) -> Operator:
  """An operator of the user: x [B, ...] -> y [B, ...], a function of JAX of each example alone.

  It is tried on random x, to find whether it is linear.  If it is, x are images and the matrix is
  small, the limits are the sums of the absolute numbers of a row.

  Raises InputError: it fails on images of this shape; y has no batch or is not real; an example
  changes another one.
  """
  x = jnp.asarray(np.random.default_rng(0).uniform(-1.0, 1.0, (3, *shape)), jnp.float32)
  try:
    traced = jax.eval_shape(apply, x)
  except InputError:
    raise
  except Exception as error:
    text = (str(error).splitlines() or [''])[0]
    raise InputError('task', name, f'it fails on x of shape {x.shape}: {type(error).__name__}: '
                     f'{text}', 'give a function of JAX, x [B, ...] -> y [B, ...]') from error
  found = getattr(traced, 'shape', None)
  require(found is not None and found[:1] == (3,) and len(found) > 1, 'task', name,
          f'of x {x.shape} it makes y {found}', 'give a function x [B, ...] -> y [B, ...]')
  require(jnp.issubdtype(traced.dtype, jnp.floating), 'task', name,
          f'y has the type {traced.dtype}', 'return real numbers')
  of_each = np.asarray(jax.jit(apply)(x))
  close = lambda a, b: np.allclose(a, b, rtol=1e-4, atol=1e-4 * (1e-6 + np.abs(of_each).max()))
  require(close(np.asarray(apply(x[:1])), of_each[:1]), 'task', name,
          'y of an image depends on the other images of the batch', 'treat each image alone')
  # Two combinations, so that |x| does not pass by its sign.
  sums = [close(np.asarray(apply(a * x[:1] + b * x[1:2])), a * of_each[:1] + b * of_each[1:2])
          for a, b in ((2.0, 3.0), (-1.0, 0.5))]
  operator = Operator(name, apply, tuple(shape), linear=all(sums))
  if not operator.linear or len(shape) != 3 or x[0].size * of_each[0].size > _SMALL:
    return operator
  most = float(np.abs(operator.matrix()).sum(axis=1).max())
  return operator._replace(limits=(-most, most))


# ------------------------------------------------------------------ problems


class Problem(NamedTuple):
  """What is known of x: y = A(x) + noise n, with n ~ N(0, 1)."""
  operator: Operator
  y: Array             # [B, ...]
  noise: float = 0.0   # the standard deviation, in the units of y

  def residual(self, x: Array) -> Array:
    """y - A(x)."""
    return self.y - self.operator(x)

  def check(self) -> None:
    """Raises InputError: a noise below 0; a y of another shape, not finite, or out of range.

    The range is that of images in [-1, 1], see `Operator.limits`: six standard deviations of the
    noise beyond it, y is surely in other units.  Values are not checked under `jit`.
    """
    require(0.0 <= self.noise < np.inf, 'noise', self.noise, 'it must be at least 0, and finite',
            'give the standard deviation in the units of y')
    want, found = self.operator.measured, np.shape(self.y)[1:]
    require(found == want, 'y', None, f'it has the shape {found} for an image, and '
            f'{self.operator.name} makes {want}', 'give y [B, ...] of that shape')
    if isinstance(self.y, Tracer):
      return
    y = np.asarray(self.y)
    require(bool(np.isfinite(y).all()), 'y', None, 'it is not finite', 'give finite numbers')
    if self.operator.limits is not None:
      beyond = slack(self.noise, max(1.0, *np.abs(self.operator.limits)))
      low, high = self.operator.limits[0] - beyond, self.operator.limits[1] + beyond
      require(bool((y >= low).all() and (y <= high).all()), 'y', None,
              f'it is from {y.min():.4g} to {y.max():.4g}, and {self.operator.name} of images in '
              f'[-1, 1] with this noise is from {low:.4g} to {high:.4g}',
              'give y in the units of images in [-1, 1]')

  def check_against(self, z: Array) -> None:
    """Raises InputError: a z [B, ...] that has not the shape of x; neither one y, nor one for each.
    """
    shape, count = np.shape(z), np.shape(self.y)[0]
    require(shape[1:] == tuple(self.operator.shape), 'z', None, f'it has the shape {shape}, and '
            f'{self.operator.name} is of x of shape {self.operator.shape}', 'give z [B, ...] of it')
    require(count in (1, shape[0]), 'y', None, f'it has {count} measurements, and z has {shape[0]} '
            'examples', 'give one y for each z, or one for all')


def slack(noise: float, most: float) -> float:
  """How far from its range y may be: six standard deviations of the noise, and the rounding.

  most: the largest number that y may have without noise.
  """
  return 6.0 * noise + 1e-4 * most


# ------------------------------------------------------------------ solvers


def _dot(a: Array, b: Array) -> Array:
  """The inner product of each example, with axes that broadcast: [B, 1, ...]."""
  return sum_over_data(a * b).reshape(-1, *(1,) * (a.ndim - 1))


def norm(u: Array) -> Array:
  """|u| of each example, [B], whose gradient is 0 at u = 0."""
  squared = sum_over_data(jnp.square(u))
  some = squared > 0.0
  return jnp.where(some, jnp.sqrt(jnp.where(some, squared, 1.0)), 0.0)


def conjugate_gradients(matrix: Callable[[Array], Array], b: Array, iterations: int) -> Array:
  """u with matrix(u) = b, of each example alone.  b: [B, ...]; at most so many products.

  The matrix must be symmetric and positive.  An example whose residual is at rounding, or in a
  direction of no curvature, stays as it is.
  """
  least = jnp.square(4.0 * jnp.finfo(b.dtype).eps) * _dot(b, b)

  def going(state):
    i, _, _, _, rr = state
    return (i < iterations) & jnp.any(rr > least)

  def step(state):
    i, u, r, p, rr = state
    product = matrix(p)
    curvature = _dot(p, product)
    active = (rr > least) & (curvature > 0.0)
    length = jnp.where(active, rr / jnp.where(active, curvature, 1.0), 0.0)
    u, r = u + length * p, r - length * product
    after = _dot(r, r)
    p = jnp.where(active, r + after / jnp.where(active, rr, 1.0) * p, p)
    return i + 1, u, r, p, after

  start = (0, jnp.zeros_like(b), b, b, _dot(b, b))
  return jax.lax.while_loop(going, step, start)[1]


def gmres(matrix: Callable[[Array], Array], b: Array, iterations: int) -> Array:
  """u that makes |b - matrix(u)| least, in a Krylov space, of each example alone.  b: [B, ...].

  So many products are made.  The matrix need be neither symmetric nor positive.
  """
  unit = lambda u, length: u / jnp.where(length > 0.0, length, 1.0)
  size = jnp.sqrt(_dot(b, b))
  basis = [unit(b, size)]
  columns = []
  for j in range(iterations):
    w = matrix(basis[j])
    column = []
    for v in basis:
      share = _dot(v, w)
      w, column = w - share * v, [*column, share]
    length = jnp.sqrt(_dot(w, w))
    basis.append(unit(w, length))
    zeros = [jnp.zeros_like(length)] * (iterations - 1 - j)
    columns.append(jnp.stack([u.reshape(-1) for u in [*column, length, *zeros]], axis=-1))
  hessenberg = jnp.stack(columns, axis=-1)  # [B, iterations + 1, iterations]
  weights = jnp.linalg.pinv(hessenberg)[:, :, 0] * size.reshape(-1, 1)
  wide = lambda u: u.reshape(-1, *(1,) * (b.ndim - 1))
  return sum((wide(weights[:, j]) * basis[j] for j in range(iterations)), jnp.zeros_like(b))


_SOLVERS = {'gmres': gmres, 'cg': conjugate_gradients}
# Of the operators here, only a blur needs more than one: the others have A A^T = c.
_ITERATIONS = 100


def pseudo_inverse(operator: Operator, y: Array) -> Array:
  """A^T (A A^T)^-1 y: the smallest x with A x = y, or the nearest to it.  [B, ...] -> [B, *shape].

  By conjugate gradients, up to 100 products.  A must be linear.
  """
  return operator.adjoint(conjugate_gradients(
      lambda u: operator(operator.adjoint(u)), y, _ITERATIONS))


# ------------------------------------------------- denoisers that are told y

# (y - A x_hat, C, level) -> R^-1 (y - A x_hat); C takes one x and gives one.
_Solve = Callable[[Array, Callable[[Array], Array], Level], Array]


def _told(denoise: Denoiser, problem: Problem, solve: _Solve) -> Denoiser:
  """The wrapper of the page's head, with R^-1 by `solve`.

  At alpha = 0, z says nothing about x, and x_hat is kept; at sigma = 0, C is 0.
  """
  require_linear(problem.operator)

  def told(z, level, cond=None):
    def estimated(z):
      estimate = denoise(z, level, cond)
      return estimate.x, estimate
    x, pull, estimate = jax.vjp(estimated, z, has_aux=True)
    wide = level.expand(z)
    some = wide.alpha > 0.0
    ratio = jnp.where(some, jnp.square(wide.sigma) / jnp.where(some, wide.alpha, 1.0), 0.0)
    covariance = lambda v: ratio * pull(v)[0]
    u = solve(problem.residual(x), covariance, level)
    return revise(estimate, x + covariance(problem.operator.adjoint(u)), level)
  return told


def require_linear(operator: Operator, method: str = '') -> None:
  """Raises InputError unless the operator is linear.  method: the name of the one that needs it."""
  require(operator.linear, 'method', method or None, f'it needs a linear operator, and '
          f'{operator.name} is not linear', 'choose dps')


def require_noise(noise: float, method: str) -> None:
  """Raises InputError for noise 0, by which the method divides."""
  require(noise > 0.0, 'noise', noise, f'{method} divides by it',
          'give a small noise, for example 0.01, or choose pigdm')


def pigdm(denoise: Denoiser, problem: Problem, std: float = 1.0) -> Denoiser:
  """R = noise^2 + r^2 A A^T, r^2 = std^2 sigma^2 / (sigma^2 + std^2 alpha^2).

  Song et al. (2023), pseudo-inverse guidance.  r^2 is the variance of x given z for data of
  variance std^2 without correlation, and the method is exact for such data.  noise may be 0.  Their
  public code, which adds the gradient to the step, is `samplers.conditioned.pgdm`.

  Raises InputError for an operator that is not linear, and unless 0 < std < infinity.
  """
  require(0.0 < std < np.inf, 'std', std, 'it must be above 0, and finite', 'give that of the data')
  a = problem.operator

  def solve(r, covariance, level):
    level = level.expand(r)
    variance = jnp.square(std * level.sigma) / (
        jnp.square(level.sigma) + jnp.square(std * level.alpha))
    return conjugate_gradients(
        lambda u: problem.noise**2 * u + variance * a(a.adjoint(u)), r, _ITERATIONS)
  return _told(denoise, problem, solve)


def tmpd(denoise: Denoiser, problem: Problem) -> Denoiser:
  """R = diag(noise^2 + A C A^T 1): the sums of the rows of the covariance.

  Boys et al. (2023), Tweedie moment projected diffusions.  Two products with J^T.
  Raises InputError for an operator that is not linear, and for noise 0.
  """
  require_noise(problem.noise, 'tmpd')
  a = problem.operator

  def solve(r, covariance, level):
    return r / (problem.noise**2 + a(covariance(a.adjoint(jnp.ones_like(r)))))
  return _told(denoise, problem, solve)


def mmps(denoise: Denoiser, problem: Problem, iterations: int = 1,
         solver: Literal['gmres', 'cg'] = 'gmres') -> Denoiser:
  """R = noise^2 + A C A^T, by so many iterations.  Rozet et al. (2024), moment matching.

  With as many iterations as y has numbers, it is the posterior mean of Gaussian data.  The J of a
  network is neither symmetric nor positive, so `cg` with several iterations may diverge; gmres, the
  default of their public code, does not.  iterations + 1 products with J^T.

  Raises InputError for an operator that is not linear, for noise 0, for fewer iterations than 1.
  """
  require_noise(problem.noise, 'mmps')
  require_at_least('iterations', iterations)
  require_choice('solver', solver, _SOLVERS)
  a = problem.operator

  def solve(r, covariance, level):
    matrix = lambda u: problem.noise**2 * u + a(covariance(a.adjoint(u)))
    return _SOLVERS[solver](matrix, r, iterations)
  return _told(denoise, problem, solve)


def point(denoise: Denoiser, problem: Problem) -> Denoiser:
  """R = noise^2: the score of N(y; A x_hat, noise^2), as if x_hat were x.

  It follows y much too closely at high noise, and diverges in few steps.  It is here to be compared
  with.  Raises InputError for an operator that is not linear, and for noise 0.
  """
  require_noise(problem.noise, 'point')
  return _told(denoise, problem, lambda r, covariance, level: r / problem.noise**2)


def diffpir(denoise: Denoiser, problem: Problem, strength: float = 10.0) -> Denoiser:
  """x' = argmin |y - A x|^2 / noise^2 + strength (alpha / sigma)^2 |x - x_hat|^2.

  Zhu et al. (2023), DiffPIR.  It needs no derivative of the network.  It is the posterior mean of
  Gaussian x given z of variance (sigma / alpha)^2 / strength.

  Raises InputError for an operator that is not linear, for noise 0, and unless 0 < strength <
  infinity.
  """
  require_noise(problem.noise, 'diffpir')
  require(0.0 < strength < np.inf, 'strength', strength, 'it must be above 0, and finite',
          'give 10, for example')
  require_linear(problem.operator)
  a = problem.operator

  def told(z, level, cond=None):
    estimate = denoise(z, level, cond)
    r = problem.residual(estimate.x)
    wide = level.expand(r)
    noisy = jnp.square(wide.sigma)
    prior = strength * jnp.square(problem.noise * wide.alpha)
    u = conjugate_gradients(lambda u: prior * u + noisy * a(a.adjoint(u)), noisy * r, _ITERATIONS)
    return revise(estimate, estimate.x + a.adjoint(u), level)
  return told
