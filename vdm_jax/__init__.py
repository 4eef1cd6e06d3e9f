"""Continuous-time diffusion models as plain functions."""
from typing import Any

__all__ = ['__version__', 'load']
__version__ = '0.1.0'


def load(workdir: str, **options) -> Any:
  """What a run made, a `Model` of a diffusion model: see `vdm_jax.runs.workdir.load`.

  Imported here at the call, so that the data readers' processes need no JAX.
  """
  from vdm_jax.runs import workdir as workdir_lib
  return workdir_lib.load(workdir, **options)
