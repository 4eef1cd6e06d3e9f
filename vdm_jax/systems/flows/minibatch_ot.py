"""Flow matching in which optimal transport pairs the noise and the data of a batch.

Tong et al. (2023); see `objectives.couplings`.  Noise and data are paired within groups of
`config.model.group` consecutive examples of the global batch.  So the pairs depend neither on
devices nor on layouts.  With labels, noise is exchanged only within a label.  Validation and the
bound use independent noise.  The flow has no score: see `Model.coupled`.
"""
import functools

import jax
import ml_collections
from flax import linen as nn

from vdm_jax import inputs, random
from vdm_jax.objectives import couplings, flow_matching
from vdm_jax.systems import compose
from vdm_jax.systems.flows import flow_matching as system
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Experiment


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of flow matching, and the number of examples in a group."""
  return system.default_config(**{'group': 64} | model)


def experiment(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
               read: inputs.Inputs | None = None, condition: str | None = '') -> Experiment:
  """Flow matching on paired noise.  Raises InputError if groups do not divide the batch."""
  group = config.model.group
  compose.require(config, 'group', group > 0 and config.data.batch_size % group == 0,
                  f'it does not divide config.data.batch_size={config.data.batch_size}',
                  'choose one that does')
  base = system.experiment(config, net=net, read=read, condition=condition)
  shape = base.data.spec.shape

  def loss(params, batch, context):
    if 'eps' not in batch:
      return base.loss(params, batch, context)
    paired = functools.partial(flow_matching.objective, eps=batch['eps'])
    return compose.loss_of(paired, base.model, shape)(params, batch, context)

  step = step_lib.make_step(loss, base.tx, dict(config.ema))

  def update(state, batch, key, axis, accumulate=1):
    model = base.model(state.params)
    x = model.encode(batch[model.field])
    i = axis.example_index(len(x))
    # The noise that the loss would draw itself.
    keys = random.per_example(jax.random.fold_in(key, state.step), i + 1)
    noise = random.normal(random.stream(keys, 'eps'), x)
    labels = batch['label'] if config.model.class_conditional else None
    if axis.name is not None:  # a group may lie on several devices
      noise, x, labels = axis.gather((noise, x, labels))
    eps = couplings.optimal_transport(noise, x, labels, group=group)
    batch = {**batch, 'eps': eps if axis.name is None else eps[i]}
    return step(state, batch, key, axis, accumulate=accumulate)

  def model(params, keys=None):
    return base.model(params, keys)._replace(coupled=group > 1)

  return base._replace(loss=loss, update=update, model=model)
