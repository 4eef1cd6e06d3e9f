"""One trained network under several schedules: the continuous bound must not change.

The diffusion term is an integral over log-SNR, 1/2 int E|eps - eps_hat|^2 dlogsnr.  So it depends
only on the end points of the schedule (Kingma et al. 2021, section 5.1).  Only the variance of its
one-draw estimates changes.  If a network reads t instead of the log-SNR, it is another network
under another schedule, so its bound changes.
"""
import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from vdm_jax import schedules
from vdm_jax.typing import Model, PyTree, Scalar, Schedule

# With the range of logsnr for their scale, lest an end become too rare to be drawn.
SCHEDULES: dict[str, Callable[[Scalar, Scalar], Schedule]] = {
    'linear': schedules.Linear,
    'cosine': schedules.Cosine,
    'laplace': lambda high, low: schedules.Laplace(0.5 * (high + low), (high - low) / 4, high, low),
    'sigmoid': lambda high, low: schedules.Sigmoid(0.5 * (high + low), (high - low) / 8, high, low),
}


def with_schedule(model: Callable[[PyTree], Model], name: str) -> Callable[[PyTree], Model]:
  """`model` with the schedule of this name, between the ends of the model's own schedule."""
  def replaced(params):
    own = model(params)
    process: Any = own.process  # a dataclass with a field `schedule`
    high, low = (own.process(jnp.float32(t)).logsnr for t in (0.0, 1.0))
    return own._replace(process=dataclasses.replace(process, schedule=SCHEDULES[name](high, low)))
  return replaced


def has_replaceable_schedule(model: Model) -> bool:
  """Whether `with_schedule` applies: the bound is objectives.vlb's, and the process has a
  schedule, one for all pixels, with finite ends.  A flow of coupled noise has no bound, and neither
  has a model without a likelihood."""
  own = (model.bound is not None or model.prior is not None or model.coupled
         or bool(model.no_likelihood))
  if own or not hasattr(model.process, 'schedule'):
    return False
  ends = model.process(jnp.array([0.0, 1.0])).logsnr
  return ends.shape == (2,) and bool(jnp.all(jnp.isfinite(ends)))
