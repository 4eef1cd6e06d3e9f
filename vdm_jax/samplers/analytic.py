"""Analytic-DPM: the optimal reverse variance, in closed form from moments of the denoiser.

Among Gaussian kernels p(z_s | z_t), the nearest to the true kernel has the same first two moments.
With q(z_s | z_t, x) = N(coefficient x + ..., lambda^2) of DDPM or DDIM, the law of total variance
gives

  mean = the mean of q at x = x_hat, variance = lambda^2 + coefficient^2 Var(x | z_t).

Ancestral sampling drops the second term, which is most of the variance if there are few steps.  For
Gaussian data the kernel with both terms is exact: one step from t = 1 to 0 has the same
distribution as a thousand steps.

Bao, Li, Zhu and Zhang (2022), Analytic-DPM, take the mean of Var(x | z_t) over z_t and dimensions,
(1 - E|eps_hat|^2 / d) / SNR(t).  That is 0 / 0 at alpha = 0, and its sampling error grows as
1 / SNR.  Here the mean is kept in the coordinates of v, where it is finite and smooth at all
levels:

  E Var(v | z_t) = (1 - E|eps_hat|^2 / d) + (E|x|^2 - E|x_hat|^2) / d,
  E Var(x | z_t) = sigmoid(-logsnr) E Var(v | z_t),

as (x, eps) -> (z, v) is a rotation at the scale alpha^2 + sigma^2 = 1.  For the optimal denoiser,
either bracket of the first line alone gives the second line.

Bao, Li, Sun, Zhu and Zhang (2022), Extended-Analytic-DPM, let a head of the network predict the
variance for each dimension of each z_t.
"""
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.processes import diffuse, tau
from vdm_jax.samplers.multistep import real_steps
from vdm_jax.samplers.sampling import check_grid
from vdm_jax.typing import Array, Denoiser, Estimate, Level, Process, Sampler


class Variances(NamedTuple):
  """E Var(v | z_t), the mean over z_t and dimensions, at K noise levels.

  From a published table of Gamma = E|eps_hat|^2 / d, it is (1 - Gamma) / sigmoid(logsnr).
  """
  logsnr: Array          # [K] increasing, may end in +-inf
  variance: Array        # [K]
  standard_error: Array  # [K]

  def of_x(self, logsnr: Array) -> Array:
    """E Var(x | z_t) at any level, by linear interpolation: the same shape, never below 0."""
    finite = lambda u: jnp.clip(u, -30.0, 30.0)  # beyond, it no longer changes
    of_v = jnp.interp(finite(logsnr), finite(self.logsnr), self.variance)
    return jax.nn.sigmoid(-logsnr) * jnp.maximum(of_v, 0.0)


def estimate_variances(denoise: Denoiser, process: Process, x: Array, times: Array, keys: Array
                       ) -> Variances:
  """A Monte Carlo estimate of `Variances` at `times` [K], from one z_t for each example and time.

  Bao et al. (2022), Analytic-DPM, section 3, with the second bracket above.  x: [B, ...], data,
  B > 1; keys: [B].  The standard error is over draws of data and noise.
  """
  def at(k, t):
    level = process(t)
    at_k = jax.vmap(lambda key: jax.random.fold_in(key, k))(keys)
    noise = random.normal(random.stream(at_k, 'eps'), x)
    estimate = denoise(diffuse(x, noise, level), level)
    excess = jnp.square(x) - jnp.square(estimate.x) - jnp.square(estimate.eps)
    # A denoiser is not defined at sigma = 0, where v is eps and z says nothing of it.
    each = jnp.where(level.sigma > 0.0, 1.0 + jnp.mean(excess.reshape(len(x), -1), axis=1), 1.0)
    return level.logsnr, jnp.mean(each), jnp.std(each, ddof=1) / len(x)**0.5

  times = jnp.asarray(times)
  estimates = jax.lax.map(lambda xs: at(*xs), (jnp.arange(len(times)), times))
  order = jnp.argsort(estimates[0])
  return Variances(*(u[order] for u in estimates))


def pool(estimates: Sequence[Variances]) -> Variances:
  """The mean of estimates from batches of equal size, at the same levels."""
  n = len(estimates)
  variance = jnp.asarray(sum(e.variance for e in estimates)) / n
  error = jnp.asarray(sum(jnp.square(e.standard_error) for e in estimates))**0.5 / n
  return Variances(estimates[0].logsnr, variance, error)


def reverse_variance(at_t: Level, at_s: Level, of_x: Array, eta: float = 1.0) -> Array:
  """lambda^2 + coefficient^2 Var(x | z_t), the best variance of p(z_s | z_t), s < t.

  lambda = eta sigma_s sqrt(tau), coefficient = alpha_s (1 - sqrt((1 - eta^2 tau) (1 - tau))):
  lambda is the deviation of DDIM's q(z_s | z_t, x), Song, Meng and Ermon (2021), eq. 7.  The
  coefficient is the factor of x in the mean of q; at eta = 1 it is alpha_s tau.  Bao et al. (2022),
  Analytic-DPM, theorem 1.  of_x: Var(x | z_t), in a shape that the levels broadcast against.
  """
  share, noise = tau(at_t, at_s), eta**2
  # 1 - sqrt(1 - u) as u / (1 + sqrt(1 - u)), which keeps its digits in short steps.
  left = (1.0 - noise * share) * (1.0 - share)
  coefficient = at_s.alpha * share * (1.0 + noise * (1.0 - share)) / (1.0 + jnp.sqrt(left))
  return noise * jnp.square(at_s.sigma) * share + jnp.square(coefficient) * of_x


def _most(data_range: tuple[float, float] | None) -> float:
  """The maximum of Var(x | z_t), (b - a)^2 / 4 for data in [a, b]: Analytic-DPM, theorem 2."""
  return jnp.inf if data_range is None else 0.25 * (data_range[1] - data_range[0])**2


def _mean(estimate: Estimate, at_t: Level, at_s: Level, eta: float) -> Array:
  """Mean of q(z_s | z_t, x_hat); the levels are expanded."""
  keep = jnp.sqrt(1.0 - eta**2 * tau(at_t, at_s))
  return at_s.alpha * estimate.x + at_s.sigma * keep * estimate.eps


def analytic_dpm(denoise: Denoiser, process: Process, variances: Variances, eta: float = 1.0,
                 data_range: tuple[float, float] | None = None, last_std: float | None = None
                 ) -> Sampler:
  """z_s = mean of q(z_s | z_t, x_hat) + noise with `reverse_variance`, one number for each step.

  Bao et al. (2022), Analytic-DPM, theorem 1: eta = 1 is their Analytic-DDPM, eta = 0 their
  Analytic-DDIM.  A step to sigma = 0, the data, adds no noise.

  variances: from `estimate_variances`; data_range: (a, b) such that all x are in [a, b], (-1, 1)
  for images; last_std: an upper bound on the deviation of the last noise, which is visible in
  images (the authors take y (2 / 255) sqrt(pi / 2) for pixels in [-1, 1], with y = 1 or 2).
  """
  def plan(times):
    at_t, at_s = process(times[:-1]), process(times[1:])
    # On average no more noise than all of it is unexplained: theorem 2 again.
    most = jnp.minimum(jnp.exp(-at_t.logsnr), _most(data_range))
    of_x = jnp.minimum(variances.of_x(at_t.logsnr), most)
    std = jnp.sqrt(reverse_variance(at_t, at_s, of_x, eta))
    std = jnp.where(at_s.sigma > 0.0, std, 0.0)
    if last_std is None:
      return std
    step = jnp.arange(std.shape[0])
    drawn = (step < real_steps(times)) & (at_s.sigma > 0.0)
    last = jnp.max(jnp.where(drawn, step, -1))
    return jnp.where(step == last, jnp.minimum(std, last_std), std)

  def step(keys, z, t, s, std):
    at_t, at_s = process(t).expand(z), process(s).expand(z)
    noise = random.normal(random.stream(keys, 'noise'), z)
    return _mean(denoise(z, process(t)), at_t, at_s, eta) + std * noise

  return Sampler(step, plan=plan)


def sn_ddpm(denoise: Denoiser, process: Process, eta: float = 1.0,
            data_range: tuple[float, float] | None = None) -> Sampler:
  """The variance from a head that predicts the square of the noise, E[eps^2 | z_t].

  Var(eps | z_t) = extra['eps_sq'] - eps_hat^2 for each dimension: Bao et al. (2022),
  Extended-Analytic-DPM, the optimal diagonal covariance; `estimate.extra` holds the head [B, ...].
  An error of the mean changes this variance with the wrong sign (see `npr_ddpm`).  data_range, eta
  as for `analytic_dpm`.  Where alpha_t = 0, the head does not determine Var(x): it is then taken
  from data_range, or as 0.
  """
  return _diagonal(denoise, process, eta, data_range,
                   lambda estimate: estimate.extra['eps_sq'] - jnp.square(estimate.eps))


def npr_ddpm(denoise: Denoiser, process: Process, eta: float = 1.0,
             data_range: tuple[float, float] | None = None) -> Sampler:
  """The variance from a head that predicts the residual of the noise, E[(eps - eps_hat)^2 | z_t].

  extra['residual_sq'] replaces Var(eps | z_t).  If the mean is imperfect, it is the best value for
  that mean, Var + bias^2: Bao et al. (2022), Extended-Analytic-DPM.  The rest is as for `sn_ddpm`.
  """
  return _diagonal(denoise, process, eta, data_range,
                   lambda estimate: estimate.extra['residual_sq'])


def _diagonal(denoise, process, eta, data_range, of_eps: Callable[[Estimate], Array]) -> Sampler:
  def step(keys, z, t, s, _):
    estimate = denoise(z, process(t))
    at_t, at_s = process(t).expand(z), process(s).expand(z)
    most = _most(data_range)
    unknown = 0.0 if data_range is None else most
    of_x = jnp.where(at_t.alpha > 0.0, of_eps(estimate) * jnp.exp(-at_t.logsnr), unknown)
    of_x = jnp.clip(of_x, 0.0, most)
    std = jnp.where(at_s.sigma > 0.0, jnp.sqrt(reverse_variance(at_t, at_s, of_x, eta)), 0.0)
    noise = random.normal(random.stream(keys, 'noise'), z)
    return _mean(estimate, at_t, at_s, eta) + std * noise
  return Sampler(step)


def optimal_trajectory(variances: Variances, process: Process, times: Array, steps: int) -> Array:
  """The `steps` + 1 of `times` [T + 1] with the least bound of a chain; both ends are kept.

  With the best variances, all chains share one part of the bound.  The other part, for each
  dimension, is half the sum over steps of log(reverse_variance / lambda^2).  Dynamic programming
  finds the path of least cost in O(T^2 steps).  Bao et al. (2022), Analytic-DPM, on the optimal
  trajectory; for eta = 1.

  Raises InputError if the times do not decrease, or if they have fewer than `steps` steps.
  """
  check_grid(times)
  times = jnp.asarray(times)
  nodes = times.shape[0]
  if not 1 <= steps < nodes:
    raise InputError('steps', steps,
                     f'a trajectory through {nodes} times has 1 to {nodes - 1} steps',
                     'give more times or fewer steps')
  level = process(times)
  at_t, at_s = jax.tree.map(lambda u: u[:, None], level), jax.tree.map(lambda u: u[None], level)
  noise, signal = jax.nn.sigmoid(-level.logsnr), jax.nn.sigmoid(level.logsnr)
  of_v = variances.of_x(level.logsnr) / noise
  # log(reverse_variance / lambda^2) + log(noise_s / noise_t).  What is added is the same along any
  # path, and makes the cost finite at alpha_t = 0 and at sigma_s = 0.
  gain = noise[None] / noise[:, None] + tau(at_t, at_s) * signal[None] * of_v[:, None]
  later = jnp.arange(nodes)[:, None] < jnp.arange(nodes)[None]
  cost = jnp.where(later, jnp.log(jnp.where(later, gain, 1.0)), jnp.inf)  # [from, to]

  def extend(best, _):
    through = best[:, None] + cost
    return jnp.min(through, axis=0), jnp.argmin(through, axis=0)

  start = jnp.where(jnp.arange(nodes) == 0, 0.0, jnp.inf)
  _, came_from = jax.lax.scan(extend, start, length=steps)

  def walk(node, back):
    return back[node], back[node]

  end = jnp.asarray(nodes - 1)
  _, path = jax.lax.scan(walk, end, came_from, reverse=True)
  return times[jnp.append(path, end)]
