"""Closed-form denoisers: data whose posterior mean is known at every noise level.

An oracle is a Denoiser (`oracle(z, level)`), and knows the density of z_t.  The library's claims
about samplers, bounds and likelihoods are tested against oracles.  Users can test their own parts
in the same way.  All oracles are finite where alpha vanishes.  Where sigma vanishes, the Gaussian
and the mixture are finite, but the empirical measure has no density.
"""
import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.typing import Array, ArrayLike, Estimate, Level, PyTree
from vdm_jax.units import sum_over_data
from vdm_jax.values import value

__all__ = ['Correlated', 'Empirical', 'Gaussian', 'Mixture', 'condition']


@value
class Gaussian:
  """x ~ N(mean, std^2) with independent dimensions.  mean, std: scalars, or the shape of one x."""
  mean: ArrayLike = 0.0
  std: ArrayLike = 1.0

  def _moments(self, z, level):
    level = level.expand(z)
    return (level, z - level.alpha * self.mean,
            jnp.square(level.alpha * self.std) + jnp.square(level.sigma))

  def __call__(self, z: Array, level: Level, cond: PyTree = None) -> Estimate:
    level, deviation, variance = self._moments(z, level)
    x = self.mean + level.alpha * jnp.square(self.std) * deviation / variance
    return Estimate(x=jnp.asarray(x), eps=level.sigma * deviation / variance)

  def log_prob(self, z: Array, level: Level) -> Array:
    """log q(z_t) in nats, [B]."""
    _, deviation, variance = self._moments(z, level)
    return sum_over_data(-0.5 * (jnp.square(deviation) / variance
                                 + jnp.log(2.0 * jnp.pi * variance)))

  def flow_map(self, z: Array, at_t: Level, at_s: Level) -> Array:
    """z_t -> z_s along the probability flow.  The map is affine: deviations scale with the std."""
    at_s, _, to = self._moments(z, at_s)
    _, deviation, here = self._moments(z, at_t)
    return at_s.alpha * self.mean + deviation * jnp.sqrt(to / here)


@value
class Mixture:
  """x ~ sum_k weights_k N(means_k, diag stds_k^2).  weights: [K]; means: [K, ...].

  stds: [K] if they are the same in all dimensions, or the shape of `means`.
  """
  weights: ArrayLike
  means: ArrayLike
  stds: ArrayLike

  def _components(self, z, level):
    """log(weight_k N(z; ..)) [B, K]; deviations [B, K, ...]; variances, expanded like them."""
    wide = level.expand(z[:, None])
    if jnp.ndim(self.means) != z.ndim:
      raise ValueError(f'means {jnp.shape(self.means)} are not [K, ...] for z {z.shape}')
    stds = jnp.reshape(self.stds, jnp.shape(self.stds) + (1,) * (z.ndim - jnp.ndim(self.stds)))
    deviation = z[:, None] - wide.alpha * self.means
    variance = jnp.square(wide.alpha * stds) + jnp.square(wide.sigma)
    per_dim = -0.5 * (jnp.square(deviation) / variance + jnp.log(2.0 * jnp.pi * variance))
    log_joint = jnp.log(self.weights) + jnp.sum(per_dim.reshape(*per_dim.shape[:2], -1), axis=-1)
    return log_joint, deviation, variance, wide, stds

  def __call__(self, z: Array, level: Level, cond: PyTree = None) -> Estimate:
    log_joint, deviation, variance, wide, stds = self._components(z, level)
    share = jax.nn.softmax(log_joint, axis=-1)
    share = share.reshape(share.shape + (1,) * (z.ndim - 1))
    x = self.means + wide.alpha * jnp.square(stds) * deviation / variance
    eps = wide.sigma * deviation / variance
    return Estimate(x=jnp.sum(share * x, axis=1), eps=jnp.sum(share * eps, axis=1))

  def log_prob(self, z: Array, level: Level) -> Array:
    """log q(z_t) in nats, [B]."""
    return jax.nn.logsumexp(self._components(z, level)[0], axis=-1)


def condition(covariance: np.ndarray, matrix: np.ndarray, noise: float
              ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Of x ~ N(m, covariance) and y = matrix x + noise n: the gain, and two covariances, in float64.

  The mean of x given y is m + gain (y - matrix m), and its covariance is the second result.  The
  third is the covariance of y.  covariance: [D, D]; matrix: [M, D].  Raises LinAlgError of NumPy
  if the third has no inverse.
  """
  c, a = (np.asarray(u, np.float64) for u in (covariance, matrix))
  of_y = a @ c @ a.T + noise**2 * np.eye(len(a))
  gain = np.linalg.solve(of_y, a @ c).T
  left = c - gain @ a @ c
  return gain, 0.5 * (left + left.T), of_y


@value
class Correlated:
  """x ~ sum_k weights_k N(means_k, covariance_k), with any covariances.  Made by `of`.

  A covariance is kept as its eigenvalues [K, D] and eigenvectors [K, D, D], one in each column.  D
  is the number of numbers of one x.
  """
  weights: ArrayLike
  means: ArrayLike
  values: ArrayLike
  vectors: ArrayLike

  @classmethod
  def of(cls, means: ArrayLike, covariances: ArrayLike, weights: ArrayLike | None = None
         ) -> 'Correlated':
    """means: [K, ...]; covariances: [K, D, D]; weights: [K], or None for one component."""
    means, covariances = np.asarray(means), np.asarray(covariances)
    if len(means) != len(covariances) or covariances.shape[1:] != (means[0].size,) * 2:
      raise ValueError(f'covariances {covariances.shape} are not [K, D, D] for means {means.shape}')
    values, vectors = np.linalg.eigh(covariances)
    return cls(np.ones(1) if weights is None else np.asarray(weights), means,
               np.maximum(values, 0.0), vectors)

  def _components(self, z, level):
    """log(weight_k N(z; ..)) [B, K]; deviations in its axes over variances [B, K, D]; the level.
    """
    flat = z.reshape(len(z), 1, -1)
    level = level.expand(flat)
    means = jnp.reshape(self.means, (jnp.shape(self.means)[0], -1))
    deviation = jnp.einsum('bkd,kde->bke', flat - level.alpha * means, self.vectors)
    variance = jnp.square(level.alpha) * self.values + jnp.square(level.sigma)
    safe = jnp.where(variance > 0.0, variance, 1.0)
    log_joint = jnp.log(self.weights) - 0.5 * jnp.sum(
        jnp.square(deviation) / safe + jnp.log(2.0 * jnp.pi * safe), axis=-1)
    return log_joint, deviation / safe, level

  def __call__(self, z: Array, level: Level, cond: PyTree = None) -> Estimate:
    log_joint, scaled, level = self._components(z, level)
    share = jax.nn.softmax(log_joint, axis=-1)
    means = jnp.reshape(self.means, (jnp.shape(self.means)[0], -1))
    back = lambda u: jnp.einsum('bke,kde->bkd', u, self.vectors)
    x = means + back(level.alpha * self.values * scaled)
    mean = lambda u: jnp.einsum('bk,bkd->bd', share, u).reshape(z.shape)
    return Estimate(x=mean(x), eps=mean(back(level.sigma * scaled)))

  def log_prob(self, z: Array, level: Level) -> Array:
    """log q(z_t) in nats, [B]."""
    return jax.nn.logsumexp(self._components(z, level)[0], axis=-1)

  def given(self, matrix: np.ndarray, y: np.ndarray, noise: float) -> 'Correlated':
    """The law of x given y = matrix x + noise n: the posterior, a mixture again.

    matrix: [M, D]; y: [M].  So `oracle.given(...)` is the exact denoiser that is told y, and its
    log_prob at t = 0 is the log-density of the posterior.
    """
    means = np.asarray(self.means, np.float64)
    flat, y = means.reshape(len(means), -1), np.asarray(y, np.float64)
    vectors, values = np.asarray(self.vectors), np.asarray(self.values)
    covariances = np.einsum('kde,ke,kfe->kdf', vectors, values, vectors)
    told, left, logs = [], [], []
    for weight, mean, covariance in zip(np.asarray(self.weights), flat, covariances, strict=True):
      gain, after, of_y = condition(covariance, matrix, noise)
      r = y - matrix @ mean
      told.append(mean + gain @ r)
      left.append(after)
      logs.append(np.log(weight) - 0.5 * (r @ np.linalg.solve(of_y, r)
                                          + np.linalg.slogdet(2.0 * np.pi * of_y)[1]))
    weights = np.exp(np.array(logs) - np.max(logs))
    return Correlated.of(np.stack(told).reshape(means.shape), np.stack(left),
                         weights / weights.sum())


@value
class Empirical:
  """x uniform over `data` [N, ...]: what a network of unlimited capacity would learn."""
  data: Array | np.ndarray

  def _distances(self, z, level):
    wide = level.expand(z[:, None])
    u = (z[:, None] - wide.alpha * self.data) / wide.sigma
    return -0.5 * jnp.sum(jnp.square(u).reshape(*u.shape[:2], -1), axis=-1)

  def __call__(self, z: Array, level: Level, cond: PyTree = None) -> Estimate:
    share = jax.nn.softmax(self._distances(z, level), axis=-1)
    x = jnp.tensordot(share, self.data, axes=1)
    level = level.expand(z)
    return Estimate(x=x, eps=(z - level.alpha * x) / level.sigma)

  def log_prob(self, z: Array, level: Level) -> Array:
    """log q(z_t) in nats, [B]."""
    n = self.data.shape[0]
    sigma = level.expand(z).sigma
    normaliser = sum_over_data(jnp.broadcast_to(0.5 * jnp.log(2.0 * jnp.pi * sigma**2), z.shape))
    return jax.nn.logsumexp(self._distances(z, level), axis=-1) - jnp.log(n) - normaliser
