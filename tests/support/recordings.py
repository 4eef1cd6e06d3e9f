"""Trajectories that public implementations computed on closed-form models, for parity.

`tests/data/` holds a part of each file; where the full recordings lie beside the checkout, they
are read instead, so a test takes whatever runs there are and asks for none by name alone.
"""
import functools
import re
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, random
from vdm_jax.processes import from_alpha_sigma
from vdm_jax.typing import Array, Denoiser, Process, Sampler

ROOT = Path(__file__).parents[2]


# Names and values both contain underscores, so the names have to be known.
_OPTIONS = '|'.join([
    'variance_type', 'timestep_spacing', 'steps_offset', 'eta', 'beta_schedule', 'beta_start',
    'beta_end', 'set_alpha_to_one', 'rescale_betas_zero_snr', 'prediction_type', 'clip_sample',
    'clip_sample_range', 'thresholding', 'algorithm_type', 'solver_order', 'solver_type',
    'final_sigmas_type', 'lower_order_final', 'euler_at_final', 'use_lu_lambdas',
    'lambda_min_clipped', 'use_karras_sigmas', 'use_exponential_sigmas', 'use_beta_sigmas',
    'use_flow_sigmas', 'flow_shift', 'predict_x0', 'disable_corrector', 'sigma_schedule',
    's_churn', 's_noise', 's_tmin', 's_tmax', 'sigma_min', 'sigma_max', 'sigma_data', 'rho',
    'skip_prk_steps', 'num_train_timesteps'])


def shared(name: str) -> dict[str, np.ndarray]:
  """All arrays of a recording of which no part is kept here; the test is skipped without it."""
  full = ROOT.parent / 'shared' / 'oracles' / f'{name}.npz'
  if not full.exists():
    pytest.skip(f'the recording {full} is not here')
  with np.load(full) as file:
    return {key: file[key] for key in file.files}


def exact(data: dict[str, np.ndarray], which: str) -> Denoiser:
  """The exact denoiser of the `gauss` or `mix` of a recording that keeps them as data/*."""
  if which == 'gauss':
    return oracles.Gaussian(data['data/mean'], data['data/std'])
  return oracles.Mixture(data['data/weights'], data['data/means'], data['data/stds'])


class Run(NamedTuple):
  path: str                  # without the number of steps, e.g. gauss/edm_euler/s_churn=2.0
  count: int                 # steps or evaluations: the N of .../nN or .../nfeN
  options: dict[str, str]    # solver_order=2_use_karras_sigmas=True, as text
  arrays: dict[str, np.ndarray]


@functools.cache
def recording(name: str) -> dict[str, np.ndarray]:
  """All arrays of e.g. 'edm_gaussian': the full file if it is there, or the part kept here."""
  full = ROOT.parent / 'shared' / 'oracles' / f'{name}.npz'
  with np.load(full if full.exists() else ROOT / 'tests' / 'data' / f'{name}.npz') as file:
    return {key: file[key] for key in file.files}


def runs(name: str, algorithm: str) -> list[Run]:
  """The runs whose path has `algorithm` as a component, in the order of the file."""
  found = {}
  for key, value in recording(name).items():
    path, _, leaf = key.rpartition('/')
    if algorithm in path.split('/'):
      found.setdefault(path, {})[leaf] = value
  out = []
  for path, arrays in found.items():
    count = re.search(r'/n(?:fe)?(\d+)', path)
    kind = re.sub(r'/n(?:fe)?\d+', '', path)
    options = dict(re.findall(rf'({_OPTIONS})=(.*?)(?=_(?:{_OPTIONS})=|/|$)', kind))
    out.append(Run(kind, int(count[1]) if count else 0, options, arrays))
  return out


def data_set(path: str) -> str:
  """The closed-form data of a run: the first component of its path."""
  return path.split('/')[0]


def oracle(name: str, data: str) -> Denoiser:
  """The exact denoiser of a recording's data: N(mu, diag s^2), or a mixture of such."""
  arrays = recording(name)
  w, mu, s = (jnp.asarray(arrays[f'{data}/{key}']) for key in ('w', 'mu', 's'))
  shape = next(a.shape[1:] for k, a in arrays.items()
               if k.startswith(f'{data}/') and k.endswith(('/x', 'x_T', 'latents')))
  mu, s = mu.reshape(-1, *shape), jnp.broadcast_to(s.reshape(len(w), -1), (len(w), mu[0].size))
  s = s.reshape(mu.shape)
  return oracles.Gaussian(mu[0], s[0]) if len(w) == 1 else oracles.Mixture(w, mu, s)


def angle(curve: str) -> Process:
  """sigma / alpha = tan(pi t / 2), from 0 to infinity: a process that has every noise level.

  curve: 'vp' (alpha = cos) or 've' (alpha = 1).  Its time at sigma / alpha is `angle_time`.
  """
  u = lambda t: 0.5 * jnp.pi * t
  if curve == 'vp':
    return from_alpha_sigma(lambda t: jnp.cos(u(t)), lambda t: jnp.sin(u(t)))
  return from_alpha_sigma(jnp.ones_like, lambda t: jnp.tan(u(t)))


def angle_time(ratio: np.ndarray) -> np.ndarray:
  """The time of `angle` at which sigma / alpha is `ratio`."""
  return 2.0 / np.pi * np.arctan(ratio)


def replay(sampler: Sampler, z: Array, times: Array, noise: Array) -> Array:
  """`samplers.sample` with recorded draws.  noise: [N, draws in a step, B, ...], in their order."""
  keys = jax.random.split(jax.random.key(0), len(z))

  def body(state, xs):
    t, s, plan, draws = xs
    in_turn = iter(draws)
    with mock.patch.object(random, 'normal', lambda keys, like: next(in_turn)):
      moved = sampler.step(keys, state, t, s, plan)
    return jax.tree.map(lambda old, new: jnp.where(t == s, old, new), state, moved), None

  xs = times[:-1], times[1:], sampler.plan(times), noise
  return sampler.value(jax.lax.scan(body, sampler.init(z), xs)[0])
