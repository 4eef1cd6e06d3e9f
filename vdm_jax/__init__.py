"""Continuous-time diffusion models as plain functions."""
from typing import Any

__all__ = ['__version__', 'load']
__version__ = '0.1.0'


def load(workdir: str, **options) -> Any:
  """Loads the trained model of a run; see `vdm_jax.runs.workdir.load`.

  The result is a `Model` if the run trained a diffusion model.  JAX is imported only at this call,
  so the processes that read data need no JAX.
  """
  from vdm_jax.runs import workdir as workdir_lib
  return workdir_lib.load(workdir, **options)
