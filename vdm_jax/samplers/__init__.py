"""Reverse-time samplers.  `init` and `step` are pure; `sample` is one lax.scan over them.

A sampler is given a denoiser and a process, and knows nothing of networks, targets or data.  Each
file has one family:

  first_order            ancestral (any variance), ddim
  euler                  probability flow, Euler-Maruyama, reverse diffusion, exponential_sde
  analytic               Analytic-DPM, SN-DDPM, NPR-DDPM; the optimal trajectory
  dpm_solver             DPM-Solver and DPM-Solver++; `dpm_solver_adaptive`
  deis, unipc            exponential multistep methods, on the engine of `multistep`
  taylor                 quasi-Taylor
  runge_kutta, edm       any tableau; Karras et al. with churn
  adaptive               steps as long as a tolerance allows, by diffrax
  langevin               annealed Langevin dynamics, correctors
  predictor_corrector    any of each; `denoising_mcmc`
  multiplied             the posterior under a second density r(x): inpainting, denoising
  around                 noise is added to given data and removed again
  inpainting             known numbers are replaced: replacement, RePaint, a path from before
  conditioned            of a posterior given y = A(x) + noise: DPS, PGDM, MCG, and all methods
  mbir                   volumes given few measurements, by a prior of slices: DiffusionMBIR
  consistency            from consistency models, in one step or in several
  splitting              PLMS, and guided sampling in two parts
  grids                  the times to step along
"""
from vdm_jax.samplers.first_order import ancestral, ddim
from vdm_jax.samplers.runge_kutta import heun
from vdm_jax.samplers.sampling import encode, sample

__all__ = ['ancestral', 'ddim', 'encode', 'heun', 'sample']
