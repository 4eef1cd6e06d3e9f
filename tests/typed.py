"""What a type checker knows of the library: read by pyright (.ci/check_types.py), never run.

An error that must be found carries a `pyright: ignore` of its rule, which is an error itself where
there is nothing to ignore.
"""
import dataclasses
from typing import assert_type

import jax
import jax.numpy as jnp

from vdm_jax import denoisers, guidance, oracles, samplers, schedules, targets, typing, weightings
from vdm_jax.objectives import (
  ddpm,
  diffenc,
  dpm2015,
  edm,
  iddpm,
  idode,
  proposals,
  score_flow,
  score_matching,
  score_ode,
  vlb,
  weighted_diffusion,
)
from vdm_jax.processes import GaussianProcess, RectifiedFlow, SubVP, from_alpha_sigma, prior_std, vp
from vdm_jax.typing import Array, Denoiser, Level, Objective, Process, Sampler

# Fields of values are known, and so are the wrong ones.
linear = schedules.Linear(logsnr_max=10.0)
assert_type(linear, schedules.Linear)
assert_type(linear.logsnr_max, float | Array)
schedules.Linear(logsnr_maximum=3)  # pyright: ignore[reportCallIssue]
schedules.Linear(logsnr_max='3')  # pyright: ignore[reportArgumentType]
linear.logsnr_max = 3.0  # pyright: ignore[reportAttributeAccessIssue]
GaussianProcess()  # pyright: ignore[reportCallIssue]
process = GaussianProcess(linear)
assert_type(process.curve, typing.Curve)
assert_type(dataclasses.replace(process, curve=vp), GaussianProcess)

# A number is a time, and so is an array.
for any_process in (process, RectifiedFlow(), SubVP(), GaussianProcess(schedules.Cosine())):
  assert_type(any_process(0.5), Level)
made: Process = from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)
assert_type(made(jnp.zeros(3)).alpha, Array)
assert_type(made(1), Level)
assert_type(linear(0.5), Array)
assert_type(prior_std(made, 0.5), Array)

# Denoisers, and what wraps them.
denoise: Denoiser = oracles.Gaussian(0.0, 1.0)
mixture: Denoiser = oracles.Mixture(jnp.ones(2) / 2, jnp.zeros((2, 3)), jnp.ones(2))
guided: Denoiser = guidance.classifier_free(denoise, mixture, 2.0)
networks: Denoiser = denoisers.denoiser(lambda z, time, cond: z, targets.eps)

# Every objective of the library is an Objective, and may require keywords of its own.
fixed: list[Objective] = [weighted_diffusion, vlb.continuous, vlb.discrete, ddpm.simple, ddpm.bound,
                          ddpm.objective, diffenc.continuous, diffenc.discrete, dpm2015.bound,
                          edm.objective, iddpm.hybrid, idode.objective, score_flow.density_bound,
                          score_matching.denoising, score_ode.objective]
proposed: Objective = proposals.importance(vlb.continuous, proposals.uniform)
matched: Objective = score_matching.at_level(score_matching.implicit)


def mine(denoise: Denoiser, process: Process, x: Array, t: Array, keys: Array, cond=None, *,
         power: float = 2.0) -> tuple[Array, dict[str, Array]]:
  level = process(t)
  error = jnp.sum(jnp.abs(x - denoise(x, level, cond).x)**power, axis=-1)
  return weightings.simple(level) * error, {}


own: Objective = mine
wrong: Objective = lambda denoise, process: None  # pyright: ignore[reportAssignmentType]

# Samplers: `Sampler(step)` is one, and samples are an array, with a trace a pair.
key = jax.random.key(0)
keys = jax.random.split(key, 4)
assert_type(samplers.ddim(denoise, process), Sampler)
still: Sampler = Sampler(lambda keys, z, t, s, plan: z)
assert_type(samplers.sample(still, keys, jnp.zeros((4, 2)), jnp.linspace(1.0, 0.0, 9)), Array)
assert_type(samplers.sample(still, keys, jnp.zeros((4, 2)), jnp.linspace(1.0, 0.0, 9), still.value),
            tuple[Array, typing.PyTree])
samplers.sample(samplers.ddim, keys, key, key)  # pyright: ignore[reportArgumentType]
