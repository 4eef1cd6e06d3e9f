"""Laws of noisy data whose expectations are exact, and the laws of samples beside them.

A law of the data x is also a law q_t of z_t = alpha x + sigma eps, at every level.  `Normal` has
exact moments, in any number of dimensions.  `OnGrid` has densities in one or two dimensions, and
expectations by quadrature.  Each follows the law p_t of samples, through steps N(m(z_t), v I) or
through a map of the noise, and compares p_t with q_t.

Call everything in float64.  Both classes have these functions; those marked * run on the host:

  points(level)                    points, weights and entropy of q_t, for expectations
  entropy(level)                   of q_t, nats
  start(process, t)                the state of p: the prior at t
  initial(process, t)              KL(q_t || prior), nats
  advance(state, mean, std, ...)   the state after a step N(mean(z), std^2 I), and numbers to check
  check(statistics)                * raises InputError if these numbers are wrong
  summary(state, level)            arrays, which `distances` takes
  distances(summary)               * KL(q_t || p_t), total variation, its error, the shares
  mapped(run, process, times)      * the distances for a map z_1 -> z_0 of the noise
"""
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import oracles
from vdm_jax.errors import InputError, require
from vdm_jax.processes import prior_std, vp
from vdm_jax.typing import Array, ArrayLike, Estimate, Level, Process
from vdm_jax.units import sum_over_data

__all__ = ['Normal', 'OnGrid', 'ROUNDING', 'Truth', 'of', 'on_vp']

Truth = oracles.Gaussian | oracles.Mixture | oracles.Correlated | oracles.Empirical
_POINTS = {1: 800, 2: 160}  # of the quadrature along an axis, by the number of dimensions
_WIDER = {1: 2.5, 2: 1.4}  # than 8 standard deviations of q around its means, for samples beyond
_SHARES = 16                # the most components whose shares of the samples are computed
ROUNDING = 1e-7            # differences below this are rounding
_FINER = 16                # points for each of one dimension, where integrands have kinks
_CHUNK = 4096              # points that a denoiser is given at a time
_LOST = 1e-4               # of the mass of a density, which a grid may lose
_DRAWS = 1 << 16           # of the total variation in more than two dimensions
_NORMAL = 0.5 * math.log(2.0 * math.pi * math.e)  # the entropy of N(0, 1)


def on_vp(logsnr: ArrayLike) -> Level:
  """The level on `vp` with this log-SNR; its derivatives are 0."""
  at = jnp.asarray(logsnr, float)
  zero = jnp.zeros_like(at)
  return Level(zero, at, *vp(at), zero, zero, zero)


def of(truth: Truth, shape: tuple[int, ...] | None = None, points: int | None = None
       ) -> 'Normal | OnGrid':
  """The law of an oracle's data.

  shape: of one x, needed if the moments of a Gaussian are scalars.
  points: of the quadrature, along each axis.

  Raises InputError if the law is not known, or if data that are not of `oracles.Gaussian` have more
  than two dimensions.
  """
  if not isinstance(truth, Truth):
    raise InputError('truth', None, f'the law of a {type(truth).__name__} is not known',
                     'give an oracle of vdm_jax.oracles')
  if isinstance(truth, oracles.Gaussian):
    own = np.broadcast_shapes(np.shape(truth.mean), np.shape(truth.std))
    require(bool(own) or shape is not None, 'shape', None, 'it is missing, and the moments of the '
            'data are scalars', 'give the shape of one example, (1,) for instance')
    return Normal(truth, tuple(shape or own))
  return OnGrid(truth, np.shape(_components(truth)[1])[1:], points)


def _components(truth: oracles.Mixture | oracles.Correlated | oracles.Empirical
                ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """The weights [K], means [K, ...] and standard deviations [K, ...] of the components."""
  if isinstance(truth, oracles.Empirical):
    data = np.asarray(truth.data, np.float64)
    return np.full(len(data), 1.0 / len(data)), data, np.zeros_like(data)
  weights, means = np.asarray(truth.weights, np.float64), np.asarray(truth.means, np.float64)
  if isinstance(truth, oracles.Correlated):
    variance = np.einsum('kde,ke->kd', np.square(truth.vectors), np.asarray(truth.values))
    return weights, means, np.sqrt(variance).reshape(means.shape)
  stds = np.reshape(truth.stds, np.shape(truth.stds) + (1,) * (means.ndim - np.ndim(truth.stds)))
  return weights, means, np.broadcast_to(stds, means.shape)


class Normal:
  """Normal data with independent dimensions, and p_t that are normal too: exact moments."""

  def __init__(self, truth: oracles.Gaussian, shape: tuple[int, ...]):
    self.truth, self.shape, self.dimensions = truth, shape, math.prod(shape)
    spread = lambda u: np.broadcast_to(np.asarray(u, np.float64), shape).ravel()
    self.mean, self.std = spread(truth.mean), spread(truth.std)
    self.second_moment = float(np.sum(np.square(self.mean) + np.square(self.std)))
    self.rows = 2 * self.dimensions + 1  # of `points`

  def mixture(self) -> oracles.Mixture:
    at = lambda u: np.reshape(u, (1, *self.shape))
    return oracles.Mixture(np.ones(1), at(self.mean), at(self.std))

  def evaluate(self, denoise, z, level):
    """The estimate at the points z."""
    return denoise(z, level)

  def moments(self, level):
    """Mean and standard deviation of z_t, [D] each."""
    return level.alpha * self.mean, jnp.hypot(level.alpha * self.std, level.sigma)

  def points(self, level):
    """Points z [n, ...], their weights [n], and the entropy of z_t in nats.

    The weighted sum of a quadratic function is its expectation.  The last point has the weight 0.
    """
    mean, std = self.moments(level)
    apart = math.sqrt(self.dimensions) * jnp.diag(std)
    z = jnp.concatenate([mean + apart, mean - apart, (mean + 1.5 * std)[None]])
    weight = jnp.append(jnp.full(2 * self.dimensions, 0.5 / self.dimensions), 0.0)
    return z.reshape(-1, *self.shape), weight, self.entropy(level)

  def entropy(self, level):
    """Of z_t, in nats."""
    _, std = self.moments(level)
    return jnp.sum(jnp.log(std)) + self.dimensions * _NORMAL

  def is_affine(self, denoise, process, times) -> bool:
    """Whether the denoiser is affine in z at the first time and in the middle of the grid."""
    @jax.jit
    def misfit(t):
      level = process(t)
      z, *_ = self.points(level)
      values = denoise(z, level).eps.reshape(len(z), -1)
      return self._affine(values, self.moments(level)[1])[2]
    return max(float(misfit(float(t))) for t in (times[0], times[len(times) // 2])) < ROUNDING

  def _affine(self, values, std):
    """(f(mean), A [D, D], misfit) of f(z) = f(mean) + A (z - mean), from `values` at `points`."""
    up, down = values[:self.dimensions], values[self.dimensions:-1]
    centre = values[:-1].mean(axis=0)
    slope = ((up - down) / (2.0 * math.sqrt(self.dimensions) * std[:, None])).T
    return centre, slope, jnp.max(jnp.abs(centre + slope @ (1.5 * std) - values[-1]))

  def start(self, process, t):
    std = prior_std(process, t)
    return jnp.zeros(self.dimensions), jnp.square(std) * jnp.eye(self.dimensions)

  def advance(self, state, mean, std, at_t, at_s):
    del at_s
    own, covariance = state
    centre, at = self.moments(at_t)
    value, slope, misfit = self._affine(mean.reshape(len(mean), -1), at)
    covariance = slope @ covariance @ slope.T + jnp.square(std) * jnp.eye(self.dimensions)
    return (value + slope @ (own - centre), covariance), {'affine': misfit}

  def check(self, statistics):
    require((statistics['affine'] < ROUNDING).all(), 'denoise', None, 'it is not affine in z, and '
            f'the data have {self.dimensions} dimensions', 'give an affine error, or data of one '
            'or two dimensions')

  def initial(self, process, t):
    mean, std = self.moments(process(jnp.asarray(t, float)))
    ratio, shift = (jnp.square(u / prior_std(process, t)) for u in (std, mean))
    return 0.5 * jnp.sum(ratio + shift - 1.0 - jnp.log(ratio))

  def summary(self, state, level):
    return *self.moments(level), *state

  def distances(self, summary) -> tuple[float, float, float, tuple[float, ...]]:
    """KL(q || p), the total variation, its standard error, and the shares of components."""
    mean, std, own, covariance = (np.asarray(u) for u in summary)
    apart = own - mean
    inverse, (_, log_det) = np.linalg.inv(covariance), np.linalg.slogdet(covariance)
    kl = 0.5 * (np.sum(np.diag(inverse) * std**2) + apart @ inverse @ apart - self.dimensions
                + log_det - 2.0 * np.log(std).sum())

    def less(z):  # log p - log q
      ours, theirs = z - own, (z - mean) / std
      return -0.5 * (np.einsum('...i,ij,...j', ours, inverse, ours) + log_det
                     - np.square(theirs).sum(axis=-1) - 2.0 * np.log(std).sum())
    tv, error = _total_variation(less, mean, std)
    return float(kl), tv, error, ()

  def mapped(self, run: Callable[[Array], Array], process: Process, times: np.ndarray):
    level, std = process(jnp.asarray(times[-1])), float(prior_std(process, times[0]))
    apart = std * math.sqrt(self.dimensions) * jnp.eye(self.dimensions)
    starts = jnp.concatenate([apart, -apart, jnp.full((1, self.dimensions), 1.5 * std)])
    ends = run(starts.reshape(-1, *self.shape)).reshape(len(starts), -1)
    own, slope, misfit = self._affine(ends, jnp.full(self.dimensions, std))
    self.check({'affine': np.asarray([misfit])})
    return self.distances(self.summary((own, std**2 * slope @ slope.T), level))


class OnGrid:
  """Data of one or two dimensions: densities on a grid that moves with q_t."""

  def __init__(self, truth: oracles.Mixture | oracles.Correlated | oracles.Empirical,
               shape: tuple[int, ...], points: int | None):
    self.truth, self.shape, self.dimensions = truth, shape, math.prod(shape)
    require(self.dimensions <= 2, 'truth', None, f'the data have {self.dimensions} dimensions, and '
            'quadrature takes two', 'give normal data and an affine error, or fewer dimensions')
    require(points is None or points >= 16, 'points', points, 'they are too few', 'give 16 or more')
    self.count = points or _POINTS[self.dimensions]
    weights, means, stds = _components(truth)
    self.means, self.stds = (u.reshape(len(weights), -1) for u in (means, stds))
    square = np.square(self.means) + np.square(self.stds)
    self.second_moment = float(weights @ square.sum(axis=1))
    self.rows = self.count**self.dimensions  # of `points`

  def evaluate(self, denoise, z, level):
    """The estimate at the points z, in parts, so that many components fit in memory."""
    if len(z) <= _CHUNK:
      return denoise(z, level)
    out = jax.lax.map(lambda part: tuple(denoise(part, level)[:2]), self._parts(z))
    return Estimate(*(u.reshape(-1, *self.shape)[:len(z)] for u in out))

  def _density(self, z, level):
    if len(z) <= _CHUNK:
      return self.truth.log_prob(z, level)
    log_q = jax.lax.map(lambda part: self.truth.log_prob(part, level), self._parts(z))
    return log_q.reshape(-1)[:len(z)]

  def _parts(self, z):
    padded = jnp.pad(z, [(0, -len(z) % _CHUNK)] + [(0, 0)] * (z.ndim - 1))
    return padded.reshape(-1, _CHUNK, *self.shape)

  def axes(self, level):
    """The points along each axis, D arrays [G]; the volume of a cell; its longest side."""
    std = jnp.hypot(level.alpha * self.stds, level.sigma)
    low = jnp.min(level.alpha * self.means - 8.0 * std, axis=0)
    high = jnp.max(level.alpha * self.means + 8.0 * std, axis=0)
    middle, half = 0.5 * (low + high), 0.5 * _WIDER[self.dimensions] * (high - low)
    unit = jnp.linspace(-1.0, 1.0, self.count)
    return ([middle[d] + half[d] * unit for d in range(self.dimensions)],
            jnp.prod(2.0 * half / (self.count - 1)), 2.0 * half.max() / (self.count - 1))

  def _nodes(self, level):
    axes, cell, _ = self.axes(level)
    z = jnp.stack(jnp.meshgrid(*axes, indexing='ij'), axis=-1)
    return z.reshape(-1, *self.shape), cell

  def points(self, level):
    """Points z [n, ...], their weights [n], and the entropy of z_t in nats."""
    z, cell = self._nodes(level)
    log_q = self._density(z, level)
    weight = cell * jnp.exp(log_q)
    return z, weight, -jnp.sum(weight * log_q)

  def entropy(self, level):
    """Of z_t, in nats."""
    return self.points(level)[2]

  def start(self, process, t):
    level = process(jnp.asarray(t, float))
    z, _ = self._nodes(level)
    return jnp.exp(self._prior(z, process, t))

  def _prior(self, z, process, t):
    std = prior_std(process, t)
    return -0.5 * sum_over_data(jnp.square(z / std) + jnp.log(2.0 * jnp.pi * jnp.square(std)))

  def advance(self, state, mean, std, at_t, at_s):
    (_, cell, spacing), (axes, next_cell, _) = self.axes(at_t), self.axes(at_s)
    mean = mean.reshape(len(mean), -1)
    factors = [jnp.exp(-0.5 * jnp.square((axes[d] - mean[:, d, None]) / std))
               / (math.sqrt(2.0 * math.pi) * std) for d in range(self.dimensions)]
    first = (cell * state)[:, None] * factors[0]
    density = first.sum(axis=0) if self.dimensions == 1 else first.T @ factors[1]
    density = density.reshape(-1)
    return density, {'mass_of_samples': next_cell * density.sum(), 'resolved': std / spacing}

  def check(self, statistics):
    step = int(np.argmin(statistics['resolved']))
    require(statistics['std'].min() > ROUNDING, 'grids', None, f'step {step} draws no noise, so '
            'the law of the samples has no density there', 'end the grid where sigma > 0')
    require(statistics['resolved'][step] > 0.75, 'points', self.count, 'the noise of step '
            f'{step} is narrower than the grid of the quadrature', 'give more points or fewer '
            'steps, or end the grid at more noise')
    q, p = (np.abs(statistics[name] - 1.0).max() for name in ('mass', 'mass_of_samples'))
    require(q < _LOST, 'points', self.count, f'the quadrature is wrong by {q:.1g} of the mass',
            'give more points')
    require(p < _LOST, 'grids', None, f'with {len(statistics["mass"])} steps, {p:.1g} of the '
            'samples are beyond the grid of the quadrature', 'take more steps')

  def initial(self, process, t):
    level = process(jnp.asarray(t, float))
    z, cell = self._nodes(level)
    log_q = self._density(z, level)
    return cell * jnp.sum(jnp.exp(log_q) * (log_q - self._prior(z, process, t)))

  def summary(self, state, level):
    z, cell = self._nodes(level)
    log_q = self._density(z, level)
    q, log_p = jnp.exp(log_q), jnp.log(jnp.maximum(state, 1e-300))
    return (cell * jnp.sum(q * (log_q - log_p)), self._total_variation(state, q, level),
            self._shares(z, cell * state, level))

  def _total_variation(self, p, q, level):
    """1/2 int |q - p|.  Its integrand has kinks, so in one dimension p is interpolated to a finer
    grid, by a Fourier series, which is exact to rounding for a smooth p that vanishes at the ends.
    """
    axes, cell, _ = self.axes(level)
    if self.dimensions == 2:
      return 0.5 * cell * jnp.sum(jnp.abs(q - p))
    count = _FINER * self.count
    p = _FINER * jnp.fft.irfft(jnp.fft.rfft(p), count)
    z = axes[0][0] + cell / _FINER * jnp.arange(count)
    q = jnp.exp(self._density(z.reshape(-1, *self.shape), level))
    return 0.5 * cell / _FINER * jnp.sum(jnp.abs(q - p))

  def distances(self, summary) -> tuple[float, float, float, tuple[float, ...]]:
    """KL(q || p), the total variation, its standard error, and the shares of components."""
    kl, tv, shares = summary
    return float(kl), float(tv), 0.0, tuple(np.asarray(shares).tolist())

  def _shares(self, z, weight, level):
    """The shares of these weighted points that are nearest to each mean [K]; [0] if K is large."""
    if not 1 < len(self.means) <= _SHARES:
      return jnp.zeros(0)
    apart = z.reshape(len(z), 1, -1) - level.alpha * self.means
    nearest = jnp.argmin(jnp.square(apart).sum(axis=-1), axis=1)
    return jnp.bincount(nearest, weight, length=len(self.means))

  def mapped(self, run: Callable[[Array], Array], process: Process, times: np.ndarray):
    std = prior_std(process, times[0])
    axis = std * jnp.linspace(-9.0, 9.0, self.count * (_FINER if self.dimensions == 1 else 1))
    cell = jnp.square(axis[1] - axis[0]) if self.dimensions == 2 else axis[1] - axis[0]
    z = jnp.stack(jnp.meshgrid(*[axis] * self.dimensions, indexing='ij'), -1)
    z = z.reshape(-1, *self.shape)

    @jax.jit
    def through(z):
      columns = []
      for d in range(self.dimensions):
        tangent = jnp.zeros((len(z), self.dimensions)).at[:, d].set(1.0).reshape(z.shape)
        end, column = jax.jvp(run, (z,), (tangent,))
        columns.append(column.reshape(len(z), -1))
      level = process(jnp.asarray(times[-1]))
      # In the coordinates of the noise.
      log_q = self._density(end, level) + jnp.linalg.slogdet(jnp.stack(columns, -1))[1]
      log_p = self._prior(z, process, times[0])
      q, p = cell * jnp.exp(log_q), cell * jnp.exp(log_p)
      return jnp.sum(q), (jnp.sum(q * (log_q - log_p)), 0.5 * jnp.sum(jnp.abs(q - p)),
                          self._shares(end, p, level))

    mass, summary = through(z)
    lost = abs(float(mass) - 1.0)
    require(lost < _LOST, 'points', self.count, f'the quadrature is wrong by {lost:.1g} of the '
            'mass', 'give more points; or the samples miss some of the data')
    return self.distances(summary)


def _total_variation(less: Callable, mean: np.ndarray, std: np.ndarray) -> tuple[float, float]:
  """E_q max(1 - p / q, 0) for q = N(mean, diag std^2), and its standard error.

  less: z [..., D] -> log p - log q.  By quadrature in one and two dimensions, else by draws.
  """
  if len(mean) <= 2:
    axis, step = np.linspace(-9.0, 9.0, 2401 if len(mean) == 1 else 601, retstep=True)
    u = np.stack(np.meshgrid(*[axis] * len(mean), indexing='ij'), axis=-1)
    weight = np.exp(-0.5 * np.square(u).sum(axis=-1)) * (step / math.sqrt(2.0 * math.pi))**len(mean)
    return float(np.sum(weight * np.maximum(-np.expm1(less(mean + std * u)), 0.0))), 0.0
  u = np.random.default_rng(0).standard_normal((_DRAWS, len(mean)))
  each = np.maximum(-np.expm1(less(mean + std * u)), 0.0)
  return float(each.mean()), float(each.std(ddof=1) / math.sqrt(_DRAWS))
