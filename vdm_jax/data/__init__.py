"""Data: named fields, their sources, and the examples that make the batch of a step.

A batch is a pure function of (seed, step), so there is no iterator to save.  A run that resumes at
step k reads batch k, on any number of processes.  All code here uses NumPy, and none uses JAX.
"""
from vdm_jax.data.fields import Field, Spec
from vdm_jax.data.fingerprints import changes
from vdm_jax.data.pipeline import Data, Split, default_config, resolve
from vdm_jax.data.stores import is_path

__all__ = ['Data', 'Field', 'Spec', 'Split', 'changes', 'default_config', 'is_path', 'resolve']
