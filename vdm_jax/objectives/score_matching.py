"""Score matching: fitting the gradient of a log-density without its normaliser.

Explicit score matching asks for the least of 1/2 E|s - grad log q|^2, where nobody knows the second
score, which is the data's.  Up to a constant that no model changes, it is

    implicit    E[ tr(ds/dx) + 1/2 |s|^2 ]                  Hyvarinen (2005), by parts
    sliced      E[ v^T ds/dx v + 1/2 (v^T s)^2 ]            Song et al. (2020), random v
    denoising   1/2 E|s(x + sigma eps) + eps / sigma|^2     Vincent (2011)

the last one for the density of the data with noise.  Losses of the first kind are functions
(score, x, keys) of one density.  `at_level` makes an `Objective` of any of them, lambda(t) times
the loss of q(z_t), as `denoising` is; `on_ladder` draws the level from a finite number, as NCSN
does.  The constants of the three differ, so that values of one objective alone compare.

Choices of lambda, `scale` below: `variance` is the weight of NCSN and of the score SDEs,
`likelihood` the weight of the bound.  With w = lambda / g^2 (`score_flow.matching`) all are
`weighted_diffusion`.
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

  Song, Garg, Shi and Ermon (2020), section 3: sliced score matching, and `reduced` its
  variance-reduced form, with the mean over v of the known part.  One product with the Jacobian for
  each of the `probes`, over which the mean is taken; E[v v^T] = I.  x: [B, ...]; keys: [B].
  Returns also {'divergence', 'norm'}, the two terms.
  """
  v = probes(random.stream(keys, 'probes'), x)
  at, moved = jax.vmap(lambda v: jax.jvp(score, (x,), (v,)), out_axes=(None, 0))(v)
  along = lambda u: jax.vmap(sum_over_data)(v * u)  # [P, B]
  square = sum_over_data(jnp.square(at)) if reduced else jnp.mean(jnp.square(along(at)), axis=0)
  terms = {'divergence': jnp.mean(along(moved), axis=0), 'norm': 0.5 * square}
  return sum_of_terms(terms), terms


def implicit(score: Score, x: Array, keys: Array) -> tuple[Array, dict[str, Array]]:
  """tr(ds/dx) + 1/2 |s|^2 with the exact trace, by d products: Hyvarinen (2005), theorem 1.

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

  Vincent (2011), section 4, at one level; Song et al. (2021), eq. 7 (without the half) at t ~ U[0,
  1], on every process whose dlogsnr is finite at t.
  """
  return weighted_diffusion(denoise, process, x, t, keys, cond, weight=matching(scale), eps=eps)


def at_level(objective: Matching, scale: Callable[[Level], Array] = variance) -> Objective:
  """lambda(t) times an objective of one density, for q(z_t): noise is in the data, not the target.

  Its least value is at the score of q(z_t), where `denoising` has its own.  Needs sigma > 0.
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
  loss.  The levels are L of `process`, e.g. all but the clean data of
  `TableSchedule.from_sigmas`; they are the levels of the steps of `vlb.discrete`.
  """
  def rung(denoise, process, x, t, keys, cond=None, **options):
    t = vlb.step_number(t, levels) / levels
    return objective(denoise, process, x, t, keys, cond, **options)
  return rung
