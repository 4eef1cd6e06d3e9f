"""The binomial chain of Sohl-Dickstein et al. (2015): diffusion of bits.

A bit keeps its value with probability 1 - beta_t, and is drawn anew, 0 or 1, with beta_t:

    q(x^(t) | x^(t-1)) = B(x^(t-1) (1 - beta_t) + beta_t / 2),    p(x^(T)) = B(1/2),
    p(x^(t-1) | x^(t)) = B(f_b(x^(t), t)),

each bit by itself; their table App.1.  In spins x = +-1 all of it is sums of log odds: with
a_t = prod_{j <= t} (1 - beta_j) and l(u) = log((1 + u) / (1 - u)) the log odds of +1 are

    x^(t-1) l(1 - beta_t) in q(x^(t) | x^(t-1)),      x^(0) l(a_t) in q(x^(t) | x^(0)),
    x^(t) l(1 - beta_t) + x^(0) l(a_{t-1}) in q(x^(t-1) | x^(t), x^(0)).

The bound K is that of `dpm`, eq. 14.  Here its entropies are no approximation: p(x^(0) | x^(1)) is
the forward kernel, whose -E log is H_q(X^(1) | X^(0)) for every x, and H_p(X^(T)) - H_q(X^(T) |
X^(0)) is the divergence of q(x^(T) | x^(0)) from p(x^(T)).  So -K is the bound of three terms.

Noise that jumps cannot be held fixed while beta moves, so the rates are not learned (their section
2.4.1): `erasing` takes the same share of the signal in each step.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid

from vdm_jax import random
from vdm_jax.decoders import sum_over_data
from vdm_jax.typing import Array, PyTree, value

# (x^(t) [B, ...] as +-1, t [B] or [], cond) -> the log odds of f_b, [B, ...]; t = 2 .. T.
Reverse = Callable[[Array, Array, PyTree], Array]


@value
class BinomialChain:
  """The log odds of the forward chain, [T + 1] by t: those of one step, and of all since the data.

  Entry 0 of `step` is no step, and entry 0 of `since` the data themselves; both are infinite.
  """
  step: Array   # l(1 - beta_t)
  since: Array  # l(a_t)

  @classmethod
  def from_betas(cls, betas: np.ndarray) -> 'BinomialChain':
    """betas: beta_1, ..., beta_T in (0, 1], [T].  Raises ValueError outside, or fewer than two."""
    betas = np.asarray(betas, np.float64)
    if len(betas) < 2 or not ((betas > 0.0) & (betas <= 1.0)).all():
      raise ValueError('the rates of a binomial chain are two or more, above 0 and at most 1')
    with np.errstate(divide='ignore'):
      kept = np.cumsum(np.log1p(-betas))  # -inf from a beta of 1 on
      log_odds = lambda log_u: np.log1p(np.exp(log_u)) - np.log(-np.expm1(log_u))
      first = [np.inf]
      return cls(np.concatenate([first, log_odds(np.log1p(-betas))]),
                 np.concatenate([first, log_odds(kept)]))

  @classmethod
  def erasing(cls, steps: int) -> 'BinomialChain':
    """beta_t = 1 / (T - t + 1): 1 / T of the signal goes in each step, and none is left.

    Sohl-Dickstein et al. (2015), section 2.4.1.
    """
    return cls.from_betas(1.0 / np.arange(steps, 0, -1))

  @property
  def steps(self) -> int:
    """T."""
    return len(self.step) - 1

  def posterior(self, z: Array, x: Array, t: Array) -> Array:
    """The log odds of q(x^(t-1) | x^(t) = z, x^(0) = x), t = 2 .. T.  z, x: [B, ...]."""
    return z * self._at(self.step, t, z) + x * self._at(self.since, t - 1, z)

  def diffuse(self, x: Array, t: Array, keys: Array) -> Array:
    """x^(t) ~ q(x^(t) | x^(0) = x) as +-1, [B, ...].  x: [B, ...]; t: [B] or []; keys: [B]."""
    return spins(keys, x * self._at(self.since, t, x))

  def _at(self, table, t, like):
    u = jnp.asarray(table, like.dtype)[t]
    return u.reshape(u.shape + (1,) * (like.ndim - u.ndim))


def spins(keys: Array, log_odds: Array) -> Array:
  """+-1 with these log odds of +1, [B, ...]; example i uses keys[i] alone.  keys: [B]."""
  up = jax.vmap(jax.random.bernoulli)(keys, jax.nn.sigmoid(log_odds))
  return jnp.where(up, 1.0, -1.0).astype(log_odds.dtype)


def divergence(q: Array, p: Array) -> Array:
  """KL(B(sigmoid q) || B(sigmoid p)) in nats, element by element, of two log odds."""
  part = lambda q, p: jax.nn.sigmoid(q) * (log_sigmoid(q) - log_sigmoid(p))
  return part(q, p) + part(-q, -p)


def entropy(q: Array) -> Array:
  """The entropy of B(sigmoid q) in nats, element by element, of finite log odds."""
  return -jax.nn.sigmoid(q) * log_sigmoid(q) - jax.nn.sigmoid(-q) * log_sigmoid(-q)


def bound(reverse: Reverse, chain: BinomialChain, x: Array, t: Array, keys: Array,
          cond: PyTree = None) -> tuple[Array, dict[str, Array]]:
  """One-sample estimate of -K, Sohl-Dickstein et al. (2015), eq. 14, a bound on -log p(x).

  x: [B, ...] of +-1; t: [B] in [0, 1], which draws one of the T - 1 divergences; keys: [B].
  Returns nats [B], and 'reconstruction', H_q(X^(1) | X^(0)); 'latent', H_p(X^(T)) less
  H_q(X^(T) | X^(0)); 'diffusion', the divergences, whose sum it is.
  """
  last = chain.steps
  index = jnp.clip(2 + jnp.floor(t * (last - 1)).astype(jnp.int32), 2, last)
  z = chain.diffuse(x, index, random.stream(keys, 'z'))
  gap = sum_over_data(divergence(chain.posterior(z, x, index), reverse(z, index, cond)))
  size, log_odds = x[0].size, jnp.asarray(chain.since, x.dtype)
  ends = lambda u: jnp.full(t.shape, size * u, x.dtype)
  terms = {'reconstruction': ends(entropy(log_odds[1])),
           'latent': ends(jnp.log(2.0) - entropy(log_odds[last])),
           'diffusion': (last - 1) * gap}
  return sum(terms.values()), terms


def sample(reverse: Reverse, chain: BinomialChain, keys: Array, shape: tuple[int, ...],
           cond: PyTree = None, log_ratio: Array = 0.0) -> Array:
  """x^(0) ~ p as +-1, [B, *shape]; the last step is the forward kernel.  keys: [B].

  log_ratio: log r(x_i = 1) - log r(x_i = -1) of a second distribution of independent bits, to
  broadcast against x.  Every kernel, and the start, is multiplied by r, which adds to the log odds:
  c d / (c d + (1 - c) (1 - d)) with c = f_b.  Infinite where a bit is known, which it then is in
  the sample.  Sohl-Dickstein et al. (2015), section 2.5 and table App.1, with r constant in t: as
  for `samplers.multiplied`, no exact posterior.
  """
  at = lambda t: jax.vmap(lambda key: jax.random.fold_in(key, t))(keys)
  zeros = jnp.zeros((len(keys), *shape))

  def step(z, t):
    return spins(at(t - 1), reverse(z, t, cond) + log_ratio), None

  z = spins(at(chain.steps), zeros + log_ratio)
  z, _ = jax.lax.scan(step, z, jnp.arange(chain.steps, 1, -1))
  return spins(at(0), z * jnp.asarray(chain.step, z.dtype)[1] + log_ratio)
