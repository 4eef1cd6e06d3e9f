"""The metric that a config names: l1, l2, or LPIPS with weights that the user has."""
import math
from collections.abc import Callable

import ml_collections

from vdm_jax.data.fields import Field
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError, require_choice
from vdm_jax.objectives.metrics import METRICS, Metric
from vdm_jax.typing import Array

Perceptual = Callable[[Array, Array], Array]  # images [B, H, W, C] in [-1, 1], twice -> [B]


def of_config(config: ml_collections.ConfigDict, x: Field, perceptual: Perceptual | None) -> Metric:
  """The metric config.model.metric, in units of the data; l2 if the config has no such field.

  The metric 'lpips' is D LPIPS.  A loss that is divided by D is then LPIPS itself.

  Args:
    config: the name of the metric is in config.model.metric.
    x: the field of the data.
    perceptual: LPIPS with its weights (`published.lpips.distance`), for the metric of this name.

  Raises InputError for an unknown name, and for 'lpips' without `perceptual` or of real numbers.
  """
  name = config.model.get('metric', 'l2')  # a run's config may be older than the field
  require_choice('config.model.metric', name, (*METRICS, 'lpips'))
  if name != 'lpips':
    return METRICS[name]
  if perceptual is None:
    raise InputError('config.model.metric', name, 'the weights of LPIPS are not given',
                     'name their files in config.model.lpips, if the config has this field, or '
                     'choose l1 or l2')
  if not x.levels:
    raise InputError('config.model.metric', name,
                     'the data are real numbers, and LPIPS is of images',
                     'choose l1 or l2')
  to_ends = Pixels(x.levels).to_ends
  return lambda a, b: math.prod(x.shape) * perceptual(to_ends * a, to_ends * b)
