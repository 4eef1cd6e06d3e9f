"""Rectified flow on pairs: reflow, which straightens a flow, and its distillation into one step.

Liu, Gong and Liu (2023); see `objectives.rectified_flow`.  The first flow is `flow_matching` on the
path `ot`.  The data are pairs that `scripts/make_pairs.py` made with the first flow (`data.pairs`).
They hold the images as integers, and x and z_1 as floats.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import data, inputs, random
from vdm_jax.data import pairs
from vdm_jax.data.fields import LABEL
from vdm_jax.errors import InputError, require
from vdm_jax.objectives import rectified_flow
from vdm_jax.processes import prior_std, sample_prior
from vdm_jax.systems import compose
from vdm_jax.systems.flows import flow_matching as system
from vdm_jax.typing import Array, Experiment, Model, brief


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of flow matching, and `steps`: k, to train for k Euler steps; 0, for any number."""
  return system.default_config(**{'steps': 0} | model)


def of_pairs(config: ml_collections.ConfigDict, place: str) -> ml_collections.ConfigDict:
  """`config` whose data are the pairs in the folder `place`, made by a model of its data."""
  spec = data.resolve(config.data)
  told = [spec[LABEL]] if config.model.class_conditional else []
  kept = data.Spec(place, pairs.fields_of(spec.x, told))
  with config.unlocked():
    config.data.update(kept.to_config())
  config.data.name = place
  return config


class OneStep(NamedTuple):
  """A flow that is distilled into one step: it samples, and has no likelihood."""
  sample: Callable[..., Array]  # keys [B], or key, n -> data [B, ...]
  shape: tuple[int, ...]        # of one example
  field: str = 'image'          # which field of a batch is the data

  def __repr__(self) -> str:
    return brief(self)


def reflow(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
           read: inputs.Inputs | None = None, condition: str | None = '') -> Experiment:
  """Flow matching on pairs: the next rectified flow.  Raises InputError, see `_checked`."""
  steps = config.model.steps
  compose.require(config, 'steps', steps >= 0, 'it is negative', 'give 0 or more')
  return _on_pairs(_checked(config, net, read, condition), rectified_flow.reflow, steps=steps)


def distilled(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
              read: inputs.Inputs | None = None) -> Experiment:
  """The one step of a flow, learned from its pairs.  Raises InputError, see `_checked`."""
  compose.require(config, 'class_conditional', not config.model.class_conditional,
                  'a one-step student draws without labels', 'set it False')
  base = _checked(config, net, read, None)

  def model(params, keys=None):
    m: Model = base.model(params, keys)

    def sample(key, n=None):
      keys = random.each(key, n)
      z_1 = sample_prior(m.process, keys, jnp.zeros((len(keys), *m.shape)))
      return m.decode(rectified_flow.one_step(m.denoise, m.process, z_1))
    return OneStep(sample, m.shape, m.field)

  return _on_pairs(base, rectified_flow.distil)._replace(
      model=model, needs_start='one step is distilled from the flow that made the pairs')


def _on_pairs(base: Experiment, objective: Callable[..., Any], **options: Any) -> Experiment:
  """`base` with an objective of x and z_1, which are read from the batch as floats."""
  def loss(params, batch, context):
    def of_pairs(denoise, process, _, t, keys, cond=None):
      return objective(denoise, process, batch[pairs.SAMPLE], t, keys, cond,
                       z_1=batch[pairs.NOISE], **options)
    return compose.loss_of(of_pairs, base.model, base.data.spec.shape)(params, batch, context)
  return base._replace(loss=loss)


def _checked(config: ml_collections.ConfigDict, net, read, condition) -> Experiment:
  """The experiment of flow matching on pairs.

  Raises InputError: data that are no pairs; fewer pairs than a batch; pairs of a process with
  another prior than config.model's.
  """
  place, spec = config.data.name, data.resolve(config.data)
  for name in (pairs.NOISE, pairs.SAMPLE):
    require(name in spec, 'config.data.name', place, f'it has no field {name!r}, as pairs have',
            'make some of a trained flow (scripts/make_pairs.py)')
  base = system.experiment(config, net=net, read=read, condition=condition)
  if data.is_path(place) and pairs.is_pairs(place):
    said = pairs.record(place)
    own = float(prior_std(base.model({'net': {}}).process))
    theirs = said['about']['prior_std']
    if theirs is None or abs(own - theirs) > 0.01 * own:
      noise = 'is learned' if theirs is None else f'has standard deviation {theirs:g}'
      raise InputError('config.data.name', place, f'its noise {noise}, of another process: here it '
                       f'has standard deviation {own:g}',
                       'make pairs of a flow, or of a model on the curve vp')
    there = len(base.data.split('train'))
    require(there >= config.data.batch_size, 'config.data.batch_size', config.data.batch_size,
            f'{place} has {there:,} pairs to train on', 'make more, or choose a smaller batch')
  return base
