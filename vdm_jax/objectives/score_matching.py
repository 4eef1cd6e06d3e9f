"""Score matching: fitting the gradient of a log-density without its normaliser.

Explicit score matching minimises 1/2 E|s - grad log q|^2, but grad log q, the score of the data, is
unknown.  Up to a constant that does not depend on the model, this loss equals

    implicit    E[ tr(ds/dx) + 1/2 |s|^2 ]                  Hyvarinen (2005), by parts
    sliced      E[ v^T ds/dx v + 1/2 (v^T s)^2 ]            Song et al. (2020), random v
    denoising   1/2 E|s(x + sigma eps) + eps / sigma|^2     Vincent (2011)

The denoising loss is for the density of the data with noise.  The other two are functions (score,
x, keys) of one density.  `at_level` makes an `Objective` of them: lambda(t) times the loss of
q(z_t), like `denoising`.  `on_ladder` draws the level from a finite number of levels, like NCSN.
The three constants differ, so compare values of one objective only.

lambda is the argument `scale` below.  `variance` is the weight of NCSN and of the score SDEs;
`likelihood` is the weight of the bound.  With w = lambda / g^2 (`score_flow.matching`), every such
loss is `weighted_diffusion`.
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.objectives import vlb
from vdm_jax.objectives.probes import Probes, basis, rademacher
from vdm_jax.objectives.score_flow import matching
from vdm_jax.objectives.weighted import weighted_diffusion
from vdm_jax.processes import diffuse, sde
from vdm_jax.typing import Array, Denoiser, Level, Objective, Process, PyTree
from vdm_jax.units import sum_of_terms, sum_over_data

Score = Callable[[Array], Array]  # x [B, ...] -> [B, ...], example by example
# (score, x [B, ...], keys [B]) -> nats [B], {term: [B]}
Matching = Callable[[Score, Array, Array], tuple[Array, dict[str, Array]]]

# ------------------------------------------------------------- one density


def sliced(score: Score, x: Array, keys: Array, *, probes: Probes = rademacher,
           reduced: bool = True) -> tuple[Array, dict[str, Array]]:
  """v^T ds/dx v + 1/2 |s|^2, or with 1/2 (v^T s)^2 unless `reduced`: nats [B].

  Song, Garg, Shi and Ermon (2020): sliced score matching.  `reduced` is its
  variance-reduced form, with the closed-form mean over v of the second part.  The result is the
  mean over `probes` v, with E[v v^T] = I, and takes one product with the Jacobian for each.  x: [B,
  ...]; keys: [B].
  Also returns {'divergence', 'norm'}, the two terms.
  """
  v = probes(random.stream(keys, 'probes'), x)
  at, moved = jax.vmap(lambda v: jax.jvp(score, (x,), (v,)), out_axes=(None, 0))(v)
  along = lambda u: jax.vmap(sum_over_data)(v * u)  # [P, B]
  square = sum_over_data(jnp.square(at)) if reduced else jnp.mean(jnp.square(along(at)), axis=0)
  terms = {'divergence': jnp.mean(along(moved), axis=0), 'norm': 0.5 * square}
  return sum_of_terms(terms), terms


def implicit(score: Score, x: Array, keys: Array) -> tuple[Array, dict[str, Array]]:
  """tr(ds/dx) + 1/2 |s|^2 with the exact trace, from d products: Hyvarinen (2005), theorem 1.

  Arguments and results as in `sliced`; nothing is drawn from `keys`.
  """
  return sliced(score, x, keys, probes=basis)


# ------------------------------------------------------------ noise levels


def variance(level: Level) -> Array:
  """lambda = sigma^2: Song and Ermon (2019), section 4.2.  The loss is 1/2 |eps - eps_hat|^2."""
  return jnp.square(level.sigma)


def likelihood(level: Level) -> Array:
  """lambda = g^2: the diffusion term of the variational bound (Song, Durkan et al. 2021)."""
  return jnp.square(sde(level)[1])


def denoising(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
              cond: PyTree = None, *, scale: Callable[[Level], Array] = variance,
              eps: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """1/2 lambda |score_hat + eps / sigma|^2 at z = alpha x + sigma eps: nats [B], {'eps_error'}.

  At one level, this is Vincent (2011).  At t ~ U[0, 1], it is Song et al. (2021), eq. 7
  (without the half).  The process may be any whose dlogsnr is finite at t.
  """
  return weighted_diffusion(denoise, process, x, t, keys, cond, weight=matching(scale), eps=eps)


def at_level(objective: Matching, scale: Callable[[Level], Array] = variance) -> Objective:
  """lambda(t) times an objective of one density, for q(z_t): only the data have noise.

  Its minimum is at the score of q(z_t), like the minimum of `denoising`.  It needs sigma > 0.
  """
  def matched(denoise, process, x, t, keys, cond=None, *, eps=None):
    level = process(t)
    if eps is None:
      eps = random.normal(random.stream(keys, 'eps'), x)
    score = lambda z: -denoise(z, level, cond).eps / level.expand(z).sigma
    nats, terms = objective(score, diffuse(x, eps, level), keys)
    weight = scale(level)
    return weight * nats, {name: weight * u for name, u in terms.items()}
  return matched


def on_ladder(objective: Objective, levels: int) -> Objective:
  """`objective` at one of the times i / L, i = 1 ... L = `levels`, each equally often.

  Song and Ermon (2019), eq. 6, of `denoising` on `ve`; NCSNv2 (Song and Ermon 2020) has the same
  loss.  These are L levels of `process`, for example all but the clean data of
  `TableSchedule.from_sigmas`.  The steps of `vlb.discrete` have the same levels.
  """
  def rung(denoise, process, x, t, keys, cond=None, **options):
    t = vlb.step_number(t, levels) / levels
    return objective(denoise, process, x, t, keys, cond, **options)
  return rung
