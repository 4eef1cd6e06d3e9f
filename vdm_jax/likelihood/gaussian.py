"""The Gaussian with the mean and the covariance of the data.

The Gaussian's posterior mean is the best *linear* estimate of x from z_t.  So its squared error is
an upper bound on the error of the optimal denoiser, at every noise level.  A trained network with a
larger error is broken, or not trained at that level.  In the eigenvectors of the covariance, with
eigenvalues l_i,

  E |eps - eps_hat|^2 = sum_i snr l_i / (1 + snr l_i),

and for one x, with c_i the coordinates of x - mean,

  E_eps |eps - eps_hat|^2 = sum_i snr c_i^2 / (1 + snr l_i)^2 + (snr l_i / (1 + snr l_i))^2,

which is 2 d/dlogsnr of KL(q(z_t | x) || G_t), where G_t is the Gaussian's marginal.  This is the
I-MMSE relation of Guo, Shamai and Verdu (2005), for each x as in Kong, Brekelmans and Ver Steeg
(2023).
"""
import functools
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.typing import Array, ArrayLike, Estimate, Level, PyTree
from vdm_jax.values import value

FULL = 4096  # dimensions up to which the whole covariance is kept


def _times(u: Array | np.ndarray, matrix: Array | np.ndarray, axis: int = 0) -> Array:
  """The product of u [B, D] with an axis of a matrix, without a transposed copy.

  It is in float32 even where products have less precision by default, since closed forms are
  compared.
  """
  return jnp.tensordot(u, matrix, ((1,), (axis,)), precision='highest')


@value
class Moments:
  """x ~ N(mean, covariance) of D dimensions: a Denoiser, and the density of its z_t.

  Levels are the same for all pixels, since the eigenvectors mix pixels.
  """
  mean: Array | np.ndarray         # [D]
  eigenvalues: Array | np.ndarray  # [D]  of the covariance; variances if there are no eigenvectors
  eigenvectors: Array | np.ndarray | None  # [D, D]  in columns; None: a diagonal covariance

  def _rotated(self, u: Array | np.ndarray) -> Array:
    u = jnp.reshape(u, (len(u), -1))
    return u if self.eigenvectors is None else _times(u, self.eigenvectors)

  def _back(self, u: Array, like: Array) -> Array:
    u = u if self.eigenvectors is None else _times(u, self.eigenvectors, axis=1)
    return u.reshape(like.shape)

  def _at(self, z: Array, level: Level) -> tuple[Level, Array, Array]:
    """Levels [B or 1, 1], the coordinates of z - E z [B, D] and their variances."""
    level = Level(*(jnp.reshape(u, (-1, 1)) for u in level))
    deviation = self._rotated(z) - level.alpha * self._rotated(self.mean[None])
    return (level, deviation,
            jnp.square(level.alpha) * self.eigenvalues + jnp.square(level.sigma))

  def __call__(self, z: Array, level: Level, cond: PyTree = None) -> Estimate:
    """The best linear estimate from z: [B, ...]."""
    at, deviation, variance = self._at(z, level)
    x = jnp.reshape(self.mean, z.shape[1:]) + self._back(
        at.alpha * self.eigenvalues * deviation / variance, z)
    return Estimate(x=x, eps=self._back(at.sigma * deviation / variance, z))

  def log_prob(self, z: Array, level: Level) -> Array:
    """log q(z_t) in nats, [B]."""
    _, deviation, variance = self._at(z, level)
    return -0.5 * jnp.sum(jnp.square(deviation) / variance + jnp.log(2.0 * jnp.pi * variance), -1)

  def eps_error(self, logsnr: ArrayLike) -> Array:
    """E |eps - eps_hat|^2 of a whole image, over data and noise; any shape of `logsnr`.

    It is an upper bound on the error of the optimal denoiser for any data with these moments.
    """
    return jnp.sum(jax.nn.sigmoid(self._log_snr(jnp.asarray(logsnr))), axis=-1)

  def eps_error_between(self, low: ArrayLike, high: ArrayLike) -> Array:
    """The mean of `eps_error` over logsnr from `low` to `high`, which have the same shape.

    It is the sum over i of (softplus(high + log l_i) - softplus(low + log l_i)) / (high - low),
    computed as logarithms of ratios, which lose no digits.
    """
    low, width = jnp.asarray(low), jnp.asarray(high) - low
    ratio = jax.nn.sigmoid(self._log_snr(low)) * jnp.expm1(width)[..., None]
    return jnp.sum(jnp.log1p(ratio), axis=-1) / width

  def divergence(self, x: Array, logsnr: ArrayLike) -> Array:
    """KL(q(z_t | x) || G_t) in nats, [B], with G_t the density of z_t; the same on all curves.

    x: [B, ...]; logsnr: [B] or [].
    """
    logsnr = jnp.broadcast_to(logsnr, len(x))
    u = self._log_snr(logsnr)
    signal = jnp.exp(logsnr)[:, None] * jax.nn.sigmoid(-u) * jnp.square(self._coordinates(x))
    return 0.5 * jnp.sum(signal - jax.nn.sigmoid(u) + jax.nn.softplus(u), axis=-1)

  def _coordinates(self, x: Array) -> Array:
    """The coordinates of x - mean, [B, D]."""
    return self._rotated(x.reshape(len(x), -1) - self.mean)

  def _log_snr(self, logsnr: Array) -> Array:
    """log(snr l) of each coordinate: [..., D].  It is -inf where the data do not vary."""
    return logsnr[..., None] + jnp.log(self.eigenvalues)


def fit(split, encode: Callable[[Array], Array], levels: int | None, *, limit: int | None = None,
        batch_size: int = 1024, field: str = 'image') -> Moments:
  """The moments of the first `limit` (default: all) images of `split`, in float64 on the host.

  split: `len`, and `get(rows)` -> batch; encode, field: as in the Model.  For D <= 4096 the fit has
  the whole covariance; for larger D it has the variances alone, which still give an upper bound on
  the error, but a looser bound.

  levels: the levels of the data, None for real numbers.  No eigenvalue is below 1 / (3 levels^2),
  the variance within one of `levels` bins of [-1, 1].  If a pixel never varies in these images, its
  eigenvalue would be 0, and its nats in another image could be infinite.  With the limit, a pixel
  that is k levels off has at most 6 k^2 nats.  The error grows with each eigenvalue, so it stays a
  bound.  For real numbers, whose x should be standardised, no eigenvalue is below 1e-6.
  """
  n = len(split) if limit is None else min(limit, len(split))
  read = lambda first: np.asarray(encode(split.get(
      np.arange(first, min(first + batch_size, n)))[field]), np.float64)
  batches = lambda: (u.reshape(len(u), -1) for u in map(read, range(0, n, batch_size)))
  total = lambda of: functools.reduce(operator.add, map(of, batches()))
  mean = total(lambda u: u.sum(axis=0)) / n
  if len(mean) > FULL:
    values, vectors = total(lambda u: np.square(u - mean).sum(axis=0)) / n, None
  else:
    values, vectors = np.linalg.eigh(total(lambda u: (u - mean).T @ (u - mean)) / n)
  return Moments(mean, np.maximum(values, 1.0 / (3.0 * levels**2) if levels else 1e-6), vectors)
