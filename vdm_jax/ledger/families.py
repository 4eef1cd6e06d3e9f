"""The families of estimates, what each of their names means, and how one of your own joins them.

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
  FILE.py:NAME           an estimate of your own: see `own`

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
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import dequantisers, random
from vdm_jax.decoders import DiscretisedNormal
from vdm_jax.errors import InputError
from vdm_jax.ledger.family import ABOUT, Asked, Family, Options
from vdm_jax.likelihood import bounds, immse, ode, paths
from vdm_jax.likelihood.bounds import heads, level_axes
from vdm_jax.likelihood.passes import Estimator
from vdm_jax.machine import config_files
from vdm_jax.objectives import vlb
from vdm_jax.typing import Model, PyTree

__all__ = ['ACCEPTED', 'FAMILIES', 'IMMSE', 'IW', 'ODE', 'VLB', 'Chain', 'Flow',
           'chain_estimates', 'needs', 'own', 'parse']

FEWEST_WIDE = 10  # steps of paths whose variances are larger than those of q
MOST_EXACT = 256  # dimensions of which the exact trace is affordable
_VARIANCES, _DEQUANTISERS = 'large|learned|analytic', 'uniform|truncated_normal|variational'
_CHAIN = rf'(/(?P<variance>{_VARIANCES}))?(?P<ddpm>/ddpm)?'


def _read(form: str, name: str) -> dict[str, Any] | None:
  """The groups of a form in a name, whole numbers as such; None where it is another's name.

  Raises InputError for a number below 1.
  """
  found = re.fullmatch(form, name, re.ASCII)
  if found is None:
    return None
  fields = {field: int(text) if text and text.isdecimal() else text
            for field, text in found.groupdict().items()}
  if any(isinstance(value, int) and value < 1 for value in fields.values()):
    raise InputError('estimates', name, 'it has a number below 1', f'choose {ACCEPTED}')
  return fields


def _refused(asked: Asked, problem: str, remedy: str) -> InputError:
  return InputError('estimates', asked.name, problem, remedy)


# ------------------------------------------------------------ bounds of chains


class Chain(NamedTuple):
  """Of which chain the bound is."""
  steps: int | None = None     # T; None: continuous time
  variance: str | None = None  # None: small
  ddpm: bool = False           # the decoder of DDPM ends the chain
  paths: int | None = None     # of an importance-weighted bound


def _chain(form: str) -> Callable[[str], Chain | None]:
  def parse(name):
    fields = _read(form, name)
    if fields is None:
      return None
    chain = Chain(fields['steps'], fields['variance'], bool(fields['ddpm']), fields.get('paths'))
    if chain.ddpm and chain.steps == 1:
      raise InputError('estimates', name, 'a chain that ends in the data has 2 steps or more',
                       'take more')
    if chain.paths and _is_wide(chain) and (chain.steps or 0) < FEWEST_WIDE:
      raise InputError('estimates', name, 'the weights of paths of so few steps have heavy tails '
                       'under this variance, and no useful mean', f'take {FEWEST_WIDE} steps or '
                       f'more, or iw@{chain.paths}x{chain.steps}')
    return chain
  return parse


def _is_wide(chain: Chain) -> bool:
  return chain.variance in ('large', 'learned')


def _need_of_chain(asked, options, model, batch):
  chain = asked.settings
  if model.bound is not None and (chain.paths or chain.variance or chain.ddpm):
    raise _refused(asked, 'this model has a bound of its own', 'ask for vlb, or for vlb@T if it '
                   'has one of T steps')
  if chain.ddpm:
    _require_levels(asked, model, batch)
  if chain.paths or chain.variance == 'analytic':
    _require_one_level(asked, model)
  if chain.variance == 'learned' and 'variance' not in heads(model, batch):
    raise _refused(asked, "this model's network has no head for the variance", 'train one '
                   '(configs/systems.py:iddpm_hybrid), or ask for another variance')
  return ('variances',) if chain.variance == 'analytic' else ()


def _require_levels(asked: Asked, model: Model, batch: PyTree) -> None:
  if jnp.issubdtype(batch[model.field].dtype, jnp.floating):
    raise _without_levels(asked)


def _levels(asked: Asked, levels: int | None) -> int:
  """Those of the data.  Raises InputError of real numbers."""
  if levels is None:
    raise _without_levels(asked)
  return levels


def _without_levels(asked: Asked) -> InputError:
  return _refused(asked, 'the data are real numbers, which have no levels to be dequantised or to '
                  'end in', 'ask for vlb, vlb@T or ode')


def _require_one_level(asked: Asked, model: Model) -> None:
  if level_axes(model):
    raise _refused(asked, 'this model has a log-SNR of its own for every pixel',
                   'ask for vlb or vlb@T')


def _kernel(asked: Asked, levels: int | None, found) -> dict[str, Any]:
  """What `vlb.discrete` is to be told of the steps."""
  chain: Chain = asked.settings
  kernel: dict[str, Any] = {}
  if chain.variance:
    kernel['variance'] = (vlb.fixed_large if chain.variance == 'large' else
                          vlb.learned if chain.variance == 'learned' else
                          bounds.analytic_variance(found.variances))
  if chain.ddpm:
    kernel['last'] = DiscretisedNormal(_levels(asked, levels)).log_prob
  return kernel


def _bound(asked, options, levels, found):
  return bounds.at_times(asked.settings.steps or 0, options.times,
                         **_kernel(asked, levels, found))


def _whole_paths(asked, options, levels, found):
  chain = asked.settings
  return paths.importance_weighted(chain.paths, chain.steps, **_kernel(asked, levels, found),
                                   at_once=_paths_at_once(asked, options))


def _paths_at_once(asked, options, shape=()):
  """The largest number that the batch has room for and that divides them."""
  number = asked.settings.paths
  return max(k for k in range(1, min(options.batch_size, number) + 1) if not number % k)


def _about_chain(asked, options, dequantised):
  chain = asked.settings
  said = {'kind': 'upper bound', 'model': 'chain' if chain.steps else 'reverse SDE',
          'steps': chain.steps, 'paths': chain.paths,
          'variance': (chain.variance or 'small') if chain.steps else None,
          'decoder': 'discretised normal' if chain.ddpm else 'of the model'}
  if chain.paths:
    heavy = 'that of heavy-tailed weights, where a step at least doubles the variance of q'
    return said | {'error_beside': heavy if _is_wide(chain) else None}
  if dequantised:
    said['dequantiser'] = 'of the model'
    if not chain.ddpm:
      said['decoder'] = 'normal, of the dequantised'
  return said | {'times_per_image': options.times}


VLB = Family(
    'vlb', _chain(rf'vlb(@(?P<steps>\d+){_CHAIN})?'), _bound, _need_of_chain, _about_chain,
    # The first step of such a chain beside them.
    width=lambda asked, options, shape: options.times + asked.settings.ddpm,
    key=lambda asked, key: jax.random.fold_in(key, asked.settings.steps or 0),
    at_data=lambda asked, options: asked.settings.ddpm,
    accepts=f'vlb, vlb@T[/{_VARIANCES}][/ddpm]')

IW = Family(
    'iw', _chain(rf'iw@(?P<paths>\d+)x(?P<steps>\d+){_CHAIN}'), _whole_paths, _need_of_chain,
    _about_chain, width=_paths_at_once,
    key=lambda asked, key: asked.family.draws(key, asked.settings.steps),
    at_data=lambda asked, options: asked.settings.ddpm,
    accepts=f'iw@KxT[/{_VARIANCES}][/ddpm]')


# ---------------------------------------------------------- the probability flow


class Flow(NamedTuple):
  """How the flow is integrated, and how data enter it."""
  steps: int | None = None        # None: adaptive
  dequantiser: str | None = None  # None: the model's decoder


def _flow(name):
  fields = _read(rf'ode(@(?P<steps>\d+))?(/(?P<dequantiser>{_DEQUANTISERS}))?', name)
  return None if fields is None else Flow(**fields)


def _need_of_flow(asked, options, model, batch):
  dimensions = math.prod(model.shape)
  if options.probe == 'exact' and dimensions > MOST_EXACT:
    raise InputError('probe', 'exact', f'every evaluation would take {dimensions} products of the '
                     f'Jacobian, above {MOST_EXACT}', 'choose rademacher')
  if model.latent is not None:
    raise _refused(asked, 'this model has latents of its own, and so no density of one flow',
                   'ask for vlb')
  if model.bound is not None and model.dequantise is None:
    # DiffEnc's, e.g.: the drift of its encoder would enter the flow by half.
    raise _refused(asked, 'this model has a bound of its own, of which its denoiser alone is no '
                   'probability flow', 'ask for vlb')
  if asked.settings.dequantiser:
    _require_levels(asked, model, batch)
  if asked.settings.dequantiser == 'variational' and model.dequantise is None:
    raise _refused(asked, 'this model has no dequantiser of its own', 'train one with it '
                   '(configs/systems.py:dequantised), or ask for ode/uniform')
  return ()


def _dequantiser(asked: Asked, model: Model, levels: int | None
                 ) -> dequantisers.Dequantiser | None:
  name = asked.settings.dequantiser
  if name == 'uniform':
    return dequantisers.uniform(_levels(asked, levels))
  if name == 'truncated_normal':
    return dequantisers.truncated_normal(_levels(asked, levels), model.process(jnp.zeros(())))
  return model.dequantise if name else None


def _likelihood_of_flow(asked, options, levels, found):
  def estimate(model, batch, keys):
    estimator = ode.estimator(
        _dequantiser(asked, model, levels), rtol=options.ode_tolerance,
        atol=options.ode_tolerance, probes=options.probes, probe=options.probe,
        steps=asked.settings.steps or 0, importance=options.importance, start=options.ode_start)
    return estimator(model, batch, keys)
  return estimate


def _about_flow(asked, options, dequantised):
  steps, dequantiser = asked.settings
  noisy = options.probe != 'exact'
  # Settings that are another number stand in its name, so that no two are put into one column.
  name = asked.name + (f' x{options.importance}' if options.importance > 1 else '') + (
      '' if options.ode_start is None else f' from {options.ode_start:g}')
  return {'estimate': name,
          'kind': 'estimate' if steps or noisy and options.importance > 1 else 'upper bound',
          'model': 'probability flow', 'steps': steps,
          'decoder': ('of the model' if not dequantiser else
                      'normal, of the dequantised' if options.ode_start else None),
          'dequantiser': dequantiser, 'importance': options.importance, 'start': options.ode_start,
          'tolerance': None if steps else options.ode_tolerance,
          'error_beside': (  # what the standard errors do not show
              f'that of {steps} fixed steps, not controlled' if steps else
              f'that of the adaptive steps, tolerance {options.ode_tolerance:g}'),
          'probe': options.probe, 'probes': options.probes if noisy else None}


def _flows_at_once(asked, options, shape):
  return options.importance * (math.prod(shape) if options.probe == 'exact' else options.probes)


ODE = Family(
    'ode', _flow, _likelihood_of_flow, _need_of_flow, _about_flow, _flows_at_once,
    at_data=lambda asked, options: options.ode_start is not None,
    remedy='choose another --ode_tolerance, or a number of steps, ode@100',
    accepts=f'ode[@N][/{_DEQUANTISERS}]')


# -------------------------------------------------------------------- I-MMSE


def _need_of_immse(asked, options, model, batch):
  if model.bound is not None:
    raise _refused(asked, 'this model has a bound of its own', 'ask for vlb, or for vlb@T if it '
                   'has one of T steps')
  _require_one_level(asked, model)
  return ('moments',)


def _immse(asked, options, levels, found):
  return immse.estimator(found.moments, options.times)


IMMSE = Family(
    'immse', lambda name: () if name == 'immse' else None, _immse, _need_of_immse,
    lambda asked, options, dequantised: {
        'model': 'reverse SDE', 'decoder': 'of the model', 'times_per_image': options.times},
    width=lambda asked, options, shape: options.times,
    at_data=lambda asked, options: False, accepts='immse')

FAMILIES = VLB, IW, ODE, IMMSE
ACCEPTED = (f'{", ".join(family.accepts for family in FAMILIES)} (whole numbers T, K, N from 1), '
            'or FILE.py:NAME of your own')


# ---------------------------------------------------------------- of your own


def own(estimator: Estimator, name: str = '', *, width: int = 1,
        says: Mapping[str, Any] | None = None) -> Family:
  """The family of one function and of one name: (model, batch, keys) -> {'nats': [n], ...}.

    def mine(model, batch, keys):  # the bound from one draw of the time for each image
      t = jax.vmap(jax.random.uniform)(keys)
      nats, terms = bounds.one_draw(model, batch, t, keys)
      return {'nats': nats, **terms}

  'nats' is the estimate of -log p(image).  Other entries, [n] each, are parts that the row shows;
  'evaluations' counts the calls of the network for an image.  The function runs under `jax.jit`.
  An image's numbers depend on its own key alone, as in `likelihood.passes`.

  Its row is in the table, in ledger.json and in comparisons of runs, and is held to the range of
  bits/dim.  No other relation is claimed of it: build a `Family` with `relations` to claim one.

  Args:
    name: of the row; by default the function's.
    width: examples of the network that it makes of an image at a time.
    says: more of the row: {'kind': 'upper bound', 'model': 'chain', ...}, see `family.ABOUT`.

  Raises InputError: a function that cannot be called so, or has no name of its own.
  """
  name = name or getattr(estimator, '__name__', '')
  try:
    inspect.signature(estimator).bind(None, None, None)
  except (TypeError, ValueError):
    raise InputError('estimates', name, 'it cannot be called with (model, batch, keys)',
                     "define it so, to return {'nats': [n], ...}") from None
  if not name.isidentifier():
    raise InputError('estimates', name, 'this function has no name for its row',
                     "give one, ledger.own(function, name='mine')")
  if unknown := set(says or {}) - set(ABOUT):
    raise InputError('says', sorted(unknown), 'a row has no such fields',
                     f'choose of {", ".join(ABOUT)}')

  def check(asked, options, model, batch):
    batch = jax.tree.map(lambda u: np.repeat(u[:1], 5, axis=0), batch)
    keys = random.per_example(random.key(0), jnp.arange(5))
    _check_output(asked, jax.eval_shape(lambda batch, keys: estimator(model, batch, keys),
                                        batch, keys), 5)
    return ()

  return Family(name, lambda given: () if given == name else None,
                lambda asked, options, levels, found: estimator, check,
                lambda asked, options, dequantised: dict(says or {}),
                lambda asked, options, shape: width)


def _check_output(asked: Asked, out: Any, n: int) -> None:
  """Raises InputError unless these are the shapes of what an estimator returns of n images."""
  remedy = "return {'nats': [n], ...}, a number for each image"
  if not isinstance(out, Mapping) or 'nats' not in out:
    raise _refused(asked, "it returns no dictionary with 'nats'", remedy)
  for name, value in out.items():
    if getattr(value, 'shape', None) != (n,):
      raise _refused(asked, f'of {n} images it returns {name!r} of the shape '
                     f'{getattr(value, "shape", None)}', remedy)


def parse(estimates: Sequence[Any]) -> list[Asked]:
  """Each estimate once, in order; 'vlb', of which the pictures are, first.

  Args:
    estimates: names; 'FILE.py:NAME', where NAME is a `Family` or a function as for `own`, and may
      be followed by what the family reads in its names, 'FILE.py:mine@10'; or from Python such a
      value itself, or the `Asked` that it makes of a name.

  Raises InputError, for a name that is none, a file that has none, and two of one name.
  """
  found: dict[str, Asked] = {}
  for asked in map(_asked, ('vlb', *estimates)):
    if asked.family not in FAMILIES and asked.family.name in [of.name for of in FAMILIES]:
      raise _refused(asked, f'{asked.family.name} is a family of the library',
                     'give yours another name')
    if found.setdefault(asked.name, asked).family is not asked.family:
      raise InputError('estimates', asked.name, 'there are two estimates of this name',
                       'give one of them another')
  return list(found.values())


def _asked(estimate: Any) -> Asked:
  if isinstance(estimate, str):
    file, colon, name = estimate.rpartition(':')
    return _of_file(estimate, file, name) if colon else _named(estimate)
  if isinstance(estimate, Asked):
    return estimate
  return _family(estimate).ask()


def _named(name: str) -> Asked:
  for family in FAMILIES:
    if (settings := family.parse(name)) is not None:
      return Asked(name, family, settings)
  raise InputError('estimates', name, 'there is no such estimate', f'choose {ACCEPTED}')


def _family(estimate: Any, name: str = '', given: Any = None) -> Family:
  """A family, or that of a function.  given: what the user said, if not the value itself."""
  if isinstance(estimate, Family):
    return estimate
  if not callable(estimate):
    raise InputError('estimates', estimate if given is None else given, 'it is no estimate',
                     'give a Family, or a function of (model, batch, keys)')
  function: Any = estimate
  return own(function, name)


def _of_file(estimate: str, file: str, name: str) -> Asked:
  variable = re.split(r'\W', name, maxsplit=1)[0]
  value, _ = config_files.own('estimates', estimate, file, variable)
  family = _family(value, variable, estimate)
  return family.ask(family.name + name.removeprefix(variable))


# ------------------------------------------------------------- of which models


def needs(asked: Sequence[Asked], options: Options, model: Model, batch: PyTree) -> set[str]:
  """The names of the `Statistics` that are to be read for these.  Nothing is computed.

  batch: of any size, as of its data.  Raises InputError, with the remedy, for what this model
  cannot have.
  """
  return {name for one in asked for name in one.family.needs(one, options, model, batch)}


def chain_estimates(asked: Sequence[Asked], options: Options, model: Model, batch: PyTree
                    ) -> list[Asked]:
  """What is asked of a chain that begins at the data, where log-SNR is infinite: its bound first.

  That takes the place of 'vlb', which has no value there: vlb@T/large/ddpm, as DDPM has it, or
  vlb@T/learned/ddpm where the network has variances.  Raises InputError for what has no value
  there either.
  """
  variance = 'learned' if 'variance' in heads(model, batch) else 'large'
  bound = VLB.ask(f'vlb@{model.steps}/{variance}/ddpm')
  rest = [one for one in asked if one.name not in ('vlb', bound.name)]
  for one in rest:
    if not one.family.at_data(one, options):
      raise _refused(one, 'this model begins at the data themselves, where that has no value',
                     f'ask for {bound.name}, or for ode with --ode_start')
  return [bound, *rest]
