"""Recordings of distillation by public code, and their closed-form teachers."""
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import oracles
from vdm_jax.typing import Denoiser

DATA = ('gauss', 'mix')


def recorded(name: str) -> dict[str, np.ndarray]:
  """All arrays of a recording; the test is skipped where it is not beside the checkout."""
  try:
    return recordings.recording(name)
  except FileNotFoundError:
    pytest.skip(f'the recording {name}.npz is not beside this checkout')


def teacher(arrays: dict[str, np.ndarray], data: str) -> Denoiser:
  """The exact denoiser of the data of a recording."""
  part = {key.removeprefix('data/'): jnp.asarray(u) for key, u in arrays.items()
          if key.startswith('data/')}
  if data == 'gauss':
    return oracles.Gaussian(part['mean'], part['std'])
  return oracles.Mixture(part['weights'], part['means'], part['stds'])
