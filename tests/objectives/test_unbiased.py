"""With their own draws of noise the objectives are unbiased: means against integrals of scipy.

Data N(0, 1/4) in one dimension, best denoisers; four standard errors of 60,000 draws.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate
from scipy.special import expit, log_expit

from vdm_jax import oracles, schedules
from vdm_jax.objectives import (
    ddpm,
    diffenc,
    dpm2015,
    edm,
    iddpm,
    proposals,
    score_flow,
    soft_truncation,
    vlb,
)
from vdm_jax.objectives.score_matching import at_level, denoising, on_ladder, sliced
from vdm_jax.processes import GaussianProcess

N, STD, HIGH, LOW = 60_000, 0.5, 5.0, -4.0
ORACLE = oracles.Gaussian(0.0, STD)
PROCESS = GaussianProcess(schedules.Linear(HIGH, LOW))


def latent(std):
  """E KL(N(alpha x, sigma^2) || N(0, 1)) at the last level."""
  return 0.5 * (expit(LOW) * (std**2 - 1.0) - log_expit(-LOW))


def normal_decoder(share):
  """q(x | z_0) where z_0 = alpha share x + sigma eps, and its entropy."""
  variance = 1.0 / (1.0 / STD**2 + share**2 * np.exp(HIGH))
  def decoder(data, z, level):
    level = level.expand(z)
    mean = variance * share * level.alpha / jnp.square(level.sigma) * z
    return jnp.sum(-0.5 * (jnp.square(data - mean) / variance + np.log(2 * np.pi * variance)), -1)
  return decoder, 0.5 * np.log(2 * np.pi * np.e * variance)


def scoreflow_density(x, t, keys):
  return score_flow.density_bound(ORACLE, PROCESS, x, t, keys)[0]


def scoreflow_mean():
  """The entropy of z_0 and the divergence of z_1 from the prior."""
  first, last = (expit(l) * STD**2 + expit(-l) for l in (HIGH, LOW))
  return 0.5 * np.log(2 * np.pi * np.e * first) + 0.5 * (last - 1 - np.log(last))


FIRST = 1e-3  # of the time of the VP SDE


def truncated(x, t, keys):
  """Every example is a step of its own, with a truncation of its own."""
  process = GaussianProcess(schedules.BetaLinear(t_min=FIRST))
  prior = soft_truncation.Reciprocal(FIRST, 1.0)
  first = jax.vmap(lambda step: soft_truncation.truncation(prior, 0, step))(jnp.arange(N))
  objective = proposals.importance(vlb.continuous, proposals.by_logsnr(process, first))
  _, terms = objective(ORACLE, process, x, t, keys, data=x,
                       decoder=lambda data, z, level: jnp.zeros(len(z)))
  return terms['diffusion']


def truncated_mean():
  """log tau uniform; from tau on the diffusion term is half the log of a ratio of 1 + s^2 SNR."""
  signal = lambda tau: 1 + STD**2 / np.expm1(0.1 * tau + 9.95 * tau**2)
  loss = lambda y: 0.5 * np.log(signal(np.exp(y)) / signal(1.0))
  return integrate.quad(loss, np.log(FIRST), 0.0)[0] / -np.log(FIRST)


STEPS, U = 5, 0.4


def hybrid_bound(x, t, keys):
  denoise = lambda z, level, cond=None: ORACLE(z, level)._replace(
      extra={'variance': jnp.full_like(z, U)})
  _, terms = iddpm.hybrid(denoise, PROCESS, x, t, keys, steps=STEPS, data=x,
                          decoder=normal_decoder(1.0)[0])
  return terms['vlb']


def hybrid_mean():
  """Divergences of Gaussians whose variances are as r to 1, beside the two ends."""
  l = np.linspace(HIGH, LOW, STEPS + 1)
  error = expit(l[1:] + np.log(STD**2))  # E |eps - eps_hat|^2
  distance = np.expm1(l[:-1] - l[1:]) * error
  log_r = (U + 1) / 2 * (log_expit(-l[1:]) - log_expit(-l[:-1]))
  divergence = 0.5 * (log_r + (1 + distance) / np.exp(log_r) - 1)
  return divergence.sum() + latent(STD) + normal_decoder(1.0)[1]


# x_t = share x, from x at t = 0 to nearly x / 2.
def share(logsnr):
  return 1.0 - 0.5 / (1.0 + np.e**logsnr)


def slope(logsnr):
  return 0.5 * np.e**logsnr / (1.0 + np.e**logsnr)**2


def encoded(x, t, keys):
  def denoise(z, level, cond=None):
    level = level.expand(z)
    a, da = share(level.logsnr), slope(level.logsnr)
    gain = (a + da) * a * STD**2 * level.alpha / ((level.alpha * a * STD)**2 + level.sigma**2)
    return oracles.Estimate(gain * z, (1.0 - level.alpha * gain) * z / level.sigma)
  return diffenc.continuous(denoise, PROCESS, x, t, keys,
                            encoder=diffenc.blend(lambda x, logsnr: 0.5 * x), data=x,
                            decoder=normal_decoder(share(HIGH))[0])[0]


def encoded_mean():
  """1/2 int SNR Var(w | z) dlogsnr, w = (share + slope) x and Var(x | z) by Bayes' rule."""
  rate = lambda l: 0.5 * np.exp(l) * (share(l) + slope(l))**2 / (
      1 / STD**2 + share(l)**2 * np.exp(l))
  return (integrate.quad(rate, LOW, HIGH)[0] + latent(share(LOW) * STD)
          + normal_decoder(share(HIGH))[1])


@pytest.mark.first(1)
@pytest.mark.parametrize('loss,mean', [
    (scoreflow_density, scoreflow_mean), (truncated, truncated_mean), (hybrid_bound, hybrid_mean),
    (encoded, encoded_mean)], ids=['scoreflow', 'soft_truncation', 'iddpm_hybrid', 'diffenc'])
def test_the_mean_over_the_library_s_own_draws_is_the_integral(loss, mean):
  @jax.jit
  def draws(key):
    key_x, key_t, key = jax.random.split(key, 3)
    x = STD * jax.random.normal(key_x, (N, 1))
    return loss(x, jax.random.uniform(key_t, (N,)), jax.random.split(key, N))

  each = np.asarray(draws(jax.random.key(0)), np.float64)
  error = each.std() / N**0.5
  assert abs(each.mean() - mean()) < 4 * error
  assert error < 0.03


@pytest.mark.long
@pytest.mark.parametrize('objective', [
    lambda *a: ddpm.simple(*a, steps=STEPS),
    lambda *a: ddpm.bound(*a, steps=STEPS, data=a[2],
                          last=lambda data, mean, std: jnp.zeros(len(data))),
    lambda *a: dpm2015.bound(*a, steps=STEPS, variance=vlb.fixed_large), edm.objective, denoising,
    at_level(sliced), on_ladder(denoising, STEPS), score_flow.density_bound],
    ids=['simple', 'bound', 'dpm', 'edm', 'denoising', 'sliced', 'ladder', 'scoreflow'])
def test_the_network_is_told_its_condition(objective):
  told = []

  def denoise(z, level, cond=None):
    told.append(cond)
    return ORACLE(z, level)

  objective(denoise, PROCESS, jnp.ones((4, 1)), (jnp.arange(4) + 0.5) / 4,
            jax.random.split(jax.random.key(0), 4), 'a label')
  assert told and set(told) == {'a label'}
