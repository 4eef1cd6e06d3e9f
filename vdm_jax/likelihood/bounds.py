"""The variational bound on every image of a split.

Each image has `times` draws of (t, eps, eps_0).  Its times are evenly spread over [0, 1) from the
image's own uniform offset.  A repetition is an independent set of all draws.  Draws belong to
(repetition, image, number), so the result depends neither on the batch size nor on the devices.
"""
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.likelihood.passes import Estimator, over_images
from vdm_jax.objectives import vlb
from vdm_jax.samplers.analytic import Variances, reverse_variance
from vdm_jax.typing import Array, Model, PyTree
from vdm_jax.units import sum_of_terms


class BoundSamples(NamedTuple):
  """Draws of the bound in nats: R repetitions, N images, K times."""
  terms: dict[str, np.ndarray]  # name of a term -> [R, N], means over K
  logsnr: np.ndarray            # [R, N, K]  at the times drawn; a chain's grid point is the next
  diffusion: np.ndarray         # [R, N, K]  one-draw estimates of the diffusion term there
  steps: int                    # T; 0: continuous time

  @property
  def total(self) -> np.ndarray:
    """The bound on -log p of each image: [R, N]."""
    return functools.reduce(np.add, self.terms.values())


def require_likelihood(model: Model, workdir: str | None = None) -> None:
  """Raises InputError if the model has no likelihood.

  The estimates of a distilled model are no means of the data.  If a network draws z_1, the density
  of z_1 is not known; if the density of a model's own prior is known, the model brings its own
  bound.
  """
  field = 'workdir' if workdir else None
  if model.distilled:
    sampler, steps = model.distilled
    raise InputError(field, workdir, 'this model was distilled for '
                     f'{steps} step{"s" * (steps > 1)} of the sampler {sampler}, and has no '
                     'likelihood', 'sample from it, or evaluate its teacher')
  if model.no_likelihood:
    raise InputError(field, workdir, model.no_likelihood, 'sample from it, and score the samples')
  if model.prior is not None and model.bound is None:
    raise InputError(field, workdir, 'this model draws z_1 by a network, whose density nobody '
                     'knows: it has no likelihood', 'sample from it, and score the samples')


def require_score(model: Model) -> None:
  """Raises InputError if no SDE draws what the model samples, so that no bound is of its samples.

  Models without a likelihood, and flows of coupled noise, have no such SDE.
  """
  require_likelihood(model)
  if model.coupled:
    raise InputError(problem='this model is a flow of coupled noise, which has no score, and so no '
                     'bound of an SDE', remedy='ask for the likelihood of its flow (the row ode of '
                     'a ledger)')


def require_default_bound(model: Model, what: str) -> None:
  """Raises InputError if the model has a bound of its own (which cannot take `what`), or no bound.
  """
  require_score(model)
  if model.bound is not None:
    raise InputError(problem=f'{what}: this model has a bound of its own',
                     remedy='use the bound of objectives.vlb: model._replace(bound=None)')


def level_axes(model: Model) -> int:
  """The number of data axes of the log-SNR at one time: 0 if all pixels share it."""
  return jax.eval_shape(model.process, jnp.zeros(1)).logsnr.ndim - 1


def heads(model: Model, batch: PyTree) -> dict:
  """The shapes of Estimate.extra by name, {} if there is none.  Nothing is computed."""
  def denoise(batch):
    x = model.encode(batch[model.field])
    return model.denoise(x, model.process(jnp.full(len(x), 0.5)), model.cond(batch)).extra
  return jax.eval_shape(denoise, batch) or {}


def analytic_variance(variances: Variances) -> vlb.Variance:
  """beta_tilde + coefficient^2 E Var(x | z_t): the best number for each step, `reverse_variance`.

  Bao et al. (2022), Analytic-DPM, theorem 1.  For Gaussian data the bound of a chain then equals
  the bound of continuous time, whatever its number of steps.
  """
  return lambda estimate, at_t, at_s: reverse_variance(at_t, at_s, variances.of_x(at_t.logsnr))


def one_draw(model: Model, batch: PyTree, t: Array, keys: Array, steps: int = 0,
             variance: vlb.Variance | None = None, last: vlb.LastStep | None = None
             ) -> tuple[Array, dict[str, Array]]:
  """The model's own bound at one time per image: nats [B], and the terms whose sum it is.

  It is a draw of `objectives.vlb`, unless the model brings another bound.  variance, last: as for
  `vlb.discrete`, for a chain of steps only.  A model of latents takes them as the chain of its
  latents, `Model.inner`.
  Raises InputError if they are given for continuous time, or for a model that brings a bound and no
  `Model.inner`, or as `require_score`.
  """
  require_score(model)
  kernel = {name: u for name, u in (('variance', variance), ('last', last)) if u is not None}
  if kernel and not steps:
    raise InputError(problem=f"{', '.join(kernel)}: this option applies only to a chain of steps",
                     remedy='give `steps`, or leave the option out')
  if kernel and model.inner is not None and model.enter is not None:
    inside, own = model.enter(batch, keys)
    nats, terms = one_draw(model.inner._replace(bound=None), inside, t, keys, steps, variance,
                           last)
    return nats + sum_of_terms(own), own | terms
  if kernel:
    require_default_bound(model, ', '.join(kernel))
  if model.bound is not None:
    return model.bound(batch, t, keys, steps)
  x = model.encode(batch[model.field])
  args = model.denoise, model.process, x, t, keys, model.cond(batch)
  keywords = {'data': batch[model.field], 'decoder': model.decoder, **kernel}
  if steps:
    return vlb.discrete(*args, steps=steps, **keywords)
  return vlb.continuous(*args, **keywords)


def repeated(batch: PyTree, keys: Array, numbers: Array) -> tuple[PyTree, Array]:
  """Each image once for each of K `numbers` [K], with a key for the number: leaves [n K, ...]."""
  each = jax.vmap(lambda key: random.per_example(key, numbers + 1))(keys).reshape(-1)
  return jax.tree.map(lambda u: jnp.repeat(u, len(numbers), axis=0), batch), each


def draw_times(batch: PyTree, keys: Array, times: int) -> tuple[PyTree, Array, Array]:
  """Each image at K = `times` evenly spread times: (batch, t, keys), flat, [n K, ...].

  Times are float32 even where JAX has 64 bits, since a key draws other numbers in 64 bits.
  """
  offset = jax.vmap(random.unit)(keys)
  k = jnp.arange(times)
  t = random.stratified(offset[:, None], k.astype(jnp.float32), times).reshape(-1)
  batch, each = repeated(batch, keys, k)
  return batch, t, each


def _with_first(batch: PyTree, keys: Array, times: int, steps: int) -> tuple[PyTree, Array, Array]:
  """`draw_times` over the steps 2 ... T of a chain, and one more draw per image in step 1."""
  _, t, _ = draw_times(batch, keys, times)
  later = vlb.in_step(1.0 + vlb.step_number(t, steps - 1), steps).reshape(-1, times)
  first = jnp.full_like(later[:, :1], vlb.in_step(1, steps))
  batch, each = repeated(batch, keys, jnp.arange(times + 1))
  return batch, jnp.concatenate([later, first], axis=1).reshape(-1), each


def at_times(steps: int, times: int, variance: vlb.Variance | None = None,
             last: vlb.LastStep | None = None) -> Estimator:
  """The bound from `times` = K draws per image, as a dict.

  Returns {'nats', terms, 'evaluations': [n]; 'draws', 'logsnr': [n, K]}.  variance, last: as for
  `one_draw`.  With K = T each step of a chain is drawn once.

  With `last`, the first step of the chain is no divergence, and is much larger than each
    divergence.  So it is a stratum of its own: it takes one more evaluation per image, and the K
    draws are of the other T - 1 steps.  Let f(t) be the estimate of all T steps from the step at t.
    Then the sum of all steps is, in expectation, f(first) / T + (1 - 1 / T) mean f(later).
  """
  def estimator(model, batch, keys):
    batch, t, each = (draw_times(batch, keys, times) if last is None else
                      _with_first(batch, keys, times, steps))
    nats, terms = one_draw(model, batch, t, each, steps, variance, last)
    by_image = lambda u: u.reshape(len(keys), -1)
    later = 1.0 if last is None else 1.0 - 1.0 / steps

    def mean(u):
      drawn = later * by_image(u)[:, :times].mean(axis=1)
      return drawn if last is None else drawn + by_image(u)[:, times] / steps

    is_own = model.bound is not None and variance is None and last is None
    calls = model.bound_evaluations if is_own else 1
    logsnr = model.process(t).logsnr
    # Of levels that differ from pixel to pixel, the mean.
    logsnr = jnp.mean(logsnr.reshape(len(t), -1), axis=1)
    return {'nats': mean(nats), **{name: mean(u) for name, u in terms.items()},
            'evaluations': jnp.full(len(keys), calls * len(t) // len(keys)),
            'logsnr': by_image(logsnr)[:, :times],
            'draws': later * by_image(terms['diffusion'])[:, :times]}
  return estimator


def evaluate_bound(model: Callable[[PyTree], Model], params: PyTree, split, key: Array, *,
                   steps: int = 0, times: int = 32, repeats: int = 1, batch_size: int = 256,
                   count: int | None = None, progress: bool = True,
                   variance: vlb.Variance | None = None, last: vlb.LastStep | None = None
                   ) -> BoundSamples:
  """The bound on each of the first `count` (default: all) images of `split`, in each repetition.

  model: params -> Model; split: `len`, and `get(rows)` -> batch; steps: T, 0 for continuous time;
  batch_size: the number of evaluations of the network at a time, rounded to whole images on whole
  devices; variance, last: as for `one_draw`.
  """
  out = over_images(at_times(steps, times, variance, last), model, params, split, key,
                    label=f'bound at T = {steps}' if steps else 'bound, continuous time',
                    at_once=batch_size // times, repeats=repeats, count=count, progress=progress)
  logsnr, diffusion = out.pop('logsnr'), out.pop('draws')
  del out['nats'], out['evaluations']  # the sum of the terms, which are in float64
  return BoundSamples(out, logsnr, diffusion, steps)
