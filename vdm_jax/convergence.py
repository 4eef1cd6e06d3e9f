"""Bounds on the distance of samples from the data, term by term, beside the exact distance.

Let q be the law of the data, q_t the law of z_t, and p_t the law of a sampler that starts at the
prior.  Data processing and the chain rule bound the divergence at the end of the grid by that of
the whole path:

  KL(q_0 || p_0) <= KL(q_1 || prior) + sum over steps of E KL(q(z_s | z_t) || p(z_s | z_t)).

`by_steps` computes this sum for every sampler whose steps are normal.  `by_girsanov` computes the
bound of Girsanov's theorem, for `samplers.euler.exponential_sde`, whose score is frozen for a step:

  KL(q_0 || p_0) <= KL(q_1 || prior) + sum int E |score_hat(z_t) - score(z_r)|^2 dh_r

It compares whole paths in continuous time, so it is never below the sum of the steps.  Here h is
log(1 / alpha) on `vp`, the time of dz = -z dh + sqrt(2) dw.  For `ancestral`, which freezes x_hat,
the two bounds are equal, and the discretisation is the bound of T steps less that of continuous
time: Kingma et al. (2021), eq. 13 and 17.

Each bound has three terms: `initial`, KL(q_1 || prior); `discretisation`, the
error of the steps with the exact score; and `score`, the error of the score.  If these two errors
are correlated, a fourth term, `cross`, is twice their inner product.  A constant error e of the
score adds |e|^2 times the range of h to Girsanov's bound, and has no cross term.

Chen et al. (2022), "Sampling is as easy as learning the score: theory for diffusion models with
minimal data assumptions", arXiv 2209.11215, theorem 2, bound the total variation by the same three
terms: sqrt(KL(q || N(0, I))) e^-T, then (L sqrt(d h) + L m2 h) sqrt(T), then eps sqrt(T), up to a
constant that is not named.  Here T is the whole time, h a step, d the number of dimensions, L the
Lipschitz constant of all scores, m2 the root of the second moment of the data, and eps^2 the mean
squared error of the score at the times of the grid.  The theorem is quoted from memory.  Of Lee, Lu
and Tan (2022), "Convergence of score-based generative modeling for general data distributions",
arXiv 2209.12381, only the abstract was read: it announces bounds that are polynomial and need the
L2 error of the score, in Wasserstein distance for data of bounded support, and in total variation
for smooth data.  The bounds of this module have all their constants, and hold for the given data
only.

The truth is an oracle of `vdm_jax.oracles`.  Expectations are exact: by moments for an
`oracles.Gaussian` and an error that is affine in z, else by quadrature on a grid, for data of one
or two dimensions (`vdm_jax.laws`).  All computations are in float64.
"""
import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from vdm_jax import laws, random
from vdm_jax.errors import require
from vdm_jax.likelihood.bounds import BoundSamples
from vdm_jax.likelihood.density import by_image
from vdm_jax.processes import GaussianProcess, posterior, vp
from vdm_jax.samplers.sampling import check_grid, sample
from vdm_jax.schedules import BetaLinear
from vdm_jax.typing import (
    Array,
    ArrayLike,
    Denoiser,
    Estimate,
    Level,
    Process,
    Sampler,
    SamplerMaker,
)
from vdm_jax.units import sum_over_data

__all__ = ['Result', 'ScoreError', 'Terms', 'Walk', 'by_girsanov', 'by_steps', 'compare',
           'girsanov_weight', 'held_out', 'ornstein_uhlenbeck', 'score_error', 'tv_bound',
           'with_score_error']

_BLOCK = 16  # steps of one program
_CHOOSE = ('choose exponential_sde, ancestral, reverse_diffusion, euler_maruyama, or a '
           'deterministic one')


class Terms(NamedTuple):
  """A bound on KL(q_0 || p_0), in nats.  The discretisation is infinite if no noise is drawn."""
  initial: float
  discretisation: float
  score: float
  cross: float = 0.0

  @property
  def bound(self) -> float:
    """The sum of the terms."""
    return self.initial + self.discretisation + self.score + self.cross


class Walk(NamedTuple):
  """Expectations under q along a grid of N steps, from noise to data: [N], or [N + 1] at its times.

  Here eps_t is E[eps | z_t], and the error is eps_hat - eps_t.  Squares are summed over dimensions.
  """
  dimensions: int
  initial: float              # KL(q_1 || prior)
  h: np.ndarray               # [N + 1]  log(1 / alpha) on `vp`
  logsnr: np.ndarray          # [N + 1]
  entropy: np.ndarray         # [N + 1]  of z_t on `vp`, in nats
  square: np.ndarray          # [N]  E |eps_t|^2
  error: np.ndarray           # [N]  E |error|^2
  product: np.ndarray         # [N]  E <error, eps_t>
  discretisation: np.ndarray  # [N]  E KL(q(z_s | z_t) || p(z_s | z_t)) with the exact score
  score: np.ndarray           # [N]  what the error adds to it: its square,
  cross: np.ndarray           # [N]  and its product with the error of the step
  weight: np.ndarray          # [N]  `score` for an E |error|^2 of 1


class Result(NamedTuple):
  """A sampler on one grid: the statistics of its bounds, and the exact distances."""
  walk: Walk
  kl: float                   # KL(q_0 || p_0), nats
  tv: float                   # the total variation, from 0 to 1
  tv_error: float             # its standard error; 0 by quadrature
  shares: tuple[float, ...]   # of the samples nearest to each mean of a mixture; () of a Gaussian


class ScoreError(NamedTuple):
  """E |eps_hat - E[eps | z_t]|^2 in M intervals of log-SNR, estimated on N held-out images."""
  edges: np.ndarray           # [M + 1]  increasing
  each: np.ndarray            # [N, M]   of each image; its mean alone cannot be negative
  mean: np.ndarray            # [M]      over images
  error: np.ndarray           # [M]      its standard error


# ---------------------------------------------------------------- the setting


def ornstein_uhlenbeck(horizon: float) -> GaussianProcess:
  """dX = -X dh + sqrt(2) dW for h from 0 to `horizon`: alpha = e^-h on `vp`, h = horizon t.

  log-SNR is infinite at t = 0.  Raises InputError unless the horizon is positive and finite.
  """
  require(0.0 < horizon < math.inf, 'horizon', horizon, 'it must be a positive number',
          'give 5, for example')
  return GaussianProcess(BetaLinear(2.0 * horizon, 2.0 * horizon, t_min=0.0), vp)


def with_score_error(denoise: Denoiser, error: ArrayLike | Callable[[Array, Level], Array]
                     ) -> Denoiser:
  """`denoise` whose score is too large by `error`: an array of the shape of one z, or a function.

  A function is (z [B, ...], level) -> [B, ...].  eps_hat becomes eps - sigma error, and x_hat
  becomes x + (sigma^2 / alpha) error.  It is infinite where alpha = 0.
  """
  def with_error(z, level, cond=None):
    estimate, wide = denoise(z, level, cond), level.expand(z)
    e = error(z, level) if callable(error) else jnp.asarray(error, z.dtype)
    return estimate._replace(x=estimate.x + jnp.square(wide.sigma) / wide.alpha * e,
                             eps=estimate.eps - wide.sigma * e)
  return with_error


def tv_bound(kl: float) -> float:
  """The least upper bound on the total variation of the two that are known for this divergence.

  min(sqrt(KL / 2), sqrt(1 - e^-KL)): Pinsker's inequality, and that of Bretagnolle and Huber.
  """
  return math.sqrt(min(0.5 * kl, -math.expm1(-kl))) if kl > 0.0 else 0.0


# ----------------------------------------------------------------- the bounds


def by_steps(walk: Walk) -> Terms:
  """The sum over steps of E KL(q(z_s | z_t) || p(z_s | z_t)): for each sampler of normal steps."""
  return Terms(walk.initial, float(walk.discretisation.sum()), float(walk.score.sum()),
               float(walk.cross.sum()))


def by_girsanov(walk: Walk) -> Terms:
  """Girsanov's bound for `exponential_sde`, whose score is frozen for each step.

  alpha score is a martingale of the reverse process, so with J = E |score|^2 at h a step has

    int E |score_t - score_r|^2 dh_r = int J dh - J_t (2 (1 - e^-dh) - dh),

  and int J dh is the growth of the entropy plus D dh (de Bruijn's identity).  Here the score is the
  gradient of log q_t on `vp`.
  """
  step = -np.diff(walk.h)
  variance = -np.expm1(-2.0 * walk.h[:-1])  # sigma_t^2
  once = -np.expm1(-step)                   # the integral of alpha_t / alpha_r
  growth = -np.diff(walk.entropy) + walk.dimensions * step
  discretisation = growth - walk.square / variance * (2.0 * once - step)
  return Terms(walk.initial, float(discretisation.sum()),
               float(np.sum(girsanov_weight(walk) * walk.error)),
               float(2.0 * np.sum((step - once) / variance * walk.product)))


def girsanov_weight(walk: Walk) -> np.ndarray:
  """What an E |eps_hat - E[eps | z_t]|^2 of 1 adds to Girsanov's bound in each step: [N]."""
  return -np.diff(walk.h) / -np.expm1(-2.0 * walk.h[:-1])


def held_out(terms: Terms, walk: Walk, measured: ScoreError, weight: np.ndarray
             ) -> tuple[Terms, float]:
  """`terms` with the score term of held-out data and no cross term, and its standard error.

  weight: `walk.weight` for `by_steps`, `girsanov_weight(walk)` for `by_girsanov`.

  The error of the score is interpolated between the centres of its intervals.  Raises InputError if
  a step begins outside of them.
  """
  at = walk.logsnr[:-1]
  inside = (at >= measured.edges[0] - 1e-6) & (at <= measured.edges[-1] + 1e-6)
  require(bool(inside.all()), 'measured', None, 'the grid has steps at log-SNRs that were not '
          'measured', 'measure the error between the ends of the grid')
  count = len(measured.mean)
  centres = 0.5 * (measured.edges[1:] + measured.edges[:-1])
  place, share = np.divmod(np.interp(at, centres, np.arange(count)), 1.0)
  place = place.astype(int)
  each = measured.each @ (np.bincount(place, weight * (1.0 - share), count)
                          + np.bincount(np.minimum(place + 1, count - 1), weight * share, count))
  error = float(np.std(each, ddof=1)) / math.sqrt(len(each)) if len(each) > 1 else math.inf
  return terms._replace(score=float(each.mean()), cross=0.0), error


def score_error(samples: BoundSamples, best: BoundSamples, edges: np.ndarray) -> ScoreError:
  """The error of a model's score on held-out images, from its density of nats over log-SNR.

  E |eps - eps_hat|^2 = E |eps - E[eps | z]|^2 + E |eps_hat - E[eps | z]|^2.  Draws of the bound
  estimate the left side (`likelihood.density`), and the same draws with the best denoiser estimate
  the first term on the right.  Most of their noise cancels in the difference.

  samples, best: draws in continuous time, with the same key, of the model and of the model with the
    exact denoiser.
  edges: [M + 1], increasing, from the least log-SNR of a draw to the largest.

  Raises InputError if the draws are not the same, or lie beyond the edges.
  """
  require(samples.steps == best.steps == 0, 'samples', None, 'they are of a chain of steps',
          'draw the bound in continuous time (steps=0)')
  require(np.array_equal(samples.logsnr, best.logsnr), 'best', None, 'its draws are at other '
          'log-SNRs', 'draw both with one key')
  require(edges[0] <= samples.logsnr.min() and samples.logsnr.max() <= edges[-1], 'edges', None,
          'there are draws beyond them', 'give edges that enclose all draws')
  edges = np.asarray(edges, np.float64)
  each = 2.0 * by_image(samples._replace(diffusion=samples.diffusion - best.diffusion), edges)
  n = len(each)
  error = np.std(each, axis=0, ddof=1) / math.sqrt(n) if n > 1 else np.full(len(edges) - 1, np.inf)
  return ScoreError(edges, each, each.mean(axis=0), error)


# --------------------------------------------------------------- the computation


def compare(truth: laws.Truth, make: SamplerMaker, process: Process, grids: Sequence[ArrayLike], *,
            denoise: Denoiser | None = None, shape: tuple[int, ...] | None = None,
            points: int | None = None, progress: bool = False) -> list[Result]:
  """The bounds and the exact distances of a sampler on each of several grids.

  Args:
    truth: the law of the data.
    make: (denoise, process) -> Sampler.
    process: log-SNR is the same for all numbers of an example.
    grids: times [N + 1] from noise to data.  The prior is that at the first time.  A last time with
      sigma > 0 is early stopping: q_0 is then the law of that z.
    denoise: the denoiser of the sampler.  Default: the exact one.
    shape: of one example.  Default: that of the means of `truth`.
    points: of the quadrature along each axis.  Default: `POINTS`.
    progress: whether a bar counts the steps.

  A sampler that draws noise must have one evaluation a step, and the state z.  Its step must be
  N(m(z_t), v I), with one v for all z; this is checked.  The distances of a deterministic sampler
  are exact too, by a change of variables; it has no finite bound.

  Raises InputError for other samplers, and for grids that do not decrease.  It also raises
  InputError for data of more than two dimensions that are not normal, or whose error is not affine
  in z, and if the quadrature loses mass.
  """
  for times in grids:
    check_grid(times)
  with jax.enable_x64(True):
    law, denoise = laws.of(truth, shape, points), denoise or truth
    if isinstance(law, laws.Normal) and not law.is_affine(denoise, process, grids[0]):
      law = laws.OnGrid(law.mixture(), law.shape, points)
    grids = [np.asarray(times, np.float64) for times in grids]
    return _compare(law, make, process, [times[np.append(True, np.diff(times) < 0.0)]
                                         for times in grids], denoise, progress)


def _compare(law, make, process, grids, denoise, progress):
  """`compare` of checked arguments, in float64."""
  sampler = make(law.truth, process)
  # One evaluation, at z_t: the law of a step can be read from two draws.
  program = _program(law, make, process, denoise) if _is_one_step(sampler) else None
  results = []
  with tqdm.tqdm(total=sum(len(times) - 1 for times in grids), unit='step', dynamic_ncols=True,
                 mininterval=0.5, desc='bounds', disable=not progress) as bar:
    for times in grids:
      result = _by_kernels(program, law, sampler, times, bar) if program else None
      if result is None:
        result = _by_map(law, make(denoise, process), process, times, program is not None)
        bar.update(0 if program else len(times) - 1)
      results.append(result)
  return results


def _is_one_step(sampler: Sampler) -> bool:
  probe = jnp.zeros((1, 1))
  return sampler.evaluations == 1 and sampler.init(probe) is probe


class _Program(NamedTuple):
  """The compiled functions that serve all grids."""
  begin: Callable  # t -> (the state of p, KL(q_1 || prior))
  block: Callable  # (state, times [_BLOCK + 1], plan, draws) -> (the next state, {name: [_BLOCK]})
  end: Callable    # (state, t) -> ({name: of q at t}, what `law.distances` takes)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _draws(count: int, rows: int, shape: tuple[int, ...]) -> tuple[Array, Array]:
  """Keys of two draws for each row, the same for each of `count` estimates, and the draws."""
  each = jnp.arange(2 * count * rows)
  keys = random.per_example(random.key(0), each % rows + rows * (each // (count * rows)))
  return keys, random.normal(random.stream(keys, 'noise'), jnp.zeros((len(each), *shape)))


def _program(law, make, process, denoise) -> _Program:
  def kernels(estimates, z, t, s, plan, draws):
    """The means of a step if the denoiser says each of these, its std, and their misfit."""
    count, (keys, noise) = len(estimates), draws
    stacked = jax.tree.map(lambda *u: jnp.concatenate(u * 2), *estimates)
    sampler = make(lambda z, level, cond=None: stacked, process)
    drawn = sampler.step(keys, jnp.concatenate([z] * (2 * count)), t, s, plan)
    (one, other), (first, second) = (jnp.split(u, 2) for u in (drawn, noise))
    difference = first - second
    std = jnp.sum((one - other) * difference) / jnp.sum(jnp.square(difference))
    misfit = jnp.max(jnp.abs(one - other - std * difference)) / (1.0 + jnp.max(jnp.abs(one)))
    return jnp.split(one - std * first, count), std, misfit

  def step(state, t, s, plan, draws):
    at_t, at_s = process(t), process(s)
    z, weight, entropy = law.points(at_t)
    exact = law.evaluate(law.truth, z, at_t)
    given = exact if denoise is law.truth else law.evaluate(denoise, z, at_t)
    shift = 1.0 / math.sqrt(law.dimensions)
    parts = [Estimate(*u[:2]) for u in (exact, given, (
        exact.x - at_t.sigma / at_t.alpha * shift, exact.eps + shift))]
    (mean, mean_given, mean_shifted), std, misfit = kernels(parts, z, t, s, plan, draws)
    best, _ = posterior(z, exact.x, at_t, at_s)
    error, moved = given.eps - exact.eps, mean_given - mean
    expect = lambda u: jnp.sum(weight * sum_over_data(u))
    state, checked = law.advance(state, mean_given, std, at_t, at_s)
    return {'square': expect(jnp.square(exact.eps)), 'x_square': expect(jnp.square(exact.x)),
            'error': expect(jnp.square(error)), 'product': expect(error * exact.eps),
            'gap': expect(jnp.square(best - mean)), 'moved': expect(jnp.square(moved)),
            'moved_product': expect((mean - best) * moved),
            'unit': expect(jnp.square(mean_shifted - mean)), 'std': std, 'misfit': misfit,
            'mass': jnp.sum(weight), **_about(at_t, entropy), **checked}, state

  def block(state, times, plan, draws):
    first = jax.tree.map(lambda u: u[0], plan)
    nothing = jax.tree.map(lambda u: jnp.zeros(u.shape, u.dtype), jax.eval_shape(
        step, state, times[0], times[0], first, draws)[0])

    def body(state, xs):  # a step with equal times is padding
      t, s, here = xs
      statistics, state = jax.lax.cond(
          t == s, lambda state: (nothing, state), lambda state: step(state, t, s, here, draws),
          state)
      return state, statistics
    return jax.lax.scan(body, state, (times[:-1], times[1:], plan))

  def end(state, t):
    level = process(t)
    return _about(level, law.entropy(level)), law.summary(state, level)

  return _Program(jax.jit(lambda t: (law.start(process, t), law.initial(process, t))),
                  jax.jit(block), jax.jit(end))


def _about(level: Level, entropy: Array) -> dict[str, Array]:
  return {'alpha': level.alpha, 'sigma': level.sigma, 'logsnr': level.logsnr, 'entropy': entropy}


def _by_kernels(program, law, sampler, times, bar):
  """The result on one grid of a sampler whose steps are normal; None if no noise is drawn."""
  steps, last = len(times) - 1, times[-1]
  state, initial = program.begin(jnp.asarray(times[0]))
  times = np.append(times, np.full(-steps % _BLOCK, last))  # one program serves every N
  plan, out = sampler.plan(jnp.asarray(times)), []
  draws = _draws(3, law.rows, law.shape)
  for first in range(0, len(times) - 1, _BLOCK):
    part = jax.tree.map(lambda u, first=first: u[first:first + _BLOCK], plan)
    state, statistics = program.block(
        state, jnp.asarray(times[first:first + _BLOCK + 1]), part, draws)
    out.append(jax.device_get(statistics))
    bar.update(min(_BLOCK, steps - first))
  of = jax.tree.map(lambda *parts: np.concatenate(parts)[:steps], *out)
  if (of['std'] < laws.ROUNDING).all() and (of['misfit'] < laws.ROUNDING).all():
    return None
  require((of['misfit'] < laws.ROUNDING).all(), 'sampler', None, 'its steps are not normal with '
          'one variance for all z_t', _CHOOSE)
  law.check(of)
  at_end, summary = jax.device_get(program.end(state, jnp.asarray(last)))
  return Result(_as_walk(law, float(initial), of, at_end), *law.distances(summary))


def _as_walk(law, initial, of, at_end) -> Walk:
  """The `Walk` of these statistics of the steps, and of q at the last time."""
  alpha, sigma, logsnr, entropy = (
      np.append(of[name], at_end[name]) for name in ('alpha', 'sigma', 'logsnr', 'entropy'))
  dimensions, silent = law.dimensions, of['std'] < laws.ROUNDING
  with np.errstate(divide='ignore', invalid='ignore'):
    share = -np.expm1(logsnr[:-1] - logsnr[1:])  # tau
    # E |x - E[x | z_t]|^2, without the difference of two nearly equal numbers.
    remaining = np.where(logsnr[:-1] < 0.0, law.second_moment - of['x_square'],
                         np.exp(-logsnr[:-1]) * (dimensions - of['square']))
    variance = np.square(of['std'])
    # The entropy of q(z_s | z_t), by Bayes' rule; and E |z_s - mean of the step|^2.
    of_step = (entropy[1:] - entropy[:-1]
               + 0.5 * dimensions * np.log(2.0 * np.pi * np.e * np.square(sigma[:-1]) * share))
    square = (dimensions * np.square(sigma[1:]) * share
              + np.square(alpha[1:] * share) * remaining + of['gap'])
    discretisation = (0.5 * dimensions * np.log(2.0 * np.pi * variance) - of_step
                      + 0.5 * square / variance)
    score, cross, weight = (
        np.where(silent, 0.0, part / variance)
        for part in (0.5 * of['moved'], of['moved_product'], 0.5 * of['unit']))
    return Walk(dimensions, initial, 0.5 * np.logaddexp(0.0, -logsnr), logsnr,
                entropy - dimensions * np.log(np.hypot(alpha, sigma)), of['square'], of['error'],
                of['product'], np.where(silent, np.inf, discretisation), score, cross, weight)


def _by_map(law, sampler, process, times, known) -> Result:
  """The result of a deterministic sampler: each of its steps has an infinite divergence."""
  logsnr, steps = np.asarray(jax.jit(lambda t: process(t).logsnr)(times)), len(times) - 1
  nothing, zeros = np.full(steps + 1, np.nan), np.zeros(steps)
  initial = float(jax.jit(lambda t: law.initial(process, t))(times[0]))
  unknown = nothing[1:]
  walk = Walk(law.dimensions, initial, 0.5 * np.logaddexp(0.0, -logsnr), logsnr, nothing, unknown,
              unknown, unknown, np.full(steps, np.inf), zeros, zeros, zeros)
  return Result(walk, *law.mapped(_map_of(sampler, law.shape, times, known), process, times))


def _map_of(sampler: Sampler, shape: tuple[int, ...], times: np.ndarray, known: bool
            ) -> Callable[[Array], Array]:
  """z_1 [B, ...] -> z_0 of a deterministic sampler.

  known: whether it is known to be deterministic.  Raises InputError if it draws noise.
  """
  require(sampler.evaluations is not None, 'sampler', None, 'it chooses its own steps',
          'choose one that follows a grid, e.g. heun')

  def run(z, seed=0):
    return sample(sampler, random.per_example(random.key(seed), jnp.arange(len(z))), z, times)
  z = jnp.ones((2, *shape))
  require(known or np.array_equal(run(z), run(z, 1)), 'sampler', None, 'it draws noise, and its '
          'step is not one normal distribution given z_t', _CHOOSE)
  return run
