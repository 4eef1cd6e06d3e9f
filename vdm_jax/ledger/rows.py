"""A row of the ledger: its estimate, its numbers, and the bits of every image behind them."""
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vdm_jax.likelihood.bounds import BoundSamples
from vdm_jax.likelihood.statistics import standard_errors

__all__ = ['Measured', 'row']


class Measured(NamedTuple):
  """A row of the ledger, and the bits/dim of every image, whose mean the row is."""
  row: dict
  bits: dict[str, np.ndarray]         # 'total' and parts of it, [R, N]
  draws: BoundSamples | None = None   # of a bound from single times


def row(about: Mapping, bits: Mapping[str, np.ndarray], evaluations: np.ndarray | None) -> dict:
  """A row of the ledger: `about` (the description of the estimate) and the numbers.

  bits: for every image, 'total' and its parts, bits/dim [R, N]; evaluations: [R, N], of the
  network; None if they are not known.
  """
  over_images, over_draws = standard_errors(bits['total'])
  repeats, examples = bits['total'].shape
  calls = None if evaluations is None else evaluations.sum(axis=0)
  return {
      **about,
      'bits_per_dim': float(bits['total'].mean()),
      'standard_error': over_images,
      'standard_error_draws': over_draws,
      'parts': {name: float(u.mean()) for name, u in bits.items() if name != 'total'},
      'examples': examples,
      'repeats': repeats,
      # All repetitions together.
      'evaluations_per_image': None if calls is None else float(calls.mean()),
      'evaluations_max': None if calls is None else int(calls.max()),
  }
