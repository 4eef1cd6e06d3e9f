"""The binomial chain of Sohl-Dickstein et al. (2015): diffusion of bits.

A bit keeps its value with probability 1 - beta_t.  With probability beta_t it is drawn anew, and is
then 1 with probability pi, its `activity`:

    q(x^(t) | x^(t-1)) = B(x^(t-1) (1 - beta_t) + pi beta_t),    p(x^(T)) = B(pi),
    p(x^(t-1) | x^(t)) = B(f_b(x^(t), t)).

Each bit is independent.  Their table App.1 has pi = 1/2.  In their heartbeat (appendix D.1.2), pi
is the share of ones in the data.  All computations are sums of log odds.  Let l_t(x) be the log
odds of x^(t) = 1 given x^(t-1) = x, and L_t(x) the log odds given x^(0) = x.  Let l be the log odds
of pi.  The kernel leaves the distribution pi unchanged, and is its own reversal under it.  Then

    l_t(z) + L_{t-1}(x) - l    are the log-odds of x^(t-1) = 1 given x^(t) = z, x^(0) = x.

The bound K is eq. 14, as in `dpm2015`.  Its entropies come from p(x^(0) | x^(1)), the reversed
forward kernel.  For each x, -K is less than the bound of three terms by

    l sum_i (pi - x_i) (beta_1 + a_T),    a_T = prod_t (1 - beta_t),  x_i = 0 or 1.

This difference is 0 for pi = 1/2.  Its mean is 0 over data with a share pi of ones.

Noise that jumps cannot be held fixed while beta moves, so the rates are not learned (their section
2.4.1).  Instead, `erasing` takes the same share of the signal in each step.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.nn import log_sigmoid

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.typing import Array, ArrayLike, PyTree, Scalar
from vdm_jax.units import sum_of_terms, sum_over_data
from vdm_jax.values import value

# (x^(t) [B, ...] as +-1, t [B] or [], cond) -> the log odds of f_b, [B, ...]; t = 2 .. T.
Reverse = Callable[[Array, Array, PyTree], Array]


@value
class BinomialChain:
  """The log odds of 1 in the forward chain, [T + 1, 2]: by t, and by the given bit, 0 or 1.

  Entry 0 of `step` is no step, and entry 0 of `since` is the data themselves; both are infinite.
  """
  step: Array | np.ndarray   # given x^(t-1)
  since: Array | np.ndarray  # given x^(0)
  final: Scalar              # of p(x^(T)), []

  @classmethod
  def from_betas(cls, betas: np.ndarray, activity: float = 0.5) -> 'BinomialChain':
    """betas: beta_1, ..., beta_T in (0, 1], [T]; activity: pi.

    Raises InputError if a rate is outside, if there are fewer than two rates, or if the activity is
    not between 0 and 1.
    """
    betas = np.asarray(betas, np.float64)
    if len(betas) < 2 or not ((betas > 0.0) & (betas <= 1.0)).all():
      raise InputError('betas', None, 'the rates of a binomial chain are two or more, above 0 and '
                       'at most 1', 'change them')
    if not 0.0 < activity < 1.0:
      raise InputError('activity', activity, 'it must be a share of ones, between 0 and 1')
    final = np.log(activity) - np.log1p(-activity)

    def log_odds(log_unchanged):  # [T] -> [T + 1, 2]; given 1, and by symmetry given 0
      log_odds_of = lambda pi: (np.log(pi + np.exp(log_unchanged) * (1.0 - pi))
                                - np.log1p(-pi) - np.log(-np.expm1(log_unchanged)))
      each = np.stack([-log_odds_of(1.0 - activity), log_odds_of(activity)], axis=-1)
      return np.concatenate([[[-np.inf, np.inf]], each])

    with np.errstate(divide='ignore'):
      log_unchanged = np.log1p(-betas)  # -inf from a beta of 1 on
    return cls(log_odds(log_unchanged), log_odds(np.cumsum(log_unchanged)), final)

  @classmethod
  def erasing(cls, steps: int, activity: float = 0.5) -> 'BinomialChain':
    """beta_t = 1 / (T - t + 1): each step removes 1 / T of the signal, and none is left.

    Sohl-Dickstein et al. (2015), section 2.4.1.
    """
    return cls.from_betas(1.0 / np.arange(steps, 0, -1), activity)

  @property
  def steps(self) -> int:
    """T."""
    return len(self.step) - 1

  @property
  def signal(self) -> Array | np.ndarray:
    """How far x^(0) moves the log odds of x^(t) from their middle, [T + 1]: infinite ... 0."""
    return 0.5 * (self.since[:, 1] - self.since[:, 0])

  def kernel(self, z: Array, t: Array) -> Array:
    """The log odds of q(x^(t) | x^(t-1) = z), and of its reversal.  z: [B, ...]; t: [B] or []."""
    return _select(self.step, t, z)

  def posterior(self, z: Array, x: Array, t: Array) -> Array:
    """The log odds of q(x^(t-1) | x^(t) = z, x^(0) = x), t = 2 .. T.  z, x: [B, ...]."""
    return self.kernel(z, t) + _select(self.since, t - 1, x) - self.final

  def marginal(self, x: Array, t: Array) -> Array:
    """The log odds of q(x^(t) | x^(0) = x), [B, ...].  x: [B, ...]; t: [B] or []."""
    return _select(self.since, t, x)


def _select(table: Array | np.ndarray, t: Array, x: Array) -> Array:
  """Entries [t, x > 0] of a table [T + 1, 2]: [B, ...]."""
  u = jnp.asarray(table, x.dtype)[t]
  of = lambda i: u[..., i].reshape(u.shape[:-1] + (1,) * (x.ndim - u.ndim + 1))
  return jnp.where(x > 0.0, of(1), of(0))


def spins(keys: Array, log_odds: Array) -> Array:
  """+-1 with these log odds of +1, [B, ...]; example i uses keys[i] alone.  keys: [B]."""
  up = random.bernoulli(keys, jax.nn.sigmoid(log_odds))
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
  """One-sample estimate of -K, Sohl-Dickstein et al. (2015), eq. 14.

  In the mean over data with the share of ones that `chain` expects, it is a bound on -log p(x).
  x: [B, ...] of +-1; t: [B] in [0, 1], which chooses one of the T - 1 divergences; keys: [B].
  Returns nats [B], and the terms whose sum they are: 'reconstruction', H_q(X^(1) | X^(0));
  'latent', H_p(X^(T)) minus H_q(X^(T) | X^(0)); 'diffusion', the divergences.
  """
  last = chain.steps
  index = jnp.clip(2 + jnp.floor(t * (last - 1)).astype(jnp.int32), 2, last)
  z = spins(random.stream(keys, 'z'), chain.marginal(x, index))
  gap = sum_over_data(divergence(chain.posterior(z, x, index), reverse(z, index, cond)))
  left = lambda t: sum_over_data(entropy(chain.marginal(x, jnp.asarray(t))))
  most = x[0].size * entropy(jnp.asarray(chain.final, x.dtype))
  terms = {'reconstruction': left(1), 'latent': most - left(last), 'diffusion': (last - 1) * gap}
  return sum_of_terms(terms), terms


def sample(reverse: Reverse, chain: BinomialChain, keys: Array, shape: tuple[int, ...],
           cond: PyTree = None, log_ratio: ArrayLike = 0.0) -> Array:
  """x^(0) ~ p as +-1, [B, *shape]; the last step is the forward kernel.  keys: [B].

  log_ratio: log r(x_i = 1) - log r(x_i = -1) of a second distribution of independent bits,
  broadcastable to x.  Every kernel, and the start, is multiplied by r, which adds log_ratio to the
  log odds: c d / (c d + (1 - c) (1 - d)) with c = f_b.  Where a bit is known, log_ratio is
  infinite, and the sample keeps the bit.  Sohl-Dickstein et al. (2015), section 2.5 and table
  App.1, with r constant in t.  As for `samplers.multiplied`, the result is no exact posterior.
  """
  at = lambda t: jax.vmap(lambda key: jax.random.fold_in(key, t))(keys)
  zeros = jnp.zeros((len(keys), *shape))

  def step(z, t):
    return spins(at(t - 1), reverse(z, t, cond) + log_ratio), None

  z = spins(at(chain.steps), zeros + chain.final + log_ratio)
  z, _ = jax.lax.scan(step, z, jnp.arange(chain.steps, 1, -1))
  return spins(at(0), chain.kernel(z, jnp.asarray(1)) + log_ratio)
