"""Continuous-time diffusion models as plain functions."""
from typing import Any

__all__ = ['__version__', 'load']
__version__ = '0.1.0'


def load(workdir: str, **options) -> Any:
  """The trained model of a run, a `Model` if it is a diffusion model: `vdm_jax.runs.workdir.load`.

  The import happens at the call, so that the processes that read data need no JAX.
  """
  from vdm_jax.runs import workdir as workdir_lib
  return workdir_lib.load(workdir, **options)
