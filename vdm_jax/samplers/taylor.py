"""Taylor methods with ideal derivatives: the quasi-Taylor samplers.

A Taylor step needs derivatives of the network along the path.  Tachibana et al. (2021) replace them
by the derivatives of an *ideal* network, whose data is a single point x: eps_hat = (z - alpha
x) / sigma.  Along the probability flow, its x_hat and eps_hat do not change at all.  So

  z_s = alpha(s) x_hat + sigma(s) eps_hat,

with alpha(s) and sigma(s) replaced by their Taylor polynomials about t.  All orders together give
`ddim`.  Along the reverse SDE the mean of eps_hat decays at the rate k = -dlogsnr / 2, and the path
is a linear SDE; all orders together give `ancestral`.

Other data have other derivatives.  For a single point, the remainder of a step is of third order.
For other data the replaced derivatives are wrong in the second order, so the method converges with
order 1, like `ddim`, but with another constant.
"""
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.processes import sde, tau
from vdm_jax.typing import Array, Denoiser, Process, Sampler


class _Plan(NamedTuple):
  """z_s = x x_hat + eps eps_hat + noise * a normal draw: all [N]."""
  x: Array
  eps: Array
  noise: Array


def quasi_taylor(denoise: Denoiser, process: Process) -> Sampler:
  """z_s = z + h dz + h^2/2 (ddalpha x_hat + ddsigma eps_hat), dz = dalpha x_hat + dsigma eps_hat.

  Tachibana et al. (2021), the scheme of second order for the probability flow, on any process;
  h = s - t.  If logsnr is infinite at either end, the step is a step of `ddim`.  Each step takes
  one evaluation.  The order is 2 for data that is a single point, and 1 for other data.
  """
  def plan(times):
    t, s = times[:-1], times[1:]
    level, rate = jax.jvp(process, (t,), (jnp.ones_like(t),))
    h, to = s - t, process(s)
    expand = lambda value, first, second: value + h * first + 0.5 * h**2 * second
    return _where_finite(level, to, _Plan(
        expand(level.alpha, level.dalpha, rate.dalpha),
        expand(level.sigma, level.dsigma, rate.dsigma), jnp.zeros_like(t)), eta=0.0)

  def step(keys, z, t, s, plan):
    del keys, s
    x, eps, _ = denoise(z, process(t))
    return plan.x * x + plan.eps * eps

  return Sampler(step, plan=plan)


def quasi_ito_taylor(denoise: Denoiser, process: Process) -> Sampler:
  """`quasi_taylor` for the reverse SDE: dz = (f z + g^2 / sigma eps_hat) dt + g dw, dt < 0.

  Tachibana et al. (2021), the scheme of second order for the SDE, on any process.  With
  h = t - s > 0, m = 2 dsigma - f sigma and k = -dlogsnr / 2,

    z_s = z - h (dalpha x_hat + m eps_hat) + h^2/2 (ddalpha x_hat + (dm + k m) eps_hat)
          + (g - h dg) W + (dg - g m / sigma) Z,

  where W and Z, the integral of the path to W over the step, have variances h and h^3/3 and
  covariance h^2/2; their sum is drawn as one normal.  If logsnr is infinite at either end, the step
  is a step of `ancestral`.  Each step takes one evaluation.  In distribution, the order is 2 for
  data that is a single point, and 1 for other data.
  """
  def plan(times):
    t, s = times[:-1], times[1:]

    def numbers(t):
      level = process(t)
      f, g = sde(level)
      return level, 2.0 * level.dsigma - f * level.sigma, g

    (level, m, g), (rate, dm, dg) = jax.jvp(numbers, (t,), (jnp.ones_like(t),))
    h, to = t - s, process(s)
    a, b = g - h * dg, dg - g * m / level.sigma
    variance = a**2 * h + a * b * h**2 + b**2 * h**3 / 3.0
    return _where_finite(level, to, _Plan(
        level.alpha - h * level.dalpha + 0.5 * h**2 * rate.dalpha,
        level.sigma - h * m + 0.5 * h**2 * (dm - 0.5 * level.dlogsnr * m),
        jnp.sqrt(jnp.maximum(variance, 0.0))), eta=1.0)

  def step(keys, z, t, s, plan):
    del s
    x, eps, _ = denoise(z, process(t))
    return plan.x * x + plan.eps * eps + plan.noise * random.normal(random.stream(keys, 'noise'), z)

  return Sampler(step, plan=plan)


def _where_finite(at_t, at_s, plan, eta):
  """`plan`, but the numbers of `transition` with this eta where logsnr is infinite."""
  share = eta * tau(at_t, at_s)
  exact = _Plan(at_s.alpha, at_s.sigma * jnp.sqrt(1.0 - share), at_s.sigma * jnp.sqrt(share))
  finite = jnp.isfinite(at_t.logsnr) & jnp.isfinite(at_s.logsnr)
  return jax.tree.map(lambda taylor, ddim: jnp.where(finite, taylor, ddim), plan, exact)
