"""Numbers that every implementation must reproduce: closed forms, computed in float64 elsewhere.

Not one of them came out of this code.  "The Gaussian" is N(0, 1/4) in one dimension with the best
denoiser, the schedule linear in log-SNR from 13.3 to -5 unless another is named; x = +-1/2 with
eps = +-1 average what is quadratic in both exactly.
"""
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.support.gaussian import true_variances
from tests.support.sampling import on_grids, quantile_map, spread
from vdm_jax import dequantisers, oracles, random, schedules
from vdm_jax.decoders import Pixels
from vdm_jax.likelihood.bounds import analytic_variance
from vdm_jax.objectives import vlb, weighted_diffusion
from vdm_jax.processes import GaussianProcess, diffuse, prior_kl, vp
from vdm_jax.samplers import ancestral, ddim, heun
from vdm_jax.samplers.dpm_solver import dpm_solver, dpm_solver_multistep
from vdm_jax.units import bits_per_dim

pytestmark = pytest.mark.usefixtures('x64')

STD = 0.5
HALF = oracles.Gaussian(0.0, STD)
LINEAR = GaussianProcess(schedules.Linear(13.3, -5.0))
CONTINUOUS = 5.956014634  # nats
IMAGES = (32, 32, 3)
LEVELS_OF_CIFAR10 = Path(__file__).parents[1] / 'data' / 'cifar10_test_levels.txt'


def points(t):
  """(x [4 n, 1], t [4 n], eps [4 n, 1]): x = +-1/2 with eps = +-1 at every t."""
  sign = jnp.repeat(jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]), len(t), 0)
  return STD * sign[:, :1], jnp.tile(t, 4), sign[:, 1:]


def nothing(data, z, level):
  """A decoder where only the other terms are looked at."""
  return jnp.zeros(z.shape[0])


# -------------------------------------------------------------- CIFAR-10


def frequencies():
  counts = np.loadtxt(LEVELS_OF_CIFAR10).ravel()
  return counts / counts.sum()


def test_the_mean_square_of_the_test_images_of_cifar10():
  x = Pixels(256).encode(jnp.arange(256)).astype(float)
  assert frequencies() @ x**2 == pytest.approx(0.2526525, abs=5e-8)


@pytest.mark.long
def test_the_latent_term_of_cifar10():
  """Bits/dim at logsnr_min = -5, -4, -6."""
  x = jnp.full((1, *IMAGES), 0.2526525**0.5)
  got = []
  for low in (-5.0, -4.0, -6.0):
    _, terms = vlb.continuous(oracles.Gaussian(), GaussianProcess(schedules.Linear(13.3, low)), x,
                              jnp.full(1, 0.5), None, data=x, decoder=nothing, eps=x, eps_0=x)
    got.append(float(bits_per_dim(terms['latent'], IMAGES)[0]))
  np.testing.assert_allclose(got, [0.0012360, 0.0033961, 0.0004528], atol=5e-8)


@pytest.mark.long
def test_the_reconstruction_term_of_cifar10():
  """Bits/dim by logsnr_max, the mean over eps_0 by quadrature."""
  pixels = Pixels(256)
  x = pixels.encode(jnp.arange(256)).astype(jnp.float64)[:, None]
  nodes = jnp.linspace(-7.5, 7.5, 121)
  density = np.exp(-0.5 * nodes**2) * (nodes[1] - nodes[0]) / np.sqrt(2 * np.pi)

  @jax.jit
  def bits(high):
    def at(eps):
      _, terms = vlb.continuous(
          oracles.Gaussian(), GaussianProcess(schedules.Linear(high, -5.0)), x, jnp.full(256, 0.5),
          None, data=jnp.arange(256)[:, None], decoder=pixels.log_prob, eps=x,
          eps_0=jnp.full((256, 1), eps))
      return terms['reconstruction']
    return bits_per_dim(density @ jax.lax.map(at, nodes) @ frequencies(), (1,))

  known = {13.3: 0.010390, 13.0: 0.037474, 12.0: 0.415752, 11.0: 1.105511, 10.0: 1.822007,
           8.0: 3.251857}
  np.testing.assert_allclose([bits(high) for high in known], list(known.values()), atol=1e-6)


def test_the_mass_and_the_edge_of_the_noise_inside_a_bin_of_cifar10(monkeypatch):
  """Noise of log-SNR 13.3 cut off at 1/256: its Z from the density at the centre, its tau from how
  far that has fallen at the edge, where an endless draw is put."""
  draws = jnp.array([[0.0], [40.0]])
  monkeypatch.setattr(random, 'normal', lambda keys, like: draws)
  level = LINEAR(jnp.zeros(()))
  y, log_q = jax.jit(dequantisers.truncated_normal(256, level))(
      jnp.array([[128], [128]]), jax.random.split(jax.random.key(0), 2))
  mass = stats.norm.pdf(0.0) / (np.exp(log_q[0]) * level.sigma / level.alpha)
  assert float(mass) == pytest.approx(0.9974613, abs=5e-8)
  assert float(jnp.sqrt(2.0 * (log_q[0] - log_q[1]))) == pytest.approx(3.018689, abs=5e-7)
  np.testing.assert_allclose((y[1] - y[0]) * level.alpha / level.sigma, 3.018689, rtol=1e-4)


# ---------------------------------------------------------------- bounds


def test_the_range_of_log_snr_of_the_chain_of_ddpm():
  table = schedules.TableSchedule.from_betas(schedules.linear_betas(1000))
  np.testing.assert_allclose([table.logsnr[1], table.logsnr[1000]], [9.2102, -10.1177], atol=1e-4)


@pytest.mark.long
def test_the_continuous_bound_of_the_gaussian():
  nodes, weights = np.polynomial.legendre.leggauss(400)
  x, t, eps = points(jnp.asarray(0.5 * (nodes + 1.0)))
  loss, _ = weighted_diffusion(HALF, LINEAR, x, t, None, eps=eps)
  np.testing.assert_allclose(jnp.dot(jnp.tile(0.5 * weights, 4) / 4, loss), CONTINUOUS, rtol=1e-9)


def chain_bound(steps, **options):
  x, t, eps = points((jnp.arange(steps) + 0.5) / steps)
  _, terms = vlb.discrete(HALF, LINEAR, x, t, None, steps=steps, data=x, decoder=nothing, eps=eps,
                          eps_0=eps, **options)
  return jnp.mean(terms['diffusion'])


@pytest.mark.long
def test_the_bound_of_a_chain_of_the_smaller_variance():
  known = {10: 15.727564, 50: 7.081741, 100: 6.485690, 250: 6.160468, 1000: 6.006237,
           10_000: 5.961011}
  got = jax.jit(lambda: [chain_bound(steps) for steps in known])()
  np.testing.assert_allclose(got, list(known.values()), rtol=1e-7)


def test_the_bound_of_a_chain_of_the_larger_variance():
  known = {10: 6.072638, 100: 5.969983}
  got = jax.jit(lambda: [chain_bound(steps, variance=vlb.fixed_large) for steps in known])()
  np.testing.assert_allclose(got, list(known.values()), atol=6e-7)


def test_with_the_best_variance_a_chain_has_the_bound_of_continuous_time():
  """Analytic-DPM, even in one step: the reverse kernel of Gaussian data is Gaussian."""
  got = jax.jit(lambda: [chain_bound(steps, variance=analytic_variance(true_variances(steps)))
                         for steps in (1, 10)])()
  np.testing.assert_allclose(got, CONTINUOUS, atol=6e-7)


def test_the_gap_of_the_best_denoiser_is_the_divergence_at_the_end():
  """KL(q(z_1) || N(0, 1)) of the marginal, which is normal; test_objectives has the bound."""
  last = LINEAR(jnp.ones(()))
  variance = (last.alpha * STD)**2 + last.sigma**2
  np.testing.assert_allclose(0.5 * (variance - 1.0 - jnp.log(variance)), 6.3204e-6, atol=5e-11)
  # The latent term, KL(q(z_1 | x) || N(0, 1)), is more by the information that z_1 has of x.
  latent = prior_kl(jnp.full((1, 1), STD), last)[0, 0]
  information = 0.5 * jnp.log1p(STD**2 * jnp.exp(last.logsnr))
  np.testing.assert_allclose(latent - information, 6.3204e-6, atol=5e-11)


# -------------------------------------------------------------- samplers


@pytest.mark.long
def test_the_spread_that_ddim_gives_the_gaussian():
  """The map is linear, so a single z of 1 ends at the standard deviation."""
  known = {5: 0.317239, 10: 0.398878, 20: 0.447171, 50: 0.478882, 100: 0.489944, 1000: 0.500118}
  got = on_grids(ddim(HALF, LINEAR), jnp.ones((1, 1)), list(known))
  np.testing.assert_allclose(got[:, 0, 0], list(known.values()), atol=1e-6)
  exact = HALF.flow_map(jnp.ones((1, 1)), LINEAR(jnp.ones(())), LINEAR(jnp.zeros(())))
  np.testing.assert_allclose(exact, 0.501261, atol=1e-6)


@pytest.mark.long
def test_the_spread_that_ancestral_sampling_gives_the_gaussian():
  known = {10: 0.338525, 50: 0.457558, 100: 0.477977, 250: 0.490991, 1000: 0.497725}
  got = [spread(ancestral(HALF, LINEAR), steps) for steps in known]
  np.testing.assert_allclose(got, list(known.values()), atol=1e-6)
  end = LINEAR(jnp.zeros(()))
  np.testing.assert_allclose(jnp.hypot(end.alpha * STD, end.sigma), 0.500001, atol=1e-6)


def dpm_solver_2(denoise, process):
  return dpm_solver(denoise, process, order=2)


def dpm_solver_3(denoise, process):
  return dpm_solver(denoise, process, order=3)


def dpmpp_2m(denoise, process):
  return dpm_solver_multistep(denoise, process, order=2, of='x')


@pytest.mark.first(1)
@pytest.mark.parametrize('make,slope', [(ddim, 0.99), (dpm_solver_2, 2.0), (dpm_solver_3, 3.0),
                                        (dpmpp_2m, 2.0), (heun, 2.0)],
                         ids=['ddim', 'dpm_solver_2', 'dpm_solver_3', 'dpmpp_2m', 'heun'])
def test_the_slope_of_the_error_on_a_mixture_of_two(make, slope):
  """Log-SNR from 5 to -6, that is 1/2 logsnr from 2.5 to -3 at most; between the last two of N."""
  weights, means, stds = np.array([0.4, 0.6]), np.array([-0.8, 0.6]), np.array([0.15, 0.3])
  mixture = oracles.Mixture(jnp.array(weights), jnp.array(means)[:, None], jnp.array(stds))
  process = GaussianProcess(schedules.Linear(3.0, -2.5))
  z = np.linspace(-2.0, 2.0, 8)[:, None]
  exact = quantile_map(z, process(jnp.ones(())), process(jnp.zeros(())))
  got = on_grids(make(mixture, process), jnp.asarray(z), [160, 320])
  error = np.sqrt(np.mean((got - exact)**2, axis=(1, 2)))
  np.testing.assert_allclose(np.log2(error[0] / error[1]), slope, atol=0.03)


# ----------------------------------------------------------- compression


def test_the_distortion_of_a_lossy_code_decoded_by_the_flow_and_by_ancestral_sampling():
  """z_t is sent; decibels by which the flow is nearer to x, by s^2 SNR.

  From z_t the ancestral chain draws from the posterior of x, so that its error is twice the
  posterior's variance, which here one sees in the denoiser.
  """
  known = {0.1: 1.14, 1.0: 2.32, 10.0: 2.91, 100.0: 3.00, 1e4: 3.010}
  process = GaussianProcess(schedules.Linear(60.0, -60.0))  # clean data at t = 0
  x, _, eps = points(jnp.zeros(1))
  for snr, decibels in known.items():
    level = process(jnp.full(4, 0.5 - np.log(snr / STD**2) / 120.0))
    z = diffuse(x, eps, level)
    ancestral = 2.0 * jnp.mean((x - HALF(z, level).x)**2)
    flow = jnp.mean((x - HALF.flow_map(z, level, process(jnp.zeros(4))))**2)
    np.testing.assert_allclose(10.0 * jnp.log10(ancestral / flow), decibels, atol=5e-3)


# ------------------------------------------------------------- precision


def test_in_float32_sigma_and_the_bound_of_a_fine_chain_keep_the_digits_naive_formulae_lose():
  """1 - sigmoid(13.3) is off by 3.3e-3, and exp(d) - 1 at T = 10,000 by 1.3e-5."""
  steps, one = 10_000, np.float32(1.0)
  with jax.enable_x64(False):
    _, sigma = vp(jnp.float32(13.3))
    got = jax.jit(chain_bound, static_argnums=0)(steps)
    assert got.dtype == jnp.float32
  variance, d = 1.0 / (1.0 + np.exp(13.3)), 18.3 / steps
  off = {'sigma^2': one - one / (one + np.exp(np.float32(-13.3))), 'ours': np.square(sigma)}
  off = {name: abs(u / variance - 1.0) for name, u in off.items()}
  assert off['sigma^2'] == pytest.approx(3.3e-3, rel=0.05) and off['ours'] < 5e-7
  # The bound is a sum of such differences.  Time in float32 leaves a few 1e-7 a step.
  off = {'exp(d) - 1': (np.exp(np.float32(d)) - one) / np.expm1(d), 'ours': got / 5.961011}
  off = {name: abs(float(u) - 1.0) for name, u in off.items()}
  assert off['exp(d) - 1'] == pytest.approx(1.3e-5, rel=0.2) and off['ours'] < 3e-6


@pytest.mark.long
def test_a_latent_rounded_to_bfloat16_no_longer_has_its_noise():
  """E Var(eps | bfloat16(z), x) of a pixel of CIFAR-10: what no network could get back."""
  known = {-13.3: 0.2445, -12.3: 0.1055, -11.3: 0.0444, -10.3: 0.0174, -8.3: 0.0025}
  eps = np.linspace(-6.0, 6.0, 1501)
  density = stats.norm.pdf(eps) / stats.norm.pdf(eps).sum()
  x = np.asarray(Pixels(256).encode(jnp.arange(256)), float)

  def floor(gamma):
    alpha, sigma = map(float, vp(jnp.asarray(-gamma)))
    left = []
    for rounded in np.asarray(jnp.asarray(alpha * x[:, None] + sigma * eps, jnp.bfloat16), float):
      _, cell = np.unique(rounded, return_inverse=True)
      mean = np.bincount(cell, density * eps) / np.bincount(cell, density)
      left.append(density @ (eps - mean[cell])**2)
    return frequencies() @ left

  # The distribution of x behind the known numbers is not stated; that of the test images gives
  # the same within 3 %.
  np.testing.assert_allclose([floor(gamma) for gamma in known], list(known.values()), rtol=0.03)
  gammas = np.linspace(-13.3, -5.0, 40)
  bits = 0.5 * np.trapezoid([floor(gamma) for gamma in gammas], gammas) / np.log(2.0)
  assert bits == pytest.approx(0.2074, rel=0.03)
