"""Training: state, step, layouts, checkpoints, the loop.  Knows only `Loss` and `Update`."""
