"""The means over the last steps of a training, and whether it still trains."""
import math

import jax
import numpy as np

from vdm_jax.typing import PyTree

__all__ = ['Diverged', 'IN_FLIGHT', 'Window', 'headline']

IN_FLIGHT = 3  # single steps the host may run ahead of the devices, or one dispatch of several


class Diverged(RuntimeError):
  """A loss or gradient is not finite; the message has the step and the terms."""


class Window:
  """The metrics of the steps since the last `take`, which stay on the devices until then."""

  def __init__(self, in_flight: int):
    self._parts, self._in_flight = [], in_flight

  def add(self, first: int, metrics: PyTree, count: int | None = None) -> None:
    """Adds the metrics, [] or [steps], of the steps from `first` on.

    count: only so many of the steps were made.  Default: all.
    """
    self._parts.append((first, np.size(metrics['loss']) if count is None else count, metrics))
    if len(self._parts) > self._in_flight:  # else the host would queue batches without end
      jax.block_until_ready(self._parts[-1 - self._in_flight])

  def take(self) -> dict[str, float]:
    """The means of the metrics; {} if no step was added since the last `take`.

    Raises Diverged with the first step whose loss is not finite.
    """
    parts, self._parts = jax.device_get(self._parts), []
    rows = [(first + k, {name: float(np.ravel(u)[k]) for name, u in metrics.items()})
            for first, count, metrics in parts for k in range(count)]
    for step, row in rows:
      # A gradient that is not finite, of a loss that is, has spoiled the parameters already.
      for what, name in (('loss', 'loss'), ('gradient', 'grad_norm')):
        if not math.isfinite(row[name]):
          terms = ', '.join(f'{name} {value:.6g}' for name, value in row.items())
          raise Diverged(f'The {what} is not finite at step {step}: {terms}.')
    if not rows:
      return {}
    return {name: math.fsum(row[name] for _, row in rows) / len(rows) for name in rows[0][1]}


def headline(values: dict[str, float]) -> tuple[str, float]:
  """The one number to show during a run: bits/dim if the loss has this term, else the loss."""
  return ('bits/dim', values['bits_per_dim']) if 'bits_per_dim' in values else (
      'loss', values['loss'])
