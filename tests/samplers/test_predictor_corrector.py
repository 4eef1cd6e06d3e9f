"""Predictor and corrector, by the exact spread of an affine chain and by what it costs."""
import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import oracles, random, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, from_alpha_sigma, ve
from vdm_jax.samplers import ancestral, ddim, heun, sample
from vdm_jax.samplers.langevin import langevin_corrector, ula
from vdm_jax.samplers.multistep import Coefficients, multistep
from vdm_jax.samplers.predictor_corrector import predictor_corrector

pytestmark = pytest.mark.usefixtures('x64')

HALF = oracles.Gaussian(0.0, 0.5)
OFFICIAL = GaussianProcess(schedules.Linear(13.3, -5.0))
small = functools.partial(ula, step_size=0.1)


def split(n):
  return jax.random.split(jax.random.key(0), n)


def spread(sampler, steps, draws):
  """Standard deviation at t = 0 from 1 at t = 1, exactly, of a sampler that is affine in z.

  draws: in a step; var_s = gain^2 var_t + the squares of what each draw adds.
  """
  times = jnp.linspace(1.0, 0.0, steps + 1)
  plan = sampler.plan(times)

  @jax.jit
  def responses():
    def at(unit):  # z, then each of the draws, is 1 and all else 0
      in_turn = iter(unit[1:])
      draw = lambda keys, like: jnp.full_like(like, next(in_turn))
      with mock.patch.object(random, 'normal', draw):
        step = lambda t, s, row: sampler.step(split(1), jnp.full((1, 1), unit[0]), t, s, row)
        return jax.vmap(step)(times[:-1], times[1:], plan)[:, 0, 0]
    return jax.vmap(at, out_axes=1)(jnp.eye(draws + 1))

  variance = 1.0
  for gain, *stds in np.asarray(responses()):
    variance = gain**2 * variance + np.sum(np.square(stds))
  return variance**0.5


@pytest.mark.long
def test_corrections_shrink_the_bias_of_a_coarse_predictor():
  """Ten ancestral steps end at 0.338525 where the data have 0.5; corrections bring it nearer."""
  ends = [spread(predictor_corrector(HALF, OFFICIAL, ancestral, small, n), 10, n + 1)
          for n in (0, 1, 4, 16)]
  np.testing.assert_allclose(ends[0], 0.338525, atol=1e-6)
  bias = 0.5 - np.array(ends)
  assert np.all(bias > 0.0) and np.all(np.diff(bias) < 0.0) and bias[-1] < 0.5 * bias[0]


def test_infinitesimal_corrections_leave_a_predictor_as_it_is():
  tiny = functools.partial(ula, step_size=1e-8)
  np.testing.assert_allclose(
      spread(predictor_corrector(HALF, OFFICIAL, ancestral, tiny, 2), 50, 3), 0.457558, atol=1e-6)


@pytest.mark.long
def test_corrections_and_predictor_draw_noise_of_their_own():
  """With the library's draws the spread is that of independent ones, within four errors."""
  n, sampler = 20_000, predictor_corrector(HALF, OFFICIAL, n_corrections=2)
  z = np.random.default_rng(1).normal(size=(n, 1))
  got = jax.jit(lambda z: sample(sampler, split(n), z, jnp.linspace(1.0, 0.0, 11)))(z)
  np.testing.assert_allclose(np.std(got), spread(sampler, 10, 3), rtol=4 / (2 * n)**0.5)


@pytest.mark.long
def test_pure_noise_becomes_data_through_levels_that_end_at_sigma_zero():
  """From alpha = 0, where alpha_t / alpha_s makes the corrector's step zero, to a data set."""
  process = from_alpha_sigma(lambda t: 1.0 - t, lambda t: t)
  data = jnp.array([[-2.0], [0.5], [3.0]])
  sampler = predictor_corrector(oracles.Empirical(data), process, heun, langevin_corrector)
  z = jax.random.normal(jax.random.key(2), (200, 1))
  times = jnp.stack([jnp.linspace(1.0, 0.0, 41), jnp.pad(jnp.linspace(1.0, 0.0, 38), (0, 3))])
  got = jax.jit(jax.vmap(lambda times: sample(sampler, split(200), z, times)))(times)
  nearest = np.abs(got[..., None] - data[:, 0]).min(axis=-1)
  np.testing.assert_allclose(nearest, 0.0, atol=1e-6)
  assert len(np.unique(np.round(got, 3))) == 3


@pytest.mark.parametrize('predictor,n_corrections', [(ddim, 0), (ddim, 2), (heun, 1)])
def test_evaluations_are_those_of_predictor_and_corrections(predictor, n_corrections):
  asked = []

  def denoise(z, level, cond=None):
    asked.append(1)
    return HALF(z, level)

  sampler = predictor_corrector(denoise, OFFICIAL, predictor, n_corrections=n_corrections)
  jax.eval_shape(lambda: sampler.step(split(1), jnp.ones((1, 1)), 0.5, 0.4, None))
  assert len(asked) == sampler.evaluations


def test_a_predictor_that_remembers_estimates_is_refused():
  plan = lambda times: Coefficients(jnp.zeros((times.shape[0] - 1, 1)))
  remembers = lambda denoise, process: multistep(denoise, process, plan, depth=2, of='x')
  with pytest.raises(InputError, match='history'):
    predictor_corrector(HALF, OFFICIAL, remembers)


@pytest.mark.long
def test_image_i_is_the_same_however_many_are_corrected_together_in_float32_too():
  sampler = predictor_corrector(oracles.Gaussian(0.7, 0.4), GaussianProcess(
      schedules.GeometricSigma(0.1, 10.0), ve), ancestral, langevin_corrector)
  with jax.enable_x64(False):
    z = 10.0 * jax.random.normal(jax.random.key(3), (6, 2))
    run = lambda keys, z: sample(sampler, keys, z, jnp.linspace(1.0, 0.0, 5))
    together, alone = jax.jit(lambda: (run(split(6), z), run(split(6)[2:4], z[2:4])))()
  assert together.dtype == jnp.float32
  np.testing.assert_allclose(together[2:4], alone, rtol=1e-5)
  assert len(np.unique(together)) == together.size
