"""UniPC: a predictor of any order, and a corrector that uses the next evaluation once more.

On the probability flow, with lambda = logsnr / 2 and h its change over a step,

  z_s = (sigma_s / sigma_t) z_t + sigma_s int x_hat d(alpha / sigma)      (data prediction)
      = (alpha_s / alpha_t) z_t + alpha_s int eps_hat d(sigma / alpha)    (noise prediction).

UniP-p replaces the estimate in the integral by a polynomial in lambda through the latest p
estimates, and has order p.  The next step evaluates the network at the point of arrival anyway.
UniC-p then goes back, and takes the polynomial through this new estimate too.  This gives order
p + 1 without a further evaluation.  Zhao et al. solve a system of equations for their coefficients,
with a function B(h) on both sides.  Its solution is these integrals, whatever B(h) is.  B(h)
matters only in UniP-2 and UniC-1.  There they replace the solution of a single equation by 1/2, as
in their code.
"""
import jax
import jax.numpy as jnp

from vdm_jax.errors import InputError
from vdm_jax.samplers.deis import history, integrals
from vdm_jax.samplers.multistep import Coefficients, multistep
from vdm_jax.typing import Denoiser, Process, Sampler


def unipc(denoise: Denoiser, process: Process, order: int = 2, variant: str = 'bh2', of: str = 'x',
          corrector: bool = True, lower_order_below: int = 10) -> Sampler:
  """UniPC-p of Zhao et al. (2023), p = `order`; UniP-p without the corrector.

  variant: B(h) = h ('bh1') or e^h - 1 ('bh2'), with -h for h if `of` is 'x'.  of: the estimate that
  the polynomials replace, 'x' (data prediction) or 'eps' (noise prediction).  UniP-1 is `ddim`;
  UniP-2 of 'x' with 'bh2' is DPM-Solver++ (2M).  The last point is not corrected, so N steps take N
  evaluations.  A step from alpha = 0 or down to sigma = 0 is of first order.

  The first steps are of order 1, 2, ....  In a grid of fewer than `lower_order_below` steps, the
  last steps are of order ..., 2, 1.  This is steadier, but the authors' code does so in every grid,
  and its error falls with order 2 only as the grid is made finer.  Without lower orders at the end,
  the order is p + 1 (p without a corrector) on grids of `grids.warm_up(times, p + 1)`.  UniPC-1 and
  UniPC-2 reach this order on any grid.

  Raises InputError if the variant or `of` is unknown, or the order is below 1.
  """
  if variant not in ('bh1', 'bh2'):
    raise InputError('variant', variant, 'there is no such choice', "give 'bh1' or 'bh2'")
  if of not in ('x', 'eps'):
    raise InputError('of', of, 'there is no such choice', "give 'x' or 'eps'")
  if order < 1:
    raise InputError('order', order, 'it is below 1', 'give 1 or more')
  sign = 1.0 if of == 'x' else -1.0

  def plan(times):
    level = process(times)
    u = 0.5 * level.logsnr
    coefficient = level.alpha[1:] if of == 'x' else level.sigma[1:]
    nodes, live, regular = history(u, jnp.isfinite(u), times, order, lower_order_below)
    nodes = jnp.concatenate([u[1:, None], nodes], axis=1)

    def density(v):
      """sigma_s d(alpha / sigma) / dlambda, or alpha_s d(sigma / alpha) / dlambda."""
      return sign * coefficient[:, None] * jnp.exp(sign * (v - u[1:, None]))

    def through(end):
      """Factors of the estimates in the integral; end: [N], whether the last estimate counts."""
      used = jnp.concatenate([end[:, None], live], axis=1)
      return integrals(nodes, used, u, regular, density)

    predict, correct = jax.vmap(through)(jnp.stack([jnp.zeros_like(regular), regular]))
    predict, arrive, correct = predict[:, 2:], correct[:, 0], correct[:, 2:]
    p = live.sum(axis=1)
    h = jnp.where(regular, u[1:] - u[:-1], 0.0)
    half = 0.5 * coefficient * (sign * h if variant == 'bh1' else -jnp.expm1(-sign * h))
    arrive = jnp.where(regular & (p == 1), half, arrive)
    if order > 1:
      ratio = h / jnp.where(p == 2, nodes[:, 2] - nodes[:, 1], 1.0)
      predict = predict.at[:, 0].set(jnp.where(p == 2, half * ratio, predict[:, 0]))
    if not corrector:
      return Coefficients(predict)
    # A corrector is told of the step that ended where the present one begins.
    before = lambda a: jnp.concatenate([jnp.zeros_like(a[:1]), a[:-1]])
    corrects = before(regular)
    part = level.sigma if of == 'x' else level.alpha
    carry = jnp.where(corrects, part[1:] / jnp.where(corrects, part[:-1], 1.0), 0.0)
    return Coefficients(predict, before(correct), before(arrive), corrects, carry)

  return multistep(denoise, process, plan, depth=order, of=of)
