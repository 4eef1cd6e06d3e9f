"""DEIS: the probability flow, integrated exactly with polynomials in place of the noise estimate.

In the coordinate z / alpha, with rho = sigma / alpha = exp(-logsnr / 2), the probability flow is
d(z / alpha) = eps_hat d rho on every curve.  So a method only chooses how eps_hat varies between
its known values.  The Adams-Bashforth methods take the polynomial through the latest values
e_0 = eps_hat, e_1, ...:

  z_s = alpha_s x_hat + sigma_s eps_hat + sum_j C_j (e_j - e_0),   C_j = alpha_s int_t^s L_j d rho,

where L_j is 1 at the noise level of e_j and 0 at the noise levels of the others: a polynomial in
the time of the process (tAB), in rho (rhoAB) or in logsnr.  The integrals are computed by
quadrature in that variable.  Quadrature is exact for rho, and exact to rounding for the others on
all grids in use.

The Runge-Kutta methods of the same paper (rhoRK) are `runge_kutta.rho_rk`.
"""
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from vdm_jax.errors import InputError
from vdm_jax.samplers.multistep import Coefficients, multistep, steps_back
from vdm_jax.typing import Array, Denoiser, Process, Sampler

# Gauss and Legendre's rule for v in [0, 1], u at the share 3 v^2 - 2 v^3 of a step: dense at both
# ends, since rho may be infinite just beyond one of them, or have a slope that is.
_X, _W = np.polynomial.legendre.leggauss(48)  # on [-1, 1]
_V = 0.5 + 0.5 * _X
_AT, _WEIGHTS = _V**2 * (3.0 - 2.0 * _V), 3.0 * _V * (1.0 - _V) * _W


def deis(denoise: Denoiser, process: Process, degree: int = 3, variable: str = 't',
         lower_order_below: int = 0) -> Sampler:
  """z_s = alpha_s x_hat + sigma_s eps_hat + sum_j C_j (e_j - e_0), C_j = alpha_s int L_j d rho.

  Zhang and Chen (2023), section 3: variable 't' gives their tAB-r, r = `degree`; 'rho' gives their
  rhoAB-r; degree 0 is `ddim`.  'logsnr' is the variant of huggingface/diffusers, not of the paper:
  polynomials in log rho, whose integrals have a closed form.

  The first steps are of degree 0, 1, ..., as in the paper.  So as a grid is made finer, the error
  falls with order 2 at most, the order of the very first step.  On `warm_up(times, degree + 1)` the
  error falls with order degree + 1.  A step from alpha = 0 is of first order.  With 'logsnr', a
  step to sigma = 0 is of first order too; 't' and 'rho' need no such exception there.

  lower_order_below: in a grid of fewer steps, the last steps are of degree ..., 1, 0 (diffusers:
  15).
  Raises InputError if the variable is unknown, or the degree is negative.
  """
  if variable not in ('t', 'rho', 'logsnr'):
    raise InputError('variable', variable, 'there is no such choice', "give 't', 'rho' or 'logsnr'")
  if degree < 0:
    raise InputError('degree', degree, 'it is negative', 'give 0 (first order) or more')

  def plan(times):
    level = process(times)
    rho = level.sigma / level.alpha
    u = {'t': times, 'rho': rho, 'logsnr': level.logsnr}[variable]
    finite = jnp.isfinite(u) & jnp.isfinite(rho)
    alpha_s, sigma_s, logsnr_s = (a[1:, None] for a in (level.alpha, level.sigma, level.logsnr))

    def density(u):
      """alpha_s d rho / du."""
      if variable == 'rho':
        return jnp.broadcast_to(alpha_s, u.shape)
      if variable == 'logsnr':
        return -0.5 * sigma_s * jnp.exp(0.5 * (logsnr_s - u))
      at = process(u)
      return alpha_s * (at.dsigma - at.sigma / at.alpha * at.dalpha) / at.alpha

    nodes, live, regular = history(u, finite, times, degree + 1, lower_order_below)
    return Coefficients(integrals(nodes, live, u, regular, density)[:, 1:])

  return multistep(denoise, process, plan, depth=degree + 1, of='eps')


def history(u: Array, finite: Array, times: Array, depth: int,
            lower_order_below: int) -> tuple[Array, Array, Array]:
  """The points that the polynomial of each step goes through: (nodes, live, regular).

  u: [N + 1], the variable of the polynomials at `times`; finite: [N + 1] bool, whether a step of
  higher order may begin or end there; depth: K, the largest number of values for one polynomial.

  nodes: [N, K], u at the start of the step and at the starts of the steps before it; live: [N, K]
  bool, the nodes that the step uses, always with the first; regular: [N] bool, the steps that may
  be of higher order.  A repeated time within the grid begins the history anew.
  """
  index = jnp.arange(u.shape[0] - 1)
  regular = finite[:-1] & finite[1:] & (u[:-1] != u[1:])
  left = jnp.cumsum((times[1:] != times[:-1])[::-1])[::-1]
  order = jnp.where(left[0] < lower_order_below, jnp.minimum(depth, left), depth)
  nodes = jnp.stack([steps_back(u[:-1], j) for j in range(depth)], axis=1)
  live = [jnp.ones_like(regular)]
  for j in range(1, depth):
    there = (index >= j) & jnp.isfinite(nodes[:, j]) & (nodes[:, j] != nodes[:, j - 1])
    live.append(live[-1] & regular & there & (j < order))
  return nodes, jnp.stack(live, axis=1), regular


def integrals(nodes: Array, live: Array, u: Array, regular: Array,
              density: Callable[[Array], Array]) -> Array:
  """int L_j(u) density(u) du over each step, [N, K]; L_j: 1 at node j, 0 at the other live ones.

  nodes, live: [N, K]; u: [N + 1]; regular: [N]; density: u [N, Q] -> [N, Q].  The integral is 0
  where a node is not live or a step is not regular.
  """
  start, length = (jnp.where(regular, a, 0.0)[:, None] for a in (u[:-1], u[1:] - u[:-1]))
  at = start + length * jnp.asarray(_AT, u.dtype)
  nodes = jnp.where(live, nodes, 0.0)
  other = live[:, None, :] & ~jnp.eye(nodes.shape[1], dtype=bool)
  gap = jnp.where(other, nodes[:, :, None] - nodes[:, None, :], 1.0)
  factor = (at[:, None, None, :] - nodes[:, None, :, None]) / gap[..., None]
  basis = jnp.prod(jnp.where(other[..., None], factor, 1.0), axis=2)
  weights = length * jnp.asarray(_WEIGHTS, u.dtype) * density(at)
  return jnp.where(live & regular[:, None], jnp.sum(basis * weights[:, None], axis=-1), 0.0)
