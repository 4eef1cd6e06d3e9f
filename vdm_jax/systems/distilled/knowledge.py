"""Knowledge distillation: one step, learned from pairs of noise and sample of a teacher.

Luhman and Luhman (2021); see `objectives.knowledge`.  The data are pairs that
`scripts/make_pairs.py` made with the teacher (`data.pairs`), with x and z_1 as floats.  The network
of the student has the teacher's inputs, and starts from the teacher's weights (--init_from).
"""
import ml_collections

from vdm_jax.data import pairs
from vdm_jax.errors import require_choice
from vdm_jax.objectives import knowledge
from vdm_jax.objectives.metrics import METRICS
from vdm_jax.systems import compose, paired
from vdm_jax.systems.distilled import teachers
from vdm_jax.typing import Experiment


def fields() -> dict:
  """The fields of `config.model` besides the teacher's."""
  return {'norm': 'l2'}  # or l1


def experiment(config: ml_collections.ConfigDict, base: Experiment, *,
               teacher: Experiment | None = None) -> Experiment:
  """The one-step student, with `fields` in config.model.

  Args:
    base: the experiment of the teacher's network and process on the pairs.  Its target is the
      teacher's own target or, as published for a network that predicts eps, `targets.removed`.
    teacher: the experiment of the run that made the pairs, if its target is not the target of
      `base`.  Default: `base`.

  The loss is divided by D ln 2.

  Raises InputError as `paired.require_pairs` does, and for an unknown norm.  The check of the run
  that training starts from raises InputError as `teachers.require_same` does.
  """
  spec = base.data.spec
  paired.require_pairs(config, base)
  require_choice('config.model.norm', config.model.norm, METRICS)

  def loss(params, batch, context):
    def objective(denoise, process, _, t, keys, cond=None):
      return knowledge.objective(denoise, process, batch[pairs.SAMPLE], t, keys, cond,
                                 z_1=batch[pairs.NOISE], norm=config.model.norm)
    return compose.loss_of(objective, base.model, spec.x.shape)(params, batch, context)

  def model(params, keys=None):
    return base.model(params, keys)._replace(distilled=('ddim_to_x', 1), bound=None,
                                             null=None, ends_denoised=False)

  return base._replace(
      loss=loss, model=model,
      needs_start='a student starts from the teacher that made the pairs',
      teacher=lambda made, params: teachers.require_same(teacher or base, made, params))
