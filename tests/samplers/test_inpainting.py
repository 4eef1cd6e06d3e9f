"""Replacement, RePaint and blending, against closed forms and recordings of public code."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import oracles, random, schedules
from vdm_jax.errors import InputError
from vdm_jax.processes import GaussianProcess, from_alpha_sigma, renoise
from vdm_jax.samplers import ancestral, ddim, encode, heun, inpainting, sample
from vdm_jax.samplers.dpm_solver import dpm_solver_multistep
from vdm_jax.samplers.first_order import noisier_ddim
from vdm_jax.typing import Estimate

pytestmark = pytest.mark.usefixtures('x64')
PROCESS = GaussianProcess(schedules.Linear(9.0, -9.0))


def correlated(rho):
  """Two unit Gaussians of this correlation: the exact denoiser, in their principal axes."""
  turn = np.array([[1.0, 1.0], [1.0, -1.0]]) / np.sqrt(2.0)
  inner = oracles.Gaussian(0.0, np.sqrt([1.0 + rho, 1.0 - rho]))

  def denoise(z, level, cond=None):
    estimate = inner(z @ turn, level)
    return Estimate(estimate.x @ turn, estimate.eps @ turn)
  return denoise


def spread(make, rho, y, n, steps=300, visits=1):
  """Mean and standard deviation of the second coordinate, given the first."""
  times = np.linspace(1.0, 0.0, steps + 1)
  path = inpainting.jumps(times, 1, visits) if visits > 1 else times

  @jax.jit
  def run():
    keys = jax.random.split(jax.random.key(0), n)
    z = random.normal(random.stream(keys, 'z_1'), jnp.zeros((n, 2)))
    # One short program for all lengths of the path.
    return inpainting.repaint(make(correlated(rho), PROCESS), PROCESS, keys, z, path,
                              jnp.array([y, 0.0]), jnp.array([True, False]))
  x = np.asarray(run()) / float(PROCESS(0.0).alpha)
  np.testing.assert_allclose(x[:, 0], y, rtol=1e-12)
  return x[:, 1].mean(), x[:, 1].std()


@pytest.mark.long
@pytest.mark.parametrize('make,mean,std', [(ddim, 0.346837, 0.774597), (ancestral, 0.5, 0.704)])
def test_replacement_is_biased_as_its_continuous_limit(make, mean, std):
  """The right answer is 0.8 and 0.6, of rho = 0.8 and y = 1."""
  n = 10_000
  got = spread(make, 0.8, 1.0, n)
  # Four standard errors, and an error of the steps that falls with the steps, 300.
  assert abs(got[0] - mean) < 4 * std / n**0.5 + 3 / 300
  assert abs(got[1] - std) < 4 * std / (2 * n)**0.5 + 3 / 300


def limit(rho, y):
  """The mean after two visits of each of infinitely many steps.

  Of U visits it is y rho U (1 - rho^2)^(U/2) int_0^1 a^U (1 - rho^2 a^2)^(-U/2 - 1) da.  In the
  limit the known number has no noise of its own, each further visit is a step of Langevin dynamics,
  and a = alpha^2.
  """
  inside = 1.0 / (2 * rho**2 * (1 - rho**2)) - np.arctanh(rho) / (2 * rho**3)
  return 2 * rho * y * (1 - rho**2) * inside


@pytest.mark.long
@pytest.mark.parametrize('visits,mean,variance', [
    (2, limit(0.9, 1.5), 0.24083),
    (5, 1.28257, 0.20594)])
def test_more_visits_bring_the_mean_nearer_to_the_right_one(visits, mean, variance):
  """The right ones are 1.35 and 0.19, and of one visit 0.94 and 0.31.  Other variances, and the
  mean of 5 visits, are from another program, with 1,000 steps."""
  n = 6000
  got = spread(ancestral, 0.9, 1.5, n, visits=visits)
  assert abs(got[0] - mean) < 4 * (variance / n)**0.5 + 4 / 300
  assert abs(got[1]**2 - variance) < 4 * variance * (2 / n)**0.5 + 4 / 300


@pytest.mark.parametrize('length,visits', [(5, 3), (5, 5), (10, 2), (10, 10)])
def test_the_path_of_repaint_is_the_published_one(length, visits):
  steps = {(5, 3): 20, (5, 5): 25, (10, 2): 30, (10, 10): 250}[length, visits]
  name = 'paper' if steps == 250 else f'jump_{steps}_{length}_{visits}'
  want = recordings.shared('repaint_jumps')[name]
  path = inpainting.jumps(np.linspace(1.0, 0.0, steps + 1), length, visits)
  np.testing.assert_array_equal(np.round(path * steps).astype(int) - 1, want)
  if steps == 250:
    assert (len(path), int(np.sum(np.diff(path) < 0))) == (4571, 2410)


@pytest.mark.long
@pytest.mark.parametrize('kind', ['vp', 'flow'])
def test_repaint_repeats_the_public_code(kind):
  """azula: two visits of each step, with an ancestral sampler.  Its last known numbers have noise
  of level 0, and ours are exact."""
  data = recordings.shared('azula_posterior')
  small = 1e-2
  process = {
      'vp': from_alpha_sigma(lambda t: small**(t**2),
                             lambda t: jnp.sqrt(1.0 - small**(2.0 * t**2) + small**2)),
      'flow': from_alpha_sigma(lambda t: t * small + 1.0 - t, lambda t: t + (1.0 - t) * small),
  }[kind]
  cov, mean = data['prior_cov'], data['prior_mean']

  def denoise(z, level, cond=None):
    level = level.expand(z)
    a, s = level.alpha[0, 0], level.sigma[0, 0]
    gain = a * cov @ jnp.linalg.inv(a**2 * cov + s**2 * jnp.eye(4))
    x = mean + (z - a * mean) @ gain.T
    return Estimate(x, (z - a * x) / s)

  run = f'{kind}/gauss/repaint/N8'
  traj, noise = data[f'{run}/traj'], data[f'{run}/noise']
  times = np.linspace(1.0, 0.0, 9)
  known = data['mask'] > 0
  walker = inpainting.walking(ancestral(lambda z, level: denoise(z, level), process), process,
                              data['y_mask'], known)
  # Recorded: of the step down, of its known part, of the way up (not used after a second visit).
  down, part, up = np.moveaxis(noise.reshape(8, 2, 3, *noise.shape[1:]), 2, 0)
  path = np.concatenate([[1.0], *([s, t, s] for t, s in zip(times, times[1:], strict=False))])
  moves = np.stack([np.stack([up[i, 0], down[i, visit], part[i, visit]])  # `up` is traced first
                    for i in range(8) for visit in (0, 0, 1)])
  got = recordings.replay(walker, jnp.asarray(traj[0]), jnp.asarray(path), jnp.asarray(moves))
  np.testing.assert_allclose(got[:, ~known], traj[-1][:, ~known], rtol=1e-8, atol=1e-8)
  alpha = float(process(0.0).alpha)
  np.testing.assert_allclose(got[:, known], np.tile(alpha * data['y_mask'][known], (5, 1)))


def test_noise_is_added_so_that_the_marginals_fit():
  """Data N(0, s^2) at the earlier level have alpha_t^2 s^2 + sigma_t^2 at the later."""
  s, t = PROCESS(0.2), PROCESS(0.7)
  one = jnp.ones((1, 1))
  a = renoise(one, 0.0 * one, s, t)
  b = renoise(0.0 * one, one, s, t)
  for std in (0.0, 0.5, 2.0):
    before = s.alpha**2 * std**2 + s.sigma**2
    np.testing.assert_allclose(a**2 * before + b**2, t.alpha**2 * std**2 + t.sigma**2, rtol=1e-10)


@pytest.mark.long
def test_outside_of_the_mask_a_blended_sample_is_the_end_of_the_path():
  oracle, keys = oracles.Gaussian(0.3, 0.5), jax.random.split(jax.random.key(0), 3)
  times = np.linspace(0.8, 0.0, 9)
  x = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
  up = ddim(oracle, PROCESS)
  path = encode(up, keys, x, times[::-1], trace=up.value)[1][::-1]
  mask = jnp.array([True, False, True, False])
  other = oracles.Gaussian(-0.7, 0.5)
  for make in (ddim, heun):
    got = sample(inpainting.blended(make(other, PROCESS), path, mask), keys, path[0], times)
    alone = sample(make(other, PROCESS), keys, path[0], times)
    np.testing.assert_array_equal(got[:, ~mask], x[:, ~mask])
    np.testing.assert_allclose(got[:, mask], alone[:, mask])  # its numbers are independent


# --------------------------------------------------------------- inversion


@pytest.mark.long
@pytest.mark.parametrize('steps,std,own,noisier', [
    (20, 0.5, 0.799294, 0.903804), (50, 0.5, 0.909842, 0.962995),
    (20, 1.0, 0.877705, 0.994994), (50, 1.0, 0.947924, 0.999192)])
def test_a_round_trip_loses_as_much_as_the_closed_form_says(steps, std, own, noisier):
  """Data N(0, std^2) on the chain of Stable Diffusion: a factor, for any x."""
  betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000)**2
  process = GaussianProcess(schedules.TableSchedule.from_betas(betas))
  # The chain's steps 1, 1 + 1000 / N, ..., and below them its first.
  times = (np.concatenate([[0], np.arange(0, 1000, 1000 // steps) + 1]) + 1) / 1000
  x, keys = jnp.array([[1.0], [-2.0]]), jax.random.split(jax.random.key(0), 2)
  oracle = oracles.Gaussian(0.0, std)
  for make, factor in ((ddim, own), (noisier_ddim, noisier)):
    sampler = make(oracle, process)
    got = sample(sampler, keys, encode(sampler, keys, x, times), times[::-1])
    np.testing.assert_allclose(got, factor * x, rtol=2e-6)
  down = [sample(make(oracle, process), keys, x, times[::-1]) for make in (ddim, noisier_ddim)]
  np.testing.assert_array_equal(*down)


def test_wrong_samplers_and_paths_are_refused():
  memory = dpm_solver_multistep(oracles.Gaussian(), PROCESS)
  keys, z = jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 3))
  for wrap in (lambda s: inpainting.replacement(s, PROCESS, 0.0, True),
               lambda s: inpainting.blended(s, z[None], True)):
    with pytest.raises(InputError, match='sampler: its state holds more than z'):
      wrap(memory)
  step = ddim(oracles.Gaussian(), PROCESS)
  with pytest.raises(InputError, match='has 1 latents for 3 times'):
    sample(inpainting.blended(step, z[None], True), keys, z, np.linspace(1.0, 0.0, 3))
  with pytest.raises(InputError, match=r'path: it leaves \[0, 1\]'):
    inpainting.repaint(step, PROCESS, keys, z, [1.0, 1.2, 0.0], 0.0, True)
  with pytest.raises(InputError, match='length=4: the grid has 4 steps'):
    inpainting.jumps(np.linspace(1.0, 0.0, 5), 4)
  with pytest.raises(InputError, match='visits=0: it must be at least 1'):
    inpainting.jumps(np.linspace(1.0, 0.0, 5), 1, 0)
