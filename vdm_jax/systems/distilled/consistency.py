"""Consistency models, distilled from a teacher or trained on data alone.

Song, Dhariwal, Chen and Sutskever (2023); see `objectives.consistency`.  The average 'target' of
the parameters gives f_target.  The rate mu(k) of this average and the number of levels N(k) depend
on the update k.
"""
import dataclasses
import functools

import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import weightings
from vdm_jax.errors import InputError, require_choice
from vdm_jax.inputs import Inputs
from vdm_jax.objectives import consistency
from vdm_jax.systems import compose
from vdm_jax.systems.distilled import metrics, teachers
from vdm_jax.systems.distilled.metrics import Perceptual
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Experiment, Update
from vdm_jax.values import Bound

TARGET = 'target'  # the name of the average
DISCRETISATIONS = ('fixed', 'paper', 'public')


def fields() -> dict:
  """The fields of `config.model` besides the diffusion model's."""
  return {
      'discretisation': 'fixed',  # N(k), mu(k): constant, or growing as in the 'paper', or as in
                                  # the 'public' code
      'levels': 18,               # N; where it grows the first, s0
      'last_levels': 150,         # where it grows s1, which the last exceeds by one
      'growing_updates': 0,       # K, over which it grows
      'target_rate': 0.0,         # mu, or mu0 where it grows
      'solver': 'heun',           # of distillation: or euler
      'metric': 'l2',             # or l1, or lpips where the config offers it
      'sigma_data': 0.5,          # standard deviation of x
  }


def _discretisation(config: ml_collections.ConfigDict) -> consistency.Discretisation:
  """N(k) and mu(k).  Raises InputError, which names the fields of config.model."""
  m = config.model
  require_choice('config.model.discretisation', m.discretisation, DISCRETISATIONS)
  names = {'levels': 'levels', 'first': 'levels', 'last': 'last_levels', 'rate': 'target_rate',
           'updates': 'growing_updates'}
  try:
    if m.discretisation == 'fixed':
      return consistency.fixed(m.levels, m.target_rate)
    return consistency.growing(m.levels, m.last_levels, m.growing_updates, m.target_rate,
                               m.discretisation)
  except InputError as error:
    raise InputError(f'config.model.{names[error.field or ""]}', error.value, error.problem,
                     error.remedy) from None


def training(config: ml_collections.ConfigDict, base: Experiment, *, net: nn.Module,
             inputs: Inputs | None = None, perceptual: Perceptual | None = None) -> Experiment:
  """Consistency training: z_s comes from the datum, not from a teacher.

  Arguments and errors are as in `distillation`.
  """
  return _experiment(config, base, net, inputs, perceptual=perceptual)


def distillation(config: ml_collections.ConfigDict, base: Experiment, *, net: nn.Module,
                 inputs: Inputs | None = None, teacher: Experiment | None = None,
                 sign: float = 1.0, perceptual: Perceptual | None = None) -> Experiment:
  """Consistency distillation of the diffusion model that the run starts from (--init_from).

  Args:
    config: with `fields` in config.model.
    base: the experiment of the diffusion model, on a process whose levels are finite.
    net: the network of that model, (z, its time, condition, dropout keys) -> F, with the
      parameters params['net'].
    inputs: what the network reads.  Default: `inputs.edm`.
    teacher: the experiment of the run that training starts from, if its process is not the process
      of `base`.  The network has to estimate the same at an equal level.  Default: `base`.
    sign: -1 for a network that predicts v.  On `vp`, v is -F of a sigma_data of 1, so the student
      begins with the estimates of its teacher.
    perceptual: LPIPS with its weights (`published.lpips.distance`), for the metric of this name.

  The loss is divided by D ln 2.  The term 'levels' is N(k).

  Raises InputError for impossible numbers of levels or rates, for a process with infinite levels,
  or as `metrics.of_config` does.
  """
  return _experiment(config, base, net, inputs, teacher or base, sign, perceptual)


def _experiment(config, base, net, inputs, taught_by=None, sign=1.0, perceptual=None) -> Experiment:
  m, table = config.model, _discretisation(config)
  metric = metrics.of_config(config, base.data.spec.x, perceptual)
  require_choice('config.model.solver', m.solver, consistency.SOLVERS)
  if TARGET in config.ema:
    raise InputError(f'config.ema.{TARGET}', config.ema[TARGET], 'the average of this name is the '
                     "target's, with the rate config.model.target_rate", 'choose another name')

  def model(params, keys=None):
    of = base.model(params, keys)
    network = Bound(params['net'], net, keys)
    f = consistency.function(lambda *read: sign * network(*read), of.process,
                             sigma_data=m.sigma_data, inputs=inputs)
    return of._replace(denoise=f, distilled=('consistency', 1), bound=None, null=None,
                       ends_denoised=False)

  def loss(params, batch, context):
    levels, _ = table.at(teachers.before(context.step, context.train))
    target = model(context.ema[TARGET], compose.dropout_keys(context))  # the same dropout
    teacher = base.model(context.aux) if taught_by else None
    objective = functools.partial(
        consistency.objective, target=target.denoise, levels=levels,
        teacher=teacher.denoise if teacher else None, solver=consistency.SOLVERS[m.solver],
        metric=metric, weight=weightings.OF_X['constant'])
    losses, terms = compose.loss_of(objective, model, target.shape)(params, batch, context)
    return losses, {**terms, 'levels': jnp.broadcast_to(1.0 * levels, losses.shape)}

  ema = {**base.ema, TARGET: 0.0}
  made = base._replace(loss=loss, model=model, ema=ema, settled=int(table.begins[-1]),
                       update=_averaging(step_lib.make_step(loss, base.tx, ema), table))
  if not taught_by:
    return made
  return made._replace(
      aux=teachers.first_parameters,
      teacher=lambda of, params: teachers.require_same(taught_by, of, params),
      needs_start='its teacher is what it starts from')


def _averaging(step: Update, table: consistency.Discretisation) -> Update:
  """`step`, with the average 'target' at the rate mu(k): Song et al. (2023), eq. 8."""
  def update(state, batch, key, axis, accumulate=1):
    _, rate = table.at(state.step)
    after, reported = step(state, batch, key, axis, accumulate=accumulate)
    target = step_lib.average(state.ema[TARGET], after.params, rate)
    return dataclasses.replace(after, ema={**after.ema, TARGET: target}), reported
  return update
