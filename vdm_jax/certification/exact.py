"""The exact cases: two normals on the line, their marginals, flow and denoiser, on every curve."""
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr
from scipy import special

from vdm_jax import processes, schedules
from vdm_jax.samplers import analytic
from vdm_jax.typing import Array, Estimate, Level, Process, PyTree, SamplerMaker
from vdm_jax.units import sum_over_data
from vdm_jax.values import value

__all__ = ['CURVES', 'ExactDenoiser', 'FINITE', 'MODELS', 'MixtureData', 'SCHEDULE', 'ends_of',
           'moments', 'process_of', 'quantiles', 'with_ends', 'with_guidance', 'with_log_prob',
           'with_variances']


SCHEDULE = schedules.Linear(3.0, -2.5)  # where neither curves nor data are nearly linear
FINITE = ('vp', 've', 'flow', 'sub_vp')
CURVES = (*FINITE, 'ends')


class MixtureData(NamedTuple):
  """Two normals on the line.  Two equal normals are one normal, so one program serves both models.
  """
  weights: tuple[float, float]
  means: tuple[float, float]
  stds: tuple[float, float]


MODELS = {'gaussian': MixtureData((0.5, 0.5), (0.3, 0.3), (0.7, 0.7)),
          'mixture': MixtureData((0.4, 0.6), (-0.8, 0.6), (0.15, 0.3))}


def _cdf(u, data: MixtureData, c: float):
  """P(z_t / alpha_t <= u) for sigma_t / alpha_t = c."""
  return sum(w * special.ndtr((u - m) / np.hypot(s, c))
             for w, m, s in zip(*data, strict=True))


def quantiles(probability: np.ndarray, data: MixtureData, alpha: float, sigma: float) -> np.ndarray:
  """Quantiles of z = alpha x + sigma eps, by bisection.  probability: [B]."""
  if alpha == 0.0:
    return sigma * special.ndtri(probability)
  c = sigma / alpha
  low, high = np.full_like(probability, -40.0), np.full_like(probability, 40.0)
  for _ in range(100):
    middle = 0.5 * (low + high)
    below = _cdf(middle, data, c) < probability
    low, high = np.where(below, middle, low), np.where(below, high, middle)
  return alpha * low


def moments(data: MixtureData, c: float) -> tuple[float, float, float]:
  """(mean, standard deviation, share above 0) of z_t / alpha_t."""
  w, m, s = map(np.asarray, data)
  mean = np.sum(w * m)
  return mean, np.sqrt(np.sum(w * (s**2 + m**2)) - mean**2 + c**2), 1.0 - _cdf(0.0, data, c)


@value
class ExactDenoiser:
  """The exact denoiser of data with independent dimensions, each with the distribution `data`.

  It also has everything else that a method may need: the heads of learned variances in `extra`,
  log q(z_t), and draws of the data.  It is NaN at sigma = 0.
  """
  data: MixtureData

  def _parts(self, z, level):
    """For the two normals, on a last axis: log joint density, deviation from the mean, variance."""
    level = jax.tree.map(lambda u: u[..., None], level.expand(z))
    w, m, s = map(jnp.asarray, self.data)
    deviation = z[..., None] - level.alpha * m
    variance = jnp.square(level.alpha * s) + jnp.square(level.sigma)
    log_joint = jnp.log(w) - 0.5 * (jnp.square(deviation) / variance
                                    + jnp.log(2.0 * jnp.pi * variance))
    return log_joint, deviation, variance, level, m, s

  def __call__(self, z: Array, level: Level, cond: PyTree = None) -> Estimate:
    log_joint, deviation, variance, level, m, s = self._parts(z, level)
    share = jnp.where(level.sigma > 0.0, jax.nn.softmax(log_joint, axis=-1), jnp.nan)
    mean = lambda u: jnp.sum(share * u, axis=-1)
    x, eps = m + level.alpha * s**2 * deviation / variance, level.sigma * deviation / variance
    square = mean(jnp.square(eps) + jnp.square(level.alpha * s) / variance)
    x_variance = mean(jnp.square(x) + jnp.square(level.sigma * s) / variance) - jnp.square(mean(x))
    extra = {'eps_sq': square, 'residual_sq': square - jnp.square(mean(eps)),
             'x_variance': x_variance, 'variance': -jnp.ones_like(z)}
    return Estimate(mean(x), mean(eps), extra)

  def log_prob(self, z: Array, level: Level) -> Array:
    """log q(z_t) in nats, [B]."""
    return sum_over_data(jax.nn.logsumexp(self._parts(z, level)[0], axis=-1))

  def mean_variance(self, level: Level) -> Array:
    """E Var(x | z_t) for one dimension, by Gauss-Hermite quadrature over z_t: the shape of t."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(96)
    w, m, s = map(jnp.asarray, self.data)
    wide = jax.tree.map(lambda u: u[..., None, None], level)  # [..., node, normal]
    z = wide.alpha * m + jnp.hypot(wide.alpha * s, wide.sigma) * nodes[:, None]
    at_nodes = jax.tree.map(lambda u: jnp.broadcast_to(u, z.shape).reshape(-1, 1), wide)
    inside = self(z.reshape(-1, 1), at_nodes).extra['x_variance'].reshape(z.shape)
    return jnp.sum(w * (weights / weights.sum())[:, None] * inside, axis=(-2, -1))

  def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
    """Draws of x ~ `MixtureData`, with this shape."""
    which, normal = jax.random.split(key)
    first = jax.random.uniform(which, shape) < self.data.weights[0]
    either = lambda pair: jnp.where(first, pair[0], pair[1])
    return either(self.data.means) + either(self.data.stds) * jax.random.normal(normal, shape)


def process_of(number: Array) -> Process:
  """The process with this number in CURVES.  The number is a value, so one program serves all."""
  def curve(logsnr):
    either = [getattr(processes, name)(logsnr) for name in FINITE]
    return jax.tree.map(lambda *parts: jnp.stack(parts)[jnp.minimum(number, 3)], *either)

  on_curve, ends = processes.GaussianProcess(SCHEDULE, curve), processes.RectifiedFlow()
  return lambda t: jax.tree.map(lambda u, v: jnp.where(number < 4, u, v), on_curve(t), ends(t))


@functools.cache
def ends_of(curve: str) -> tuple[tuple[float, float], tuple[float, float]]:
  """(alpha, sigma) at t = 1 and at t = 0."""
  with jax.enable_x64(True):
    number = jnp.asarray(CURVES.index(curve))
    level = jax.jit(lambda t: process_of(number)(t))(jnp.array([1.0, 0.0]))
    return tuple(zip(np.asarray(level.alpha).tolist(), np.asarray(level.sigma).tolist(),
                     strict=True))


# ------------------------------------------------- what an oracle can supply


def with_log_prob(make: Callable) -> SamplerMaker:
  """A maker of the sampler that supplies log q(z_t) as its third argument."""
  return lambda denoise, process: make(denoise, process, denoise.log_prob)


def with_ends(make: Callable) -> SamplerMaker:
  """A maker of the sampler that supplies its exact consistency model.

  That model maps z_t to the z_0 of the same quantile: in one dimension, each quantile has one path.
  Its estimate of x is z_0 / alpha_0.
  """
  def of(denoise, process):
    def cdf(z, level):
      w, m, s = map(jnp.asarray, denoise.data)
      level = jax.tree.map(lambda u: u[..., None], level.expand(z))
      deviation = z[..., None] - level.alpha * m
      return jnp.sum(w * ndtr(deviation / jnp.hypot(level.alpha * s, level.sigma)), axis=-1)

    def ends(z, level, cond=None):
      at_0 = process(jnp.zeros_like(level.t))
      probability = cdf(z, level)

      def halve(_, interval):
        low, high = interval
        middle = 0.5 * (low + high)
        below = cdf(middle, at_0) < probability
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

      low, high = jax.lax.fori_loop(0, 50, halve, (jnp.full_like(z, -40.0),
                                                   jnp.full_like(z, 40.0)))
      own = denoise(z, level)  # the evaluations that are counted are those of this one
      x = 0.5 * (low + high) / at_0.expand(z).alpha + 0.0 * own.x
      wide = level.expand(z)
      return own._replace(x=x, eps=(z - wide.alpha * x) / wide.sigma)
    return make(ends, process)
  return of


def with_variances(make: Callable) -> SamplerMaker:
  """A maker of the sampler that supplies its exact `analytic.Variances`, linear between 201 levels.
  """
  def of(denoise, process):
    level = process(jnp.linspace(0.0, 1.0, 201))
    # A level where nothing is defined: Var(x) falls as sigma^2 / alpha^2 does.
    noisy = level.sigma > 0.0
    inside = jax.tree.map(lambda u: jnp.where(noisy, u, 1.0), level)
    of_x = ExactDenoiser(denoise.data).mean_variance(inside)
    of_v = jnp.where(noisy, of_x / jax.nn.sigmoid(-inside.logsnr), 1.0)
    variances = analytic.Variances(level.logsnr[::-1], of_v[::-1], jnp.zeros_like(of_v))
    return make(denoise, process, variances)
  return of


def with_guidance(make: Callable) -> SamplerMaker:
  """A maker of the sampler that supplies guidance from the standard normal to the oracle's data.

  The guidance is the gradient of log q_oracle - log q_normal, so the guided flow is the oracle's
  flow.
  """
  def of(denoise, process):
    oracle = ExactDenoiser(denoise.data)
    normal = ExactDenoiser(MixtureData((0.5, 0.5), (0.0, 0.0), (1.0, 1.0)))

    def unguided(z, level, cond=None):  # the evaluations that are counted are those of this one
      return jax.tree.map(lambda own, other: own + 0.0 * other, normal(z, level),
                          denoise(z, level))

    def guidance(z, level):
      return (normal(z, level).eps - oracle(z, level).eps) / level.expand(z).sigma
    return make(unguided, process, guidance)
  return of
