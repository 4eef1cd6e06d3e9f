"""Composes an experiment of a network, a schedule, a target and an objective.

Every system is built here.  This is the only place for the adapter between a batch and an
objective, the conditions of a network, the units of reports, and the optimiser.
"""
import functools
import inspect
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import data, denoisers, random, targets
from vdm_jax.data import conditions
from vdm_jax.data.fields import AUGMENTED, LABEL
from vdm_jax.decoders import Pixels, Reals
from vdm_jax.errors import InputError
from vdm_jax.inputs import Inputs, logsnr
from vdm_jax.likelihood.bounds import one_draw
from vdm_jax.model import Model
from vdm_jax.processes import GaussianProcess, vp
from vdm_jax.train import loop, optimizer
from vdm_jax.typing import (
  Array,
  Context,
  Curve,
  Experiment,
  Loss,
  Objective,
  PyTree,
  Scalar,
  Schedule,
  Target,
)
from vdm_jax.units import bits_per_dim
from vdm_jax.values import Bound

# Terms that are parts of a bound: reported in bits/dim.  All others are means over the data.
IN_NATS = ('vlb', 'reconstruction', 'latent', 'diffusion')
# What an objective may ask for by name, beside the arguments that all objectives have.
OFFERED = ('data', 'decoder', 'context')
_POSITIONAL = 6  # denoise, process, x, t, keys, cond


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of every experiment, with the fields of `model` as `config.model`.

  The config is locked: setting an unknown field is an error, and adds no field.  The
  `default_config` of each system takes further fields of `config.model` in the same way.
  """
  config = ml_collections.ConfigDict({
      'seed': 1,
      'data': data.default_config(),
      'model': model,
      'optimizer': optimizer.default_config(),
      'ema': {'ema': 0.9999},    # name: rate; the longest is evaluated by default
      'train': loop.default_config(),
  }).lock()
  config.ema.unlock()  # averages have names of the config's own
  return config


def end_points(config: ml_collections.ConfigDict) -> tuple[float, float]:
  """(logsnr_max, logsnr_min) of `config.model` for the data's number of levels.

  The configured maximum holds for 256 levels.  Fewer levels are wider, and the maximum is lower by
  2 log(256 / levels), so that sigma_0 is the same share of a level.  For real numbers the maximum
  is not changed.
  """
  levels = data.resolve(config.data).x.levels
  wider = 2.0 * math.log(levels / 256) if levels else 0.0
  return config.model.logsnr_max + wider, config.model.logsnr_min


# ------------------------------------------------------------------ checks


def require(config: ml_collections.ConfigDict, name: str, holds: bool, problem: str,
            remedy: str = '') -> None:
  """Raises InputError, with the field `name` of `config.model` and its value, unless `holds`."""
  if not holds:
    raise InputError(f'config.model.{name}', config.model[name], problem, remedy)


def require_continuous(config: ml_collections.ConfigDict) -> None:
  """Raises InputError if config.model.timesteps is not 0; for objectives of continuous time."""
  require(config, 'timesteps', not config.model.timesteps,
          'this objective is of continuous time, and has no steps', 'leave it at 0')


# -------------------------------------------------------------- objectives


def accepted_keywords(objective: Objective) -> tuple[str, ...]:
  """The names in `OFFERED` that an objective takes by keyword.

  Raises InputError if the objective requires another keyword.
  """
  bound = {}
  function = objective
  while isinstance(function, functools.partial):
    bound = {**function.keywords, **bound}
    function = function.func
  names = []
  for i, (name, parameter) in enumerate(inspect.signature(objective).parameters.items()):
    positional = i < _POSITIONAL and parameter.kind is not parameter.KEYWORD_ONLY
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    if positional or variadic or name in bound:
      continue
    if name in OFFERED:
      names.append(name)
    elif parameter.default is parameter.empty:
      raise InputError('objective', None, f'it requires the keyword {name!r}',
                       f'bind it by functools.partial; {", ".join(OFFERED)} are given by name')
  return tuple(names)


def apply_objective(objective: Objective, model: Model, batch: PyTree, context: Context
                    ) -> tuple[Array, dict[str, Array]]:
  """`objective` of this model at a batch: nats [B] and its terms {name: [B]}."""
  images = batch[model.field]
  offered = {'data': images, 'decoder': model.decoder, 'context': context}
  keywords = {name: offered[name] for name in accepted_keywords(objective)}
  return objective(model.denoise, model.process, model.encode(images), context.t, context.keys,
                   model.cond(batch), **keywords)


def dropout_keys(context: Context) -> Array | None:
  """The keys of dropout [B], one for each example, in training; None in validation."""
  return random.stream(context.keys, 'dropout') if context.train else None


def loss_of(objective: Objective, model: Callable[..., Model], shape: tuple[int, ...]) -> Loss:
  """The loss that a config trains: an objective at the batch, divided by D ln 2.

  The loss is in bits per dimension, as in the official code, so that the optimiser's epsilon and a
  clipping norm have the same meaning.  The terms `IN_NATS` are also divided by D ln 2, and 'vlb' is
  reported as 'bits_per_dim'.  All other terms, such as squared errors, are divided by D, which
  gives means over the dimensions.
  """
  accepted_keywords(objective)  # refused now, not at the first step
  size = math.prod(shape)

  def loss(params, batch, context):
    nats, terms = apply_objective(objective, model(params, dropout_keys(context)), batch, context)
    return bits_per_dim(nats, shape), {
        'bits_per_dim' if name == 'vlb' else name:
            bits_per_dim(u, shape) if name in IN_NATS else u / size
        for name, u in terms.items()}

  return loss


def bound_loss(model: Callable[..., Model], shape: tuple[int, ...], steps: int = 0) -> Loss:
  """The model's own bound as a loss, in bits per dimension; steps: T, 0 for continuous time."""
  def loss(params, batch, context):
    m = model(params, dropout_keys(context))
    nats, terms = one_draw(m, batch, context.t, context.keys, steps)
    bits = jax.tree.map(lambda u: bits_per_dim(u, shape), {'bits_per_dim': nats, **terms})
    return bits['bits_per_dim'], bits
  return loss


def as_bound(objective: Objective) -> Objective:
  """An objective whose value is a bound, with this value also as its term 'vlb'."""
  @functools.wraps(objective)
  def reported(*args, **options):
    nats, terms = objective(*args, **options)
    return nats, {'vlb': nats, **terms}
  return reported


# ------------------------------------------------------------- experiments


def assemble(config: ml_collections.ConfigDict, *, init: Callable[[Array], PyTree], loss: Loss,
             model: Callable[..., object], **more) -> Experiment:
  """The Experiment of these functions, with the data, optimiser and averages of `config`."""
  return Experiment(init=init, loss=loss, model=model, data=data.Data(config.data),
                    tx=optimizer.named(config.optimizer), ema=dict(config.ema), **more)


def _condition(config: ml_collections.ConfigDict, spec: data.Spec) -> str:
  """The field of the batch that the config gives to the network; '' for none."""
  if config.model.class_conditional and not spec.classes:
    raise InputError('config.model.class_conditional', True, f'{spec.name} has no labels',
                     'set it to False, or choose data that have some')
  if config.model.class_conditional and config.data.augment:
    raise InputError('config.model.class_conditional', True,
                     'the network has one condition: the label, or whether x was augmented',
                     'set config.data.augment or config.model.class_conditional to False')
  if config.model.class_conditional:
    return LABEL
  return AUGMENTED if config.data.augment else ''


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module, schedule: nn.Module | Schedule,
               target: Target = targets.eps, objective: Objective | None = None,
               curve: Curve = vp, heads: tuple[str, ...] = (), inputs: Inputs = logsnr,
               field: str = '', condition: str | None = '', encoder: nn.Module | None = None,
               beside: tuple[str, ...] = (),
               scale: tuple[Scalar, Scalar] | None = None) -> Experiment:
  """The experiment of `config` with this network, an estimate of `target`, and this schedule.

  Args:
    net: (z, what `inputs` reads, condition, dropout keys) -> output; its parameters are
      params['net'].
    schedule: a Linen module is learned, as params['schedule']; a value is fixed.
    objective: the loss, if it is not the bound.  It may take the keywords `OFFERED`.
    curve: the curve of the process.
    heads: the names of the network's further outputs, see `denoisers.denoiser`.
    field: the field of the data that is x.  Default: the first field.
    condition: the field of the data that the network is given.  Default: the label if
      config.model.class_conditional, 'augmented' if config.data.augment, else none.  None: no
      field, whatever the data have.
    encoder: a network of the condition, whose output `net` is given in its place.  Its parameters
      are params['encoder'].  Samplers call it once, before their first step.
    beside: further fields of the data that `net` is given.  Its condition is then a dict of these
      fields and of `condition`, by their names.
    scale: the mean and the standard deviation that standardise real data.  They are numbers, or
      arrays that broadcast against an example.  Integers are coded by `Pixels`.

  The loss is in bits per dimension; see `loss_of`.  For real data, it is the loss of a density, and
  may be negative.

  Raises InputError if timesteps is below 0, if class_conditional is set without labels or with
  `augment`, or if the data lack a field.  Raises InputError also for a scale of integers, for an
  encoder without a condition, and for an objective that requires other keywords.
  """
  require(config, 'timesteps', config.model.timesteps >= 0,
          'it is negative',
          'give the number of steps of a chain, or 0 for continuous time')
  spec = data.resolve(config.data)
  x = spec[field] if field else spec.x
  condition = _condition(config, spec) if condition == '' else condition
  if condition == x.name:
    raise InputError('condition', condition, 'it is x itself', 'name another field of the data')
  conditioning = [spec[name].name for name in (condition, *beside) if name]
  if encoder is not None and not condition:
    raise InputError('encoder', None, 'this system is told nothing that it could read',
                     'name the field of the data: condition=...')
  if x.levels and scale is not None:
    raise InputError('scale', scale, f'the field {x.name!r} holds integers, which are coded in '
                     '[-1, 1]', 'leave it out')
  learned = isinstance(schedule, nn.Module)
  coding = Pixels(x.levels) if x.levels else Reals(*(scale or (0.0, 1.0)))

  def cond(params: PyTree, batch: PyTree) -> PyTree:
    """The network's input besides z and logsnr."""
    told = batch[condition] if condition else None
    if encoder is not None:
      told = Bound(params['encoder'], encoder)(told)
    if not beside:
      return told
    return {**({condition: told} if condition else {}), **{name: batch[name] for name in beside}}

  def init(key):
    key_net, key_schedule = jax.random.split(key)
    z, one = jnp.zeros((1, *x.shape)), spec.zeros(1)
    params = {}
    if encoder is not None and condition:
      params['encoder'] = encoder.init(jax.random.fold_in(key, 1), one[condition])['params']
    params['net'] = net.init(key_net, z, jnp.zeros(1), cond(params, one))['params']
    if learned:
      params['schedule'] = schedule.init(key_schedule, jnp.zeros(1))['params']
    return params

  def model(params, keys=None):
    at_time = Bound(params['schedule'], schedule) if learned else schedule
    return Model(denoise=denoisers.denoiser(Bound(params['net'], net, keys), target,
                                              inputs, heads),
                 process=GaussianProcess(at_time, curve), decoder=coding.log_prob,
                 encode=coding.encode, decode=coding.decode,
                 cond=functools.partial(cond, params), shape=x.shape,
                 field=x.name, conditions=conditions.of(spec, conditioning),
                 steps=config.model.timesteps)

  loss = (bound_loss(model, x.shape, config.model.timesteps) if objective is None else
          loss_of(objective, model, x.shape))
  return assemble(config, init=init, loss=loss, model=model)
