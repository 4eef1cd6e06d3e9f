"""Training: state, step, layouts, checkpoints, the loop.  Knows only `Loss` and `Update`."""
from vdm_jax.train.fitting import fit

__all__ = ['fit']
