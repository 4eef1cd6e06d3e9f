"""Judges a sampler by its own claim: see `certification`."""
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import processes, random, samplers
from vdm_jax.certification.exact import (
  CURVES,
  MODELS,
  ExactDenoiser,
  MixtureData,
  ends_of,
  moments,
  process_of,
  quantiles,
)
from vdm_jax.errors import InputError, require_choice
from vdm_jax.samplers.grids import warm_up
from vdm_jax.typing import SamplerMaker

__all__ = ['CertificateRow', 'STEPS', 'alternating_grid', 'certify', 'certify_adaptive',
           'certify_exact', 'count_evaluations', 'equality', 'largest_deviation']

STEPS = (40, 80, 160, 320, 640)


class CertificateRow(NamedTuple):
  """One line of the certificate."""
  sampler: str
  curve: str
  model: str
  kind: str                        # 'order', 'tolerance', 'moments', 'exact' or 'equality'
  claimed_order: float | None
  measured_order: float | None     # slope over the last four numbers of steps
  evaluations_per_step: int | None
  passed: bool
  detail: dict                     # errors by number of steps; deviations and standard errors


def alternating_grid(steps: int) -> np.ndarray:
  """Times [steps + 1] from 1 to 0 with short and long steps in turn, 1 : 2."""
  widths = np.where(np.arange(steps) % 2 == 0, 1.0, 2.0)
  times = 1.0 - np.concatenate([[0.0], np.cumsum(widths) / np.sum(widths)])
  times[-1] = 0.0
  return times


def count_evaluations(make: SamplerMaker, steps: int = 8, branch: Callable = max) -> int:
  """The number of calls of the denoiser in a run of `steps` steps, counted in the traced program.

  branch: of the branches of a condition one runs; the one with most calls counts, or with `min` the
  one with fewest calls.
  """
  @jax.jit
  def counted_denoiser(z, level):
    return ExactDenoiser(MODELS['gaussian'])(z, level)

  class Counted(ExactDenoiser):
    def __call__(self, z, level, cond=None):
      return counted_denoiser(z, level)

  def run(z, times):
    sampler = make(Counted(MODELS['gaussian']), process_of(jnp.asarray(0)))
    return samplers.sample(sampler, jax.random.split(random.key(0), len(z)), z, times)

  def calls(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
      if equation.params.get('name') == 'counted_denoiser':
        total += 1
        continue
      each = [calls(getattr(u, 'jaxpr', u)) for value in equation.params.values()
              for u in (value if isinstance(value, (tuple, list)) else (value,))
              if hasattr(u, 'eqns') or hasattr(getattr(u, 'jaxpr', None), 'eqns')]
      inner = branch(each) if equation.primitive.name == 'cond' else sum(each)
      if inner and equation.primitive.name == 'while':
        raise ValueError('the denoiser is called in a loop whose length depends on values')
      total += inner * equation.params.get('length', 1)
    return total

  times = jnp.linspace(1.0, 0.0, steps + 1)
  return calls(jax.make_jaxpr(run)(jnp.ones((2, 4)), times).jaxpr)


def _evaluations(make: SamplerMaker) -> tuple[int, bool]:
  """(the evaluations per step that the sampler states, whether they are right).

  A trace does not show how often a condition holds.  So it shows that the step with more calls has
  `extra_evaluations` more, but not that there is one such step.
  """
  stated = []

  def noting(denoise, process):
    stated.append(make(denoise, process))
    return stated[-1]

  steps = 8
  most = count_evaluations(noting, steps)
  each, extra = stated[0].evaluations, stated[0].extra_evaluations
  right = most == steps * (each + extra)
  if extra:
    right = right and count_evaluations(make, steps, min) == steps * each
  return each, right


def _cases(curves, models):
  for field, chosen, known in (('curves', curves, CURVES), ('models', models, MODELS)):
    for name in chosen:
      require_choice(field, name, known)
  return [(curve, model) for model in models for curve in curves]


def _stack(cases):
  """(number of the curve [cases], MixtureData of arrays [cases, 2])."""
  numbers = jnp.array([CURVES.index(curve) for curve, _ in cases])
  columns = zip(*(MODELS[model] for _, model in cases), strict=True)
  return numbers, MixtureData(*map(jnp.array, columns))


# ------------------------------------------------------------- what it judges


def certify(make: SamplerMaker, order: float | None = None, *, name: str = '',
            curves: Sequence[str] = CURVES, models: Sequence[str] = tuple(MODELS),
            steps: Sequence[int] | None = None, tolerance: float | None = None,
            grid: Callable[[int], np.ndarray] | None = None, up: bool = False, draws: int = 64
            ) -> list[CertificateRow]:
  """Certifies a sampler, `make(denoise, process)`: a CertificateRow for each curve and each model.

  Args:
    order: the claimed order of a deterministic sampler.  None is for a stochastic sampler, which is
      judged by its moments.
    steps: the numbers of steps, at least four for an order, one for moments.
    tolerance: for an order, the slope may fall short by this, 0.15 by default.  Each moment must
      agree within four standard errors and `tolerance`, 0.02 of a standard deviation by default.
    grid: n -> times [n + 1], if an order is claimed on some grids only; by default short and long
      steps in turn.
    up: judge the order of encoding, from data to noise.
    draws: the number of draws for moments, each of 128 dimensions.

  If the sampler states a wrong number of evaluations, no row passes.
  """
  name = name or getattr(make, '__name__', 'sampler')
  evaluations, exact_count = _evaluations(make)
  if order is None:
    judged = _judge_moments(make, curves, models, 100 if steps is None else steps[0],
                            0.02 if tolerance is None else tolerance, draws)
  else:
    judged = _judge_order(make, order, curves, models, steps or STEPS,
                          0.15 if tolerance is None else tolerance, grid or alternating_grid, up)
  kind = 'moments' if order is None else 'order'
  return [CertificateRow(name, curve, model, kind, claimed, slope, evaluations,
              bool(passed and exact_count), {**detail, 'evaluations_exact': exact_count})
          for curve, model, claimed, slope, passed, detail in judged]


def _flow(make, curves, models, grids, up=False):
  """Distances to the exact flow, as root mean squares over quantiles: [cases, grids]."""
  probability = np.linspace(0.05, 0.95, 7)
  cases = _cases(curves, models)
  ends = [(MODELS[model], *ends_of(curve)) for curve, model in cases]
  start = np.array([quantiles(probability, data, *first) for data, first, _ in ends])
  exact = np.array([quantiles(probability, data, *last) for data, _, last in ends])
  if up:
    start, exact = exact, start
  unit = np.array([np.hypot(*(first if up else last)) for _, first, last in ends])
  along = samplers.encode if up else samplers.sample

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
  @functools.partial(jax.vmap, in_axes=(None, None, None, 0))
  def run(curve, data, z, times):
    process = process_of(curve)
    keys = jax.random.split(random.key(0), len(z))
    return along(make(ExactDenoiser(data), process), keys, z[:, None], times)[:, 0]

  with jax.enable_x64(True):
    got = np.asarray(run(*_stack(cases), jnp.asarray(start), jnp.asarray(grids)))
  return cases, np.sqrt(np.mean((got - exact[:, None])**2, axis=-1)) / unit[:, None]


def _judge_order(make, order, curves, models, steps, tolerance, grid, up):
  """(curve, model, claimed order, slope, passed, detail) of every case."""
  if len(steps) < 4:
    raise InputError('steps', tuple(steps), 'a slope takes at least four numbers of steps',
                     'give more')
  with jax.enable_x64(True):
    padded = [np.pad(grid(n), (0, max(steps) - n)) for n in steps]
    grids = [1.0 - times if up else np.asarray(warm_up(times, int(order))) for times in padded]
  cases, error = _flow(make, curves, models, np.stack(grids), up)
  out = []
  for (curve, model), errors in zip(cases, error, strict=True):
    claimed = min(order, 1) if curve == 'ends' else order
    finite = np.isfinite(errors).all()
    # A method that is exact on these data leaves rounding alone, which has no slope.
    exact_here = finite and errors.max() < 1e-12
    slope = -np.polyfit(np.log(steps[-4:]), np.log(np.maximum(errors[-4:], 1e-300)), 1)[0]
    out.append((curve, model, claimed, None if exact_here else float(slope),
                exact_here or (finite and slope >= claimed - tolerance),
                {'steps': list(steps), 'errors': errors.tolist()}))
  return out


def _judge_moments(make, curves, models, steps, tolerance, n, dims=128):
  """The results as in `_judge_order`, for moments of n draws of `dims` independent dimensions."""
  cases = _cases(curves, models)

  def run(case):
    curve, data, key = case
    process = process_of(curve)
    keys = random.per_example(key, jnp.arange(n))
    level = process(1.0)
    x = ExactDenoiser(data).draw(jax.random.fold_in(key, n), (n, dims))
    z = processes.diffuse(x, random.normal(random.stream(keys, 'z_1'), x), level)
    times = jnp.linspace(1.0, 0.0, steps + 1)
    z = samplers.sample(make(ExactDenoiser(data), process), keys, z, times)
    return z / process(0.0).alpha

  with jax.enable_x64(False):
    keys = jax.random.split(random.key(0), len(cases))
    drawn = np.asarray(jax.jit(lambda xs: jax.lax.map(run, xs))((*_stack(cases), keys)), float)
  out = []
  for (curve, model), u in zip(cases, drawn, strict=True):
    alpha, sigma = ends_of(curve)[1]
    exact = np.array(moments(MODELS[model], sigma / alpha))
    mean, std = np.mean(u), np.std(u)
    kurtosis = np.mean((u - mean)**4) / std**4
    errors = np.array([std, 0.5 * std * np.sqrt(kurtosis - 1.0),
                       np.sqrt(exact[2] * (1.0 - exact[2]))]) / np.sqrt(u.size)
    off = np.array([mean, std, np.mean(u > 0.0)]) - exact
    allowed = 4.0 * errors + tolerance * np.array([exact[1], exact[1], 1.0])
    detail = {'steps': [steps], 'n': u.size}
    for quantity, deviation, error in zip(('mean', 'std', 'share'), off, errors, strict=True):
      detail[quantity] = {'deviation': float(deviation), 'standard_error': float(error)}
    out.append((curve, model, None, None, np.all(np.abs(off) <= allowed), detail))
  return out


def certify_adaptive(make: Callable[[float], SamplerMaker], *, name: str = '',
                     factor: float = 100.0, curves: Sequence[str] = CURVES,
                     models: Sequence[str] = tuple(MODELS),
                     tolerances: Sequence[float] = (1e-3, 1e-4, 1e-5)) -> list[CertificateRow]:
  """Certifies an adaptive sampler: its error is less than `factor` times its tolerance, and falls.

  A tolerance limits the error of one step.  Errors of steps add up, and the flow of the mixture
  separates points between its modes.  So the claim has a factor.

  make(tolerance)(denoise, process) is a Sampler that takes a single step from noise to data.  The
  data are of about unit size.
  """
  name = name or getattr(make, '__name__', 'sampler')
  flows = [_flow(make(tolerance), curves, models, np.array([[1.0, 0.0]]))
           for tolerance in tolerances]
  rows = []
  for i, (curve, model) in enumerate(flows[0][0]):
    errors = np.array([error[i, 0] for _, error in flows])
    fine = (errors <= factor * np.array(tolerances)).all() and errors[-1] < errors[0]
    rows.append(CertificateRow(name, curve, model, 'tolerance', None, None, None, bool(fine),
                    {'tolerances': list(tolerances), 'errors': errors.tolist()}))
  return rows


def certify_exact(make: SamplerMaker, *, name: str = '', curves: Sequence[str] = ('ends',),
                  models: Sequence[str] = ('gaussian',), tolerance: float = 1e-10
                  ) -> list[CertificateRow]:
  """Certifies a sampler whose one step, from t = 1 to t = 0, is the whole flow of its data.

  By default the data are normal and the process is the rectified flow.  The distance to the exact
  flow must not exceed `tolerance`.

  If the sampler states a wrong number of evaluations, no row passes.
  """
  name = name or getattr(make, '__name__', 'sampler')
  evaluations, exact_count = _evaluations(make)
  cases, error = _flow(make, curves, models, np.array([[1.0, 0.0]]))
  return [CertificateRow(name, curve, model, 'exact', None, None, evaluations,
                         bool(off <= tolerance and exact_count),
                         {'error': float(off), 'evaluations_exact': exact_count})
          for (curve, model), off in zip(cases, error[:, 0], strict=True)]


# ------------------------------------------------------------ and comparisons


def largest_deviation(row: CertificateRow) -> float:
  """For a row of moments: the larger error of mean and standard deviation, in standard deviations.
  """
  std = moments(MODELS[row.model], 0.0)[1]
  return max(abs(row.detail[moment]['deviation']) for moment in ('mean', 'std')) / std


def equality(name: str, makes: Sequence[SamplerMaker], *, tolerance: float = 1e-12,
             curves: Sequence[str] = CURVES, steps: int = 12) -> list[CertificateRow]:
  """Certifies that samplers are equal by theory: the same z, keys and grid give the same sample.

  The largest difference, over z of unit size, must not exceed `tolerance`.
  """
  with jax.enable_x64(True):
    cases = _cases(curves, ['mixture'])
    times = jnp.asarray(alternating_grid(steps))

    @jax.jit
    @jax.vmap
    def run(curve, data):
      process = process_of(curve)
      z = jnp.linspace(-2.0, 2.0, 8)[:, None] * process(1.0).sigma
      keys = jax.random.split(random.key(0), len(z))
      out = [samplers.sample(make(ExactDenoiser(data), process), keys, z, times) for make in makes]
      return jnp.stack(out) / process(0.0).alpha

    out = np.asarray(run(*_stack(cases)))
  rows = []
  for (curve, model), got in zip(cases, out, strict=True):
    difference = float(np.abs(got - got[:1]).max())
    rows.append(CertificateRow(name, curve, model, 'equality', None, None, None,
                    difference <= tolerance, {'difference': difference}))
  return rows
