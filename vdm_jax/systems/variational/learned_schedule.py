"""A schedule learned as in the VDM paper: its ends by the bound, its interior by least variance.

In continuous time, the bound depends on a schedule only through its end points.  But the variance
of the one-draw estimate of the bound, with t ~ U[0, 1], depends on the whole schedule.  So the end
points follow the gradient of the mean estimate.  The interior follows the gradient of the mean
*square* of the diffusion term l,

  d/d phi E[l^2] = E[2 l dl/d phi],

which is the same vector-Jacobian product with the cotangents 2 l_i.  Kingma et al. (2021),
appendix I.2.  If all levels are equally hard to denoise, the times of least variance are uniform in
logsnr.  In general, their density per unit of logsnr is proportional to
E[|eps - eps_hat|^4]^(1/2).

E[dl/d phi] = 0 for the interior, so the cotangents 2 (l_i - b) give the same expectation for any b
that is independent of the draw.  If b is the mean of l over past steps, the gradient is far less
noisy: where the estimate has little variance left, l_i - b is small, but l_i is not.
"""
import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import schedules
from vdm_jax.errors import InputError
from vdm_jax.systems import compose
from vdm_jax.systems.variational import vdm
from vdm_jax.train import step
from vdm_jax.typing import Experiment


def default_config(**model) -> ml_collections.ConfigDict:
  return vdm.default_config(**model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None) -> Experiment:
  """A VDM whose schedule is a `KnotSchedule` learned by `by_variance`.

  Raises InputError if config.model.timesteps is not 0, because the bound of a chain depends on the
  interior of its schedule.
  """
  compose.require_continuous(config)
  logsnr_max, logsnr_min = compose.end_points(config)
  return by_variance(vdm.experiment(config, net=net, schedule=schedules.KnotSchedule(
      logsnr_max=logsnr_max, logsnr_min=logsnr_min)))


def is_interior(names: tuple[str, ...]) -> bool:
  """Whether a parameter belongs to a schedule, but does not move its end points."""
  return names[0] == 'schedule' and names[-1] not in ('logsnr_max', 'logsnr_min')


def by_variance(experiment: Experiment, memory: float = 0.9) -> Experiment:
  """`experiment`, but the interior of its schedule minimises the variance of the diffusion term.

  The experiment must have the loss of continuous time, with the term 'diffusion'.  Its schedule
  must have the end points as parameters: `PinnedMonotone` or `KnotSchedule`.

  memory: the factor per step of the average that is subtracted.  The average is the state's `aux`
  (0 at first), and is reported as the term 'usual_diffusion'.

  The update raises InputError if the schedule's end points are not parameters of their own.
  """
  def loss(params, batch, context):
    ends = {'logsnr_max', 'logsnr_min'}
    if not ends < params.get('schedule', {}).keys():
      raise InputError(problem="params['schedule'] lacks logsnr_max, logsnr_min or an interior: "
                       'the gradient of the variance would move the end points',
                       remedy='choose schedules.KnotSchedule or PinnedMonotone')
    losses, terms = experiment.loss(params, batch, context)
    return losses, {**terms, 'usual_diffusion': jnp.broadcast_to(context.aux, losses.shape)}

  def remember(usual, context, losses, terms):
    return usual + (1.0 - memory) * (jnp.mean(terms['diffusion']) - usual)

  own = step.OwnGradient(
      is_interior, lambda losses, terms: 2.0 * (terms['diffusion'] - terms['usual_diffusion']))
  return experiment._replace(
      aux=jnp.zeros(()),
      update=step.make_step(loss, experiment.tx, experiment.ema, own=own, remember=remember))
