"""The importance-weighted bound over whole paths of a chain.

A chain of T steps gives the data a probability that is the integral over all paths
z_1 -> ... -> z_0, so no single time determines it.  The weight of one path,

  w = p(z_1) prod p(z_s | z_t) p(data | z_0) / (q(z_1 | x) prod q(z_s | z_t, x)),   E_q w = p(data),

is an unbiased estimate.  With K independent paths of q, -log of their mean weight is an upper bound
on -log p(data) in expectation; for K = 1 it is the bound of T steps, and as K grows it falls to the
exact value: Burda, Grosse and Salakhutdinov (2016), theorem 1.  Each weight needs a path through
all levels: the logarithm of a mean of single-time estimates would be no bound.

If the kernel p(z_s | z_t) is wider than q(z_s | z_t, x), as `large` or `learned` are, the weights
have heavy tails.  If the ratio r of the variances is above 2 in some step, as in chains of a few
steps, the variance of a weight is infinite.  The result remains a bound in expectation.  But a
finite sample lies mostly on one side of the expectation, by far more than its standard error says.
Take 10 steps or more.
"""
import jax
import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.errors import InputError
from vdm_jax.likelihood.bounds import repeated, require_default_bound
from vdm_jax.likelihood.passes import Estimator
from vdm_jax.objectives import vlb
from vdm_jax.processes import diffuse, prior_std, tau
from vdm_jax.typing import Array, Model, PyTree
from vdm_jax.units import log_mean_exp, sum_of_terms, sum_over_data


def log_weights(model: Model, batch: PyTree, keys: Array, steps: int,
                variance: vlb.Variance = vlb.fixed_small, last: vlb.LastStep | None = None
                ) -> Array:
  """log w of one path for each image, in nats, [B]: T = `steps` evaluations of the network.

  variance, last: as in `vlb.discrete`.  Its bound is the mean of -log w.
  """
  data, cond = batch[model.field], model.cond(batch)
  x = model.encode(data)

  # The path is kept as the noise in z: along q(z_s | z_t, x) it is mixed with new noise, eps_s =
  # sqrt(1 - tau) eps_t + sqrt(tau) new.  The differences z - alpha x would lose its digits.
  def step(carry, i):
    eps, log_w = carry
    at_t, at_s = vlb.step_levels(model.process, i.astype(x.dtype), steps, last is not None)
    estimate = model.denoise(diffuse(x, eps, at_t), at_t, cond)
    gap, excess = vlb.compare_kernels(x, eps, estimate, at_t, at_s, variance)
    new = random.normal(jax.vmap(lambda key: jax.random.fold_in(key, i))(keys), x)
    # log p(z_s | z_t) - log q(z_s | z_t, x) at q's mean + std new.
    square = 2.0 * new * gap + jnp.square(gap) - excess * jnp.square(new)
    ratio = -0.5 * sum_over_data(jnp.log1p(excess) + square / (1.0 + excess))
    if last is not None:
      last_ratio = vlb.last_step(last, data, x, estimate, at_t, at_s, variance, i == 1)
      ratio = jnp.where(i == 1, last_ratio, ratio)
    share = tau(at_t.expand(x), at_s.expand(x))
    return (jnp.sqrt(1.0 - share) * eps + jnp.sqrt(share) * new, log_w + ratio), None

  eps = random.normal(random.stream(keys, 'z_1'), x)
  std = prior_std(model.process)
  end = model.process(jnp.ones((), x.dtype))
  log_prior = sum_over_data(0.5 * jnp.square(eps) - 0.5 * jnp.square(diffuse(x, eps, end) / std)
                            + jnp.log(end.sigma / std))
  (eps, log_w), _ = jax.lax.scan(step, (eps, log_prior), jnp.arange(steps, 0, -1))
  if last is not None:
    return log_w
  start = model.process(jnp.zeros((), x.dtype))
  return log_w + model.decoder(data, diffuse(x, eps, start), start)


def importance_weighted(paths: int, steps: int, variance: vlb.Variance = vlb.fixed_small,
                        last: vlb.LastStep | None = None, at_once: int | None = None) -> Estimator:
  """-log (1/K sum_k w_k) over K = `paths` of T = `steps` steps, as a dict.

  Returns {'nats', 'single', 'best', 'evaluations'}, [n] each.  'single' is the mean of -log w_k, an
  estimate of the bound of T steps from the same paths.  'best' is the least -log w_k.  For each
  image 'nats' lies between the two: a mean is at most the largest value, and its logarithm is at
  least the mean of the logarithms (Jensen).  It takes K T evaluations per image.  variance, last:
  of `vlb.discrete`; at_once: paths of an image at a time, all of them if not given.

  A model of latents, such as those of an autoencoder, has K draws of the latents y ~ q(y | x) too,
  each with a path of its own:  w = p(x | y) p(path from y) / (q(y | x) q(path | y)).

  Raises InputError if K is no multiple of at_once, or if the model brings its own bound without a
  `Model.inner` that has the bound of `objectives.vlb`.
  """
  at_once = at_once or paths
  if paths % at_once:
    raise InputError('at_once', at_once, f'it does not divide the number of paths, {paths}',
                     'give a divisor')

  def estimator(model, batch, keys):
    if model.inner is None:
      require_default_bound(model, 'importance-weighted paths')

    def some(numbers):
      many, each = repeated(batch, keys, numbers)
      if model.inner is None:
        return log_weights(model, many, each, steps, variance, last).reshape(-1, at_once)
      many, own = model.enter(many, each)
      log_w = log_weights(model.inner, many, each, steps, variance, last) - sum_of_terms(own)
      return log_w.reshape(-1, at_once)

    log_w = jax.lax.map(some, jnp.arange(paths).reshape(-1, at_once))  # [K / at_once, n, at_once]
    log_w = jnp.moveaxis(log_w, 1, 0).reshape(-1, paths)
    return {'nats': -log_mean_exp(log_w, axis=1), 'single': -jnp.mean(log_w, axis=1),
            'best': -jnp.max(log_w, axis=1), 'evaluations': jnp.full(len(log_w), paths * steps)}
  return estimator
