"""Samples of a posterior p(x | y), y = A(x) + noise: by the step, and all methods by name.

The methods of `inverse` wrap the denoiser, and any sampler takes the result.  The methods here
change the step of the sampler, as published code does:

  `dps`    the step goes down the gradient of |y - A(x_hat)|; A need not be linear
  `pgdm`   pseudo-inverse guidance that is added to the step; without noise
  `mcg`    `dps` on the unknown part, with the square of the distance; the known part is replaced

`inpainting` has replacement and RePaint.  None of them is exact.  The limit of each for Gaussian
data, in many steps, is in tests/samplers/test_conditioned.py.

A method of `METHODS` is a value that makes a sampler: `sample_posterior` runs it.
"""
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import inverse
from vdm_jax.errors import method_named, require, require_at_least, require_choice
from vdm_jax.guidance import clip
from vdm_jax.inverse import Operator, Problem
from vdm_jax.processes import tau
from vdm_jax.samplers import first_order, inpainting
from vdm_jax.samplers.sampling import check_grid, data_axes, run
from vdm_jax.typing import Array, Denoiser, Process, Sampler, SamplerMaker
from vdm_jax.units import sum_over_data

__all__ = ['Case', 'DPS', 'DiffPIR', 'MCG', 'METHODS', 'MMPS', 'Method', 'PGDM', 'PiGDM', 'RePaint',
           'Replacement', 'SAMPLERS', 'TMPD', 'cost', 'dps', 'mcg', 'named', 'pgdm',
           'require_suited', 'sample_posterior']

SAMPLERS: dict[str, SamplerMaker] = {'ancestral': first_order.ancestral, 'ddim': first_order.ddim}


# ------------------------------------------------------------------ the steps


def dps(denoise: Denoiser, process: Process, problem: Problem, scale: float = 0.3,
        eta: float = 1.0, over: Literal['example', 'batch'] = 'example') -> Sampler:
  """z_s = the step of `ddim` - scale grad_z |y - A(x_hat)|.

  Chung et al. (2023), diffusion posterior sampling.  Their algorithm has the square of the
  distance; their public code, and this function, has the distance itself.  So the step does not
  depend on the noise of y.  They use 0.3 for blurs and upsampling, 0.5 for inpainting, 1 for phase
  retrieval; eta = 1.

  over: 'example', the distance of each image; 'batch', one distance of the whole batch, as in the
  public code: there the samples of an image depend on the other images.
  Raises InputError for a scale below 0 or infinite, and for another `over`.
  """
  DPS(scale, over).check()

  def step(keys, z, t, s, _):
    at_t, at_s = process(t), process(s)

    def distance(z):
      estimate = denoise(z, at_t)
      r = problem.residual(estimate.x)
      return jnp.sum(inverse.norm(r if over == 'example' else r.reshape(1, -1))), estimate
    slope, estimate = jax.grad(distance, has_aux=True)(z)
    return first_order.transition(estimate, at_t, at_s, keys, eta) - scale * slope
  return Sampler(step)


def pgdm(denoise: Denoiser, process: Process, problem: Problem, eta: float = 1.0,
         whole: bool = True) -> Sampler:
  """z_s = the step of `ddim` + c J^T A^+ (y - A x_hat), for y without noise.

  Song et al. (2023), as in public code.  c = alpha_t alpha_s if `whole`: then the step has the old
  eps_hat.  Otherwise c = alpha_t (alpha_s - sigma_s sqrt(1 - eta^2 tau) alpha_t / sigma_t): then
  eps_hat follows x_hat.  `inverse.pigdm` knows the noise of y.

  Raises InputError for an operator that is not linear.
  """
  a = problem.operator
  inverse.require_linear(a, 'pgdm')

  def step(keys, z, t, s, _):
    at_t, at_s = process(t), process(s)

    def estimated(z):
      estimate = denoise(z, at_t)
      return estimate.x, estimate
    x, pull, estimate = jax.vjp(estimated, z, has_aux=True)
    slope = pull(inverse.pseudo_inverse(a, problem.residual(x)))[0]
    wide_t, wide_s = at_t.expand(z), at_s.expand(z)
    share = wide_s.alpha
    if not whole:
      kept = wide_s.sigma * jnp.sqrt(1.0 - eta**2 * tau(wide_t, wide_s))
      share = share - kept * wide_t.alpha / wide_t.sigma
    return (first_order.transition(estimate, at_t, at_s, keys, eta)
            + wide_t.alpha * share * slope)
  return Sampler(step)


def mcg(denoise: Denoiser, process: Process, problem: Problem, scale: float = 1.0,
        eta: float = 1.0) -> Sampler:
  """`ddim` - scale alpha_t grad_z |y - A x_hat|^2 on the unknown part; the known part is replaced.

  Chung et al. (2022), manifold constrained gradients, as in public code of Mardani et al. (2023).
  The known part ends in y itself.

  Raises InputError for an operator without known numbers, and for a scale below 0 or infinite.
  """
  MCG(scale).check()
  _require_known(problem.operator, 'mcg')

  def step(keys, z, t, s, _):
    at_t, at_s = process(t), process(s)

    def distance(z):
      estimate = denoise(z, at_t)
      return jnp.sum(sum_over_data(jnp.square(problem.residual(estimate.x)))), estimate
    slope, estimate = jax.grad(distance, has_aux=True)(z)
    moved = first_order.transition(estimate, at_t, at_s, keys, eta)
    return moved - scale * at_t.expand(z).alpha * slope
  return _replaced(Sampler(step), process, problem)


def _replaced(sampler: Sampler, process: Process, problem: Problem) -> Sampler:
  return inpainting.replacement(sampler, process, *_known(problem))


def _known(problem: Problem) -> tuple[Array, np.ndarray]:
  """y at its places, and where they are."""
  known = problem.operator.known
  assert known is not None
  y = problem.y.reshape(-1, problem.y.shape[-1])
  return problem.operator.spread(y), known


def _require_known(operator: Operator, method: str) -> None:
  require(operator.known is not None, 'method', method, f'it replaces known numbers, and '
          f'{operator.name} tells none', 'choose pigdm, or the task inpaint or mask:FILE')


# ------------------------------------------------------------------ by name


class Case(NamedTuple):
  """The input of a method."""
  denoise: Denoiser
  process: Process
  problem: Problem
  times: np.ndarray                          # [N + 1]  the grid, from noise to data
  limits: tuple[float, float] | None = None  # of x_hat; None: none

  def clipped(self, denoise: Denoiser) -> Denoiser:
    return clip(denoise, *self.limits) if self.limits else denoise

  def told(self, denoise: Denoiser, sampler: str) -> tuple[Sampler, np.ndarray]:
    """The sampler of this name with a denoiser that is told y; clipped, since it extrapolates."""
    return SAMPLERS[sampler](self.clipped(denoise), self.process), self.times


# A method is a value with `needs` of the problem ('linear', 'noise', 'known'), the `products` with
# J^T in a step, `check`, and a call: Case -> the sampler, and the path of its times.


class PiGDM(NamedTuple):
  """`inverse.pigdm`.  std: of the data, as if their numbers were independent."""
  std: float = 0.5
  sampler: str = 'ancestral'
  needs = ('linear',)
  products = 1

  def check(self) -> None:
    require(0.0 < self.std < np.inf, 'std', self.std, 'it must be above 0, and finite',
            'give that of the data')
    require_choice('sampler', self.sampler, SAMPLERS)

  def __call__(self, case: Case) -> tuple[Sampler, np.ndarray]:
    return case.told(inverse.pigdm(case.denoise, case.problem, self.std), self.sampler)


class TMPD(NamedTuple):
  """`inverse.tmpd`."""
  sampler: str = 'ancestral'
  needs = ('linear', 'noise')
  products = 2

  def check(self) -> None:
    require_choice('sampler', self.sampler, SAMPLERS)

  def __call__(self, case: Case) -> tuple[Sampler, np.ndarray]:
    return case.told(inverse.tmpd(case.denoise, case.problem), self.sampler)


class MMPS(NamedTuple):
  """`inverse.mmps`."""
  iterations: int = 1
  solver: Literal['gmres', 'cg'] = 'gmres'
  sampler: str = 'ancestral'
  needs = ('linear', 'noise')

  @property
  def products(self) -> int:
    return 1 + self.iterations

  def check(self) -> None:
    require_at_least('iterations', self.iterations)
    require_choice('solver', self.solver, ('gmres', 'cg'))
    require_choice('sampler', self.sampler, SAMPLERS)

  def __call__(self, case: Case) -> tuple[Sampler, np.ndarray]:
    return case.told(inverse.mmps(case.denoise, case.problem, self.iterations, self.solver),
                     self.sampler)


class DiffPIR(NamedTuple):
  """`inverse.diffpir`."""
  strength: float = 10.0
  sampler: str = 'ancestral'
  needs = ('linear', 'noise')
  products = 0

  def check(self) -> None:
    require(0.0 < self.strength < np.inf, 'strength', self.strength,
            'it must be above 0, and finite', 'give 10, for example')
    require_choice('sampler', self.sampler, SAMPLERS)

  def __call__(self, case: Case) -> tuple[Sampler, np.ndarray]:
    return case.told(inverse.diffpir(case.denoise, case.problem, self.strength), self.sampler)


class DPS(NamedTuple):
  """`dps`."""
  scale: float = 0.3
  over: Literal['example', 'batch'] = 'example'
  needs = ()
  products = 1

  def check(self) -> None:
    require(0.0 <= self.scale < np.inf, 'scale', self.scale, 'it must be at least 0, and finite',
            'give 0.3, for example')
    require_choice('over', self.over, ('example', 'batch'))

  def __call__(self, case: Case) -> tuple[Sampler, np.ndarray]:
    return dps(case.clipped(case.denoise), case.process, case.problem, self.scale,
               over=self.over), case.times


class PGDM(NamedTuple):
  """`pgdm`."""
  eta: float = 1.0
  needs = ('linear',)
  products = 1

  def check(self) -> None:
    require(0.0 <= self.eta <= 1.0, 'eta', self.eta, 'it must be from 0 to 1', 'give such a number')

  def __call__(self, case: Case) -> tuple[Sampler, np.ndarray]:
    return pgdm(case.clipped(case.denoise), case.process, case.problem, self.eta), case.times


class MCG(NamedTuple):
  """`mcg`."""
  scale: float = 1.0
  needs = ('linear', 'known')
  products = 1

  def check(self) -> None:
    require(0.0 <= self.scale < np.inf, 'scale', self.scale, 'it must be at least 0, and finite',
            'give 1, for example')

  def __call__(self, case: Case) -> tuple[Sampler, np.ndarray]:
    return mcg(case.clipped(case.denoise), case.process, case.problem, self.scale), case.times


class Replacement(NamedTuple):
  """`inpainting.replacement`."""
  sampler: str = 'ancestral'
  needs = ('linear', 'known')
  products = 0

  def check(self) -> None:
    require_choice('sampler', self.sampler, SAMPLERS)

  def __call__(self, case: Case) -> tuple[Sampler, np.ndarray]:
    sampler, times = case.told(case.denoise, self.sampler)
    return _replaced(sampler, case.process, case.problem), times


class RePaint(NamedTuple):
  """`inpainting.repaint`, along the path of `inpainting.jumps`."""
  jump: int = 10
  visits: int = 10
  needs = ('linear', 'known')
  products = 0

  def check(self) -> None:
    require_at_least('jump', self.jump)
    require_at_least('visits', self.visits)

  def path(self, times: np.ndarray) -> np.ndarray:
    """The times in the order of the walk.  Raises InputError for a jump of as many steps."""
    steps = len(times) - 1
    require(self.jump < steps, 'jump', self.jump, f'the grid has {steps} steps', 'jump by fewer, '
            'or make more steps')
    return inpainting.jumps(times, self.jump, self.visits)

  def __call__(self, case: Case) -> tuple[Sampler, np.ndarray]:
    sampler = first_order.ancestral(case.clipped(case.denoise), case.process)
    return inpainting.walking(sampler, case.process, *_known(case.problem)), self.path(case.times)


Method = PiGDM | TMPD | MMPS | DiffPIR | DPS | PGDM | MCG | Replacement | RePaint
METHODS: dict[str, Any] = {
    'pigdm': PiGDM, 'tmpd': TMPD, 'mmps': MMPS, 'dps': DPS, 'mcg': MCG, 'diffpir': DiffPIR,
    'pgdm': PGDM, 'replacement': Replacement, 'repaint': RePaint}


def named(method: str, **fields: Any) -> Method:
  """The method of a name, with these numbers.

  Raises InputError: no such method; a field that the method has not; a wrong number.
  """
  return method_named(METHODS, method, **fields)


def require_suited(method: Method, operator: Operator, noise: float) -> None:
  """Raises InputError for a method that this operator, or this noise, does not suit."""
  name = type(method).__name__.lower()
  if 'linear' in method.needs:
    inverse.require_linear(operator, name)
  if 'known' in method.needs:
    _require_known(operator, name)
  if 'noise' in method.needs:
    inverse.require_noise(noise, name)


def cost(method: Method, times: np.ndarray) -> tuple[int, int]:
  """The evaluations of the network for a sample, and the products with the transpose of its J.

  Raises InputError for a grid that does not suit the method.
  """
  steps = len(times) - 1
  if isinstance(method, RePaint):
    steps = int(np.sum(np.diff(method.path(times)) < 0))
  return steps, steps * method.products


def sample_posterior(method: Method, denoise: Denoiser, process: Process, problem: Problem,
                     keys: Array, z: Array, times: np.ndarray,
                     limits: tuple[float, float] | None = None) -> Array:
  """z at the last time, a sample of x given y: [B, ...].

  keys, z, times: as for `sample`.  limits: x_hat is clipped to them.

  Raises InputError: as `sample`, `Problem.check`, `Problem.check_against` and `require_suited`;
  levels of each pixel.
  """
  check_grid(times)
  require(not data_axes(process), 'method', None, 'y is compared at one noise level, and here '
          'every pixel has its own', 'take a model with one schedule for all pixels')
  problem.check()
  problem.check_against(z)
  require_suited(method, problem.operator, problem.noise)
  sampler, path = method(Case(denoise, process, problem, np.asarray(times), limits))
  return run(sampler, keys, z, path)
