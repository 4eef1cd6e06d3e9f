"""The variance of one-draw estimates of the diffusion term, for any way to draw the time t.

The bound of continuous time is a mean over t.  A change of the schedule between its ends, or a
proposal (`objectives.proposals`), does not change this mean, but changes the variance of its
estimate.  For training, the variance of a batch matters: t_i = (o + i) / B for i = 0 .. B - 1, with
one offset o ~ U[0, 1].  A few offsets near 0 or 1 may cause most of the variance; for beta-linear,
nearly all of it is in the first thousandth.

So the offsets here are o = v^3 (10 - 15 v + 6 v^2) with v ~ U[0, 1].  They are dense near both
ends, and a batch has the weight do/dv = 30 v^2 (1 - v)^2.  v is evenly spread over the batches.
"""
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random, schedules
from vdm_jax.errors import InputError
from vdm_jax.likelihood.bounds import require_score
from vdm_jax.likelihood.replaced_schedules import has_replaceable_schedule
from vdm_jax.machine import devices
from vdm_jax.objectives import proposals, weighted_diffusion
from vdm_jax.processes import Truncated
from vdm_jax.typing import Array, Model, Process, PyTree
from vdm_jax.units import bits_per_dim

# (params, batch, t [B], keys [B]) -> one-draw estimates of the diffusion term, bits/dim [B].
Term = Callable[[PyTree, PyTree, Array, Array], Array]
LINEAR = 'log-SNR-linear'


class TimeDraws(NamedTuple):
  """R batches of B estimates of the same integral over time, in bits/dim."""
  t: np.ndarray      # [R, B]
  bits: np.ndarray   # [R, B]
  share: np.ndarray  # [R]  of each batch in a mean; their sum is 1


class TimeVariance(NamedTuple):
  """The variance of estimates in bits/dim; variances are in (bits/dim)^2."""
  mean: float
  variance: float    # of one draw, u independent
  stratified: float  # B times the variance of the mean of B draws, u evenly spread


def published_schedules(own: Process) -> dict[str, Process]:
  """Published schedules between the ends of `own` and on its curve, by name.

  own: a process with a field `schedule`, and one logsnr for all pixels, finite at both ends.
  beta-linear is missing if it does not reach the lower end.
  """
  high, low = (float(u) for u in own(jnp.array([0.0, 1.0])).logsnr)
  dataclass: Any = own
  with_schedule = lambda schedule: dataclasses.replace(dataclass, schedule=schedule)
  out = {LINEAR: with_schedule(schedules.Linear(high, low)),
         'alpha-cosine': with_schedule(schedules.Cosine(high, low))}
  beta_linear = with_schedule(schedules.BetaLinear(t_min=0.0))
  if beta_linear(jnp.array(1.0)).logsnr <= low:
    out['beta-linear'] = Truncated.between(beta_linear, high, low)
  return out


def diffusion_term(model: Callable[[PyTree], Model]) -> Term:
  """The diffusion term of the bound of `objectives.vlb`.  model: params -> Model."""
  def term(params, batch, t, keys):
    m = model(params)
    nats, _ = weighted_diffusion(m.denoise, m.process, m.encode(batch[m.field]), t, keys,
                                 m.cond(batch))
    return bits_per_dim(nats, m.shape)
  return term


def with_published_schedules(model: Callable[[PyTree], Model], params: PyTree
                             ) -> dict[str, Callable]:
  """`model` under each of the `published_schedules` instead of its own, by name.

  Raises InputError if the result would be another bound, or another process.
  """
  own = model(params)
  if not has_replaceable_schedule(own):
    raise InputError('workdir', None, 'this model has a bound of its own, a schedule for each '
                     'pixel, or an infinite log-SNR at an end', 'choose another run')

  def with_process(process):
    return lambda params: model(params)._replace(process=process)
  return {name: with_process(process) for name, process in published_schedules(own.process).items()}


def require_proposable(model: Model) -> None:
  """Raises InputError unless proposals of `objectives.proposals` apply to the model's bound.

  Raises InputError also as `bounds.require_score`, for a model without such a bound.
  """
  require_score(model)
  if model.bound is not None:
    raise InputError('workdir', None,
                     'this model has a bound of its own, with another diffusion term',
                     'choose a run whose bound is objectives.vlb')
  ends = model.process(jnp.array([0.0, 1.0])).logsnr
  if ends.shape != (2,) or not bool(jnp.all(jnp.isfinite(ends))):
    raise InputError('workdir', None, 'its log-SNR differs between pixels, or is infinite at an '
                     'end, so it gives no density of times', 'choose another run')


def draw(term: Term, params: PyTree, split, *, batch: int, batches: int,
         propose: Callable[[PyTree], proposals.Proposal] = lambda params: proposals.uniform,
         seed: int = 0) -> TimeDraws:
  """R = `batches` batches of B = `batch` estimates, rounded up to whole ones on whole devices.

  split: each batch has random images of it; if None, `term` gets None and draws its own data.
  propose: params -> Proposal.
  """
  batch, rng = devices.global_batch_size(batch), np.random.default_rng(seed)

  def evaluate(shared, xs):
    params, key = shared
    images, i, r, offset = xs
    t, weight = propose(params)((offset + i.astype(jnp.float32)) / batch)
    keys = random.per_example(jax.random.fold_in(key, r[0]), i)
    return t, weight * term(params, images, t, keys)

  evaluate = devices.over_rows(evaluate)
  shared = devices.replicate((params, random.key(seed)))
  v = (np.arange(batches) + rng.random(batches)) / batches
  offsets, share = v**3 * (10.0 - 15.0 * v + 6.0 * v**2), np.square(v * (1.0 - v))
  out = []
  for r, offset in enumerate(offsets):
    i = devices.local_rows(np.arange(batch))
    xs = (_images(split, rng, batch), i, np.full(len(i), r), np.full(len(i), offset, np.float32))
    out.append(jax.device_get(evaluate(shared, devices.place(xs))))
  t, bits = (np.asarray(u, np.float64) for u in zip(*out, strict=True))
  return TimeDraws(t, bits, share / share.sum())


def _images(split, rng: np.random.Generator, batch: int) -> PyTree:
  """The rows of this process, of so many random images."""
  if split is None:
    return None
  return split.get(devices.local_rows(rng.integers(len(split), size=batch)))


def loss_history(term: Term, params: PyTree, split, *, batch: int, batches: int = 20,
                 bins: int = 64, seed: int = 0) -> proposals.LossHistory:
  """A history of losses after so many batches, whose times the history itself proposed.

  Arguments are as for `draw`; the times are stratified as in training.
  """
  batch, rng = devices.global_batch_size(batch), np.random.default_rng(seed)

  def add(shared, xs):
    params, key, past = shared
    images, i, r = xs
    key = jax.random.fold_in(key, r[0])
    offset = random.unit(key)
    t, _ = past.proposal()(random.stratified(offset, i.astype(jnp.float32), batch))
    return past.add(t, term(params, images, t, random.per_example(key, i + 1)))

  add = devices.over_rows(add)
  params, key, past = devices.replicate(
      (params, random.key(seed), proposals.LossHistory.empty(bins)))
  for r in range(batches):
    i = devices.local_rows(np.arange(batch))
    past = add((params, key, past), devices.place((_images(split, rng, batch), i,
                                                   np.full(len(i), r))))
  return jax.device_get(past)


def variances(draws: TimeDraws, resamples: int = 1000, seed: int = 0
              ) -> tuple[TimeVariance, TimeVariance]:
  """(values, their standard errors); the variances include the differences between images.

  The means of batches of stratified times are far from normal, so formulas for normal means do not
  apply.  The errors come from a bootstrap over the batches.  As v is evenly spread, the errors are
  rather too large; with few batches they are too uncertain to use.
  """
  repeats, batch = draws.bits.shape
  centre = draws.share @ draws.bits.mean(axis=1)
  means = draws.bits.mean(axis=1) - centre
  squares = np.square(draws.bits - centre).mean(axis=1)

  def moments(share):  # [..., R]
    mean = share @ means
    return np.stack([centre + mean, share @ squares - mean**2,
                     batch * (share @ means**2 - mean**2)])

  chosen = np.random.default_rng(seed).multinomial(repeats, np.full(repeats, 1 / repeats),
                                                   resamples) * draws.share
  errors = moments(chosen / chosen.sum(axis=1, keepdims=True)).std(axis=1, ddof=1)
  mean, variance, stratified = moments(draws.share)
  # The mean was fitted to the same batches.
  return (TimeVariance(mean, variance, stratified / (1.0 - np.sum(draws.share**2))),
          TimeVariance(*errors))


def mean_by_time(draws: TimeDraws, edges: np.ndarray) -> np.ndarray:
  """Mean estimates between consecutive times `edges` [K + 1]: [K], NaN where none was drawn."""
  share = np.broadcast_to(draws.share[:, None], draws.t.shape)
  total, count = (np.histogram(draws.t, edges, weights=w)[0]
                  for w in (share * draws.bits, share))
  return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)
