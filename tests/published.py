"""Weights for parity tests, made by a rule from their names, so that no recording holds them.

The public code was given the same arrays under the same names when its outputs were recorded.
"""
import zlib

import numpy as np


def array(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Matrices and kernels, [out, in, ...] as in PyTorch: normal with variance 1 / inputs.  Vectors:
  normal / 10, about 1 where they are a `weight`.  float32."""
  noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
  if len(shape) > 1:
    noise /= np.sqrt(np.prod(shape[1:]))
  else:
    noise = 0.1 * noise + name.endswith('weight')
  return noise.astype(np.float32)
