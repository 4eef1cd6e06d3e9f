"""The families of estimates, the meaning of each name, and how to add an estimate of your own.

  vlb                    the bound in continuous time
  vlb@T                  the bound of the chain of T steps, with the variance of q(z_s | z_t, x);
  vlb@T/large            of q(z_t | z_s); /learned: the network's own; /analytic: the optimal one
  vlb@T/ddpm             whose first step ends in the data, by a discretised normal: the decoder of
                         DDPM, and with vlb@T/learned/ddpm of IDDPM; real numbers have a normal
  indices, indices@T     of latents that are indices of a codebook: their part of vlb, vlb@T
  indices/uniform        their bits under equal odds of all entries
  iw@KxT, iw@KxT/...     the importance-weighted bound of K whole paths of such a chain
  ode                    the likelihood of the probability flow, by an adaptive method; data enter
                         it through the model's decoder
  ode/uniform            through uniform noise inside of each bin; /truncated_normal;
                         /variational: noise that was learned with the model
  ode@N, ode@N/...       by N steps of a fixed size, whose error nothing controls
  codec@T, codec@T/...   the net bits of a file of the images, by `codec` and such a chain
  immse                  the curve of the mean square error, by the I-MMSE relation
  ais@KxN                the density exp(-E) / Z of an energy-based model, whose log Z is estimated
                         by K chains of N steps of annealed importance sampling
  FILE.py:NAME           an estimate of your own: see `own`

The kind of each number.  vlb, vlb@T, iw and indices are upper bounds on the negative log-likelihood
of the reverse SDE, or of the chain.  An ode row is an upper bound on the negative log-likelihood of
the probability flow, up to the error of its steps.  The flow is another model unless the score is
exact.  An ode row with fixed steps is only an estimate.  No row is the likelihood itself: with any
decoder and any dequantiser, discrete data reach continuous latents at the cost of a divergence.
More draws (--importance, in the name of the row) reduce this divergence.  But log-densities with
Hutchinson's noise give no bound inside a logarithm of a mean: with --importance above 1 an ode row
is only an estimate.  immse is only an estimate too.  A codec row is the length of a code that was
written and decoded.  Its expectation is the expectation of vlb@T, up to the bins that latents are
rounded to.  An ais row is an upper bound plus the error of log Z, which is below zero on average.
So it is only an estimate, and its model is another one than those of vlb and ode: the energy at
t = 0, in place of what is sampled.

iw with /large or /learned has heavy-tailed weights.  If the variance of p(z_s | z_t) is r times the
variance of q(z_s | z_t, x), then E_q (p / q)^2 is the integral of p^2 / q, infinite for r >= 2.
Steps near the data, or in a chain of few steps, are long enough for this.  The row stays a bound in
expectation.  But no feasible number of paths comes near that expectation, and the standard error
does not show it.  So fewer than 10 steps are refused, and rows of more steps have a note.
"""
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax import decoders, dequantisers, random
from vdm_jax.errors import InputError
from vdm_jax.ledger import relations
from vdm_jax.ledger.family import ABOUT, Family, Options, Request
from vdm_jax.likelihood import annealed, bounds, immse, ode, paths
from vdm_jax.likelihood.bounds import heads, level_axes
from vdm_jax.likelihood.passes import Estimator, over_images
from vdm_jax.machine import config_files
from vdm_jax.objectives import vlb
from vdm_jax.typing import Model, PyTree

__all__ = ['ACCEPTED', 'AIS', 'CODEC', 'FAMILIES', 'IMMSE', 'IW', 'ODE', 'VLB', 'AnnealedSettings',
           'BoundSettings', 'FlowSettings', 'chain_estimates', 'needs', 'own', 'parse']

FEWEST_WIDE = 10  # steps of paths whose variances are larger than those of q
MOST_EXACT = 256  # dimensions of which the exact trace is affordable
_VARIANCES, _DEQUANTISERS = 'large|learned|analytic', 'uniform|truncated_normal|variational'
_CHAIN = rf'(/(?P<variance>{_VARIANCES}))?(?P<ddpm>/ddpm)?'


def _read(form: str, name: str) -> dict[str, Any] | None:
  """The groups of a form in a name, with whole numbers as int; None if the name has another form.

  Raises InputError for a number below 1.
  """
  match = re.fullmatch(form, name, re.ASCII)
  if match is None:
    return None
  fields = {field: int(text) if text and text.isdecimal() else text
            for field, text in match.groupdict().items()}
  if any(isinstance(value, int) and value < 1 for value in fields.values()):
    raise InputError('estimates', name, 'it has a number below 1', f'choose {ACCEPTED}')
  return fields


def _refused(request: Request, problem: str, remedy: str) -> InputError:
  return InputError('estimates', request.name, problem, remedy)


# ------------------------------------------------------------ bounds of chains


class BoundSettings(NamedTuple):
  """The settings of a bound's chain."""
  steps: int | None = None     # T; None: continuous time
  variance: str | None = None  # None: small
  ddpm: bool = False           # the decoder of DDPM ends the chain
  paths: int | None = None     # of an importance-weighted bound


def _chain(form: str) -> Callable[[str], BoundSettings | None]:
  def parse(name):
    fields = _read(form, name)
    if fields is None:
      return None
    chain = BoundSettings(fields['steps'], fields['variance'], bool(fields['ddpm']),
                          fields.get('paths'))
    if chain.ddpm and chain.steps == 1:
      raise InputError('estimates', name, 'a chain that ends in the data has 2 steps or more',
                       'take more')
    if chain.paths and _is_wide(chain) and (chain.steps or 0) < FEWEST_WIDE:
      raise InputError('estimates', name, 'with this variance and so few steps, the weights of '
                       'paths have heavy tails and no useful mean', f'take {FEWEST_WIDE} steps or '
                       f'more, or iw@{chain.paths}x{chain.steps}')
    return chain
  return parse


def _is_wide(chain: BoundSettings) -> bool:
  return chain.variance in ('large', 'learned')


def _needs_of_chain(request, options, model, batch):
  chain = request.settings
  # The bound of `inner` is one of objectives.vlb, which takes all of these.
  if (model.bound is not None and model.inner is None
      and (chain.paths or chain.variance or chain.ddpm)):
    raise _refused(request, 'this model has a bound of its own', 'ask for vlb, or for vlb@T if it '
                   'has one of T steps')
  if chain.paths or chain.variance == 'analytic':
    _require_one_level(request, model)
  if chain.variance == 'learned' and 'variance' not in heads(model, batch):
    raise _refused(request, "this model's network has no head for the variance", 'train one '
                   '(configs/systems.py:iddpm_hybrid), or ask for another variance')
  return ('variances',) if chain.variance == 'analytic' else ()


def _require_levels(request: Request, model: Model, batch: PyTree) -> None:
  if jnp.issubdtype(batch[model.field].dtype, jnp.floating):
    raise _without_levels(request)


def _levels(request: Request, levels: int | None) -> int:
  """The levels of the data.  Raises InputError if the data are real numbers."""
  if levels is None:
    raise _without_levels(request)
  return levels


def _without_levels(request: Request) -> InputError:
  return _refused(request, 'the data are real numbers, which have no levels', 'ask for vlb, vlb@T '
                  'or ode; for a chain that begins at the data, for vlb@T/large/ddpm')


def _require_one_level(request: Request, model: Model) -> None:
  if level_axes(model):
    raise _refused(request, 'this model has a log-SNR of its own for every pixel',
                   'ask for vlb or vlb@T')


def _kernel(request: Request, model: Model, levels: int | None, statistics) -> dict[str, Any]:
  """The arguments of `vlb.discrete` for the steps."""
  chain: BoundSettings = request.settings
  kernel: dict[str, Any] = {}
  if chain.variance:
    kernel['variance'] = (vlb.fixed_large if chain.variance == 'large' else
                          vlb.learned if chain.variance == 'learned' else
                          bounds.analytic_variance(statistics.variances))
  if chain.ddpm:
    if levels and model.inner is None:
      kernel['last'] = decoders.DiscretisedNormal(levels).log_prob
    else:  # of real numbers, or of latents
      kernel['last'] = decoders.at_mean((model.inner or model).decoder)
  return kernel


def _bound(request, options, levels, statistics):
  def estimate(model, batch, keys):
    return bounds.at_times(request.settings.steps or 0, options.times, **_kernel(
        request, model, levels, statistics))(model, batch, keys)
  return estimate


def _importance_weighted(request, options, levels, statistics):
  chain = request.settings

  def estimate(model, batch, keys):
    return paths.importance_weighted(
        chain.paths, chain.steps, **_kernel(request, model, levels, statistics),
        at_once=_paths_at_once(request, options))(model, batch, keys)
  return estimate


def _paths_at_once(request, options, shape=()):
  """The largest number of paths that fits in the batch and divides all paths."""
  number = request.settings.paths
  return max(k for k in range(1, min(options.batch_size, number) + 1) if not number % k)


def _about_chain(request, options, dequantised):
  chain = request.settings
  row = {'kind': 'upper bound', 'model': 'chain' if chain.steps else 'reverse SDE',
         'steps': chain.steps, 'paths': chain.paths,
         'variance': (chain.variance or 'small') if chain.steps else None,
         'decoder': 'discretised normal' if chain.ddpm else 'of the model'}
  if dequantised:
    row['dequantiser'] = 'of the model'
    if not chain.ddpm:
      row['decoder'] = 'normal, of the dequantised'
  if chain.paths:
    heavy = 'the error of heavy-tailed weights: a step at least doubles the variance of q'
    return row | {'error_beside': heavy if _is_wide(chain) else None}
  return row | {'times_per_image': options.times}


VLB = Family(
    'vlb', _chain(rf'vlb(@(?P<steps>\d+){_CHAIN})?'), _bound, _needs_of_chain, _about_chain,
    # The first step of such a chain beside them.
    width=lambda request, options, shape: options.times + request.settings.ddpm,
    key=lambda request, key: jax.random.fold_in(key, request.settings.steps or 0),
    at_data=lambda request, options: request.settings.ddpm,
    accepts=f'vlb, vlb@T[/{_VARIANCES}][/ddpm]')

IW = Family(
    'iw', _chain(rf'iw@(?P<paths>\d+)x(?P<steps>\d+){_CHAIN}'), _importance_weighted,
    _needs_of_chain, _about_chain, width=_paths_at_once,
    key=lambda request, key: request.family.draws(key, request.settings.steps),
    at_data=lambda request, options: request.settings.ddpm,
    accepts=f'iw@KxT[/{_VARIANCES}][/ddpm]')


# ------------------------------------------------------- indices of a codebook


_UNIFORM = 'indices/uniform'


class IndexSettings(NamedTuple):
  """The law of the indices."""
  steps: int | None = None  # T of the model's bound; None: continuous time
  uniform: bool = False     # equal odds of all entries, in place of the model


def _indices(name):
  fields = _read(r'indices(@(?P<steps>\d+))?', name)
  if fields is None:
    return IndexSettings(uniform=True) if name == _UNIFORM else None
  return IndexSettings(**fields)


def _needs_of_indices(request, options, model, batch):
  if model.index_nats is None:
    raise _refused(request, 'the data of this model are not encoded by a codebook', 'ask for vlb')
  return ()


def _bits_of_indices(request, options, levels, statistics):
  settings: IndexSettings = request.settings

  def estimate(model, batch, keys):
    if settings.uniform:
      each = jnp.full(len(keys), model.index_nats)
      return {'nats': each, 'evaluations': jnp.zeros_like(each)}
    batch, _ = model.enter(batch, keys)
    return bounds.at_times(settings.steps or 0, options.times)(model.inner, batch, keys)
  return estimate


def _about_indices(request, options, dequantised):
  settings: IndexSettings = request.settings
  if settings.uniform:
    return {'kind': 'exact', 'model': 'equal odds'}
  return {'kind': 'upper bound', 'model': 'chain' if settings.steps else 'reverse SDE',
          'steps': settings.steps, 'variance': 'small' if settings.steps else None,
          'decoder': 'of the model', 'times_per_image': options.times}


def _relations_of_indices(measured, rows):
  if measured.row['estimate'] == _UNIFORM:
    return []
  found = [relations.compare(measured, '<=', row, 'the network gives the indices more bits than '
                             'equal odds of all entries: it is not trained well, or it was trained '
                             'on what the encoder gives before the codebook', serious=False)
           for row in rows if row.row['estimate'] == _UNIFORM]
  return [one for one in found if one is not None]


INDICES = Family(
    'indices', _indices, _bits_of_indices, _needs_of_indices, _about_indices,
    width=lambda request, options, shape: 1 if request.settings.uniform else options.times,
    # The draws of vlb.
    key=lambda request, key: jax.random.fold_in(key, request.settings.steps or 0),
    at_data=lambda request, options: bool(request.settings.uniform or request.settings.steps),
    relations=_relations_of_indices, accepts='indices[@T], indices/uniform')


# ---------------------------------------------------------- the probability flow


class FlowSettings(NamedTuple):
  """The settings of the flow: how it is integrated, and how data enter it."""
  steps: int | None = None        # None: adaptive
  dequantiser: str | None = None  # None: the model's decoder


def _flow(name):
  fields = _read(rf'ode(@(?P<steps>\d+))?(/(?P<dequantiser>{_DEQUANTISERS}))?', name)
  return None if fields is None else FlowSettings(**fields)


def _needs_of_flow(request, options, model, batch):
  dimensions = math.prod(model.shape)
  if options.probe == 'exact' and dimensions > MOST_EXACT:
    raise InputError('probe', 'exact', f'every evaluation would take {dimensions} products of the '
                     f'Jacobian, more than {MOST_EXACT}', 'choose rademacher')
  if model.latent is not None:
    raise _refused(request, 'this model has latents of its own, and so no density of one flow',
                   'ask for vlb')
  if model.bound is not None and model.dequantise is None and model.inner is None:
    # DiffEnc's, e.g.: the drift of its encoder would enter the flow by half.
    raise _refused(request, 'this model has a bound of its own, and its denoiser alone gives no '
                   'probability flow of that bound', 'ask for vlb')
  if request.settings.dequantiser in ('uniform', 'truncated_normal'):
    _require_levels(request, model, batch)
    if not model.data_space:
      raise _refused(request, 'x are the latents of an autoencoder here, and have no bins',
                     'ask for ode or ode/variational')
  if request.settings.dequantiser == 'variational' and model.dequantise is None:
    raise _refused(request, 'this model has no dequantiser of its own', 'train one with it '
                   '(configs/systems.py:dequantised), or ask for ode/uniform')
  return ()


def _dequantiser(request: Request, model: Model, levels: int | None
                 ) -> dequantisers.Dequantiser | None:
  name = request.settings.dequantiser
  if name == 'uniform':
    return dequantisers.uniform(_levels(request, levels))
  if name == 'truncated_normal':
    return dequantisers.truncated_normal(_levels(request, levels), model.process(jnp.zeros(())))
  return model.dequantise if name else None


def _likelihood_of_flow(request, options, levels, statistics):
  def estimate(model, batch, keys):
    estimator = ode.estimator(
        _dequantiser(request, model, levels), rtol=options.ode_tolerance,
        atol=options.ode_tolerance, probes=options.probes, probe=options.probe,
        steps=request.settings.steps or 0, importance=options.importance, start=options.ode_start)
    return estimator(model, batch, keys)
  return estimate


def _about_flow(request, options, dequantised):
  steps, dequantiser = request.settings
  noisy = options.probe != 'exact'
  # Settings that are another number stand in its name, so that no two are put into one column.
  name = request.name + (f' x{options.importance}' if options.importance > 1 else '') + (
      '' if options.ode_start is None else f' from {options.ode_start:g}')
  return {'estimate': name,
          'kind': 'estimate' if steps or noisy and options.importance > 1 else 'upper bound',
          'model': 'probability flow', 'steps': steps,
          'decoder': ('of the model' if not dequantiser else
                      'normal, of the dequantised' if options.ode_start else None),
          'dequantiser': dequantiser, 'importance': options.importance, 'start': options.ode_start,
          'tolerance': None if steps else options.ode_tolerance,
          'error_beside': (  # what the standard errors do not show
              f'the error of {steps} fixed steps, which is not controlled' if steps else
              f'the error of the adaptive steps, tolerance {options.ode_tolerance:g}'),
          'probe': options.probe, 'probes': options.probes if noisy else None}


def _flows_at_once(request, options, shape):
  return options.importance * (math.prod(shape) if options.probe == 'exact' else options.probes)


ODE = Family(
    'ode', _flow, _likelihood_of_flow, _needs_of_flow, _about_flow, _flows_at_once,
    at_data=lambda request, options: options.ode_start is not None,
    remedy='choose another --ode_tolerance, or a number of steps, ode@100',
    accepts=f'ode[@N][/{_DEQUANTISERS}]')


# -------------------------------------------------------------------- I-MMSE


def _needs_of_immse(request, options, model, batch):
  if model.bound is not None:
    raise _refused(request, 'this model has a bound of its own', 'ask for vlb, or for vlb@T if it '
                   'has one of T steps')
  _require_one_level(request, model)
  return ('moments',)


def _immse(request, options, levels, statistics):
  return immse.estimator(statistics.moments, options.times)


IMMSE = Family(
    'immse', lambda name: () if name == 'immse' else None, _immse, _needs_of_immse,
    lambda request, options, dequantised: {
        'model': 'reverse SDE', 'decoder': 'of the model', 'times_per_image': options.times},
    width=lambda request, options, shape: options.times,
    at_data=lambda request, options: False, accepts='immse')


# ---------------------------------------------------------------- bits of a file


def _coded(name):
  fields = _read(r'codec@(?P<steps>\d+)(/(?P<variance>learned|analytic))?', name)
  return None if fields is None else BoundSettings(**fields)


def _needs_of_codec(request, options, model, batch):
  from vdm_jax.codec.chain import require_chain  # which needs a library that nothing else needs
  _require_levels(request, model, batch)
  try:
    require_chain(model, levels=2)  # it has some
  except InputError as error:
    raise _refused(request, error.problem, 'ask for vlb') from None
  return _needs_of_chain(request, options, model, batch)


def _codec(request, options, levels, statistics):
  from vdm_jax import codec
  from vdm_jax.codec import rates
  chain = request.settings

  def estimate(model, split, count, keys, progress):
    kernel = _kernel(request, model, levels, statistics)
    # Some files of some images in each lane, wherever there are enough.
    lanes = min(options.batch_size, -(-count // rates.ONE_AFTER_ANOTHER**2))
    coder = codec.chain(model, _levels(request, levels), chain.steps, lanes=lanes,
                        variance=chain.variance or 'small', kernel=kernel.get('variance'))

    def read(rows):
      batch = split.get(rows)
      return np.asarray(batch[model.field]), batch

    bits = np.stack([rates.net(coder, read, count, seed=int(jax.random.bits(key)),
                               label=request.name, progress=progress) for key in keys])
    # Each image is encoded and decoded.
    return {'nats': bits * math.log(2.0), 'evaluations': np.full_like(bits, 2.0 * chain.steps)}
  return estimate


CODEC = Family(
    'codec', _coded, None, _needs_of_codec,
    lambda request, options, dequantised: {
        'kind': 'code length', 'model': 'chain', 'steps': request.settings.steps,
        'variance': request.settings.variance or 'small', 'decoder': 'of the model'},
    at_data=lambda request, options: False, on_host=_codec,
    accepts='codec@T[/learned|analytic]')


# ---------------------------------------------------- the density of an energy


class AnnealedSettings(NamedTuple):
  """The chains that estimate a normaliser."""
  chains: int
  steps: int


def _annealed(name):
  fields = _read(r'ais@(?P<chains>\d+)x(?P<steps>\d+)', name)
  if fields and fields['chains'] < 2:
    raise InputError('estimates', name, 'one chain has no standard error', 'take 2 or more')
  return None if fields is None else AnnealedSettings(**fields)


def _needs_of_annealed(request, options, model, batch):
  if model.inner is not None:
    raise _refused(request, 'this model is one of latents, and its energy is no energy of the data',
                   'ask for vlb or ode')
  if 'energy' not in heads(model, batch):
    raise _refused(request, 'the score of this model is not the gradient of an energy', 'train an '
                   'energy (configs/plane/recovery.py or energy.py), or ask for ode')
  if jax.tree.leaves(jax.eval_shape(model.cond, batch)):
    raise _refused(request, 'this model has conditions, and each has a normaliser of its own',
                   'ask for vlb or ode')
  _require_one_level(request, model)
  return ()


def _likelihood_of_energy(request, options, levels, statistics):
  chains, steps = request.settings

  def estimate(model, split, count, keys, progress):
    own = jax.vmap(lambda key: jax.random.split(key, chains))(random.stream(keys, 'annealed'))
    z = annealed.normaliser(model, own.reshape(-1), steps, at_once=options.batch_size,
                            label=request.name, progress=progress)
    found = over_images(annealed.unnormalised(options.importance), lambda _: model, (), split,
                        keys[0], label=request.name, at_once=options.batch_size
                        // options.importance, repeats=len(keys), count=count, progress=progress)
    found['nats'] += z.log_z
    # All repetitions share one log Z, of all chains.
    shared = z.evaluations / found['nats'].size
    return {**found, 'normaliser': np.full_like(found['nats'], z.log_z),
            'evaluations': found['evaluations'] + shared,
            'log_normaliser': np.array(z.log_z), 'log_normaliser_error': np.array(z.error)}
  return estimate


def _about_annealed(request, options, dequantised):
  chains, steps = request.settings
  more = f' x{options.importance}' if options.importance > 1 else ''
  return {'estimate': request.name + more, 'model': 'energy', 'steps': steps, 'paths': chains,
          'decoder': 'of the model', 'importance': options.importance}


AIS = Family(
    'ais', _annealed, None, _needs_of_annealed, _about_annealed,
    at_data=lambda request, options: False, on_host=_likelihood_of_energy,
    remedy='take more steps, ais@KxN', accepts='ais@KxN')

FAMILIES = VLB, IW, INDICES, ODE, IMMSE, CODEC, AIS
ACCEPTED = (f'{", ".join(family.accepts for family in FAMILIES)} (whole numbers T, K, N from 1), '
            'or FILE.py:NAME of your own')


# ---------------------------------------------------------------- of your own


def own(estimator: Estimator, name: str = '', *, width: int = 1,
        says: Mapping[str, Any] | None = None) -> Family:
  """The family of one function, with one name: (model, batch, keys) -> {'nats': [n], ...}.

    def mine(model, batch, keys):  # the bound from one draw of the time for each image
      t = jax.vmap(random.unit)(keys)
      nats, terms = bounds.one_draw(model, batch, t, keys)
      return {'nats': nats, **terms}

  'nats' is the estimate of -log p(image).  Other entries, [n] each, are parts that the row shows;
  'evaluations' counts the calls of the network for an image.  The function runs under `jax.jit`.
  An image's numbers depend on its own key alone, as in `likelihood.passes`.

  The row of the family is in the table, in ledger.json and in comparisons of runs.  The range of
  bits/dim is checked, and no other relation.  To claim one, build a `Family` with `relations`.

  Args:
    name: the name of the row; by default the function's name.
    width: how many examples the function gives the network at a time, for one image.
    says: more fields of the row: {'kind': 'upper bound', 'model': 'chain', ...}, see
      `family.ABOUT`.

  Raises InputError if the function cannot be called in this way, or has no name.
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
                     f"choose one of {', '.join(ABOUT)}")

  def check(request, options, model, batch):
    batch = jax.tree.map(lambda u: np.repeat(u[:1], 5, axis=0), batch)
    keys = random.per_example(random.key(0), jnp.arange(5))
    _check_output(request, jax.eval_shape(lambda batch, keys: estimator(model, batch, keys),
                                          batch, keys), 5)
    return ()

  return Family(name, lambda text: () if text == name else None,
                lambda request, options, levels, statistics: estimator, check,
                lambda request, options, dequantised: dict(says or {}),
                lambda request, options, shape: width)


def _check_output(request: Request, out: Any, n: int) -> None:
  """Raises InputError unless these are the shapes of an estimator's result for n images."""
  remedy = "return {'nats': [n], ...}, a number for each example"
  if not isinstance(out, Mapping) or 'nats' not in out:
    raise _refused(request, "it returns no dictionary with 'nats'", remedy)
  for name, value in out.items():
    if getattr(value, 'shape', None) != (n,):
      raise _refused(request, f'of {n} examples it returns {name!r} of the shape '
                     f'{getattr(value, "shape", None)}', remedy)


def parse(estimates: Sequence[Any]) -> list[Request]:
  """Each estimate once, in order; 'vlb', which the pictures show, comes first.

  Args:
    estimates: names; or 'FILE.py:NAME', where NAME is a `Family` or a function as for `own`.  NAME
      may have a suffix that the family reads, 'FILE.py:mine@10'.  In Python, the `Family`, the
      function, or a `Request` of a family may be given itself.

  Raises InputError for an unknown name, for a file without NAME, and for two estimates of one name.
  """
  requests: dict[str, Request] = {}
  for request in map(_request, ('vlb', *estimates)):
    if request.family not in FAMILIES and request.family.name in [of.name for of in FAMILIES]:
      raise _refused(request, f'{request.family.name} is a family of the library',
                     'give yours another name')
    if requests.setdefault(request.name, request).family is not request.family:
      raise InputError('estimates', request.name, 'there are two estimates of this name',
                       'give one of them another')
  return list(requests.values())


def _request(estimate: Any) -> Request:
  if isinstance(estimate, str):
    file, colon, name = estimate.rpartition(':')
    return _of_file(estimate, file, name) if colon else _named(estimate)
  if isinstance(estimate, Request):
    return estimate
  return _family(estimate).request()


def _named(name: str) -> Request:
  for family in FAMILIES:
    if (settings := family.parse(name)) is not None:
      return Request(name, family, settings)
  raise InputError('estimates', name, 'there is no such estimate', f'choose {ACCEPTED}')


def _family(estimate: Any, name: str = '', argument: Any = None) -> Family:
  """A family, or the family of a function.  argument: the user's text, if not the value itself."""
  if isinstance(estimate, Family):
    return estimate
  if not callable(estimate):
    raise InputError('estimates', estimate if argument is None else argument, 'it is not an '
                     'estimate',
                     'give a Family, or a function of (model, batch, keys)')
  function: Any = estimate
  return own(function, name)


def _of_file(estimate: str, file: str, name: str) -> Request:
  variable = re.split(r'\W', name, maxsplit=1)[0]
  value, _ = config_files.own('estimates', estimate, file, variable)
  family = _family(value, variable, estimate)
  return family.request(family.name + name.removeprefix(variable))


# ------------------------------------------------------------- of which models


def needs(requests: Sequence[Request], options: Options, model: Model, batch: PyTree) -> set[str]:
  """The names of the `TrainingStatistics` that these estimates need.  Nothing is computed.

  batch: a batch of the data, of any size.
  Raises InputError, with the remedy, for an estimate that this model cannot have.  A model that was
  distilled, or whose prior is drawn by a network, can have none.  A flow of coupled noise can have
  `ode` alone.
  """
  bounds.require_likelihood(model)
  for one in requests:
    if model.coupled and one.family in (VLB, IW, INDICES, IMMSE, CODEC):
      raise _refused(one, 'it is of the reverse SDE, and this model is a flow of coupled noise, '
                     'which has no score', 'ask for ode')
  return {name for one in requests
          for name in one.family.needs(one, options, model, batch)}


def flow_estimates(requests: Sequence[Request]) -> list[Request]:
  """The estimates of a flow of coupled noise: `ode` comes first, in the place of 'vlb'.

  The bound measures the reverse SDE, and that SDE does not draw the data of such a flow.
  """
  asked = [one for one in requests if one.name != VLB.name]
  first = next((one for one in asked if one.family is ODE), ODE.request())
  return [first, *(one for one in asked if one is not first)]


def chain_estimates(requests: Sequence[Request], options: Options, model: Model, batch: PyTree
                    ) -> list[Request]:
  """The estimates of a chain that begins at the data, where log-SNR is infinite: its bound first.

  That bound replaces 'vlb', which has no value for such a chain.  It is vlb@T/large/ddpm, as in
  DDPM; or vlb@T/learned/ddpm if the network has variances; or vlb@T if the model has its own bound.
  Raises InputError for other estimates that have no value there.
  """
  variance = 'learned' if 'variance' in heads(model, batch) else 'large'
  kernel = f'/{variance}/ddpm' if model.bound is None else ''
  bound = VLB.request(f'vlb@{model.steps}{kernel}')
  others = [one for one in requests if one.name not in ('vlb', bound.name)]
  for one in others:
    if not one.family.at_data(one, options):
      raise _refused(one, 'this model begins at the data themselves, where that has no value',
                     f'ask for {bound.name}, or for ode with --ode_start')
  return [bound, *others]


def index_estimates(requests: Sequence[Request]) -> list[Request]:
  """The estimates of a model of indices of a codebook: after its bound, the bits of the indices.

  They are the bits under the model, by the same bound, and the bits under equal odds.
  """
  first = requests[0]
  steps = first.settings.steps if first.family is VLB else None
  names = f'{INDICES.name}@{steps}' if steps else INDICES.name, _UNIFORM
  others = [one for one in requests[1:] if one.name not in names]
  return [first, *map(INDICES.request, names), *others]
