"""Progressive distillation of any diffusion model: one training halves the steps of its sampler.

Salimans and Ho (2022), algorithm 2.  Training has phases of `halving_updates` updates.  In the
first phase, the student makes half of the `teacher_steps`.  At the start of each further phase, the
student becomes the teacher, the optimiser begins afresh, and the steps are halved, down to
`student_steps`.  In each phase, the learning rate falls linearly to 0.

The phase is a function of the number of the update, and the teacher is a part of the state.  So a
stopped run resumes bit for bit.  A checkpoint samples with the steps of its own phase.

There is no average, as in the published config, because an average would mix students of different
steps.  With `clip`, samples are made of clipped estimates, as in the published config; the targets
of training are not clipped.

Training starts from the teacher's run (--init_from).  The config of that run must build the same
`base`.
"""
import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import ml_collections
import optax

from vdm_jax import weightings
from vdm_jax.errors import InputError, require, require_choice
from vdm_jax.objectives import progressive
from vdm_jax.systems import compose
from vdm_jax.systems.chains import ddpm
from vdm_jax.systems.distilled import teachers
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Array, Experiment, PyTree, Update, denoises

SAMPLER = 'ddim_to_x'  # what is distilled


def fields() -> dict:
  """The fields of `config.model` besides the teacher's."""
  return {
      'teacher_steps': 8,        # of the sampler that is distilled: a power of two
      'student_steps': 1,        # N at the end: a power of two
      'halving_updates': 250,    # of each phase
      'weight': 'truncated_snr', # of the error of x: a name of weightings.OF_X
      'clip': False,             # whether x_hat stays between the outermost levels where a student
                                 # is used; it does not where it is trained, nor does its teacher
  }


def updates(config: ml_collections.ConfigDict) -> int:
  """The number of updates of all phases together, for config.train.steps."""
  m = config.model
  return m.halving_updates * (m.teacher_steps.bit_length() - m.student_steps.bit_length())


def experiment(config: ml_collections.ConfigDict, base: Experiment, *,
               draw: Callable[[PyTree, Array], PyTree] = lambda batch, keys: batch) -> Experiment:
  """The students of `base`, the teacher's own experiment, with `fields` in config.model.

  draw: (batch, keys [B]) -> a batch with conditions that are drawn anew at each update.

  The loss is w |x~ - x_hat|^2, divided by D ln 2.  The term 'student_steps' is N.  The learning
  rate of config.optimizer is the rate at the start of a phase; a decay is not allowed.

  Raises InputError if the steps are not powers of two, or if the student has no fewer steps than
  its teacher.  Raises InputError also for a decay of the rate, and for an average.
  """
  m = config.model
  for name in ('teacher_steps', 'student_steps'):
    progressive.require_power_of_two(f'config.model.{name}', m[name])
  compose.require(config, 'student_steps', m.student_steps < m.teacher_steps,
                  'a student makes fewer steps than its teacher, which makes '
                  f'config.model.teacher_steps={m.teacher_steps}', 'give a smaller power of two')
  compose.require(config, 'halving_updates', m.halving_updates >= 1, 'a phase needs an update',
                  'give 1 or more')
  require_choice('config.model.weight', m.weight, weightings.OF_X)
  if config.optimizer.decay_steps:
    raise InputError('config.optimizer.decay_steps', config.optimizer.decay_steps,
                     'in each phase the rate falls to 0, at config.model.halving_updates',
                     'leave it at 0')
  for name, rate in base.ema.items():
    require(rate == 0.0, f'config.ema.{name}', rate, 'an average would mix students of different '
            'steps', 'give 0, which keeps the parameters themselves')
  table = progressive.phases(m.teacher_steps // 2, m.student_steps, m.halving_updates)

  def loss(params, batch, context):
    steps = progressive.steps_at(teachers.before(context.step, context.train), *table)
    teacher = base.model(context.aux)
    batch = draw(batch, context.keys)
    objective = functools.partial(progressive.objective, teacher=teacher.denoise, steps=steps,
                                  weight=weightings.OF_X[m.weight])
    model = lambda *args: teachers.on_process_of(base.model(*args), teacher)
    losses, terms = compose.loss_of(objective, model, teacher.shape)(params, batch, context)
    return losses, {**terms, 'student_steps': jnp.broadcast_to(1.0 * steps, losses.shape)}

  def clipped(params, keys=None):
    of = base.model(params, keys)
    return of._replace(denoise=ddpm.clipped(config, of.denoise), clips=True)

  in_use = clipped if m.get('clip', False) else base.model  # a run may be older than the field

  @functools.cache  # the pictures of a phase are drawn by one program
  def model_of(steps):
    return lambda params, keys=None: in_use(params, keys)._replace(
        distilled=(SAMPLER, steps), bound=None, null=None, ends_denoised=False)

  def at(updates):
    last = teachers.before(jnp.asarray(updates), train=False)
    return students._replace(model=model_of(int(progressive.steps_at(last, *table))))

  def teacher(made, params):
    # A student of another run may be clipped.
    same = base._replace(model=clipped) if denoises(made) and made.clips else base
    teachers.require_same(same, made, params)
    if made.distilled and made.distilled[1] < m.teacher_steps:
      raise InputError('config.model.teacher_steps', m.teacher_steps, 'the teacher was distilled '
                       f'down to {made.distilled[1]}, and a student cannot begin with more steps',
                       f'give {made.distilled[1]}')

  falling = optax.scale_by_schedule(optax.linear_schedule(1.0, 0.0, m.halving_updates))
  tx = optax.chain(base.tx, falling)
  students = base._replace(
      loss=loss, model=model_of(m.student_steps), at=at, tx=tx, aux=teachers.first_parameters,
      settled=int(table[1][-1]),
      teacher=teacher,
      update=_halving(step_lib.make_step(loss, tx, base.ema), tx, table[1]),
      needs_start='its teacher is what it starts from')
  return students


def _halving(step: Update, tx: optax.GradientTransformation, begins) -> Update:
  """`step`; at the beginning of a phase, the student becomes the teacher before the step."""
  def update(state, batch, key, axis, accumulate=1):
    fresh = jnp.any(state.step == jnp.asarray(begins))
    choose = functools.partial(jax.tree.map, lambda new, old: jnp.where(fresh, new, old))
    state = dataclasses.replace(state, aux=choose(state.params, state.aux),
                                opt=choose(tx.init(state.params), state.opt))
    return step(state, batch, key, axis, accumulate=accumulate)
  return update
