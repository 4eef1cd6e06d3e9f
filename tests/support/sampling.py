"""Grids, exact maps and closed-form data for the tests of samplers.

A grid may be padded with steps of length zero, so grids of many lengths run as one program.
"""
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vdm_jax import certification, oracles, random, schedules
from vdm_jax.processes import GaussianProcess, flow, from_alpha_sigma, sub_vp, ve, vp
from vdm_jax.samplers import sample
from vdm_jax.samplers.grids import warm_up

CURVES = [vp, ve, flow, sub_vp]
LINEAR = (13.3, -5.0)
BEND = GaussianProcess(schedules.Linear(3.0, -2.5))  # where nothing is nearly linear
CURVED = GaussianProcess(schedules.Cosine(3.0, -2.5), flow)
UNEVEN = np.array([1.0, 0.9, 0.65, 0.5, 0.3, 0.1, 0.0])
ODD = oracles.Gaussian(0.7, 0.4)
Z = np.linspace(-2.0, 2.0, 5)[:, None]
MIXTURE = [0.4, 0.6], [-0.8, 0.6], [0.15, 0.3]  # weights, means, standard deviations


def rectified_flow():
  return from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)


def mixture():
  weights, means, stds = map(jnp.array, certification.MODELS['mixture'])
  return oracles.Mixture(weights, means[:, None], stds)


def undefined_at_data(z, level, cond=None):
  """ODD, but NaN where sigma = 0, as a network may be."""
  defined = jnp.where(level.sigma > 0.0, 1.0, jnp.nan)
  return jax.tree.map(lambda a: defined * a, ODD(z, level))


def grids(lengths):
  """Uniform grids from 1 to 0 of these numbers of steps, all as long as the longest."""
  longest = max(lengths)
  return jnp.stack([jnp.pad(jnp.linspace(1.0, 0.0, n + 1), (0, longest - n)) for n in lengths])


def program(sampler, along=sample):
  """(z, times) -> z at the end, compiled once for all grids of a length."""
  run = lambda z, times: along(sampler, jax.random.split(jax.random.key(0), len(z)), z, times)
  return jax.jit(run)


def on_grids(sampler, z, lengths, seed=0):
  keys = jax.random.split(jax.random.key(seed), len(z))
  return jax.jit(jax.vmap(lambda times: sample(sampler, keys, z, times)))(grids(lengths))


def transition(sampler, t, s):
  """(gain, std) of the affine kernel z_t -> z_s of `sampler`, one for each pair of times."""
  def at(z, noise):
    with mock.patch.object(random, 'normal', lambda keys, like: jnp.full_like(like, noise)):
      step = lambda t, s: sampler.step(jax.random.split(jax.random.key(0), 1), z, t, s, None)
      return jax.jit(jax.vmap(step))(t, s)[:, 0, 0]
  start = at(jnp.zeros((1, 1)), 0.0)
  return at(jnp.ones((1, 1)), 0.0) - start, at(jnp.zeros((1, 1)), 1.0) - start


def spread(sampler, steps):
  """Standard deviation at t = 0 from 1 at t = 1, by var_s = gain^2 var_t + std^2."""
  times, variance = jnp.linspace(1.0, 0.0, steps + 1), 1.0
  kernels = map(np.asarray, transition(sampler, times[:-1], times[1:]))
  for gain, std in zip(*kernels, strict=True):
    variance = gain**2 * variance + std**2
  return variance**0.5


def quantile_map(z, at_t, at_s):
  """The exact flow of a mixture in one dimension: it keeps order, so it keeps quantiles."""
  def cdf(z, level):
    a, s = float(level.alpha), float(level.sigma)
    return sum(w * stats.norm.cdf(z, a * m, np.hypot(a * d, s))
               for w, m, d in zip(*MIXTURE, strict=True))
  low, high = np.full_like(z, -20.0), np.full_like(z, 20.0)
  for _ in range(80):
    middle = 0.5 * (low + high)
    below = cdf(middle, at_s) < cdf(z, at_t)
    low, high = np.where(below, middle, low), np.where(below, high, middle)
  return low


def slopes(sampler, process, order=0, lengths=(80, 160, 320), model='mixture'):
  """Slopes of log2 error against log2 of the number of steps, short and long in turn.

  order: what the grids are warmed up for, 0 for as they are; model: of `certification`.
  """
  data = certification.MODELS[model]
  (alpha_t, sigma_t), (alpha_s, sigma_s) = (
      (float(level.alpha), float(level.sigma)) for level in map(process, (1.0, 0.0)))
  share = np.linspace(0.05, 0.95, 7)
  z = certification.quantiles(share, data, alpha_t, sigma_t)[:, None]
  exact = certification.quantiles(share, data, alpha_s, sigma_s)[:, None]
  times = [np.pad(certification.alternating_grid(n), (0, max(lengths) - n)) for n in lengths]
  times = np.stack([np.asarray(warm_up(t, order)) if order else t for t in times])
  got = jax.jit(jax.vmap(program(sampler), in_axes=(None, 0)))(z, times)
  error = np.sqrt(np.mean((got - exact)**2, axis=(1, 2)))
  return np.log2(error[:-1] / error[1:])
