"""Correlated Gaussian data in the plane: exact expectations, and estimates moved off the truth."""
import itertools

import jax.numpy as jnp
import numpy as np

from vdm_jax import oracles

COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.5]])


def hermite(n, dims):
  """Nodes [n^dims, dims] and weights of the standard normal in `dims` dimensions."""
  nodes, weights = np.polynomial.hermite_e.hermegauss(n)
  grid = np.array(list(itertools.product(nodes, repeat=dims)))
  each = np.array(list(itertools.product(weights / np.sqrt(2 * np.pi), repeat=dims)))
  return jnp.asarray(grid), jnp.asarray(each.prod(axis=1))


def signs(d):
  """All 2^d vectors of signs, [2^d, d]."""
  return np.array(list(itertools.product([1.0, -1.0], repeat=d)))


def at_rest(**moved):
  return {'A': jnp.zeros((2, 2)), 'b': jnp.zeros(2), 'c': jnp.zeros(2)} | moved


def linear(covariance, params):
  """eps_hat of zero-mean Gaussian data, moved by b, A z and a square of z."""
  def denoise(z, level, cond=None):
    level = level.expand(z)
    alpha, sigma = level.alpha[0, 0], level.sigma[0, 0]
    spread = alpha**2 * covariance + sigma**2 * jnp.eye(2)
    eps = (sigma * z @ jnp.linalg.inv(spread) + z @ params['A'].T + params['b']
           + params['c'] * z[:, :1]**2)
    return oracles.Estimate(x=(z - level.sigma * eps) / level.alpha, eps=eps)
  return denoise
