"""What a command needs of a run's model, and the conditions it is sampled under."""
from pathlib import Path

import numpy as np

from vdm_jax.errors import InputError


def conditions(classes: int, label: int | None):
  """Image numbers -> what the model may be conditioned on: labels in turn, nothing augmented."""
  def batch(numbers):
    labels = numbers % max(classes, 1) if label is None else np.full_like(numbers, label)
    return {'label': labels.astype(np.int32), 'augmented': np.zeros(len(numbers), np.float32)}
  return batch


def require_denoiser(model, directory: str | Path) -> None:
  if not hasattr(model, 'denoise'):
    raise InputError(f'--workdir={directory}: this run has no denoiser to evaluate or to sample '
                     'by; vdm_jax.load gives what it made.')
