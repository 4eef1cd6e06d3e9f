"""Volumes from few measurements, by a prior of slices and ADMM across slices: DiffusionMBIR, DDS.

A volume [Z, H, W, C] is one example, and `slicewise` makes a denoiser of volumes from a denoiser of
slices.  A step of `mbir`, DiffusionMBIR, is:

  the predictor, at level t, and the corrector, at level t     each slice alone
  a step of ADMM for 1/2 |A u - y|^2 + weight |D u|_1          all slices

u = z / alpha is noisy data.  Chung et al. (2023), "Solving 3D inverse problems using pre-trained 2D
diffusion models".  The method was published for alpha = 1.  Here the steps are taken in u, so a
model of any process has the steps of the same noise levels.  A step of `dds` is:

  x_hat, the estimate of x                                     each slice alone
  a step of ADMM for 1/2 |A x - y|^2 + weight |D x|_1 + near / 2 |x - x_hat|^2, from x_hat
  the step of `ddim` with this x                               each number alone

Chung, Lee and Ye (2024), decomposed diffusion sampling.  x_hat has no noise, so this takes tens of
steps instead of thousands.

In both, the variables of ADMM beside x are carried from step to step: so a run of the sampler is a
run of ADMM.  The samples are no exact samples of a posterior.
"""
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.core import Tracer

from vdm_jax import random
from vdm_jax.errors import InputError, require, require_at_least
from vdm_jax.guidance import revise
from vdm_jax.inverse import Problem, require_linear
from vdm_jax.processes import diffuse
from vdm_jax.samplers.euler import reverse_diffusion
from vdm_jax.samplers.first_order import transition
from vdm_jax.samplers.langevin import langevin_corrector
from vdm_jax.samplers.sampling import data_axes, require_one_step
from vdm_jax.typing import Array, Denoiser, Process, Sampler, SamplerMaker
from vdm_jax.volumes import TV, Split, admm, require_volume, start

__all__ = ['SquaredErrors', 'State', 'dds', 'mbir', 'slicewise', 'squared_errors']


class State(NamedTuple):
  """What is carried from step to step."""
  z: Array       # [B, Z, H, W, C]
  split: Split   # the variables of ADMM


def slicewise(denoise: Denoiser) -> Denoiser:
  """A denoiser of volumes [B, Z, H, W, C] that denoises each slice alone.

  A level and a condition, [B, ...] each, are those of all slices of a volume.
  """
  def of_volumes(z, level, cond=None):
    count, depth = z.shape[:2]
    flat = lambda u: u.reshape(count * depth, *u.shape[2:])
    each = lambda u: jnp.repeat(u, depth, axis=0) if jnp.ndim(u) else u
    estimate = denoise(flat(z), jax.tree.map(each, level), jax.tree.map(each, cond))
    return jax.tree.map(lambda u: u.reshape(count, depth, *u.shape[1:]), estimate)
  return of_volumes


def _without_alpha(denoise: Denoiser, process: Process) -> tuple[Denoiser, Process]:
  """The same for u = z / alpha: data with noise of variance sigma^2 / alpha^2."""
  def of_noisy(u, level, cond=None):
    own = process(level.t)
    return denoise(own.expand(u).alpha * u, own, cond)

  def exploding(t):
    level = process(t)
    ratio = level.sigma / level.alpha
    return level._replace(alpha=jnp.ones_like(level.alpha), sigma=ratio,
                          dalpha=jnp.zeros_like(level.alpha),
                          dsigma=(level.dsigma - ratio * level.dalpha) / level.alpha)
  return of_noisy, exploding


def _checked(method: str, process: Process, problem: Problem, tv: TV | None, iterations: int
             ) -> TV:
  """The TV, by default across slices.  Raises InputError for what does not fit the others."""
  tv = TV() if tv is None else tv
  tv.check()
  require_at_least('iterations', iterations)
  require_linear(problem.operator, method)
  require_volume(problem.operator.shape)
  require(not data_axes(process), 'process', None, 'every pixel has its own noise level',
          'take a model with one schedule for all pixels')
  problem.check()
  return tv


def _begin(problem: Problem, tv: TV) -> Callable[[Array], State]:
  """z -> the state before the first step.  Raises InputError for a z that does not fit y and A."""
  def begin(z):
    problem.check_against(z)
    return State(z, start(z, tv))
  return begin


def mbir(denoise: Denoiser, process: Process, problem: Problem, tv: TV | None = None,
         snr: float = 0.16, iterations: int = 1, predictor: SamplerMaker = reverse_diffusion
         ) -> Sampler:
  """The sampler of the page's head, with `langevin_corrector`.

  In the published runs of tomography the weight is 0.04 and rho 10, of magnetic resonance 0.005 and
  0.01; 2,000 steps.  The corrector's norms are means over the slices of a volume.  So a volume does
  not depend on the others of its batch.

  Args:
    denoise: of volumes; see `slicewise`.
    problem: y = A(x) + noise, for x of volumes.  A must be linear.
    tv: of ADMM.  Default: across slices, with the weight and the rho of tomography.
    snr: of the corrector.
    iterations: of conjugate gradients in a step.
    predictor: of u.  Public code also draws noise in the last step, to sigma = 0.

  A step takes the evaluations of the predictor and one more, and at most 1 + iterations products
  with A and with A^T.

  Raises InputError for an operator that is not linear or not of volumes, for wrong numbers, for
  levels of each pixel, where alpha = 0, and for a predictor that remembers estimates.  The sampler
  raises it for a z that has not the shape of x, and for neither one y nor one for each z.
  """
  require(0.0 < snr < jnp.inf, 'snr', snr, 'it must be above 0, and finite',
          'give 0.16, for example')
  tv = _checked('mbir', process, problem, tv, iterations)
  told, exploding = _without_alpha(denoise, process)
  forward = predictor(told, exploding)
  calls = require_one_step(forward, 'predictor', 'ADMM')
  correct = langevin_corrector(told, snr, over_slices=True)

  def plan(times):
    lost = jnp.any(process(times[0]).alpha == 0.0)
    if not isinstance(lost, Tracer) and bool(lost):
      raise InputError('times', None, f'at t = {float(times[0]):.6g} alpha = 0, and mbir divides '
                       'by it', 'begin the grid at a smaller t')
    return forward.plan(times)

  def step(keys, state, t, s, planned):
    at_t, at_s = exploding(t), exploding(s)
    u = state.z / process(t).alpha
    u = forward.step(keys, u, t, s, planned)
    u = correct.step(random.stream(keys, 'correction'), u, at_t, at_s)
    u, split = admm(problem, tv, u, state.split, iterations)
    return State(process(s).alpha * u, split)

  return Sampler(step, init=_begin(problem, tv), value=lambda state: state.z,
                 plan=plan, evaluations=calls + correct.evaluations)


# ------------------------------------------------------------- of clean estimates


class SquaredErrors(NamedTuple):
  """The mean square of x - x_hat, over examples and numbers, at K noise levels."""
  logsnr: Array  # [K] increasing
  value: Array   # [K]

  def __call__(self, logsnr: Array) -> Array:
    """At any level, of the same shape: its logarithm is interpolated; beyond the ends, constant."""
    return jnp.exp(jnp.interp(logsnr, self.logsnr, jnp.log(self.value)))


def squared_errors(denoise: Denoiser, process: Process, x: Array, times: Array, keys: Array
                   ) -> SquaredErrors:
  """`SquaredErrors` of a denoiser at `times` [K], from one z for each example and time.

  x: [B, ...], data; keys: [B].
  """
  def at(k, t):
    level = process(t)
    at_k = jax.vmap(lambda key: jax.random.fold_in(key, k))(keys)
    noise = random.normal(random.stream(at_k, 'eps'), x)
    return level.logsnr, jnp.mean(jnp.square(denoise(diffuse(x, noise, level), level).x - x))
  logsnr, value = jax.lax.map(lambda xs: at(*xs), (jnp.arange(len(times)), jnp.asarray(times)))
  order = jnp.argsort(logsnr)
  return SquaredErrors(logsnr[order], value[order])


def dds(denoise: Denoiser, process: Process, problem: Problem,
        variance: Callable[[Array], Array], tv: TV | None = None, iterations: int = 5,
        eta: float = 1.0, limits: tuple[float, float] | None = None) -> Sampler:
  """The sampler of the page's head, where near = noise^2 / variance(logsnr).

  So x is the posterior mean of Gaussian data if x given z has this variance, and no covariances.
  In the paper, near is one number for all levels.  If the noise of y is 0, then near is 0.

  Args:
    denoise: of volumes; see `slicewise`.
    problem: y = A(x) + noise, for x of volumes.  A must be linear.
    variance: logsnr -> of a number of x given z, such as the `squared_errors` of the denoiser.
    tv: of ADMM.  Default: across slices, with the weight and the rho of `mbir`.
    iterations: of conjugate gradients in a step.
    eta: the share of new noise in a step, as in `ddim`; the paper has 0.85.
    limits: x is clipped to them.

  A step takes an evaluation, and at most 1 + iterations products with A and with A^T.

  Raises InputError as `mbir` does, and for an eta outside of [0, 1].
  """
  tv = _checked('dds', process, problem, tv, iterations)
  require(0.0 <= eta <= 1.0, 'eta', eta, 'it must be from 0 to 1', 'give 1, for example')

  def step(keys, state, t, s, _):
    at_t, at_s = process(t), process(s)
    estimate = denoise(state.z, at_t)
    near = problem.noise**2 / variance(at_t.logsnr)
    x, split = admm(problem, tv, estimate.x, state.split, iterations, near)
    told = revise(estimate, jnp.clip(x, *limits) if limits else x, at_t)
    return State(transition(told, at_t, at_s, keys, eta), split)

  return Sampler(step, init=_begin(problem, tv), value=lambda state: state.z)
