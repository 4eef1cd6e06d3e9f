"""Systems that are told a part of x, which is made from x: a small copy of it, or a region.

The data have no fields for the part.  In training it is made from each example.  In sampling the
user gives it, as values of fields that condition the model.  Where a model is evaluated on data,
the part is made from them too.
"""
from collections.abc import Callable

import ml_collections

from vdm_jax import data
from vdm_jax.data.fields import Field
from vdm_jax.errors import require
from vdm_jax.typing import Array, Experiment, PyTree

# x as data [B, ...], and keys [B] in training, else None -> the values by field.
Make = Callable[[Array, Array | None], dict[str, Array]]


def experiment(config: ml_collections.ConfigDict, fields: tuple[Field, ...], make: Make,
               build: Callable[[ml_collections.ConfigDict], Experiment]) -> Experiment:
  """The experiment that `build` makes of the data with further `fields`, whose values `make` makes.

  build: the system, a function from a config to an experiment.  The data of that config are those
  of `config` and the fields.

  Raises InputError for a system that makes its own steps.
  """
  spec = data.resolve(config.data)
  inner = config.copy_and_resolve_references()
  with inner.unlocked():
    inner.data.update(data.Spec(spec.name, (*spec.fields, *fields)).to_config())
  base = build(inner)
  require(base.update is None, None, None, 'this system makes its own steps, and one that is told '
          'a part of x needs the usual ones', 'take another system')
  names = {field.name for field in fields}

  def told(batch: PyTree, keys: Array | None = None) -> PyTree:
    return batch if names <= batch.keys() else batch | make(batch[spec.x.name], keys)

  def loss(params, batch, context):
    return base.loss(params, told(batch, context.keys), context)

  def model(params, keys=None):
    m = base.model(params, keys)
    return m._replace(cond=lambda batch: m.cond(told(batch)))

  return base._replace(loss=loss, model=model, data=data.Data(config.data))
