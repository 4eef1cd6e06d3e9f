"""The variational bound on -log p(data), in three terms.

-log p(data) <= E[-log p(data | z_0)]  +  KL(q(z_1 | x) || p(z_1))  +  diffusion term
                  reconstruction          latent

In continuous time the diffusion term is 1/2 int_0^1 (-d logsnr/dt) E|eps - eps_hat|^2 dt; with T
steps it is a sum of T Kullback-Leibler terms, estimated from one term, which t chooses.  Both
estimates are unbiased for t ~ U[0, 1].  The continuous bound depends only on the end points of the
schedule; the bound of T steps depends on the levels of the grid.  Source: Kingma et al. (2021), eq.
11-17.

The reverse kernel of a chain is p(z_s | z_t) = N(mean of q(z_s | z_t, x_hat), variance).  With
l^2 = sigma_s^2 tau, the variance of q(z_s | z_t, x), and d = (mean of q - mean of p) / l,
r = variance / l^2 in each dimension, the divergence of the two is

  KL(q || p) = 1/2 sum (log r + (1 + d^2) / r - 1).

A larger variance lowers the bound where steps are long: p(z_s | z_t) is wider than q(z_s | z_t, x),
as x is unknown.
"""
from collections.abc import Callable

import jax.numpy as jnp

from vdm_jax import random
from vdm_jax.decoders import normal
from vdm_jax.errors import InputError
from vdm_jax.objectives.weighted import weighted_diffusion
from vdm_jax.processes import diffuse, interpolated_std, learned_share, prior_kl, tau
from vdm_jax.typing import Array, Decoder, Denoiser, Estimate, Level, Process, PyTree, Scalar
from vdm_jax.units import sum_of_terms, sum_over_data

# (estimate, level of t, level of s) -> variance of p(z_s | z_t), to broadcast against z; the levels
# broadcast against z already.
Variance = Callable[[Estimate, Level, Level], Array]
# (data [B, ...], mean [B, ...], std) -> log p(data | z_{1/T}) in nats, [B].
LastStep = Callable[[Array, Array, Array], Array]


def end_terms(process: Process, x_0: Array, x_1: Array, t: Array, keys: Array, data: Array,
              decoder: Decoder, eps_0: Array | None) -> dict[str, Array]:
  """{'reconstruction', 'latent'} in nats, [B] each: the terms at t = 0 and at t = 1.

  x_0, x_1: [B, ...], the data at t = 0 and at t = 1; they differ only if an encoder depends on
  time.
  """
  # One time per example, so that the levels of a per-pixel schedule are [B, ...] as at `t`.
  first, last = process(jnp.zeros_like(t)), process(jnp.ones_like(t))
  if eps_0 is None:
    # A stream of its own: sharing the diffusion term's noise would correlate the terms.
    eps_0 = random.normal(random.stream(keys, 'eps_0'), x_0)
  return {'reconstruction': -decoder(data, diffuse(x_0, eps_0, first), first),
          'latent': sum_over_data(prior_kl(x_1, last))}


def continuous(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
               cond: PyTree = None, *, data: Array, decoder: Decoder, eps: Array | None = None,
               eps_0: Array | None = None) -> tuple[Array, dict[str, Array]]:
  """One-sample estimate of the continuous-time bound, Kingma et al. (2021), eq. 17.

  x: [B, ...], the encoding of the discrete `data` [B, ...]; t, keys: [B]; eps, eps_0: the noise
  [B, ...] of the diffusion and the reconstruction term, drawn from `keys` if not given.
  Returns nats [B] and the terms whose sum they are, {'reconstruction', 'latent', 'diffusion'} [B].
  """
  diffusion, _ = weighted_diffusion(denoise, process, x, t, keys, cond, eps=eps)
  terms = {**end_terms(process, x, x, t, keys, data, decoder, eps_0), 'diffusion': diffusion}
  return sum_of_terms(terms), terms


def bound_terms(process: Process, x: Array, t: Array, keys: Array, data: Array, decoder: Decoder,
                eps_error: Array, share: Array | float = 1.0) -> dict[str, Array]:
  """The terms of `continuous` from |eps - eps_hat|^2 [B], which another loss has evaluated at t.

  If t ~ U[0, 1], or t has the density 1 / `share`, the sum of the terms is an unbiased estimate of
  the bound.  It takes no further evaluation.
  """
  return {**end_terms(process, x, x, t, keys, data, decoder, None),
          'diffusion': share * -0.5 * process(t).dlogsnr * eps_error}


# ----------------------------------------------------------- T steps


def fixed_small(estimate: Estimate, at_t: Level, at_s: Level) -> Array:
  """beta_tilde = sigma_s^2 tau, the variance of q(z_s | z_t, x).  Ho et al. (2020), section 3.2."""
  return jnp.square(at_s.sigma) * tau(at_t, at_s)


def fixed_large(estimate: Estimate, at_t: Level, at_s: Level) -> Array:
  """beta = sigma_t^2 tau, the variance of q(z_t | z_s).  Ho et al. (2020), section 3.2, on `vp`.

  The variance is in the units of the curve, so on another curve the bound is another number.  A
  step that ends in the data (`step_levels`) has the smaller variance, as in their code.
  """
  return jnp.where(jnp.isposinf(at_s.logsnr), fixed_small(estimate, at_t, at_s),
                   jnp.square(at_t.sigma) * tau(at_t, at_s))


def learned(estimate: Estimate, at_t: Level, at_s: Level) -> Array:
  """beta^v beta_tilde^(1 - v), [B, ...], with v = (u + 1) / 2 and u = estimate.extra['variance'].

  Nichol and Dhariwal (2021), eq. 15.  `ancestral` with `processes.learned_share` has this variance.
  """
  return jnp.square(interpolated_std(at_t, at_s, learned_share(estimate)))


def step_number(t: Array, steps: Scalar) -> Array:
  """The step 1 ... T that a time in [0, 1] belongs to: step i ends at i / T.  t: [B] or []."""
  return jnp.maximum(jnp.ceil(t * steps), 1.0)


def step_levels(process: Process, grid: Array, steps: int, to_data: bool) -> tuple[Level, Level]:
  """The levels (t, s) of step `grid` = 1 ... T of a chain: t = grid / T, s = t - 1 / T.

  grid: [B] or [].  to_data: the first step ends in the data themselves, where logsnr is infinite
  and alpha = 1, or the process's alpha where it begins so.  There sigma_s = 0, and the variance of
  q(z_s | z_t, x) is 0 too.  The variance of the second step replaces it, as in the code of Ho et
  al. (2020) and of Nichol and Dhariwal (2021).

  Raises InputError if to_data is true and there are fewer than two steps.
  """
  at_t, at_s = process(grid / steps), process((grid - 1.0) / steps)
  if not to_data:
    return at_t, at_s
  if steps < 2:
    raise InputError('steps', steps, 'a chain that ends in the data has 2 or more', 'give more')
  one, two = process(jnp.full_like(grid, 1.0 / steps)), process(jnp.full_like(grid, 2.0 / steps))
  start = process(jnp.zeros_like(grid))
  data = at_s._replace(logsnr=jnp.full_like(one.logsnr, jnp.inf),
                       alpha=jnp.where(jnp.isposinf(start.logsnr), start.alpha, 1.0),
                       sigma=one.sigma * jnp.sqrt(tau(two, one)))
  first = lambda u: jnp.reshape(grid == 1.0, grid.shape + (1,) * (u.ndim - grid.ndim))
  return at_t, Level(*(jnp.where(first(u), v, u) for v, u in zip(data, at_s, strict=True)))


def compare_kernels(x: Array, eps: Array, estimate: Estimate, at_t: Level, at_s: Level,
                    variance: Variance) -> tuple[Array, Array]:
  """(d, r - 1) of the two kernels at z_t = alpha_t x + sigma_t eps; see above.  [B, ...] each."""
  at_t, at_s = at_t.expand(x), at_s.expand(x)
  # The errors of x and of eps are one number, which is read off that of v = alpha eps - sigma x: so
  # it keeps its digits at all levels.
  of_v = at_t.alpha * (eps - estimate.eps) - at_t.sigma * (x - estimate.x)
  of_x = -at_t.sigma * of_v / (jnp.square(at_t.alpha) + jnp.square(at_t.sigma))
  own = fixed_small(estimate, at_t, at_s)
  excess = (variance(estimate, at_t, at_s) - own) / own
  return at_s.alpha * tau(at_t, at_s) * of_x / jnp.sqrt(own), jnp.broadcast_to(excess, x.shape)


def discrete(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array,
             cond: PyTree = None, *, steps: int, data: Array, decoder: Decoder | None,
             variance: Variance = fixed_small, last: LastStep | None = None,
             first: Array | None = None, eps: Array | None = None, eps_0: Array | None = None
             ) -> tuple[Array, dict[str, Array]]:
  """One-sample estimate of the bound of the chain with `steps` = T equal steps of time.

  T KL(q(z_s | z_t, x) || p(z_s | z_t)) with t rounded up to the grid, s = t - 1/T.  With
  `fixed_small` it is T/2 (SNR(s)/SNR(t) - 1) |eps - eps_hat|^2: Kingma et al. (2021), eq. 13-14.

  last: for chains where t = 0 is the data (Ho et al. 2020).  The first step is then no divergence
  but -log p(data | z_{1/T}), their eq. 13, at the mean x_hat and the standard deviation of that
  step; see `step_levels`.  An example is `DiscretisedNormal(levels).log_prob`.  This term is
  'reconstruction', and is drawn as one of T like the others.  `decoder` is not used, and may be
  None.
  first: the term 'reconstruction' in nats [B], if `first_step` has evaluated it separately.
  That term is much larger than each divergence, so drawing it causes most of the variance of an
  estimate.

  Arguments and results are as in `continuous`.
  Raises InputError if there is neither `last` nor a decoder.
  """
  grid = step_number(t, steps)
  at_t, at_s = step_levels(process, grid, steps, last is not None)
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps'), x)
  estimate = denoise(diffuse(x, eps, at_t), at_t, cond)
  gap, excess = compare_kernels(x, eps, estimate, at_t, at_s, variance)
  divergence = 0.5 * sum_over_data(jnp.log1p(excess)
                                   + (jnp.square(gap) - excess) / (1.0 + excess))
  if last is None:
    if decoder is None:
      raise InputError('decoder', None, 'a chain without `last` ends in z_0', 'give a decoder')
    terms = {**end_terms(process, x, x, t, keys, data, decoder, eps_0),
             'diffusion': steps * divergence}
    return sum_of_terms(terms), terms
  at_first = grid == 1.0
  if first is None:
    log_prob = last_step(last, data, x, estimate, at_t, at_s, variance, at_first)
    first = jnp.where(at_first, -steps * log_prob, 0.0)
  terms = {'reconstruction': first,
           'latent': sum_over_data(prior_kl(x, process(jnp.ones_like(t)))),
           'diffusion': jnp.where(at_first, 0.0, steps * divergence)}
  return sum_of_terms(terms), terms


def in_step(number: Array | int, steps: int) -> Array:
  """The middle time of a step 1 ... T = `steps`, from which `step_number` gets the step exactly."""
  return (jnp.asarray(number) - 0.5) / steps


def first_step(denoise: Denoiser, process: Process, x: Array, keys: Array, cond: PyTree = None, *,
               steps: int, data: Array, last: LastStep, variance: Variance = fixed_small,
               eps: Array | None = None) -> Array:
  """One-sample estimate of -E log p(data | z_{1/T}), the first step for `last`: nats [B].

  It takes one evaluation of the network, and noise of its own.  Arguments are as for `discrete`.
  """
  if eps is None:
    eps = random.normal(random.stream(keys, 'eps_1'), x)
  t = jnp.broadcast_to(in_step(1, steps), x.shape[:1]).astype(x.dtype)
  _, terms = discrete(denoise, process, x, t, keys, cond, steps=steps, data=data, decoder=None,
                      variance=variance, last=last, eps=eps)
  return terms['reconstruction'] / steps


def last_step(last: LastStep, data: Array, x: Array, estimate: Estimate, at_t: Level, at_s: Level,
              variance: Variance, first: Array) -> Array:
  """log p(data | z_t) in nats, [B], where `first` ([B] or []) is true; elsewhere it has no meaning.

  Elsewhere the mean is the data themselves, so the number and its gradient are finite.
  """
  first = jnp.reshape(first, first.shape + (1,) * (x.ndim - first.ndim))
  at_s = at_s.expand(x)
  std = jnp.sqrt(variance(estimate, at_t.expand(x), at_s)) / at_s.alpha  # in units of x
  return last(data, jnp.where(first, estimate.x, x), std)


def density(denoise: Denoiser, process: Process, y: Array, t: Array, keys: Array,
            cond: PyTree = None, *, steps: int = 0) -> tuple[Array, dict[str, Array]]:
  """One-sample estimate of a bound on -log p(y) of real numbers y, a density: nats [B].

  The decoder is `decoders.normal`.  steps: T of the chain, or 0 for continuous time.  The other
  arguments and the result are as in `continuous`.
  """
  # The reconstruction depends on the noise's square alone, whose mean is 1.
  ends = {'data': y, 'decoder': normal, 'eps_0': jnp.ones_like(y)}
  if steps:
    return discrete(denoise, process, y, t, keys, cond, steps=steps, **ends)
  return continuous(denoise, process, y, t, keys, cond, **ends)
