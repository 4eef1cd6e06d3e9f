"""Rectified flow on pairs: reflow, which straightens a flow, and its distillation into one step.

Liu, Gong and Liu (2023); see `objectives.rectified_flow`.  The first flow is `flow_matching` on the
path `ot`.  The data are pairs that `scripts/make_pairs.py` made with the first flow (`data.pairs`).
The pairs hold the images as integers, and x and z_1 as floats.

`on_lines` carries a diffusion model on another curve to straight lines.  There its own samples are
the pairs of the first reflow.
"""
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import ml_collections
from flax import linen as nn

from vdm_jax import data, inputs, processes, random, schedules
from vdm_jax.data import pairs
from vdm_jax.data.fields import LABEL
from vdm_jax.denoisers import on_curve
from vdm_jax.objectives import rectified_flow
from vdm_jax.processes import GaussianProcess, sample_prior
from vdm_jax.systems import compose, paired
from vdm_jax.systems.distilled import metrics, teachers
from vdm_jax.systems.flows import flow_matching as system
from vdm_jax.typing import Array, Curve, Experiment, Model, brief


def default_config(**model) -> ml_collections.ConfigDict:
  """The fields of flow matching, those of `reflow` and those of `distilled`."""
  return system.default_config(**{
      'steps': 0,      # reflow: k trains for k Euler steps, 0 for any number
      'metric': 'l2',  # distilled: or l1, or lpips where the config offers it
  } | model)


def of_pairs(config: ml_collections.ConfigDict, place: str) -> ml_collections.ConfigDict:
  """`config` with the pairs in the folder `place` as its data.

  A model of the data of `config` must have made the pairs.
  """
  spec = data.resolve(config.data)
  told = [spec[LABEL]] if config.model.class_conditional else []
  kept = data.Spec(place, pairs.fields_of(spec.x, told))
  with config.unlocked():
    config.data.update(kept.to_config())
  config.data.name = place
  return config


class OneStep(NamedTuple):
  """A flow that is distilled into one step.  It draws samples, and has no likelihood."""
  sample: Callable[..., Array]  # keys [B], or key, n -> data [B, ...]
  shape: tuple[int, ...]        # of one example
  field: str = 'image'          # which field of a batch is the data

  def __repr__(self) -> str:
    return brief(self)


def on_lines(config: ml_collections.ConfigDict, base: Experiment, curve: Curve) -> Experiment:
  """`base` on straight lines: its network as it is, at equal log-SNR.

  base: a diffusion model on `curve`, whose noise is coupled to the data from now on.  The ends of
  the lines are config.model.logsnr_max and logsnr_min.
  """
  process = GaussianProcess(schedules.Polynomial(1.0, *compose.end_points(config)), processes.flow)

  def model(params, keys=None):
    m: Model = base.model(params, keys)
    return m._replace(denoise=on_curve(m.denoise, curve), process=process, null=None, coupled=True)

  return base._replace(model=model)


def straightened(config: ml_collections.ConfigDict, base: Experiment) -> Experiment:
  """Flow matching of `base`, a model on straight lines, on pairs: its reflow.

  The model that made the pairs may be on another curve.  Raises InputError, see
  `paired.require_pairs`.
  """
  paired.require_pairs(config, base, carried=True)
  return _on_pairs(base, rectified_flow.reflow)


def reflow(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
           read: inputs.Inputs | None = None, condition: str | None = '') -> Experiment:
  """Flow matching on pairs: the next rectified flow.

  Raises InputError for a negative `steps`, and as `paired.require_pairs` does.
  """
  steps = config.model.steps
  compose.require(config, 'steps', steps >= 0, 'it is negative', 'give 0 or more')
  base = _checked(config, net, read, condition)

  def model(params, keys=None):
    return base.model(params, keys)._replace(coupled=True)  # its noise is that of its pairs

  return _on_pairs(base, rectified_flow.reflow, steps=steps)._replace(model=model)


def distilled(config: ml_collections.ConfigDict, *, net: nn.Module | None = None,
              read: inputs.Inputs | None = None, perceptual: metrics.Perceptual | None = None
              ) -> Experiment:
  """The one step of a flow, learned from the flow's pairs by config.model.metric.

  perceptual: LPIPS with its weights, as in `metrics.of_config`.

  The loss is divided by D ln 2.

  Raises InputError for labels, and as `metrics.of_config` and `paired.require_pairs` do.  The check
  of the run that training starts from raises InputError as `teachers.require_same` does.
  """
  compose.require(config, 'class_conditional', not config.model.class_conditional,
                  'a one-step student draws without labels', 'set it to False')
  base = _checked(config, net, read, None)
  metric = metrics.of_config(config, base.data.spec.x, perceptual)

  def model(params, keys=None):
    m: Model = base.model(params, keys)

    def sample(key, n=None):
      keys = random.each(key, n)
      z_1 = sample_prior(m.process, keys, jnp.zeros((len(keys), *m.shape)))
      return m.decode(rectified_flow.one_step(m.denoise, m.process, z_1))
    return OneStep(sample, m.shape, m.field)

  return _on_pairs(base, rectified_flow.distil, metric=metric)._replace(
      model=model, needs_start='one step is distilled from the flow that made the pairs',
      teacher=lambda made, params: teachers.require_same(base, made, params))


def _on_pairs(base: Experiment, objective: Callable[..., Any], **options: Any) -> Experiment:
  """`base` with an objective of x and z_1, which are read from the batch as floats."""
  def loss(params, batch, context):
    def of_pairs(denoise, process, _, t, keys, cond=None):
      return objective(denoise, process, batch[pairs.SAMPLE], t, keys, cond,
                       z_1=batch[pairs.NOISE], **options)
    return compose.loss_of(of_pairs, base.model, base.data.spec.shape)(params, batch, context)
  return base._replace(loss=loss)


def _checked(config: ml_collections.ConfigDict, net, read, condition) -> Experiment:
  """The experiment of flow matching on pairs.  Raises InputError, see `paired.require_pairs`."""
  base = system.experiment(config, net=net, read=read, condition=condition)
  paired.require_pairs(config, base)
  return base
