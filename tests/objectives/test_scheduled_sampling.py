"""Scheduled sampling on Gaussian data: its price is known, and so is the best linear network."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax import oracles, samplers, schedules
from vdm_jax.objectives import ddpm, scheduled_sampling
from vdm_jax.processes import GaussianProcess, posterior
from vdm_jax.schedules import TableSchedule
from vdm_jax.typing import Estimate

STEPS, STD = 1000, 0.5
PROCESS = GaussianProcess(TableSchedule.from_betas(schedules.linear_betas()))
BARS = np.cumprod(1.0 - np.linspace(1e-4, 0.02, STEPS))
ALPHA = np.sqrt(BARS)


def by_step(denoise, std, probability, rollout):
  """E|eps - eps_hat|^2 at each step, [T], of data N(0, std^2) and a linear denoiser.  Exact.

  The error is linear in x and the draws of noise, so the mean of its square is the sum of those at
  std in one of them and 0 in the others.
  """
  number = jnp.arange(1, STEPS + 1)
  t = jnp.tile((number - 0.5) / STEPS, rollout + 2)
  unit = jnp.repeat(jnp.eye(rollout + 2), STEPS, axis=1)[..., None]  # [m + 2, (m + 2) T, 1]
  keys = jax.random.split(jax.random.key(0), len(t))
  loss, _ = scheduled_sampling.simple(
      denoise, PROCESS, std * unit[0], t, keys, steps=STEPS, probability=probability,
      rollout=rollout, noise=unit[1:])
  return jnp.sum(loss.reshape(rollout + 2, STEPS), axis=0)


def linear(gain):
  """x_hat = gain_i z at step i, gain: [T]."""
  def denoise(z, level, cond=None):
    x = gain[jnp.round(level.t * STEPS).astype(int) - 1].reshape(-1, 1) * z  # t: [B] or []
    level = level.expand(z)
    return Estimate(x, (z - level.alpha * x) / level.sigma)
  return denoise


def best_gains(probability, rollout):
  """The gains of the linear network that is best at z of its own making: [T], from the end."""
  gain = np.zeros(STEPS)
  for i in reversed(range(STEPS)):
    late = min(i + rollout, STEPS - 1)
    square, product = BARS[late] * STD**2 + 1.0 - BARS[late], ALPHA[late] * STD**2  # E z^2, E z x
    for j in range(late, i, -1):
      square, product = (BARS[j - 1] * gain[j]**2 * square + 1.0 - BARS[j - 1],
                         ALPHA[j - 1] * gain[j] * product)
    plain, there = BARS[i] * STD**2 + 1.0 - BARS[i], ALPHA[i] * STD**2
    mix = lambda own, data: probability * own + (1.0 - probability) * data
    gain[i] = mix(product, there) / mix(square, plain)
  return gain


@pytest.mark.first(1)
@pytest.mark.parametrize('std,ratio', [(0.5, 1.814), (0.1, 1.738), (0.001, 1.009)])
def test_a_perfect_denoiser_pays_for_its_own_samples_unless_the_data_are_a_point(x64, std, ratio):
  of = jax.jit(lambda p: by_step(oracles.Gaussian(0.0, std), std, p, 1).sum())
  assert float(of(1.0) / of(0.0)) == pytest.approx(ratio, abs=5e-4)


@pytest.mark.long
@pytest.mark.parametrize('probability,rollout,std', [
    (0.0, 1, 0.496110), (0.8, 1, 0.425589), (0.8, 4, 0.306889), (1.0, 1, 0.0)])
def test_the_best_linear_network_draws_samples_that_are_too_narrow(x64, probability, rollout, std):
  gain = best_gains(probability, rollout)

  def loss(own):  # the mean of the two that an example may have
    of = lambda p: by_step(linear(own), STD, p, rollout)
    return jnp.sum(probability * of(1.0) + (1.0 - probability) * of(0.0))
  slope = jax.jit(jax.grad(loss))
  assert np.abs(slope(gain)).max() < 1e-9 * np.abs(slope(gain + 0.01)).max()

  at = PROCESS(jnp.arange(STEPS + 1) / STEPS)
  variance = 1.0
  one = jnp.ones((STEPS, 1))
  levels = [jax.tree.map(lambda u, i=i: u[i:STEPS + i], at) for i in (1, 0)]
  mean, noise = posterior(one, jnp.asarray(gain)[:, None], *levels)
  for i in reversed(range(STEPS)):
    variance = float(mean[i, 0])**2 * variance + float(noise[i, 0])**2
  assert variance**0.5 == pytest.approx(std, abs=5e-7)


@pytest.mark.parametrize('probability,std', [(0.0, 0.49849528299606777), (0.8, 0.380821132251101)])
def test_its_ddim_samples_are_narrower_still(x64, probability, std):
  """Of the same best network; the deviations are closed forms of another implementation."""
  gain = best_gains(probability, 1)
  z = jnp.array([[1.0]])
  keys = jax.random.split(jax.random.key(0), 1)
  got = samplers.sample(samplers.ddim(linear(jnp.asarray(gain)), PROCESS), keys, z,
                        jnp.arange(STEPS, -1, -1) / STEPS)
  assert float(got[0, 0]) == pytest.approx(std, rel=1e-9)


def network(arrays):
  w, u, b = (jnp.asarray(arrays[f'param/{name}']) for name in ('W', 'u', 'b'))
  return {'W': w, 'u': u, 'b': b}


@pytest.mark.long
@pytest.mark.parametrize('rollout', [0, 1, 2, 4])
def test_loss_and_gradient_are_those_of_the_public_code(x64, rollout):
  arrays = recordings.shared('scheduled_sampling')
  of = lambda name: arrays[f'm{rollout}/{name}']
  made, step = int(of('m_made')), of('step')
  # Its tables are float32, entry i - 1 is step i.
  alpha, sigma = (np.asarray(arrays[f'{name}_of_step'], np.float64) for name in ('alpha', 'sigma'))
  process = GaussianProcess(TableSchedule(
      np.concatenate([[np.inf], 2.0 * np.log(alpha / sigma)])))

  def loss(params):
    def denoise(z, level, cond=None):
      index = jnp.round(level.t * len(alpha)) - 1.0
      eps = z @ params['W'].T + params['u'] * index[:, None] / 1000 + params['b']
      level = level.expand(z)
      return Estimate((z - level.sigma * eps) / level.alpha, eps)
    x = jnp.asarray(arrays['x'])
    t = (jnp.asarray(step) + 0.5) / len(alpha)
    keys = jax.random.split(jax.random.key(0), len(t))
    noise = jnp.asarray(of('noise'))
    if not made:
      noise = jnp.concatenate([noise, noise])  # of which the second is not used
    losses, _ = scheduled_sampling.simple(
        denoise, process, x, t, keys, steps=len(alpha), probability=float(made > 0),
        rollout=max(made, 1), noise=noise)
    return jnp.mean(losses) / x.shape[1]

  value, slope = jax.value_and_grad(loss)(network(arrays))
  np.testing.assert_allclose(value, of('loss'), rtol=1e-6)
  for name, u in slope.items():
    np.testing.assert_allclose(u, of(f'grad/{name}'), rtol=2e-6, atol=2e-7)


@jax.jit
def four_back(x, t, keys, noise, probability):
  return scheduled_sampling.simple(oracles.Gaussian(0.0, STD), PROCESS, x, t, keys, steps=STEPS,
                                   probability=probability, rollout=4, noise=noise)[0]


@pytest.mark.long
def test_with_the_probability_0_it_is_l_simple():
  x = jax.random.normal(jax.random.key(1), (2, 1))
  t, keys = jnp.array([0.05, 0.95]), jax.random.split(jax.random.key(2), 2)
  noise = jax.random.normal(jax.random.key(3), (5, 2, 1))
  wanted, _ = ddpm.simple(oracles.Gaussian(0.0, STD), PROCESS, x, t, keys, steps=STEPS,
                          eps=noise[0])
  np.testing.assert_allclose(four_back(x, t, keys, noise, 0.0), wanted, rtol=1e-3)


def test_an_example_near_the_end_leaves_the_others_all_their_steps():
  """Public code takes one number of steps for a batch, the smallest that fits."""
  x = jnp.ones((2, 1))
  t, keys = jnp.array([0.3, 0.9995]), jax.random.split(jax.random.key(0), 2)
  noise = jax.random.normal(jax.random.key(1), (5, 2, 1))
  both = four_back(x, t, keys, noise, 1.0)
  alone = four_back(x, t.at[1].set(0.3), keys, noise, 1.0)
  plain = four_back(x, t, keys, noise, 0.0)
  np.testing.assert_allclose(both[0], alone[0], rtol=1e-6)
  assert abs(float(both[0] - plain[0])) > 0.01 * float(both[0])
  assert float(both[1]) == float(plain[1])  # no step comes after the last


@pytest.mark.long
def test_its_own_draws_mix_the_two_losses_in_proportion():
  n, number = 20_000, 50
  t, keys = jnp.full(n, (number - 0.5) / STEPS), jax.random.split(jax.random.key(4), n)
  x = STD * jax.random.normal(jax.random.key(5), (n, 1))
  draw = jax.jit(lambda x, t, keys: scheduled_sampling.simple(
      oracles.Gaussian(0.0, STD), PROCESS, x, t, keys, steps=STEPS, probability=0.5)[0])
  each = np.asarray(draw(x, t, keys), np.float64)
  of = jax.jit(lambda p: by_step(oracles.Gaussian(0.0, STD), STD, p, 1)[number - 1])
  exact = float(of(0.0)), float(of(1.0))
  error = each.std() / n**0.5
  assert abs(each.mean() - np.mean(exact)) < 4 * error
  assert exact[1] - exact[0] > 10 * error


def test_the_probability_rises_linearly_and_stays():
  np.testing.assert_allclose(scheduled_sampling.rising(jnp.array([0, 50, 100, 300]), 100),
                             [0.0, 0.4, 0.8, 0.8], rtol=1e-6)
