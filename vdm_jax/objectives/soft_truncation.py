"""Soft Truncation: each training step leaves out the times before a random time.

The bound's diffusion term is truncated at tau, L(tau) = int_tau^1 f(t) dt, with one tau ~ P for the
whole batch of a step.  Since f(t) counts if tau <= t,

    E_tau L(tau) = int_0^1 P(tau <= t) f(t) dt,

which is the weighted loss with w(t) = P(tau <= t).  Every weighting that does not decrease in t,
divided by its value at 1, comes from some P.  Kim, Shin, Song, Kang and Moon (2022), `Soft
Truncation: A Universal Training Technique of Score-based Diffusion Model for High Precision Score
Estimation`.  A single step differs from the weighted loss.  With importance-sampled times
(`proposals.by_logsnr` from tau on), most steps spend no draw on the smallest times.

Their first bits/dim of discrete data left out the entropy of q(z_0 | x), and were 0.92 too low
(their repository, issue 2).  In `score_flow.density_bound` this entropy is a separate term.
"""
import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.typing import Array, Scalar, Weighting
from vdm_jax.values import static, value


@value
class Reciprocal:
  """P with the density tau^-k / Z on [first, 1], in the time of the SDE; the authors use k = 1.

  Our t = 0 is the time `first` of the SDE, where its process starts (t_min of
  `schedules.BetaLinear`; the authors use 1e-5): tau = first + (1 - first) t.  k = 0 is uniform; a
  large k hardly ever truncates.
  """
  first: Scalar = 1e-5
  k: float = static(default=1.0)

  def _integral(self, tau):
    """Of (tau / first)^-k dlog(tau / first) tau / first, from `first` on."""
    y = jnp.log(tau / self.first)
    return y if self.k == 1.0 else jnp.expm1((1.0 - self.k) * y) / (1.0 - self.k)

  def probability(self, t: Array) -> Array:
    """P(tau <= t), t in [0, 1]."""
    return self._integral(self.first + (1.0 - self.first) * t) / self._integral(1.0)

  def quantile(self, p: Array) -> Array:
    """The t in [0, 1] with probability(t) = p."""
    area = p * self._integral(1.0)
    y = area if self.k == 1.0 else jnp.log1p((1.0 - self.k) * area) / (1.0 - self.k)
    # tau - first, without the digits that the difference would lose.
    return jnp.clip(self.first * jnp.expm1(y) / (1.0 - self.first), 0.0, 1.0)


def truncation(prior: Reciprocal, seed: int, step: Array) -> Array:
  """The time before which step `step` leaves out all times: [], the same on all devices."""
  key = random.stream(random.key(seed)[None], 'truncation')[0]
  return prior.quantile(random.unit(jax.random.fold_in(key, step)))


def weight(prior: Reciprocal) -> Weighting:
  """P(tau <= t): on average, the loss is `objectives.weighted_diffusion` with this weighting.

  Kim et al. (2022), section 4.3.
  """
  return lambda level: prior.probability(level.t)
