"""Posteriors: a trained chain times a second distribution, p(z) r(z) up to a constant.

Sohl-Dickstein et al. (2015), section 2.5: every reverse kernel is multiplied by r and normalised,
p(z_s | z_t) r(z_s).  If r varies little over a step, the product moves the mean alone
(`perturbed`).  A Gaussian r gives a Gaussian (`gaussian`); the standard deviation of r is 0 for
known coordinates.  To denoise an observation y with noise of standard deviation s, take r = N(y,
s^2).

r may change along the chain.  The paper keeps r constant, r(z_s) = r(x).  This is simple but gives
no exact posterior: p(z_t) r(z_t) are not the marginals of the new chain.  They are the marginals,
for any number of steps, if r(z_s) is the mean of r(x) given z_s; few data have this mean in closed
form.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.processes import interpolated_std, posterior, prior_std
from vdm_jax.typing import Array, Denoiser, Estimate, Level, Process, Sampler

# (mean, variance of p(z_s | z_t), [B, ...] each, level of s) -> those of its product with r.
Multiply = Callable[[Array, Array, Level], tuple[Array, Array]]


def perturbed(log_r: Callable[[Array, Level], Array]) -> Multiply:
  """mean + variance d log r / dz at the mean; the variance is kept.  log_r: z [B, ...] -> [B].

  Sohl-Dickstein et al. (2015), table App.1 and appendix C.
  """
  def multiply(mean, variance, level):
    slope = jax.grad(lambda z: jnp.sum(log_r(z, level)))(mean)
    return mean + variance * slope, variance
  return multiply


def gaussian(r: Callable[[Level], tuple[Array, Array]]) -> Multiply:
  """The exact product with r = N(m, s^2); (m, s) = r(level), broadcastable to z.

  s is 0 where z is known, and the sample then has that value.  s is infinite where r is flat.
  """
  def multiply(mean, variance, level):
    m, s = r(level)
    share = jnp.where(s == 0.0, 1.0, variance / (variance + jnp.square(s)))
    return share * m + (1.0 - share) * mean, (1.0 - share) * variance
  return multiply


def start(process: Process, multiply: Multiply, keys: Array, like: Array) -> Array:
  """z_1 ~ p(z_1) r(z_1), of the shape of `like`: [B, ...]; it replaces `sample_prior`."""
  one = jnp.ones(like.shape[:1], like.dtype)
  mean, variance = multiply(jnp.zeros_like(like),
                            jnp.full_like(like, jnp.square(prior_std(process))), process(one))
  return mean + jnp.sqrt(variance) * random.normal(random.stream(keys, 'z_1'), like)


def multiplied(denoise: Denoiser, process: Process, multiply: Multiply,
               share: float | Callable[[Estimate], Array] = 0.0) -> Sampler:
  """z_s ~ p(z_s | z_t) r(z_s) up to a constant; p and `share` are as in `ancestral`.

  Begin at `start`.  Sohl-Dickstein et al. (2015), section 2.5.
  """
  def step(keys, z, t, s, _):
    at_t, at_s = process(t), process(s)
    estimate = denoise(z, at_t)
    mean, _ = posterior(z, estimate.x, at_t, at_s)
    v = share(estimate) if callable(share) else share
    wide_t, wide_s = at_t.expand(z), at_s.expand(z)
    std = jnp.where(wide_s.sigma > 0.0, interpolated_std(wide_t, wide_s, v), 0.0)
    mean, variance = multiply(mean, jnp.broadcast_to(jnp.square(std), z.shape), at_s)
    return mean + jnp.sqrt(variance) * random.normal(random.stream(keys, 'noise'), z)
  return Sampler(step)
