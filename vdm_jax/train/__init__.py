"""Training: state, step, layouts, checkpoints, the loop.  It knows only a `Loss` and an `Update`.
"""
from vdm_jax.train.fitting import fit

__all__ = ['fit']
