"""Reverse-time samplers.  `init` and `step` are pure; `sample` is one lax.scan over them.

A sampler is given a denoiser and a process and knows nothing of networks, targets or data.
"""
from vdm_jax.samplers.first_order import ancestral, ddim
from vdm_jax.samplers.runge_kutta import heun
from vdm_jax.samplers.sampling import encode, sample

__all__ = ['ancestral', 'ddim', 'encode', 'heun', 'sample']
