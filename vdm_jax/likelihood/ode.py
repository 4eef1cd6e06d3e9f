"""The likelihood of the probability flow: the density that a denoiser's own ODE gives to z_t.

dz/dt = dalpha x_hat + dsigma eps_hat carries the prior p(z_1) = N(0, alpha_1^2 + sigma_1^2) to a
density at every earlier time; along a path, d log p(z_t) / dt is minus the divergence of dz/dt, so

  log p(z at t0) = log p(z at t1) + int_t0^t1 div(dz/dt) dt.

Chen et al. (2018), theorem 1; Song et al. (2021), section 4.3.  If the score is exact, this is also
the density of the reverse SDE.  For a trained network, flow and SDE are two models, so this number
may lie on either side of the bound of `objectives.vlb`.

The solve integrates u = z / c with c = hypot(alpha, sigma), which on every curve is the latent of
`vp` and has the prior N(0, 1): log p(z) = log p(u) - D log c.  By phi = atan(sigma / alpha),
du/dphi = (alpha eps_hat - sigma x_hat) / c.  This is a `v`, which has the size of data and noise
everywhere.

The divergence is estimated by v^T J v, where J is the Jacobian of the flow and v is random with
unit covariance (Skilling 1989, Hutchinson 1990).  v is drawn once for an example and kept through
its solve.  So the integrand is smooth, and the integral is v^T A v, with A the integral of J.  Let
S be the symmetric part of A.  The variance is 2 sum_{i != j} S_ij^2 for random signs and 2 sum_ij
S_ij^2 for normal v, divided by the number of probes.  The exact trace takes D times the cost.
"""
from typing import NamedTuple

import diffrax
import jax
import jax.numpy as jnp

from vdm_jax import decoders, random
from vdm_jax.dequantisers import Dequantiser
from vdm_jax.errors import InputError, require
from vdm_jax.likelihood.bounds import repeated, require_likelihood
from vdm_jax.likelihood.passes import Estimator
from vdm_jax.processes import diffuse, time_of
from vdm_jax.typing import Array, ArrayLike, Denoiser, Process, PyTree
from vdm_jax.units import log_mean_exp, sum_of_terms, sum_over_data

# Beyond this |logsnr| u stands still: all that is left there of the data in the noise, or of the
# noise in the data, is 3e-7 of it, and no network is asked where alpha or sigma is 0.
LIMIT = 30.0


class FlowMethod(NamedTuple):
  """The method that integrates the flow, and the estimate of its divergence."""
  steps: int = 0             # of the classical Runge-Kutta method; 0: adaptive, Dormand-Prince
  rtol: float = 1e-5         # adaptive: the error of a step is kept below atol + rtol |value|, that
  atol: float = 1e-5         # of u as a root mean square over D, that of the log density in nats
  probes: int = 1            # of the divergence, K
  probe: str = 'rademacher'  # random signs; 'gaussian'; or 'exact', the trace by D products
  max_steps: int = 1000      # adaptive: an example that needs more has the log density NaN


class FlowSolution(NamedTuple):
  log_prob: Array     # [B]       log density of z at t0, in nats
  z: Array            # [B, ...]  at the other end
  evaluations: Array  # [B]       calls of the network, and products of its Jacobian


def log_prob(denoise: Denoiser, process: Process, z: Array, keys: Array, cond: PyTree = None, *,
             t0: ArrayLike = 0.0, t1: ArrayLike = 1.0, **method) -> FlowSolution:
  """log p(z at t0): the prior N(0, prior_std^2) at t1, carried to t0 by the probability flow.

  z: [B, ...] at t0; keys: [B]; cond: leaves [B, ...] or None; method: the fields of `FlowMethod`.
  The fixed steps are even in log-SNR, with four evaluations each.

  An example depends on no other example.  It has its own steps, and `denoise` is called for one
  example at a time under `vmap`.  So no value that `denoise` closes over may have a batch axis.
  The result is differentiable in reverse mode by z, and by all that `denoise` and `process` close
  over.  Jacobians are multiplied in forward mode, which JAX refuses for a network with a
  `custom_vjp`.

  evaluations: a product of the Jacobian with a probe costs about as much as a call of the network,
  and counts as one.  Each value of the field takes 1 + K evaluations; with the exact trace, 1 + D.

  Raises InputError for an invalid method, and TypeError for a field that `FlowMethod` does not
  have.
  """
  method = _checked(FlowMethod(**method))
  begin, end = _times(process, z.dtype, t0, t1)
  u, log_c = _in_units_of_c(process, z, t0)
  volume, u, evaluations = _transport(method, denoise, process, u, keys, cond, begin, end)
  return FlowSolution(_log_prior(u) + volume - log_c, u * _c(process, u, t1), evaluations)


def decode(denoise: Denoiser, process: Process, z: Array, keys: Array, cond: PyTree = None, *,
           t0: ArrayLike = 0.0, t1: ArrayLike = 1.0, **method) -> FlowSolution:
  """From z at t1 to z at t0, with its log density there: the reverse of `log_prob`.

  If z is from the prior, these are samples with a known density.  Arguments and errors are as for
  `log_prob`.
  """
  method = _checked(FlowMethod(**method))
  begin, end = _times(process, z.dtype, t0, t1)
  start, _ = _in_units_of_c(process, z, t1)
  volume, u, evaluations = _transport(method, denoise, process, start, keys, cond, end, begin)
  z = u * _c(process, u, t0)
  _, log_c = _in_units_of_c(process, z, t0)
  return FlowSolution(_log_prior(start) - volume - log_c, z, evaluations)


# -------------------------------------------------- estimates of -log p(data)


def estimator(dequantise: Dequantiser | None = None, *, importance: int = 1,
              start: float | None = None, **method) -> Estimator:
  """-log p(data) of the flow: an upper bound for that model, which more samples tighten.

  With K = `importance` draws, nats = -log 1/K sum_k exp(log p_k - log q_k)  (Burda et al. 2016).
  An estimated divergence is unbiased for K = 1; within the exponential of K > 1 its noise lowers
  nats by up to half its variance.

  dequantise = None: the model's own latent z ~ q(z_t | x) and decoder, at t = `start` (None: 0),

    log p_k - log q_k = log P(data | z) + log p(z) - log q(z | x).

  A model of latents (`Model.inner`) draws these too, and adds log p(data | y) - log q(y | data).

  dequantise: data [n, ...], keys [n] -> y [n, ...], log q(y | data) [n], y in the coordinates of x
  and within the datum's bin.  With start = None, y is taken as a noiseless z_0 / alpha_0, whatever
  sigma_0 is:

    log p_k - log q_k = log p(z_0 = alpha_0 y) + D log alpha_0 - log q(y | data).

  If `start` is a time, the flow ends there.  One Gaussian step around the denoised z goes from
  `start` to the data, so nothing is left out:

    log p_k - log q_k = log N(y; x_hat(z), (sigma / alpha)^2) + log p(z) - log q(z | y)
                        - log q(y | data),      z ~ q(z_start | y).

  Song, Durkan, Murray and Ermon (2021); the variance is from their released code.  There it
  corrects the bound alone, and the ODE takes y for z_start without its scale and noise.

  method: the fields of `FlowMethod`.  Returns {'nats', and the means over K of 'log_p', 'log_q' (of
  all that was drawn), 'log_decoder', and 'evaluations' for all K: [n]}.  Raises InputError, also if
  `start` is not between 0 and 1.
  """
  _checked(FlowMethod(**method))
  if importance < 1:
    raise InputError('importance', importance, 'at least one sample is needed', 'give 1 or more')
  if start is not None and not 0.0 < start < 1.0:
    raise InputError('start', start, 'it must be a time between 0 and 1', 'give a time, or None')
  noisy = dequantise is None or start is not None
  t0 = 0.0 if start is None else start

  def estimate(model, batch, keys):
    require(model.prior is None, None, None, 'the flow carries N(0, alpha_1^2 + sigma_1^2) to the '
            'data, and this model has a prior of its own', 'ask for vlb, if it has a bound')
    require_likelihood(model)
    batch, each = repeated(batch, keys, jnp.arange(importance))
    drawn = 0.0
    if dequantise is None and model.inner is not None:
      batch, own = model.enter(batch, each)
      model, drawn = model.inner, sum_of_terms(own)
    data, cond = batch[model.field], model.cond(batch)
    if dequantise is None:
      y, log_q = model.encode(data), drawn
    else:
      y, log_q = dequantise(data, each)
    level = model.process(jnp.full(len(y), t0, y.dtype))
    wide = level.expand(y)
    if noisy:
      eps = random.normal(random.stream(each, 'z_0'), y)
      z = diffuse(y, eps, level)
      log_q += _log_prior(eps) - _log_volume(wide.sigma, y)
    else:
      z = wide.alpha * y
    solution = log_prob(model.denoise, model.process, z, each, cond, t0=t0, **method)
    evaluations = solution.evaluations
    if dequantise is None:
      log_decoder = model.decoder(data, z, level)
    elif noisy:
      log_decoder = decoders.normal(y, wide.alpha * model.denoise(z, level, cond).x, level)
      evaluations += 1
    else:
      log_decoder = _log_volume(wide.alpha, y)
    log_weight = (log_decoder + solution.log_prob - log_q).reshape(-1, importance)
    by_image = lambda u: u.reshape(-1, importance)
    return {'nats': -log_mean_exp(log_weight, axis=1),
            'log_p': by_image(solution.log_prob).mean(axis=1),
            'log_q': by_image(log_q).mean(axis=1),
            'log_decoder': by_image(log_decoder).mean(axis=1),
            'evaluations': by_image(evaluations).sum(axis=1)}
  return estimate


# ------------------------------------------------------------------ the flow


def _checked(method: FlowMethod) -> FlowMethod:
  if method.probe not in ('rademacher', 'gaussian', 'exact'):
    raise InputError('probe', method.probe, 'there is no such choice',
                     "choose 'rademacher', 'gaussian' or 'exact'")
  for name, least in (('probes', 1), ('steps', 0), ('max_steps', 1)):
    if getattr(method, name) < least:
      raise InputError(name, getattr(method, name), f'it must be at least {least}')
  return method


def _log_volume(scale: Array, like: Array) -> Array:
  """log |det| of a scaling of every dimension: [B]."""
  return sum_over_data(jnp.broadcast_to(jnp.log(scale), like.shape))


def _log_prior(u: Array) -> Array:
  """log N(u; 0, 1): [B]."""
  return sum_over_data(-0.5 * (jnp.square(u) + jnp.log(2.0 * jnp.pi)))


def _c(process: Process, like: Array, t: ArrayLike) -> Array:
  # Of one time for each example, so that the levels of a per-pixel schedule are [B, ...].
  level = process(jnp.full(like.shape[:1], t, like.dtype)).expand(like)
  return jnp.hypot(level.alpha, level.sigma)


def _in_units_of_c(process: Process, z: Array, t: ArrayLike) -> tuple[Array, Array]:
  c = _c(process, z, t)
  return z / c, _log_volume(c, z)


def _with_mean_logsnr(process: Process) -> Process:
  """The process with one logsnr at each time: the mean over pixels, if their logsnr differs."""
  def averaged(t):
    level = process(t.reshape(-1))
    logsnr = jnp.mean(level.logsnr.reshape(t.size, -1), axis=1)
    return level._replace(logsnr=logsnr.reshape(t.shape))
  return averaged


def _times(process: Process, dtype, t0: ArrayLike, t1: ArrayLike) -> tuple[Array, Array]:
  """The part of [t0, t1] within LIMIT."""
  first, last = time_of(_with_mean_logsnr(process), jnp.asarray([LIMIT, -LIMIT], dtype))
  return jax.lax.stop_gradient((jnp.maximum(jnp.asarray(t0, dtype), first),
                                jnp.minimum(jnp.asarray(t1, dtype), last)))


def _transport(method: FlowMethod, denoise: Denoiser, process: Process, u: Array, keys: Array,
               cond: PyTree, begin: Array, end: Array) -> tuple[Array, Array, Array]:
  """The integral of the divergence [B]; u at `end` [B, ...]; evaluations [B]."""
  size = u[0].size
  if method.probe == 'exact':
    probes = jnp.broadcast_to(jnp.eye(size, dtype=u.dtype), (len(u), size, size))
    share = 1.0
  else:
    probes = random.normal(random.stream(keys, 'probe'),
                           jnp.zeros((len(u), method.probes, size), u.dtype))
    if method.probe == 'rademacher':
      probes = jnp.where(probes < 0.0, -1.0, 1.0).astype(u.dtype)
    share = 1.0 / method.probes
  probes = probes.reshape(*probes.shape[:2], *u.shape[1:])
  grid = _even_in_logsnr(process, begin, end, method.steps) if method.steps else None

  def one(u, probes, cond):
    cond = jax.tree.map(lambda a: a[None], cond)

    def field(t, state, _=None):
      level = process(t[None])
      wide = level.expand(u[None])
      c = jnp.hypot(wide.alpha, wide.sigma)
      dphi = (wide.alpha * wide.dsigma - wide.sigma * wide.dalpha) / jnp.square(c)

      def velocity(u):
        x, eps, _ = denoise(c * u[None], level, cond)
        return (dphi * (wide.alpha * eps - wide.sigma * x) / c)[0].astype(u.dtype)

      # Of all probes one call.  Products from the right: on the CPU the other ones, convolutions
      # with transposed kernels, take fifty times as long inside a loop.
      product = lambda v: jax.jvp(velocity, (state[0],), (v,))
      value, products = jax.vmap(product, out_axes=(None, 0))(probes)
      return value, share * jnp.sum(probes * products)

    state = u, jnp.zeros((), u.dtype)
    return _fixed(field, state, grid) if method.steps else _adaptive(method, field, state, begin,
                                                                     end)

  (u, volume), calls = jax.vmap(one)(u, probes, cond)
  return volume, u, (1 + probes.shape[1]) * calls


def _even_in_logsnr(process: Process, begin: Array, end: Array, steps: int) -> Array:
  """begin ... end: [steps + 1], without a gradient, which the integral does not need."""
  process = _with_mean_logsnr(process)
  first, last = process(begin).logsnr, process(end).logsnr
  # All of them, since `time_of` takes no empty array, which the inside of one step is.
  inner = time_of(process, jnp.linspace(first, last, steps + 1))[1:-1]
  return jax.lax.stop_gradient(jnp.concatenate([begin[None], inner, end[None]]))


def _fixed(field, state, times):
  """The classical Runge-Kutta method of order 4."""
  ahead = lambda state, h, slope: jax.tree.map(lambda a, b: a + h * b, state, slope)

  @jax.checkpoint
  def step(state, between):
    t, s = between
    h = s - t

    def stage(slopes, coefficients):
      last, mean = slopes
      ratio, weight = coefficients
      slope = field(t + ratio * h, ahead(state, ratio * h, last))
      return (slope, ahead(mean, weight, slope)), None

    # A loop, so that the network is compiled once and not four times.
    zero = jax.tree.map(jnp.zeros_like, state)
    ratios, weights = jnp.asarray([[0.0, 0.5, 0.5, 1.0], [1 / 6, 1 / 3, 1 / 3, 1 / 6]], t.dtype)
    (_, mean), _ = jax.lax.scan(stage, (zero, zero), (ratios, weights))
    return ahead(state, h, mean), None

  state, _ = jax.lax.scan(step, state, (times[:-1], times[1:]))
  return state, jnp.asarray(4 * (len(times) - 1))


def _adaptive(method, field, state, begin, end):
  solver = diffrax.Dopri5()
  # The mean over all of the state would let D dimensions hide an error of the log density.
  norm = lambda error: jnp.maximum(jnp.sqrt(jnp.mean(jnp.square(error[0]))), jnp.abs(error[1]))
  solution = diffrax.diffeqsolve(
      diffrax.ODETerm(field), solver, begin, end, 0.01 * (end - begin), state,
      stepsize_controller=diffrax.PIDController(rtol=method.rtol, atol=method.atol, norm=norm),
      max_steps=method.max_steps, throw=False)
  arrived = solution.result == diffrax.RESULTS.successful
  state = jax.tree.map(lambda a: jnp.where(arrived, a[0], jnp.nan), solution.ys)
  # Its last stage is the first of the next step.
  return state, 1 + (solver.tableau.num_stages - 1) * solution.stats['num_steps']
