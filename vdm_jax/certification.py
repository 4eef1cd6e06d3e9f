"""Does a sampler do what it claims?  Judged against closed forms, on every curve.

The data are one-dimensional: N(m, s^2), and a mixture of two normals.  There the probability flow
keeps quantiles, so its exact map is known for both; and so are all marginals.

A deterministic sampler claims an *order*: on grids of N steps its distance to the exact flow is
C N^-order.  The slope of log error against log N is measured over several N in float64.  The
steps of the grids alternate between short and long, at every N: on evenly spaced or smoothly
graded grids a multistep method that forgets the ratio of its steps keeps its order.  For orders
above 2 the first step is shortened (`grids.warm_up`), since a multistep method begins with order 1.

An *adaptive* sampler claims an accuracy: its distance to the exact flow, at its tolerance.

A stochastic sampler claims the *moments* of the marginal at the end of its grid: mean, standard
deviation, and the share of the upper half of the mixture, each within four standard errors and a
stated tolerance for the steps being finite.  It starts from the exact marginal.

The process called `ends` runs from pure noise (alpha = 0) to pure data (sigma = 0), where logsnr
is infinite.  Methods in logsnr step over the two ends by their first-order formula, so what they
claim there is first order; the network is never to be used at sigma = 0, and gives NaN there.
"""
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from vdm_jax import processes, random, samplers, schedules
from vdm_jax.decoders import sum_over_data
from vdm_jax.samplers.grids import warm_up
from vdm_jax.typing import Array, Denoiser, Estimate, Level, Process, PyTree, Sampler, value

Make = Callable[[Denoiser, Process], Sampler]

LOGSNR_MAX, LOGSNR_MIN = 3.0, -2.5  # where neither curve nor data is nearly linear
_ON = functools.partial(processes.GaussianProcess, schedules.Linear(LOGSNR_MAX, LOGSNR_MIN))
# Four curves between two finite levels, and straight lines from alpha = 0 to sigma = 0.
PROCESSES: dict[str, Process] = {
    'vp': _ON(processes.vp), 've': _ON(processes.ve), 'flow': _ON(processes.flow),
    'sub_vp': _ON(processes.sub_vp),
    'ends': processes.from_alpha_sigma(lambda t: 1.0 - t, lambda t: t),
}
CURVES = tuple(PROCESSES)
FINITE = CURVES[:-1]


class Data(NamedTuple):
  """Two normals on the line.  Equal ones are a single normal: one program serves both models."""
  weights: tuple[float, float]
  means: tuple[float, float]
  stds: tuple[float, float]


MODELS = {'gaussian': Data((0.5, 0.5), (0.3, 0.3), (0.7, 0.7)),
          'mixture': Data((0.4, 0.6), (-0.8, 0.6), (0.15, 0.3))}
STEPS = (40, 80, 160, 320, 640)


class Row(NamedTuple):
  """One line of the certificate."""
  sampler: str
  curve: str
  model: str
  kind: str                        # 'order', 'accuracy', 'moments' or 'equality'
  claimed_order: float | None
  measured_order: float | None     # slope over the last four numbers of steps
  evaluations_per_step: int | None
  passed: bool
  detail: dict                     # errors by number of steps; deviations and standard errors


# ------------------------------------------------------------------ exact


def _cdf(u, data: Data, c: float):
  """P(z_t / alpha_t <= u) where sigma_t / alpha_t = c."""
  return sum(w * special.ndtr((u - m) / np.hypot(s, c))
             for w, m, s in zip(*data, strict=True))


def quantiles(probability: np.ndarray, data: Data, alpha: float, sigma: float) -> np.ndarray:
  """Of the marginal of z where z = alpha x + sigma eps, by bisection.  probability: [B]."""
  if alpha == 0.0:
    return sigma * special.ndtri(probability)
  c = sigma / alpha
  low, high = np.full_like(probability, -40.0), np.full_like(probability, 40.0)
  for _ in range(100):
    middle = 0.5 * (low + high)
    below = _cdf(middle, data, c) < probability
    low, high = np.where(below, middle, low), np.where(below, high, middle)
  return alpha * low


def _moments(data: Data, c: float) -> tuple[float, float, float]:
  """(mean, std, share above 0) of z_t / alpha_t."""
  w, m, s = map(np.asarray, data)
  mean = np.sum(w * m)
  return mean, np.sqrt(np.sum(w * (s**2 + m**2)) - mean**2 + c**2), 1.0 - _cdf(0.0, data, c)


# ------------------------------------------------------------------ grids


def alternating_grid(steps: int) -> np.ndarray:
  """Times [steps + 1] from 1 to 0 whose steps are short and long in turn, 1 : 2."""
  widths = np.where(np.arange(steps) % 2 == 0, 1.0, 2.0)
  times = 1.0 - np.concatenate([[0.0], np.cumsum(widths) / np.sum(widths)])
  times[-1] = 0.0
  return times


# ---------------------------------------------------------------- running


@value
class Oracle:
  """The exact denoiser of data whose dimensions are independent, each of this distribution.

  With all that a method may ask for beside: the heads of learned variances in `extra`, log q(z_t),
  and data.  NaN at sigma = 0.
  """
  data: Data

  def _parts(self, z, level):
    """Of the two normals, on a last axis: shares of z, deviation from the mean, variance of z."""
    level = jax.tree.map(lambda u: u[..., None], level.expand(z))
    w, m, s = map(jnp.asarray, self.data)
    deviation = z[..., None] - level.alpha * m
    variance = jnp.square(level.alpha * s) + jnp.square(level.sigma)
    log_joint = jnp.log(w) - 0.5 * (jnp.square(deviation) / variance
                                    + jnp.log(2.0 * jnp.pi * variance))
    return log_joint, deviation, variance, level, m, s

  def __call__(self, z: Array, level: Level, cond: PyTree = None) -> Estimate:
    log_joint, deviation, variance, level, m, s = self._parts(z, level)
    share = jnp.where(level.sigma > 0.0, jax.nn.softmax(log_joint, axis=-1), jnp.nan)
    mean = lambda u: jnp.sum(share * u, axis=-1)
    x, eps = m + level.alpha * s**2 * deviation / variance, level.sigma * deviation / variance
    square = mean(jnp.square(eps) + jnp.square(level.alpha * s) / variance)
    extra = {'eps_sq': square, 'residual_sq': square - jnp.square(mean(eps)),
             'v': -jnp.ones_like(z)}
    return Estimate(mean(x), mean(eps), extra)

  def log_prob(self, z: Array, level: Level) -> Array:
    """log q(z_t) in nats, [B]."""
    return sum_over_data(jax.nn.logsumexp(self._parts(z, level)[0], axis=-1))

  def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
    """Data x of this shape."""
    which, normal = jax.random.split(key)
    first = jax.random.uniform(which, shape) < self.data.weights[0]
    either = lambda pair: jnp.where(first, pair[0], pair[1])
    return either(self.data.means) + either(self.data.stds) * jax.random.normal(normal, shape)


def _process(number: Array) -> Process:
  """The process of this number in PROCESSES: a value, so that one program serves all."""
  def process(t):
    levels = [process(t) for process in PROCESSES.values()]
    return jax.tree.map(lambda *fields: jnp.stack(fields)[number], *levels)
  return process


def _ends(curve: str) -> tuple[tuple[float, float], tuple[float, float]]:
  """(alpha, sigma) at t = 1 and at t = 0."""
  levels = [PROCESSES[curve](jnp.asarray(t)) for t in (1.0, 0.0)]
  return tuple((float(level.alpha), float(level.sigma)) for level in levels)


def count_evaluations(make: Make, steps: int = 8) -> int:
  """How often a run of so many steps calls the denoiser, read off the traced program."""
  @jax.jit
  def counted_denoiser(z, level):
    return Oracle(MODELS['gaussian'])(z, level)

  class Counted(Oracle):
    def __call__(self, z, level, cond=None):
      return counted_denoiser(z, level)

  def run(z, times):
    sampler = make(Counted(MODELS['gaussian']), _process(jnp.asarray(0)))
    return samplers.sample(sampler, jax.random.split(jax.random.key(0), len(z)), z, times)

  def calls(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
      if equation.params.get('name') == 'counted_denoiser':
        total += 1
        continue
      inner = sum(calls(getattr(u, 'jaxpr', u)) for value in equation.params.values()
                  for u in (value if isinstance(value, (tuple, list)) else (value,))
                  if hasattr(u, 'eqns') or hasattr(getattr(u, 'jaxpr', None), 'eqns'))
      if inner and equation.primitive.name == 'while':
        raise ValueError('the denoiser is called in a loop whose length depends on values')
      total += inner * equation.params.get('length', 1)
    return total

  times = jnp.linspace(1.0, 0.0, steps + 1)
  return calls(jax.make_jaxpr(run)(jnp.ones((2, 4)), times).jaxpr)


def _evaluations(make: Make) -> tuple[int, bool]:
  """(what the sampler states for a step, whether that is what it does)."""
  stated = []

  def noting(denoise, process):
    sampler = make(denoise, process)
    stated.append(sampler.evaluations)
    return sampler

  steps = 8
  counted = count_evaluations(noting, steps)
  return stated[0], counted == steps * stated[0]


def _cases(curves, models):
  return [(curve, model) for model in models for curve in curves]


def _stack(cases):
  """(number of the curve [cases], Data of arrays [cases, 2])."""
  numbers = jnp.array([CURVES.index(curve) for curve, _ in cases])
  return numbers, Data(*map(jnp.array, zip(*(MODELS[model] for _, model in cases), strict=True)))


# ------------------------------------------------------------- what it judges


def certify(make: Make, order: float | None = None, *, name: str = '',
            curves: Sequence[str] = CURVES, models: Sequence[str] = tuple(MODELS),
            steps: Sequence[int] | None = None, tolerance: float | None = None,
            grid: Callable[[int], np.ndarray] | None = None) -> list[Row]:
  """Certifies a sampler, `make(denoise, process)`: a Row for each curve and each model.

  order: the claimed order of a deterministic sampler (the slope must not fall short of it by more
  than `tolerance`, 0.15 by default); None for a stochastic one, which is judged by its moments
  (each within four standard errors and `tolerance`, 0.02 of a standard deviation by default).
  steps: the numbers of steps, at least four for an order, one for moments.  grid: of an order
  that is claimed on some grids only, n -> times [n + 1]; short and long steps in turn by default.

  The number of evaluations that the sampler states must be exact, or no row passes.
  """
  name = name or getattr(make, '__name__', 'sampler')
  evaluations, exact_count = _evaluations(make)
  if order is None:
    judged = _judge_moments(make, curves, models, 100 if steps is None else steps[0],
                            0.02 if tolerance is None else tolerance)
  else:
    judged = _judge_order(make, order, curves, models, steps or STEPS,
                          0.15 if tolerance is None else tolerance, grid or alternating_grid)
  kind = 'moments' if order is None else 'order'
  return [Row(name, curve, model, kind, claimed, slope, evaluations,
              bool(passed and exact_count), {**detail, 'evaluations_exact': exact_count})
          for curve, model, claimed, slope, passed, detail in judged]


def _flow(make, curves, models, grids):
  """Distances to the exact flow, root mean square over quantiles: [cases, grids], of each case."""
  probability = np.linspace(0.05, 0.95, 7)
  cases = _cases(curves, models)
  with jax.enable_x64(True):
    ends = [(MODELS[model], *_ends(curve)) for curve, model in cases]
  start = np.array([quantiles(probability, data, *first) for data, first, _ in ends])
  exact = np.array([quantiles(probability, data, *last) / last[0] for data, _, last in ends])

  @jax.jit
  @functools.partial(jax.vmap, in_axes=(0, 0, 0, None))
  @functools.partial(jax.vmap, in_axes=(None, None, None, 0))
  def run(curve, data, z, times):
    process = _process(curve)
    keys = jax.random.split(jax.random.key(0), len(z))
    z = samplers.sample(make(Oracle(data), process), keys, z[:, None], times)
    return z[:, 0] / process(0.0).alpha

  with jax.enable_x64(True):
    got = np.asarray(run(*_stack(cases), jnp.asarray(start), jnp.asarray(grids)))
  return cases, np.sqrt(np.mean((got - exact[:, None])**2, axis=-1))


def _judge_order(make, order, curves, models, steps, tolerance, grid):
  """(curve, model, claimed order, slope, passed, detail) of every case."""
  if len(steps) < 4:
    raise ValueError(f'steps {tuple(steps)}: a slope takes at least four numbers of steps.')
  with jax.enable_x64(True):
    grids = [np.asarray(warm_up(np.pad(grid(n), (0, max(steps) - n)), int(order))) for n in steps]
  cases, error = _flow(make, curves, models, np.stack(grids))
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


def _judge_moments(make, curves, models, steps, tolerance, n=128, dims=128):
  """The same, of n draws of `dims` independent dimensions: some methods look at their norm."""
  cases = _cases(curves, models)

  def run(case):
    curve, data, key = case
    process = _process(curve)
    keys = random.per_example(key, jnp.arange(n))
    level = process(1.0)
    x = Oracle(data).draw(jax.random.fold_in(key, n), (n, dims))
    z = processes.diffuse(x, random.normal(random.stream(keys, 'z_1'), x), level)
    z = samplers.sample(make(Oracle(data), process), keys, z, jnp.linspace(1.0, 0.0, steps + 1))
    return z / process(0.0).alpha

  with jax.enable_x64(False):
    keys = jax.random.split(jax.random.key(0), len(cases))
    drawn = np.asarray(jax.jit(lambda xs: jax.lax.map(run, xs))((*_stack(cases), keys)), float)
  out = []
  for (curve, model), u in zip(cases, drawn, strict=True):
    alpha, sigma = _ends(curve)[1]
    exact = np.array(_moments(MODELS[model], sigma / alpha))
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


def accuracy(make: Make, error: float, *, name: str = '', curves: Sequence[str] = CURVES,
             models: Sequence[str] = tuple(MODELS)) -> list[Row]:
  """Certifies an adaptive sampler: within `error` of the exact flow, data being of size 1.

  `make` gives a Sampler that takes the one step from noise to data.
  """
  name = name or getattr(make, '__name__', 'sampler')
  cases, errors = _flow(make, curves, models, np.array([[1.0, 0.0]]))
  return [Row(name, curve, model, 'accuracy', None, None, None, bool(off[0] <= error),
              {'error': float(off[0]), 'claimed': error})
          for (curve, model), off in zip(cases, errors, strict=True)]


def largest_deviation(row: Row) -> float:
  """Of a row of moments: that of mean or standard deviation, in standard deviations."""
  std = _moments(MODELS[row.model], 0.0)[1]
  return max(abs(row.detail[moment]['deviation']) for moment in ('mean', 'std')) / std


def equality(name: str, makes: Sequence[Make], *, tolerance: float = 1e-12,
             curves: Sequence[str] = CURVES, steps: int = 12) -> list[Row]:
  """Samplers that are the same by theory: on the same z, keys and grid, the same sample.

  The largest difference, over z of unit size, must not exceed `tolerance`.
  """
  with jax.enable_x64(True):
    cases = _cases(curves, ['mixture'])
    times = jnp.asarray(alternating_grid(steps))

    @jax.jit
    @jax.vmap
    def run(curve, data):
      process = _process(curve)
      z = jnp.linspace(-2.0, 2.0, 8)[:, None] * process(1.0).sigma
      keys = jax.random.split(jax.random.key(0), len(z))
      out = [samplers.sample(make(Oracle(data), process), keys, z, times) for make in makes]
      return jnp.stack(out) / process(0.0).alpha

    out = np.asarray(run(*_stack(cases)))
  rows = []
  for (curve, model), got in zip(cases, out, strict=True):
    difference = float(np.abs(got - got[:1]).max())
    rows.append(Row(name, curve, model, 'equality', None, None, None,
                    difference <= tolerance, {'difference': difference}))
  return rows
