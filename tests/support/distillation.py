"""The closed-form teachers of the recordings of distillation."""
import jax.numpy as jnp
import numpy as np

from vdm_jax import oracles
from vdm_jax.typing import Denoiser

DATA = ('gauss', 'mix')


def teacher(arrays: dict[str, np.ndarray], data: str) -> Denoiser:
  """The exact denoiser of the data of a recording."""
  part = {key.removeprefix('data/'): jnp.asarray(u) for key, u in arrays.items()
          if key.startswith('data/')}
  if data == 'gauss':
    return oracles.Gaussian(part['mean'], part['std'])
  return oracles.Mixture(part['weights'], part['means'], part['stds'])
