"""Distillation of a guided model: one evaluation instead of two, then fewer steps.

Meng et al. (2023); see `objectives.guided`.  The teacher has learned to do without labels
(`systems.guided.label_dropping`).  `first` is a student that reads the weight w of the guidance
besides the label.  `second` halves the steps of this student's sampler, by `distilled.progressive`,
with w drawn anew at each update.  Both students sample with a chosen w (`--condition=w=2`).

The network takes a pair (label, w): the option `guided` of `nn.unets.vdm.UNet` and
`nn.small.mlp.MLP`.  Its layer that reads w is zero at first, so that the student can start from the
teacher's weights.
"""
import jax.numpy as jnp
import ml_collections
import numpy as np

from vdm_jax import weightings
from vdm_jax.data import conditions
from vdm_jax.data.fields import Field, Spec
from vdm_jax.errors import InputError, require_choice
from vdm_jax.guidance import classifier_free, conditioned_on
from vdm_jax.objectives import guided
from vdm_jax.systems import compose
from vdm_jax.systems.distilled import progressive, teachers
from vdm_jax.typing import Experiment, Model, PyTree

WEIGHT = 'w'  # the field of a batch with the weight of the guidance


def fields() -> dict:
  """The fields of `config.model` besides the teacher's."""
  return {
      'w_min': 0.0, 'w_max': 4.0,  # w is drawn evenly between them; below 8
      'weight': 'truncated_snr',   # of the error of x: a name of weightings.OF_X
  }


def told(base: Experiment) -> Experiment:
  """`base` with a model that also reads w, or 0 if a batch has no w.  The model is not guided."""
  spec, field = base.data.spec, Field(WEIGHT, (), 'float32', None)

  def model(params, keys=None):
    m: Model = base.model(params, keys)

    def cond(batch):
      label = m.cond(batch)
      return label, batch.get(WEIGHT, jnp.zeros(jnp.shape(label)[:1]))

    names = [name for name in m.conditions(np.arange(1)) if name in spec]
    return m._replace(cond=cond, null=None, conditions=conditions.of(
        Spec(spec.name, (*spec.fields, field)), [*names, WEIGHT]))

  return base._replace(model=model)


def _draw(config):
  m = config.model
  if not 0.0 <= m.w_min < m.w_max <= 8.0:
    raise InputError('config.model.w_max', m.w_max, f'from config.model.w_min={m.w_min:g} to this '
                     'number is no range of weights in [0, 8]', 'give 0 <= w_min < w_max <= 8')
  return lambda batch, keys: batch | {WEIGHT: guided.draw_weights(keys, m.w_min, m.w_max)}


def first(config: ml_collections.ConfigDict, base: Experiment) -> Experiment:
  """The student of the guided estimate, with `fields` in config.model.

  base: the experiment of the teacher, made by `label_dropping`, with a network that takes a pair
  (label, w).  The loss is divided by D ln 2.

  Raises InputError for a wrong range of weights.  The check of the teacher raises InputError if
  that run has not learned to do without labels.
  """
  m, draw, student = config.model, _draw(config), told(base)
  require_choice('config.model.weight', m.weight, weightings.OF_X)

  def loss(params, batch, context):
    teacher = base.model(context.aux)
    without = conditioned_on(teacher.denoise, teacher.null)

    def both(z, level, cond: PyTree = None):
      label, w = cond
      w = w.reshape(-1, *(1,) * (z.ndim - 1))
      return classifier_free(teacher.denoise, without, w)(z, level, label)

    def objective(*args):
      return guided.objective(*args, teacher=both, weight=weightings.OF_X[m.weight])

    model = lambda *args: teachers.on_process_of(student.model(*args), teacher)
    return compose.loss_of(objective, model, teacher.shape)(
        params, draw(batch, context.keys), context)

  def check(made, params):
    teachers.require_same(base, made, params)
    if made.null is None:
      raise InputError('init_from', None, 'the teacher has not learned to do without labels, as '
                       'the guidance of a student needs',
                       'name a run with dropped labels (systems.guided.label_dropping)')

  return student._replace(
      loss=loss, aux=teachers.first_parameters, adds=('guidance',), teacher=check,
      needs_start='its teacher is what it starts from')


def second(config: ml_collections.ConfigDict, base: Experiment) -> Experiment:
  """The students of fewer steps; training starts from the run of `first`, with the same `base`.

  Raises InputError as `progressive.experiment` does, and for a wrong range of weights.
  """
  return progressive.experiment(config, told(base), draw=_draw(config))
