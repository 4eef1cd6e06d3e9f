"""Predictor-corrector runs of the public score-SDE code (Song et al. 2021), on the recorded noise.

The code has N iterations at the times linspace(1, eps, N), corrector first, and returns the mean of
the last step.  An iteration uses three discretisations at once: the score and std of the SDE at its
time; the length 1 / N in Euler's method, although its times are further apart; and in all else the
chain of N betas or sigmas.  So the three are three processes here, in the time of which iteration i
is the step from 1 - i / N to 1 - (i + 1) / N, and the model is told the first of them.
"""
import ast
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax.processes import from_alpha_sigma
from vdm_jax.samplers.euler import euler_maruyama, reverse_diffusion
from vdm_jax.samplers.first_order import ancestral
from vdm_jax.samplers.langevin import annealed_corrector, langevin_corrector
from vdm_jax.samplers.predictor_corrector import predictor_corrector
from vdm_jax.typing import Estimate, Level, Sampler

pytestmark = pytest.mark.usefixtures('x64')

FILE = 'score_sde_gaussian'
BETA_MIN, BETA_MAX, SIGMA_MIN, SIGMA_MAX = 0.1, 20.0, 0.01, 50.0  # the defaults of the code
PREDICTORS = {
    'euler_maruyama': lambda curve: euler_maruyama,
    'reverse_diffusion': lambda curve: reverse_diffusion,
    'ancestral_sampling': lambda curve: functools.partial(ancestral, share=float(curve == 'vp')),
    'none': lambda curve: lambda denoise, process: Sampler(
        lambda keys, z, t, s, _: z, evaluations=0)}
CORRECTORS = {'langevin': functools.partial(langevin_corrector, over_batch=True),
              'ald': annealed_corrector}


def settings():
  return ast.literal_eval(str(recordings.recording(FILE)['meta']))


def sde(curve, n):
  """At our time, the SDE at the code's time, with derivatives in the code's time."""
  eps = settings()[f'eps_{curve}']
  integral = lambda t: BETA_MIN * t + 0.5 * (BETA_MAX - BETA_MIN) * t**2
  if curve == 'vp':
    process = from_alpha_sigma(lambda t: jnp.exp(-0.5 * integral(t)),
                               lambda t: jnp.sqrt(-jnp.expm1(-integral(t))))
  else:
    process = from_alpha_sigma(jnp.ones_like,
                               lambda t: SIGMA_MIN * (SIGMA_MAX / SIGMA_MIN)**t)
  return lambda t: process(jnp.maximum(1.0 - (1.0 - eps) * (1.0 - t) * n / (n - 1), eps))


def chain(curve, n):
  """(alpha, sigma) [n + 1] of the discrete chain, from no noise on; the k-th is at k / n."""
  if curve == 'vp':
    betas = np.linspace(BETA_MIN, BETA_MAX, n) / n
    alpha = np.sqrt(np.cumprod([1.0, *(1.0 - betas)]))
    return alpha, np.sqrt(1.0 - alpha**2)
  return np.ones(n + 1), np.concatenate([[0.0], np.geomspace(SIGMA_MIN, SIGMA_MAX, n)])


def table(alpha, sigma):
  """A process of these values at k / n, without derivatives."""
  n, zero = len(alpha) - 1, jnp.zeros(())
  alpha, sigma = jnp.asarray(alpha), jnp.asarray(sigma)

  def process(t):
    k = jnp.round(t * n).astype(int)
    a, s = alpha[k], sigma[k]
    return Level(t, 2.0 * (jnp.log(a) - jnp.log(s)), a, s, zero, zero, zero)
  return process


def sampler_of(data, curve, predictor, corrector, n):
  continuous, discrete = sde(curve, n), table(*chain(curve, n))
  oracle = recordings.oracle(FILE, data)

  def told(z, level, cond=None):
    """The score of the SDE at this time, whatever (alpha, sigma) the discretisation has there."""
    own = continuous(level.t)
    eps = level.sigma * oracle(z, own).eps / own.sigma
    return Estimate((z - level.sigma * eps) / level.alpha, eps)

  make = PREDICTORS[predictor](curve)
  # Euler's method works in the SDE itself, whose levels know the code's time and not ours.
  predict = (lambda *_: make(oracle, continuous) if predictor == 'euler_maruyama'
             else make(told, discrete))
  # A corrector's step has the std of the SDE, and alpha_t / alpha_s of the chain.
  mixed = lambda t: discrete(t)._replace(sigma=continuous(t).sigma)
  correct = functools.partial(CORRECTORS[corrector], snr=settings()['snr'])
  return predictor_corrector(told, mixed, predict, correct)


@pytest.mark.long
def test_corrected_runs_of_the_public_code_are_reproduced():
  """Where its ancestral sampler divides by sqrt(1 - beta) = 0, as at N = 20, there is no number."""
  arrays, compared = recordings.recording(FILE), 0
  for path, expected in arrays.items():
    found = re.fullmatch(r'(\w+)/(vp|ve)/pc/(\w+)/(langevin|ald)/pf0/N(\d+)/x', path)
    if not found:
      continue
    data, curve, predictor, corrector, n = *found.groups()[:-1], int(found[5])
    if predictor == 'ancestral_sampling' and chain(curve, n)[0][-1] == 0.0:
      assert np.isnan(expected).all()
      continue
    draws = 1 + (predictor != 'none')
    noise = arrays[f'{data}/{curve}/pc/noise'][:n * draws].copy()
    assert len(noise) == arrays[path.replace('/x', '/n_noise')]
    if predictor != 'none':
      noise[-1] = 0.0  # the mean of the last step is returned
    sampler = sampler_of(data, curve, predictor, corrector, n)
    got = jax.jit(functools.partial(recordings.replay, sampler))(
        arrays[f'{data}/{curve}/pc/x_T'], jnp.arange(n, -1, -1) / n,
        noise.reshape(n, draws, *noise.shape[1:]))
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-8, err_msg=path)
    compared += 1
  assert compared >= 14
