"""Per-example training objectives: plain functions, one family a file.

An objective is any function (denoise, process, x, t, keys, cond, ...) -> ([B] nats, {name: [B]}).
"""
from vdm_jax.objectives import vlb
from vdm_jax.objectives.weighted import check_limits, weighted_diffusion

__all__ = ['check_limits', 'vlb', 'weighted_diffusion']
