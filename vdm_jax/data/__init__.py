"""Data: named fields, where they come from, and which examples make the batch of a step.

A batch is a pure function of (seed, step), so there is no iterator to save: resuming at step k
reads batch k, on any number of processes.  Everything here is NumPy; no JAX.
"""
from vdm_jax.data.fields import Field, Spec
from vdm_jax.data.fingerprints import changes
from vdm_jax.data.pipeline import Data, Split, default_config, resolve
from vdm_jax.data.stores import is_path

__all__ = ['Data', 'Field', 'Spec', 'Split', 'changes', 'default_config', 'is_path', 'resolve']
