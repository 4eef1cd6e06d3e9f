"""Samples of a run at several weights of guidance, all from the same noise."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from vdm_jax.data.conditions import Conditions
from vdm_jax.errors import require, require_at_least
from vdm_jax.guidance import Guidance
from vdm_jax.runs import sampling
from vdm_jax.runs.workdir import Trained
from vdm_jax.samplers import catalogue
from vdm_jax.samplers.catalogue import Method
from vdm_jax.samplers.drawing import draw
from vdm_jax.typing import Model, PyTree

__all__ = ['by_weight', 'check_weights', 'draw_each', 'suited']


def by_weight(w: float) -> dict[str, Any]:
  """The weight of classifier-free guidance, as files of samples keep it."""
  return {'guidance': list(Guidance(w).recorded())}


def check_weights(weights: Sequence[float]) -> None:
  """Raises InputError unless there are weights, all from 0 on."""
  require_at_least('weights', len(weights), 1)
  require(all(w >= 0.0 for w in weights), 'weights', list(weights), 'one is negative',
          'give weights from 0 on')


def suited(method: Method | None, model: Model) -> Method:
  """`method`, or the usual one of `model`.  Raises InputError if it does not suit guidance."""
  method = method or catalogue.usual(model)
  require(not (method.variances or method.head), 'sampler', method.name, 'the variances of the '
          'model are not those of the guided model', 'choose another sampler')
  catalogue.require_suited(method, model)
  return method


def draw_each(led: Callable[[PyTree], Model], trained: Trained, method: Method,
              times: np.ndarray, weights: Sequence[float], *, count: int, seed: int,
              batch_size: int, cond: Conditions, to: Path, levels: int,
              recorded: Callable[[float], dict[str, Any]] = by_weight,
              more: Any = None) -> dict[float, np.ndarray]:
  """{w: `count` samples, integers [count, ...]}, which are kept: see `sampling.draw_kept`.

  Args:
    led: {'of': the weights of the run, 'w': the weight of guidance, 'more': more} -> the guided
      model.  The weight is an argument, so that one program serves all weights.
    to: the samples of weight w are kept in TO_w.npz.
    levels: the samples have the values 0 .. levels - 1.
    recorded: w -> the part of the guidance that the samples depend on.
  """
  def drawn_at(w):
    pieces = lambda start: draw(
        led, {'of': trained.params, 'w': jnp.float32(w), 'more': more}, method.make, times=times,
        start=start, stop=count, seed=seed, batch_size=batch_size, cond=cond)
    return sampling.draw_kept(
        to.with_name(f'{to.name}_{w:g}.npz'), pieces, count, levels, trained=trained,
        about={**sampling.settings(method, times, seed), **recorded(w)}, cond=cond,
        doing=f'w = {w:g}')
  return {float(w): drawn_at(float(w)) for w in weights}
