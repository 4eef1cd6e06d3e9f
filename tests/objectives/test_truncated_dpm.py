"""Priors of truncated chains: closed forms, and the adversarial losses of the public code."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from tests.support import recordings
from vdm_jax import samplers, schedules
from vdm_jax.objectives import adversarial, ddpm, truncated_dpm
from vdm_jax.objectives.variational import Normal
from vdm_jax.processes import GaussianProcess
from vdm_jax.schedules import TableSchedule
from vdm_jax.typing import Estimate

PROCESS = GaussianProcess(TableSchedule.from_betas(schedules.linear_betas()))
BARS = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))


def end(entry):
  """The level of public code's step `entry`, our entry + 1, for one example."""
  return PROCESS(jnp.full(1, (entry + 1) / 1000))


def prior(mean, std):
  return Normal(jnp.full((1, 1), mean), jnp.full((1, 1), std))


def mean_latent(points, weights, entry, of):
  each = truncated_dpm.latent(jnp.asarray(points)[:, None],
                              PROCESS(jnp.full(len(points), (entry + 1) / 1000)), of)
  return float(np.asarray(weights) @ np.asarray(each))


@pytest.mark.parametrize('mean,std', [(0.4, 0.7), (-0.2, 0.5)])
def test_the_energy_distance_of_two_normals_is_known_and_0_where_they_agree(mean, std):
  """Truth N(-0.2, 0.5^2); E|N(m, v)| is that of a folded normal.  Neighbours share a draw."""
  n, rng = 40_000, np.random.default_rng(0)
  draw = lambda m, s: m + s * rng.standard_normal((n, 1))
  got = np.asarray(truncated_dpm.energy_distance(draw(mean, std), draw(mean, std), draw(-0.2, 0.5)))
  blocks = got.reshape(200, -1).mean(axis=1)
  folded = lambda m, v: stats.foldnorm(abs(m) / v**0.5, scale=v**0.5).mean()
  exact = 2 * folded(mean + 0.2, std**2 + 0.25) - folded(0.0, 2 * std**2) - folded(0.0, 0.5)
  assert exact == pytest.approx(0.0, abs=1e-12) if (mean, std) == (-0.2, 0.5) else exact > 0.1
  assert abs(got.mean() - exact) < 4 * blocks.std(ddof=1) / 200**0.5


@pytest.mark.long
@pytest.mark.parametrize('entry,mean,std,excess', [
    (499, 0.1401671, 0.9635796, 0.0111664), (99, 0.4735552, 0.4286181, 0.5511730),
    (3, 0.4998701, 0.3007868, 0.8715251)])
def test_the_fitted_prior_of_gaussian_data_is_exact_and_the_standard_one_is_not(x64, entry, mean,
                                                                                std, excess):
  """Data N(1/2, 0.09).  E KL(q(z | x) || p) is the information of z about x where p = q(z)."""
  alpha, variance = BARS[entry]**0.5, BARS[entry] * 0.09 + 1.0 - BARS[entry]
  assert (alpha * 0.5, variance**0.5) == (pytest.approx(mean, abs=5e-8),
                                          pytest.approx(std, abs=5e-8))
  nodes, weights = np.polynomial.hermite_e.hermegauss(8)
  of = lambda p: mean_latent(0.5 + 0.3 * nodes, weights / weights.sum(), entry, p)
  information = 0.5 * np.log(variance / (1.0 - BARS[entry]))
  assert of(prior(alpha * 0.5, variance**0.5)) == pytest.approx(information, abs=1e-9)
  assert of(prior(0.0, 1.0)) - information == pytest.approx(excess, abs=1e-7)


@pytest.mark.long
@pytest.mark.parametrize('entry,gap', [(499, 3.2e-6), (99, 0.4127269), (3, 1.5893385)])
def test_a_gaussian_prior_fails_data_of_two_points_when_the_chain_is_short(x64, entry, gap):
  """x = +-1 with a standard deviation of 0.1; the gap is KL(q(z) || the best Gaussian)."""
  alpha, noise = BARS[entry]**0.5, 1.0 - BARS[entry]
  variance = BARS[entry] * 0.01 + noise  # of z in one of the two
  density = lambda z: sum(0.5 * np.exp(-0.5 * (z - s * alpha)**2 / variance)
                          / np.sqrt(2 * np.pi * variance) for s in (-1, 1))
  entropy = integrate.quad(lambda z: -density(z) * np.log(max(density(z), 1e-300)), -6, 6,
                           limit=400, points=[-alpha, alpha])[0]
  information = entropy - 0.5 * np.log(2 * np.pi * np.e * noise)
  nodes, weights = np.polynomial.hermite_e.hermegauss(8)
  points = np.concatenate([s + 0.1 * nodes for s in (-1, 1)])
  best = prior(0.0, np.sqrt(BARS[entry] + variance))
  got = mean_latent(points, np.tile(weights, 2) / weights.sum() / 2, entry, best)
  assert got - information == pytest.approx(gap, abs=1e-7)


@pytest.mark.long
def test_the_kl_is_least_at_the_mean_and_the_variance_of_what_is_there(x64):
  x = jax.random.normal(jax.random.key(0), (50, 2)) * jnp.array([0.3, 1.0]) + 0.5
  level = PROCESS(jnp.full(50, 0.1))

  def mean(params):
    return jnp.mean(truncated_dpm.latent(x, level, Normal(params[0], params[1])))
  alpha, sigma = level.alpha[0], level.sigma[0]
  moments = jnp.stack([alpha * x.mean(0), jnp.sqrt(alpha**2 * x.var(0) + sigma**2)])
  slope = jax.jit(jax.grad(mean))
  np.testing.assert_allclose(slope(moments), 0.0, atol=1e-12)
  assert (slope(moments + 0.01) > 0.0).all() and (slope(moments - 0.01) < 0.0).all()


def test_the_truth_has_the_moments_of_the_noised_data():
  n = 40_000
  x = 0.5 + 0.3 * jax.random.normal(jax.random.key(0), (n, 1))
  draw = jax.jit(lambda x, keys: truncated_dpm.truth(x, PROCESS(jnp.full(n, 0.1)), keys))
  z = np.asarray(draw(x, jax.random.split(jax.random.key(1), n)), np.float64)
  variance = BARS[99] * 0.09 + 1.0 - BARS[99]
  assert abs(z.mean() - BARS[99]**0.5 * 0.5) < 4 * (variance / n)**0.5
  assert abs(z.var() - variance) < 4 * variance * (2 / n)**0.5


# ------------------------------------------------------------- adversarial


def test_the_best_discriminator_s_loss_is_the_jensen_shannon_divergence(x64):
  """N(+-1, 1): the logit is 2 z."""
  p = lambda z, m: np.exp(-0.5 * (z - m)**2) / np.sqrt(2 * np.pi)
  z = np.linspace(-10, 10, 4001)
  losses, terms = adversarial.discriminator(lambda z: 2.0 * z[:, 0], jnp.asarray(z)[:, None],
                                            jnp.asarray(z)[:, None])
  got = np.trapezoid(p(z, 1) * np.asarray(terms['real']) + p(z, -1) * np.asarray(terms['fake']), z)
  half = 0.5 * (p(z, 1) + p(z, -1))
  divergence = 0.5 * sum(np.trapezoid(p(z, m) * np.log(p(z, m) / half), z) for m in (-1, 1))
  assert got == pytest.approx(2 * np.log(2) - 2 * divergence, abs=1e-9)
  np.testing.assert_allclose(losses, terms['real'] + terms['fake'])


@pytest.mark.long
def test_the_penalty_in_some_steps_has_the_mean_of_one_in_all():
  z = jax.random.normal(jax.random.key(0), (7, 3))
  discriminate = lambda z: jnp.sum(jnp.sin(z), axis=1)
  each = sum(adversarial.lazy_r1(discriminate, z, jnp.int32(step), gamma=0.01, every=16)
             for step in range(32)) / 32
  np.testing.assert_allclose(each, 0.005 * np.sum(np.cos(z)**2, axis=1), rtol=1e-5)


def test_no_gradient_of_the_discriminator_s_loss_reaches_the_generator():
  of = lambda shift: adversarial.discriminator(
      lambda z: z[:, 0]**2, jnp.ones((1, 1)), shift + jnp.ones((1, 1)))[0].sum()
  assert float(jax.grad(of)(0.3)) == 0.0


@pytest.mark.long
@pytest.mark.parametrize('run', ['T99', 'T499'])
def test_losses_and_gradients_of_one_step_are_those_of_the_public_code(x64, run):
  arrays = recordings.shared('truncated_dpm')
  of = {name.removeprefix(f'{run}/'): u for name, u in arrays.items() if name.startswith(run)}
  params = {who: {name.rpartition('/')[2]: jnp.asarray(u) for name, u in of.items()
                  if name.startswith(f'{who}/')} for who in ('G', 'D')}
  end_of = int(run[1:]) + 1  # its generator reads this number, and its truth is at this entry
  x, draws = jnp.asarray(of['x_used']), jnp.asarray(of['draws'])
  table = TableSchedule.from_betas(arrays['betas/linear'])
  process = GaussianProcess(table)
  keys = jax.random.split(jax.random.key(0), len(x))
  net = lambda g, z, i: z @ g['W'].T + g['u'] * i[:, None] / 1000 + g['b']
  judge = lambda d: lambda z: d['b'][0] + z @ d['v'] + jnp.square(z) @ d['q']
  last = jnp.full(len(x), float(end_of))

  def denoiser(g):
    def denoise(z, level, cond=None):
      return Estimate(z, net(g, z, jnp.round(level.t * 1000) - 1.0))
    losses, _ = ddpm.simple(denoise, process, x, (jnp.asarray(of['t']) + 0.5) / 1000, keys,
                            steps=1000, eps=draws[0])
    return losses.mean(), losses

  def generator(g):
    return adversarial.generator(judge(params['D']), net(g, draws[1], last)).mean()

  def discriminator(d):
    real = jnp.asarray(of['real_z'])
    losses, terms = adversarial.discriminator(judge(d), real, net(params['G'], draws[2], last))
    r1 = adversarial.lazy_r1(judge(d), real, jnp.int32(0), gamma=0.01 / 16, every=16)
    return (losses + r1).mean(), (terms, r1.mean())

  level = process(jnp.full(len(x), (end_of + 1) / 1000))
  np.testing.assert_allclose(level.alpha[:, None] * x + level.sigma[:, None] * draws[3],
                             of['real_z'], rtol=1e-8)
  (value, losses), slope = jax.value_and_grad(denoiser, has_aux=True)(params['G'])
  np.testing.assert_allclose(losses, of['keepdim_loss'], rtol=1e-8)
  np.testing.assert_allclose(value, of['scalar/loss'], rtol=1e-8)
  value, slope_of_generator = jax.value_and_grad(generator)(params['G'])
  np.testing.assert_allclose(value, of['scalar/implicit loss'], rtol=1e-8)
  (_, (terms, r1)), slope_of_discriminator = jax.value_and_grad(
      discriminator, has_aux=True)(params['D'])
  np.testing.assert_allclose(terms['real'].mean(), of['scalar/Dloss/Dreal'], rtol=1e-8)
  np.testing.assert_allclose(terms['fake'].mean(), of['scalar/Dloss/Dgen'], rtol=1e-8)
  np.testing.assert_allclose(r1, of['scalar/DLoss/reg'], rtol=1e-8)
  np.testing.assert_allclose(
      adversarial.gradient_square(judge(params['D']), jnp.asarray(of['real_z'])).mean(),
      of['scalar/DLoss/r1_penalty'], rtol=1e-8)
  for who, slopes in (('denoise', slope), ('generator', slope_of_generator),
                      ('discriminator', slope_of_discriminator)):
    for name, u in slopes.items():
      np.testing.assert_allclose(u, of[f'grad/{who}/{name}'], rtol=1e-7, atol=1e-9)


def recorded_denoiser(arrays, run):
  w, u, b = (jnp.asarray(arrays[f'{run}/G/{name}']) for name in ('W', 'u', 'b'))
  process = GaussianProcess(TableSchedule.from_betas(arrays['betas/linear']))

  def denoise(z, level, cond=None):
    index = jnp.broadcast_to(jnp.round(level.t * 1000) - 1.0, z.shape[:1])
    eps = z @ w.T + u * index[:, None] / 1000 + b
    level = level.expand(z)
    return Estimate((z - level.sigma * eps) / level.alpha, eps)
  return denoise, process


def times_of(run, skip):
  return np.append(np.arange(0, int(run[1:]) + 1, skip)[::-1] + 1, 0) / 1000


@pytest.mark.first(1)
@pytest.mark.parametrize('run,skip', [('T99', 1), ('T99', 10), ('T499', 10)])
def test_samples_from_the_generator_s_z_are_those_of_the_public_code(x64, run, skip):
  """It takes the z of its generator for that of the largest step in its list, whichever that is."""
  arrays = recordings.shared('truncated_dpm')
  denoise, process = recorded_denoiser(arrays, run)
  z = jnp.asarray(arrays[f'{run}/generated_z'])
  keys = jax.random.split(jax.random.key(0), len(z))
  got = samplers.sample(samplers.ddim(denoise, process), keys, z, jnp.asarray(times_of(run, skip)))
  np.testing.assert_allclose(got, arrays[f'{run}/ddim/skip{skip}'], rtol=1e-7, atol=1e-8)


@pytest.mark.first(1)
@pytest.mark.parametrize('run', ['T99', 'T499'])
def test_noisy_samples_are_those_of_the_public_code_whose_x_hat_is_clipped(x64, run):
  """Ancestral steps with the larger of the two variances, from the generator's z."""
  arrays = recordings.shared('truncated_dpm')
  inner, process = recorded_denoiser(arrays, run)

  def denoise(z, level, cond=None):
    x, level = jnp.clip(inner(z, level).x, -1.0, 1.0), level.expand(z)
    return Estimate(x, (z - level.alpha * x) / level.sigma)

  noise = jnp.asarray(arrays[f'{run}/ddpm/skip10/noise'])[:, None]
  got = recordings.replay(samplers.ancestral(denoise, process, share=1.0),
                          jnp.asarray(arrays[f'{run}/generated_z']),
                          jnp.asarray(times_of(run, 10)), noise)
  np.testing.assert_allclose(got, arrays[f'{run}/ddpm/skip10'], rtol=1e-7, atol=1e-8)
