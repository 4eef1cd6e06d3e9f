"""Importance sampling of time: the same loss in expectation, from another distribution of t.

A loss is an integral over time, int_0^1 f(t) dt.  A proposal maps the uniform u of the training
step to (t, weight).  Here t has the density p, and weight = 1 / p(t), so E[weight f(t)] is the
integral for every p.  The variance is least for p(t) ~ E[f(t)^2]^(1/2).  A proposal that is
monotone in u keeps the stratification of a batch: evenly spread u are evenly spread in p.

The bound is 1/2 int E|eps - eps_hat|^2 dlogsnr, so only the density of logsnr matters.  Drawing t
for a density of logsnr equals training with the schedule of that density (`schedules`), if the
network reads logsnr.  For weight 1:

  density of logsnr            `by_mass`          optimal where this does not depend on logsnr
  1                            logsnr             |eps - eps_hat|^2   ScoreFlow: `by_logsnr`
  alpha^2 on the `vp` curve    `idode.vp_mass`    |v - v_hat|^2       i-DODE
  alpha^2 on the `flow` curve  `idode.sp_mass`    |w - w_hat|^2, w = eps - x
  normal, -2 mean, (2 std)^2   `log_normal`       EDM: the noise levels of Karras et al. (2022)
  E[|eps - eps_hat|^4]^(1/2)   `tabulated`        anything; `LossHistory` learns it of t

For the second line i-DODE has a closed form.  int alpha^2 dlogsnr = log(1 + SNR) = -log sigma^2 is
linear in u.  With gamma = -logsnr, gamma = -log(e^(-Z u) (1 + e^(-gamma_0)) - 1), where
Z = log((1 + e^(-gamma_0)) / (1 + e^(-gamma_1))).
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.objectives import vlb
from vdm_jax.processes import time_of
from vdm_jax.typing import Array, Context, Decoder, Denoiser, Objective, Process, PyTree
from vdm_jax.units import sum_of_terms
from vdm_jax.values import value

Proposal = Callable[[Array], tuple[Array, Array]]  # u [B] -> t [B], 1 / density of t [B]
Mass = Callable[[Array], Array]                    # logsnr -> integral of a density, increasing


def uniform(u: Array) -> tuple[Array, Array]:
  """t = u."""
  return u, jnp.ones_like(u)


def by_mass(process: Process, mass: Mass, first: float | Array = 0.0) -> Proposal:
  """logsnr with a density proportional to the derivative of `mass`; bisection inverts `mass`.

  first: only times from `first` to 1 are drawn, and the weights give int_first^1 f(t) dt.  The
  process must have one logsnr for all pixels, finite at both ends.

  No gradient reaches t or the weight.  If the schedule is learned, f and the density p both depend
  on the schedule.  The gradient of int f dt is E[grad f / p].  The gradient of the weight would add
  E[f grad(1 / p)], which is not 0 unless the times also moved with p.
  """
  def propose(u):
    at = lambda t: mass(process(t).logsnr)
    begin, end = at(jnp.full_like(u, first)), at(jnp.ones_like(u))
    by_mass = lambda t: process(t)._replace(logsnr=at(t))
    t = jax.lax.stop_gradient(time_of(by_mass, begin * (1.0 - u) + end * u))
    _, rate = jax.jvp(at, (t,), (jnp.ones_like(t),))
    return t, jax.lax.stop_gradient((end - begin) / rate)
  return propose


def by_logsnr(process: Process, first: float | Array = 0.0) -> Proposal:
  """logsnr uniform: p(t) ~ -dlogsnr/dt = g^2 / sigma^2.

  The proposal for likelihood weighting of Song, Durkan, Murray and Ermon (2021), section 5.1.  On
  the VP SDE, where SNR = 1 / expm1(int beta), it is beta / (1 - alpha^2).
  """
  return by_mass(process, lambda logsnr: logsnr, first)


def log_normal(mean: float = -1.2, std: float = 1.2) -> Mass:
  """log(sigma / alpha) ~ N(mean, std^2), cut where the process ends: Karras et al. (2022), table 1.

  The mass is the probability that logsnr is lower, Phi((logsnr + 2 mean) / (2 std)).
  """
  return lambda logsnr: jax.scipy.special.ndtr((logsnr + 2.0 * mean) / (2.0 * std))


def tabulated(density: Callable[[np.ndarray], np.ndarray], logsnr_max: float, logsnr_min: float,
              cells: int = 1000) -> Mass:
  """The mass of any density of logsnr, for `by_mass`; the density is constant within equal cells.

  density: [cells] -> [cells], above 0, with any sum; it is evaluated at the cells' middles.  The
  weights belong to the density of the cells, so the number of cells affects the variance alone.
  Beyond the table, the density keeps the value of the nearer end.  So all times are drawn, even if
  a process goes further, or is learned and its ends move.
  """
  edges = np.linspace(logsnr_min, logsnr_max, cells + 1)
  shares = np.asarray(density(0.5 * (edges[1:] + edges[:-1])), np.float64)
  masses = np.concatenate([[0.0], np.cumsum(shares / shares.sum())])
  low, high = np.diff(masses)[[0, -1]] / np.diff(edges)[[0, -1]]

  def mass(logsnr):
    table = jnp.interp(logsnr, edges.astype(logsnr.dtype), masses.astype(logsnr.dtype))
    above, below = logsnr > edges[-1], logsnr < edges[0]
    return (table + jnp.where(above, (logsnr - edges[-1]) * high, 0.0)
            + jnp.where(below, (logsnr - edges[0]) * low, 0.0))
  return mass


@value
class Histogram:
  """A proposal with a constant density in each of K equal bins of t.  shares: [K], with any sum."""
  shares: Array

  def __call__(self, u: Array) -> tuple[Array, Array]:
    edges = jnp.concatenate([jnp.zeros(1, self.shares.dtype), jnp.cumsum(self.shares)])
    edges /= edges[-1]
    bins = len(self.shares)
    i = jnp.clip(jnp.searchsorted(edges, u, side='right') - 1, 0, bins - 1)
    share = edges[i + 1] - edges[i]  # as they have been rounded: the weights remain exact
    return (i + jnp.clip((u - edges[i]) / share, 0.0, 1.0)) / bins, 1.0 / (bins * share)


# ------------------------------------------- the losses seen so far


@value
class LossHistory:
  """The latest losses in each of K equal bins of time, for p ~ E[loss^2]^(1/2).

  Nichol and Dhariwal (2021), section 3.3.  The history keeps the latest 10 losses of each of the T
  steps of a chain.  Times are uniform until every step has 10 losses.  A thousandth of the times
  stays uniform, as in their code.  Their bins are K = T; in continuous time, K is any number.

  The history is state.aux of a run, so it is part of the checkpoint: see `remember`.
  """
  losses: Array  # [K, H]  the latest H, in no order
  count: Array   # [K]  how many there have been

  @classmethod
  def empty(cls, bins: int = 32, per_bin: int = 10) -> 'LossHistory':
    return cls(jnp.zeros((bins, per_bin)), jnp.zeros(bins, jnp.int32))

  def add(self, t: Array, losses: Array) -> 'LossHistory':
    """The history with the losses [B] at the times t [B], added in the order of the batch."""
    bins, per_bin = self.losses.shape
    i = jnp.clip((t * bins).astype(jnp.int32), 0, bins - 1)
    here = jax.nn.one_hot(i, bins, dtype=jnp.int32)
    number = jnp.take_along_axis(jnp.cumsum(here, axis=0), i[:, None], axis=1)[:, 0]  # 1, 2, ...
    new = jnp.sum(here, axis=0)
    # Of more than H in one bin the last H, so that no two have the same place.
    late = number > new[i] - per_bin
    place = jnp.where(late, (self.count[i] + number) % per_bin, per_bin)
    return LossHistory(self.losses.at[i, place].set(losses, mode='drop'), self.count + new)

  def proposal(self, uniform_share: float = 1e-3) -> Histogram:
    full = jnp.all(self.count >= self.losses.shape[1])
    moments = jnp.sqrt(jnp.mean(jnp.square(self.losses), axis=1))
    shares = jnp.where(full, moments / jnp.sum(moments), 1.0 / len(moments))
    return Histogram((1.0 - uniform_share) * shares + uniform_share / len(shares))


def remember(history: LossHistory, context: Context, losses: Array, terms: dict[str, Array]
             ) -> LossHistory:
  """The history after a step whose times were drawn from it; for `remember` of `make_step`."""
  t, weight = history.proposal()(context.t)
  return history.add(t, terms['diffusion'] / weight)


# ------------------------------------------------------------- their use


def importance(objective: Objective, propose: Proposal) -> Objective:
  """`objective` at the times of `propose`: it has the same mean, and another variance.

  The result of `objective` must be the sum of its terms.  Only the term 'diffusion' depends on the
  time, so only 'diffusion' is weighted.  t is now the proposal's argument, uniform on [0, 1].
  """
  def at_proposed(denoise, process, x, t, keys, cond=None, **more):
    t, weight = propose(t)
    _, terms = objective(denoise, process, x, t, keys, cond, **more)
    terms = {**terms, 'diffusion': weight * terms['diffusion']}
    return sum_of_terms(terms), terms
  return at_proposed


def bound(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
          cond: PyTree = None, *, data: Array, decoder: Decoder, context: Context,
          propose: Proposal) -> tuple[Array, dict[str, Array]]:
  """`vlb.continuous` at the times of `propose`: nats [B], and its terms with their sum 'vlb'.

  Validation takes uniform times, whatever `propose` is, so it depends on the parameters alone.
  """
  objective = importance(vlb.continuous, propose if context.train else uniform)
  nats, terms = objective(denoise, process, x, t, keys, cond, data=data, decoder=decoder)
  return nats, {'vlb': nats, **terms}
