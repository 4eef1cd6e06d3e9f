"""What a name in `--estimates` means.

  vlb                    the bound in continuous time
  vlb@T                  the bound of the chain of T steps, with the variance of q(z_s | z_t, x);
  vlb@T/large            of q(z_t | z_s); /learned: the network's own; /analytic: the optimal one
  vlb@T/ddpm             whose first step ends in the data, by a discretised normal: the decoder of
                         DDPM, and with vlb@T/learned/ddpm of IDDPM
  iw@KxT, iw@KxT/...     the importance-weighted bound of K whole paths of such a chain
  ode                    the likelihood of the probability flow, by an adaptive method; data enter
                         it through the model's decoder
  ode/uniform            through uniform noise inside of each bin; /truncated_normal;
                         /variational: noise that was learned with the model
  ode@N, ode@N/...       by N steps of a fixed size, whose error nothing controls
  immse                  the curve of the mean square error, by the I-MMSE relation

What kind of number each is.  vlb, vlb@T and iw are upper bounds on the negative log-likelihood of
the reverse SDE, or of the chain.  An ode row is an upper bound on that of the probability flow,
another model unless the score is exact, but for the error of its steps: one of fixed steps is only
an estimate.  No row is the likelihood itself: discrete data reach continuous latents at the cost of
a divergence, by any decoder and any dequantiser, which more draws (--importance, in the name of the
row) reduce.  But log-densities with Hutchinson's noise in them bound nothing inside of a logarithm
of a mean: with --importance above 1 they are only an estimate.  So is immse.

iw with /large or /learned has heavy-tailed weights.  Where the variance of p(z_s | z_t) is r times
that of q(z_s | z_t, x), E_q (p / q)^2 is the integral of p^2 / q, infinite for r >= 2: steps are so
long near the data, or where there are few of them.  A bound it stays, in expectation; but no number
of paths that one can draw comes near that expectation, and the standard error does not show it.  So
fewer than 10 steps are refused, and the rows of more say it.
"""
import math
import re
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import dequantisers, random
from vdm_jax.decoders import DiscretisedNormal, bits_per_dim
from vdm_jax.errors import InputError, require_at_least
from vdm_jax.likelihood import bounds, immse, ledger, ode, paths
from vdm_jax.likelihood.gaussian import Moments
from vdm_jax.likelihood.passes import Estimator, over_images
from vdm_jax.likelihood.relations import Measured
from vdm_jax.objectives import vlb
from vdm_jax.samplers.analytic import Variances
from vdm_jax.typing import Model, PyTree

FEWEST_WIDE = 10  # steps of paths whose variances are larger than those of q
_T = TypeVar('_T')
MOST_EXACT = 256  # dimensions of which the exact trace is affordable
PROBES = ('rademacher', 'gaussian', 'exact')
_VARIANCES, _DEQUANTISERS = 'large|learned|analytic', 'uniform|truncated_normal|variational'
_CHAIN = rf'(/(?P<variance>{_VARIANCES}))?(?P<ddpm>/ddpm)?'
_FORMS = [re.compile(form, re.ASCII) for form in (
    rf'(?P<family>vlb)(@(?P<steps>\d+){_CHAIN})?',
    rf'(?P<family>iw)@(?P<paths>\d+)x(?P<steps>\d+){_CHAIN}',
    rf'(?P<family>ode)(@(?P<steps>\d+))?(/(?P<dequantiser>{_DEQUANTISERS}))?',
    r'(?P<family>immse)')]
ACCEPTED = (f'vlb, vlb@T[/{_VARIANCES}][/ddpm], iw@KxT[/{_VARIANCES}][/ddpm], '
            f'ode[@N][/{_DEQUANTISERS}], immse (whole numbers T, K, N from 1)')


class Estimate(NamedTuple):
  """A name of `--estimates`, read."""
  name: str
  family: str                # vlb, iw, ode or immse
  steps: int | None = None   # T of a chain, N of the flow; None: continuous time, adaptive
  paths: int | None = None
  variance: str | None = None     # of a chain; None: small
  dequantiser: str | None = None  # of the flow; None: the model's decoder
  ddpm: bool = False              # the decoder of DDPM ends the chain


class Options(NamedTuple):
  """What the flags say of all estimates."""
  times: int = 32            # draws of the time, for an image
  importance: int = 1        # draws of a dequantiser
  tolerance: float = 1e-5    # of the adaptive method, absolute and relative
  probes: int = 1
  probe: str = 'rademacher'
  start: float | None = None  # where the flow ends and one Gaussian step begins; None: at t = 0


class Found(NamedTuple):
  """What was read from the training split for some of the estimates."""
  moments: Moments | None = None      # for immse
  variances: Variances | None = None  # for /analytic


def parse(names: Sequence[str]) -> list[Estimate]:
  """Each name once, in order; 'vlb', of which the pictures are, first.  Raises InputError."""
  return list(dict.fromkeys(map(_parse, ('vlb', *names))))


def _parse(name: str) -> Estimate:
  found = next(filter(None, (form.fullmatch(name) for form in _FORMS)), None)
  if found is None:
    raise InputError(f'--estimates: {name!r} is none of {ACCEPTED}.')
  fields = found.groupdict()
  number = lambda field: int(fields[field]) if fields.get(field) is not None else None
  estimate = Estimate(name, fields['family'], number('steps'), number('paths'),
                      fields.get('variance'), fields.get('dequantiser'), bool(fields.get('ddpm')))
  if any(n is not None and n < 1 for n in (estimate.steps, estimate.paths)):
    raise InputError(f'--estimates: {name!r} has a number below 1; accepted are {ACCEPTED}.')
  if estimate.ddpm and estimate.steps == 1:
    raise InputError(f'--estimates: {name!r}: a chain that ends in the data has 2 steps or more.')
  if (estimate.family == 'iw' and estimate.variance in ('large', 'learned')
      and (estimate.steps or 0) < FEWEST_WIDE):
    raise InputError('estimates', name, 'the weights of paths of so few steps have heavy tails '
                     'under this variance, and no useful mean', f'take {FEWEST_WIDE} steps or '
                     f'more, or iw@{estimate.paths}x{estimate.steps}')
  return estimate


def of_chain(asked: Sequence[Estimate], options: Options, model: Model, batch: PyTree, steps: int
             ) -> list[Estimate]:
  """What is asked of a chain that begins at the data, where log-SNR is infinite: its bound first.

  That takes the place of 'vlb', which has no value there: vlb@T/large/ddpm, as DDPM has it, or
  vlb@T/learned/ddpm where the network has variances.  Raises InputError for what has no value
  there either.
  """
  own = _parse(f'vlb@{steps}/' + ('learned' if 'v' in heads(model, batch) else 'large') + '/ddpm')
  rest = [estimate for estimate in asked if estimate.name != 'vlb']
  for estimate in rest:
    if not (estimate.ddpm or estimate.family == 'ode' and options.start is not None):
      raise InputError(f'--estimates={estimate.name}: this model begins at the data themselves, '
                       f'where that has no value; ask for {own.name}, or for ode with --ode_start.')
  return list(dict.fromkeys([own, *rest]))


def check_options(options: Options) -> None:
  """Raises InputError by the name of the flag."""
  for name in ('times', 'importance', 'probes'):
    require_at_least(name, getattr(options, name))
  if not 0.0 < options.tolerance < 1.0:
    raise InputError(f'--ode_tolerance={options.tolerance:g}: between 0 and 1, 1e-5 say.')
  if options.probe not in PROBES:
    raise InputError(f'--probe={options.probe}: choose {", ".join(PROBES)}.')
  if options.start is not None and not 0.0 < options.start < 1.0:
    raise InputError(f'--ode_start={options.start:g}: a time between 0 and 1, 1e-3 say.')


def check_model(asked: Sequence[Estimate], options: Options, model: Model, batch: PyTree) -> None:
  """Raises InputError, with the remedy, for what this model cannot have.  Nothing is computed.

  batch: of any size, as of its data.
  """
  dimensions = math.prod(model.shape)
  if options.probe == 'exact' and dimensions > MOST_EXACT and any(e.family == 'ode' for e in asked):
    raise InputError(f'--probe=exact: every evaluation would take {dimensions} products of the '
                     f'Jacobian, above {MOST_EXACT}; choose rademacher.')
  for estimate in asked:
    whole = estimate.family in ('iw', 'immse') or estimate.variance == 'analytic'
    refuse = lambda why, name=estimate.name: InputError(f'--estimates={name}: {why}')
    if estimate.family == 'ode':
      if model.latent is not None:
        raise refuse('this model has latents of its own, and so no density of one flow; ask for '
                     'vlb.')
      if model.bound is not None and model.dequantise is None:
        # DiffEnc's, e.g.: the drift of its encoder would enter the flow by half.
        raise refuse('this model has a bound of its own, of which its denoiser alone is no '
                     'probability flow; ask for vlb.')
    elif model.bound is not None and (estimate.family != 'vlb' or estimate.variance
                                      or estimate.ddpm):
      raise refuse('this model has a bound of its own; ask for vlb, or for vlb@T if it has one of '
                   'T steps.')
    elif whole and level_axes(model):
      raise refuse('this model has a log-SNR of its own for every pixel; ask for vlb or vlb@T.')
    if estimate.dequantiser == 'variational' and model.dequantise is None:
      raise refuse('this model has no dequantiser of its own; train one with it '
                   '(configs/systems.py:dequantised), or ask for ode/uniform.')
    if estimate.variance == 'learned' and 'v' not in heads(model, batch):
      raise refuse("this model's network has no head for the variance; train one "
                   '(configs/systems.py:iddpm_hybrid), or ask for another variance.')


def level_axes(model: Model) -> int:
  """How many axes of the data the log-SNR at one time has: 0 if it is that of all pixels."""
  return jax.eval_shape(model.process, jnp.zeros(1)).logsnr.ndim - 1


def heads(model: Model, batch: PyTree) -> dict:
  """The shapes of Estimate.extra by name, {} where there is none.  Nothing is computed."""
  def denoise(batch):
    x = model.encode(batch['image'])
    return model.denoise(x, model.process(jnp.full(len(x), 0.5)), model.cond(batch)).extra
  return jax.eval_shape(denoise, batch) or {}


# ------------------------------------------------------------------- estimators


def width(estimate: Estimate, options: Options, shape: tuple[int, ...], batch_size: int) -> int:
  """How many examples of the network an image makes at a time."""
  if estimate.family == 'ode':
    return options.importance * (math.prod(shape) if options.probe == 'exact' else options.probes)
  if estimate.paths is not None:  # a divisor of it
    return max(k for k in range(1, min(batch_size, estimate.paths) + 1) if not estimate.paths % k)
  return options.times + estimate.ddpm  # the first step of such a chain beside them


def estimator(estimate: Estimate, options: Options, shape: tuple[int, ...], levels: int,
              batch_size: int, found: Found) -> Estimator:
  """The estimator of this name."""
  if estimate.family == 'ode':
    def of_flow(model, batch, keys):
      flow = ode.estimator(
          _dequantiser(estimate.dequantiser, model, levels), rtol=options.tolerance,
          atol=options.tolerance, probes=options.probes, probe=options.probe,
          steps=estimate.steps or 0, importance=options.importance, start=options.start)
      return flow(model, batch, keys)

    return of_flow
  if estimate.family == 'immse':
    return immse.estimator(_read(found.moments), options.times)
  kernel: dict[str, Any] = {}
  if estimate.variance:
    kernel['variance'] = (vlb.fixed_large if estimate.variance == 'large' else
                          vlb.learned if estimate.variance == 'learned' else
                          bounds.analytic_variance(_read(found.variances)))
  if estimate.ddpm:
    kernel['last'] = DiscretisedNormal(levels).log_prob
  if estimate.paths is not None and estimate.steps is not None:  # iw
    return paths.importance_weighted(estimate.paths, estimate.steps, **kernel,
                                     at_once=width(estimate, options, shape, batch_size))
  return bounds.at_times(estimate.steps or 0, options.times, **kernel)


def _read(found: _T | None) -> _T:
  if found is None:
    raise ValueError('what this estimate needs of the training split was not read')
  return found


def _dequantiser(name: str | None, model: Model, levels: int) -> dequantisers.Dequantiser | None:
  if name == 'uniform':
    return dequantisers.uniform(levels)
  if name == 'truncated_normal':
    return dequantisers.truncated_normal(levels, model.process(jnp.zeros(())))
  return model.dequantise if name else None


def about(estimate: Estimate, options: Options, dequantised: bool = False) -> dict:
  """What a row of the ledger says of its estimate beside its numbers; None: it does not apply.

  dequantised: the model has a dequantiser of its own, which its bound includes.
  """
  flow, chain = estimate.family == 'ode', estimate.family in ('vlb', 'iw') and estimate.steps
  noisy = options.probe != 'exact'
  only_estimate = (estimate.family == 'immse'
                   or flow and (estimate.steps or noisy and options.importance > 1))
  own = dequantised and estimate.family == 'vlb'
  # Settings that are another number stand in its name, so that no two are put into one column.
  name = estimate.name
  if flow and options.importance > 1:
    name += f' x{options.importance}'
  if flow and options.start is not None:
    name += f' from {options.start:g}'
  return {
      'estimate': name,
      'family': estimate.family,
      'kind': 'estimate' if only_estimate else 'upper bound',
      'model': 'probability flow' if flow else 'chain' if chain else 'reverse SDE',
      'steps': estimate.steps,
      'paths': estimate.paths,
      'variance': (estimate.variance or 'small') if chain else None,
      'schedule': None,  # the model's own
      'decoder': ('discretised normal' if estimate.ddpm else
                  'normal, of the dequantised' if own or estimate.dequantiser and options.start else
                  None if estimate.dequantiser else 'of the model'),
      'dequantiser': 'of the model' if own else estimate.dequantiser,
      'importance': options.importance if flow else None,
      'start': options.start if flow else None,
      'tolerance': options.tolerance if flow and not estimate.steps else None,
      'error_beside': (  # what the standard errors do not show
          'that of heavy-tailed weights, where a step at least doubles the variance of q'
          if estimate.family == 'iw' and estimate.variance in ('large', 'learned') else
          None if not flow else f'that of {estimate.steps} fixed steps, not controlled' if
          estimate.steps else f'that of the adaptive steps, tolerance {options.tolerance:g}'),
      'probe': options.probe if flow else None,
      'probes': options.probes if flow and noisy else None,
      'times_per_image': options.times if estimate.family in ('vlb', 'immse') else None,
  }


_TERMS = ('dequantisation', 'auxiliary', 'reconstruction', 'latent', 'diffusion', 'reference')


def _key(estimate: Estimate, seed: int) -> jax.Array:
  """Of all draws: one for each family, and for each number of steps of a chain.

  The same for variances of one chain, for schedules of one bound and for all ways of the flow:
  their differences have less noise.  Others are independent, so that one checks the other.
  """
  family = 0 if estimate.family == 'vlb' else zlib.crc32(estimate.family.encode())
  key = random.key(seed)
  key = jax.random.fold_in(key, family) if family else key
  return jax.random.fold_in(key, 0 if estimate.family == 'ode' else estimate.steps or 0)


class _Clock:
  """A split that remembers when it was read: a pass reads once for each of its batches."""

  def __init__(self, split):
    self.split, self.reads = split, []

  def __len__(self):
    return len(self.split)

  def get(self, rows):
    self.reads.append((time.perf_counter(), len(np.unique(rows))))
    return self.split.get(rows)

  def read(self) -> dict:
    """Speed is that after the first batch, which compiles; None where there is no other."""
    end, (start, _), later = time.perf_counter(), self.reads[0], self.reads[1:]
    speed = sum(n for _, n in later) * jax.process_count() / (end - later[0][0]) if later else None
    return {'seconds': end - start, 'images_per_second': speed}


def measure(estimate: Estimate, options: Options, model: Callable[[PyTree], Model], params: PyTree,
            split, *, shape: tuple[int, ...], levels: int, found: Found, seed: int = 0,
            repeats: int = 1, batch_size: int = 512, count: int | None = None,
            given: dict | None = None, progress: bool = True) -> Measured:
  """The estimate on each of the first `count` (default: all) images of `split`.

  model: params -> Model; split: `len`, and `get(rows)` -> batch; shape, levels: of the data; given:
  more of the row, or other.  Draws belong to (seed, repetition, image), whatever else is asked.
  Raises InputError where a result is not finite.
  """
  row = about(estimate, options, model(params).dequantise is not None) | (given or {})
  # What was read from data is an argument of the program, as parameters are, and no constant in it.
  needed = Found(found.moments if estimate.family == 'immse' else None,
                 found.variances if estimate.variance == 'analytic' else None)

  def run(of, batch, keys):
    of, needed = of
    return estimator(estimate, options, shape, levels, batch_size, needed)(of, batch, keys)

  clock = _Clock(split)
  out = over_images(run, lambda both: (model(both[0]), both[1]), (params, needed), clock,
                    _key(estimate, seed), label=row['estimate'], repeats=repeats, count=count,
                    at_once=batch_size // width(estimate, options, shape, batch_size),
                    progress=progress)
  bad = np.flatnonzero(~np.isfinite(out['nats']).all(axis=0))
  if len(bad):
    remedy = ('choose another --ode_tolerance, or a number of steps, ode@100'
              if estimate.family == 'ode' else 'choose another --step or --average')
    raise InputError(f'--estimates: {row["estimate"]} is not finite on {len(bad)} images, the '
                     f'first of them number {bad[0]}; {remedy}.')
  last = len(_TERMS)  # `jit` has sorted the names
  nats = {name: out[name] for name in sorted(
      out, key=lambda name: _TERMS.index(name) if name in _TERMS else last)
      if out[name].ndim == 2 and name != 'evaluations'}
  bits = {'total': bits_per_dim(nats.pop('nats'), shape),
          **{name: bits_per_dim(u, shape) for name, u in nats.items()}}
  draws = None
  if 'draws' in out:
    draws = bounds.BoundSamples(nats, out['logsnr'], out['draws'], estimate.steps or 0)
  return Measured(ledger.row(row | clock.read(), bits, out['evaluations']), bits, draws)
