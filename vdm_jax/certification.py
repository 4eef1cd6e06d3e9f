"""Does a sampler do what it claims?  Judged against closed forms, on every curve.

The data are one-dimensional: N(m, s^2), and a mixture of two normals.  There the probability flow
keeps quantiles, so its exact map is known for both; and so are all marginals.

A deterministic sampler claims an *order*: on grids of N steps its distance to the exact flow is
C N^-order.  The slope of log error against log N is measured over several N in float64.  The
steps of the grids alternate between short and long, at every N: on evenly spaced or smoothly
graded grids a multistep method that forgets the ratio of its steps keeps its order.  For orders
above 2 the first step is shortened (`grids.warm_up`), since a multistep method begins with order 1.

An *adaptive* sampler claims that its distance to the exact flow follows its tolerance.

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
from vdm_jax.samplers import analytic
from vdm_jax.samplers.grids import uniform, warm_up
from vdm_jax.typing import Array, Denoiser, Estimate, Level, Process, PyTree, Sampler, value

__all__ = ['CURVES', 'Data', 'FINITE', 'MODELS', 'Make', 'OPTIONS', 'Oracle', 'Row', 'SCHEDULE',
           'STEPS', 'alternating_grid', 'certify', 'certify_adaptive', 'count_evaluations',
           'equality', 'largest_deviation', 'quantiles', 'with_guidance', 'with_log_prob',
           'with_variances']

Make = Callable[[Denoiser, Process], Sampler]

SCHEDULE = schedules.Linear(3.0, -2.5)  # where neither curves nor data are nearly linear
FINITE = ('vp', 've', 'flow', 'sub_vp')
CURVES = (*FINITE, 'ends')


class Data(NamedTuple):
  """Two normals on the line.  Equal ones are a single normal: one program serves both models."""
  weights: tuple[float, float]
  means: tuple[float, float]
  stds: tuple[float, float]


MODELS = {'gaussian': Data((0.5, 0.5), (0.3, 0.3), (0.7, 0.7)),
          'mixture': Data((0.4, 0.6), (-0.8, 0.6), (0.15, 0.3))}
STEPS = (40, 80, 160, 320, 640)

# Of samplers of the catalogue that the usual options of `certify` do not suit.
OPTIONS: dict[str, dict] = {
    **{name: {'curves': FINITE}  # not where logsnr is infinite
       for name in ('reverse_diffusion_flow', 'dpm_solver_12', 'dpm_solver_23')},
    'dpm_solver_fast': {'steps': (48, 96, 192, 384, 768)},  # steps of three
    'annealed_langevin': {'tolerance': 0.1},
    'denoising_mcmc': {'steps': [1], 'curves': FINITE},
    'plms': {'grid': uniform},  # its coefficients are those of equal steps
    'split_lie': {'tolerance': 0.2},
}


class Row(NamedTuple):
  """One line of the certificate."""
  sampler: str
  curve: str
  model: str
  kind: str                        # 'order', 'tolerance', 'moments' or 'equality'
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
    x_variance = mean(jnp.square(x) + jnp.square(level.sigma * s) / variance) - jnp.square(mean(x))
    extra = {'eps_sq': square, 'residual_sq': square - jnp.square(mean(eps)),
             'x_variance': x_variance, 'v': -jnp.ones_like(z)}
    return Estimate(mean(x), mean(eps), extra)

  def log_prob(self, z: Array, level: Level) -> Array:
    """log q(z_t) in nats, [B]."""
    return sum_over_data(jax.nn.logsumexp(self._parts(z, level)[0], axis=-1))

  def mean_variance(self, level: Level) -> Array:
    """E Var(x | z_t) for one dimension, by Gauss-Hermite quadrature over z_t: the shape of t."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(96)
    w, m, s = map(jnp.asarray, self.data)
    wide = jax.tree.map(lambda u: u[..., None, None], level)  # [..., node, normal]
    z = wide.alpha * m + jnp.hypot(wide.alpha * s, wide.sigma) * nodes[:, None]
    at_nodes = jax.tree.map(lambda u: jnp.broadcast_to(u, z.shape).reshape(-1, 1), wide)
    inside = self(z.reshape(-1, 1), at_nodes).extra['x_variance'].reshape(z.shape)
    return jnp.sum(w * (weights / weights.sum())[:, None] * inside, axis=(-2, -1))

  def draw(self, key: Array, shape: tuple[int, ...]) -> Array:
    """Data x of this shape."""
    which, normal = jax.random.split(key)
    first = jax.random.uniform(which, shape) < self.data.weights[0]
    either = lambda pair: jnp.where(first, pair[0], pair[1])
    return either(self.data.means) + either(self.data.stds) * jax.random.normal(normal, shape)


def _process(number: Array) -> Process:
  """The process of this number in CURVES: a value, so that one program serves all."""
  def curve(logsnr):
    either = [getattr(processes, name)(logsnr) for name in FINITE]
    return jax.tree.map(lambda *parts: jnp.stack(parts)[jnp.minimum(number, 3)], *either)

  on_curve, ends = processes.GaussianProcess(SCHEDULE, curve), processes.RectifiedFlow()
  return lambda t: jax.tree.map(lambda u, v: jnp.where(number < 4, u, v), on_curve(t), ends(t))


@functools.cache
def _ends(curve: str) -> tuple[tuple[float, float], tuple[float, float]]:
  """(alpha, sigma) at t = 1 and at t = 0."""
  with jax.enable_x64(True):
    level = jax.jit(lambda t: _process(jnp.asarray(CURVES.index(curve)))(t))(jnp.array([1.0, 0.0]))
    return tuple(zip(np.asarray(level.alpha).tolist(), np.asarray(level.sigma).tolist(),
                     strict=True))


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
    return samplers.sample(sampler, jax.random.split(random.key(0), len(z)), z, times)

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
  for given, known in ((curves, CURVES), (models, MODELS)):
    unknown = set(given) - set(known)
    if unknown:
      raise ValueError(f'{", ".join(sorted(unknown))}: choose of {", ".join(known)}.')
  return [(curve, model) for model in models for curve in curves]


def _stack(cases):
  """(number of the curve [cases], Data of arrays [cases, 2])."""
  numbers = jnp.array([CURVES.index(curve) for curve, _ in cases])
  return numbers, Data(*map(jnp.array, zip(*(MODELS[model] for _, model in cases), strict=True)))


# ------------------------------------------------------------- what it judges


def certify(make: Make, order: float | None = None, *, name: str = '',
            curves: Sequence[str] = CURVES, models: Sequence[str] = tuple(MODELS),
            steps: Sequence[int] | None = None, tolerance: float | None = None,
            grid: Callable[[int], np.ndarray] | None = None, up: bool = False, draws: int = 64
            ) -> list[Row]:
  """Certifies a sampler, `make(denoise, process)`: a Row for each curve and each model.

  order: the claimed order of a deterministic sampler (the slope must not fall short of it by more
  than `tolerance`, 0.15 by default); None for a stochastic one, which is judged by its moments
  (each within four standard errors and `tolerance`, 0.02 of a standard deviation by default).
  steps: the numbers of steps, at least four for an order, one for moments.  grid: of an order
  that is claimed on some grids only, n -> times [n + 1]; short and long steps in turn by default.
  up: judge the order of encoding, from data to noise.  draws: of 128 dimensions, for moments.

  The number of evaluations that the sampler states must be exact, or no row passes.
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
  return [Row(name, curve, model, kind, claimed, slope, evaluations,
              bool(passed and exact_count), {**detail, 'evaluations_exact': exact_count})
          for curve, model, claimed, slope, passed, detail in judged]


def _flow(make, curves, models, grids, up=False):
  """Distances to the exact flow, root mean square over quantiles: [cases, grids], of each case."""
  probability = np.linspace(0.05, 0.95, 7)
  cases = _cases(curves, models)
  ends = [(MODELS[model], *_ends(curve)) for curve, model in cases]
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
    process = _process(curve)
    keys = jax.random.split(random.key(0), len(z))
    return along(make(Oracle(data), process), keys, z[:, None], times)[:, 0]

  with jax.enable_x64(True):
    got = np.asarray(run(*_stack(cases), jnp.asarray(start), jnp.asarray(grids)))
  return cases, np.sqrt(np.mean((got - exact[:, None])**2, axis=-1)) / unit[:, None]


def _judge_order(make, order, curves, models, steps, tolerance, grid, up):
  """(curve, model, claimed order, slope, passed, detail) of every case."""
  if len(steps) < 4:
    raise ValueError(f'steps {tuple(steps)}: a slope takes at least four numbers of steps.')
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
    keys = jax.random.split(random.key(0), len(cases))
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


def certify_adaptive(make: Callable[[float], Make], *, name: str = '', factor: float = 100.0,
                     curves: Sequence[str] = CURVES, models: Sequence[str] = tuple(MODELS),
                     tolerances: Sequence[float] = (1e-3, 1e-4, 1e-5)) -> list[Row]:
  """Certifies an adaptive sampler: its error is less than `factor` times its tolerance, and falls.

  A tolerance is on the error of a step; steps add up, and the flow of the mixture drives apart what
  is between its modes: hence a factor.
  make(tolerance)(denoise, process) is a Sampler that takes the one step from noise to data.  The
  data are of about unit size.
  """
  name = name or getattr(make, '__name__', 'sampler')
  found = [_flow(make(tolerance), curves, models, np.array([[1.0, 0.0]]))
           for tolerance in tolerances]
  rows = []
  for i, (curve, model) in enumerate(found[0][0]):
    errors = np.array([error[i, 0] for _, error in found])
    fine = (errors <= factor * np.array(tolerances)).all() and errors[-1] < errors[0]
    rows.append(Row(name, curve, model, 'tolerance', None, None, None, bool(fine),
                    {'tolerances': list(tolerances), 'errors': errors.tolist()}))
  return rows


# ------------------------------------------------- what an oracle can supply


def with_log_prob(make: Callable) -> Make:
  """A sampler that takes log q(z_t) as its third argument."""
  return lambda denoise, process: make(denoise, process, denoise.log_prob)


def with_variances(make: Callable) -> Make:
  """A sampler that takes `analytic.Variances`: the exact ones, linear between 201 levels."""
  def of(denoise, process):
    level = process(jnp.linspace(0.0, 1.0, 201))
    # A level where nothing is defined: Var(x) falls as sigma^2 / alpha^2 does.
    noisy = level.sigma > 0.0
    inside = jax.tree.map(lambda u: jnp.where(noisy, u, 1.0), level)
    of_x = Oracle(denoise.data).mean_variance(inside)
    of_v = jnp.where(noisy, of_x / jax.nn.sigmoid(-inside.logsnr), 1.0)
    found = analytic.Variances(level.logsnr[::-1], of_v[::-1], jnp.zeros_like(of_v))
    return make(denoise, process, found)
  return of


def with_guidance(make: Callable) -> Make:
  """A sampler that takes a guidance: led from the standard normal to the data of the oracle.

  With the gradient of log q_oracle - log q_normal the guided flow is the oracle's own.
  """
  def of(denoise, process):
    oracle, normal = Oracle(denoise.data), Oracle(Data((0.5, 0.5), (0.0, 0.0), (1.0, 1.0)))

    def unguided(z, level, cond=None):  # the evaluations that are counted are those of this one
      return jax.tree.map(lambda own, other: own + 0.0 * other, normal(z, level),
                          denoise(z, level))

    def guidance(z, level):
      return (normal(z, level).eps - oracle(z, level).eps) / level.expand(z).sigma
    return make(unguided, process, guidance)
  return of


# ------------------------------------------------------------ and comparisons


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
      keys = jax.random.split(random.key(0), len(z))
      out = [samplers.sample(make(Oracle(data), process), keys, z, times) for make in makes]
      return jnp.stack(out) / process(0.0).alpha

    out = np.asarray(run(*_stack(cases)))
  rows = []
  for (curve, model), got in zip(cases, out, strict=True):
    difference = float(np.abs(got - got[:1]).max())
    rows.append(Row(name, curve, model, 'equality', None, None, None,
                    difference <= tolerance, {'difference': difference}))
  return rows
