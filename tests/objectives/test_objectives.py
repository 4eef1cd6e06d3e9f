"""The bound, against closed forms for Gaussian data (test_golden.py has those of CIFAR-10).

For a Gaussian the optimal denoiser is linear, so that x = +-std, eps = +-1 average its squared
error exactly, and the mean over t is a smooth integral: no test here needs a large sample,
but for the one that asks whether the library's own draws are unbiased.
"""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support.gaussian import STD, exact_decoder
from vdm_jax import oracles, schedules, values
from vdm_jax.objectives import vlb, weighted_diffusion
from vdm_jax.processes import GaussianProcess, flow, sub_vp, ve, vp

pytestmark = pytest.mark.usefixtures('x64')

CURVES = [vp, ve, flow, sub_vp]
CONTINUOUS = 5.956014634  # 1/2 log (1 + s^2 e^13.3) / (1 + s^2 e^-5), s = 1/2: nats
GAP = 6.3204e-6           # KL(q(z_1) || N(0, 1)) for the same data: nats


def nothing(data, z, level):
  """A decoder for tests of the other terms."""
  return jnp.zeros(z.shape[0])


def points(t, std=STD):
  """(x [4 n, 1], t [4 n], eps [4 n, 1]): x = +-std with eps = +-1 at every t."""
  sign = jnp.repeat(jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]), len(t), 0)
  return std * sign[:, :1], jnp.tile(t, 4), sign[:, 1:]


def gauss_legendre(n):
  nodes, weights = np.polynomial.legendre.leggauss(n)
  return jnp.asarray(0.5 * (nodes + 1.0)), jnp.asarray(0.5 * weights)


def diffusion_term(process, n=400):
  """E of the continuous diffusion term for the optimal denoiser, by quadrature: nats."""
  nodes, weights = gauss_legendre(n)
  x, t, eps = points(nodes)
  loss, _ = weighted_diffusion(oracles.Gaussian(0.0, STD), process, x, t, None, eps=eps)
  return jnp.dot(jnp.tile(weights, 4) / 4, loss)


def error_of_eps(logsnr):
  """E |eps - eps_hat|^2 = s^2 SNR / (1 + s^2 SNR)."""
  return STD**2 * np.exp(logsnr) / (1 + STD**2 * np.exp(logsnr))


def learned(kind, key=0, std=0.5):
  module = kind(features=16)
  params = module.init(jax.random.key(key), jnp.zeros(1))['params']
  params = jax.tree.map(lambda u: u + std * jax.random.normal(jax.random.key(u.size), u.shape),
                        params)
  return module, params


@pytest.mark.long
def test_the_bound_depends_on_the_ends_of_the_schedule_alone_and_on_no_curve():
  """Kingma et al. (2021), section 5.1."""
  module, params = learned(schedules.PinnedMonotone)
  params = {**params, 'logsnr_max': jnp.array(13.3), 'logsnr_min': jnp.array(-5.0)}
  bent = values.Bound(params, module)
  got = jax.jit(lambda: [diffusion_term(GaussianProcess(schedule, curve)) for curve in CURVES
                         for schedule in (schedules.Linear(), schedules.Cosine(), bent)])()
  np.testing.assert_allclose(got, CONTINUOUS, rtol=1e-8)


@pytest.mark.long
@pytest.mark.parametrize('kind', [schedules.Monotone, schedules.PinnedMonotone])
def test_the_bound_moves_a_learned_schedule_through_its_ends_alone(kind):
  """d bound = 1/2 error(max) d logsnr_max - 1/2 error(min) d logsnr_min, for every parameter.

  So the interior of a pinned schedule gets no gradient, and that of the official one does.
  """
  module, params = learned(kind)
  ends = lambda params: values.Bound(params, module)(jnp.array([0.0, 1.0]))

  @jax.jit
  def gradients(params):
    bound = lambda params: diffusion_term(GaussianProcess(values.Bound(params, module)))
    return jax.grad(bound)(params), jax.jacobian(ends)(params)

  got, of_ends = gradients(params)
  high, low = 0.5 * error_of_eps(np.asarray(ends(params)))
  expected = jax.tree.map(lambda d: high * d[0] - low * d[1], of_ends)
  scale = max(np.abs(u).max() for u in jax.tree.leaves(expected))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6 * scale), got, expected)
  if kind is schedules.PinnedMonotone:
    np.testing.assert_allclose(got['logsnr_max'], high, rtol=1e-6)
    np.testing.assert_allclose(got['logsnr_min'], -low, rtol=1e-6)
    for interior in ('w_in', 'b_in', 'w_out'):
      np.testing.assert_allclose(got[interior], 0.0, atol=1e-6 * high)
  else:
    assert np.abs(got['l3']['kernel']).max() > 1e-3


def discrete_term(steps, process):
  x, t, eps = points((jnp.arange(steps) + 0.5) / steps)
  loss, terms = vlb.discrete(oracles.Gaussian(0.0, STD), process, x, t, None, steps=steps, data=x,
                             decoder=nothing, eps=eps, eps_0=eps)
  return jnp.mean(terms['diffusion'])


def test_the_bound_of_a_chain_does_not_depend_on_the_curve():
  got = jax.jit(lambda: [discrete_term(50, GaussianProcess(schedules.Linear(), curve))
                         for curve in CURVES])()
  np.testing.assert_allclose(got, 7.081741, rtol=1e-7)  # see test_golden


@pytest.mark.long
def test_more_steps_lead_to_the_continuous_bound_at_the_rate_of_a_riemann_sum():
  """L_T - L = d/4 (2 L - error(max) + error(min)) + O(d^2), with d = (max - min) / T.

  Of it, 2 L comes from expm1(d) = d + d^2/2 and the rest from the sum's end points.
  """
  d = 18.3 / 10_000
  rate = d / 4 * (2 * CONTINUOUS - error_of_eps(13.3) + error_of_eps(-5.0))
  off = discrete_term(10_000, GaussianProcess(schedules.Linear())) - CONTINUOUS
  np.testing.assert_allclose(off, rate, rtol=d)


@pytest.mark.long
def test_a_single_step_is_accurate_in_float32():
  """SNR(0) / SNR(1) = e^18.3, where 1 - SNR(1) / SNR(0) rounds to 1."""
  with jax.enable_x64(False):
    got = discrete_term(1, GaussianProcess(schedules.Linear()))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, 0.5 * np.expm1(18.3) * error_of_eps(-5.0), rtol=1e-5)


def test_with_an_optimal_denoiser_and_decoder_the_gap_is_the_divergence_at_the_end():
  nodes, weights = gauss_legendre(400)
  x, t, eps = points(nodes)
  loss, _ = jax.jit(lambda: vlb.continuous(
      oracles.Gaussian(0.0, STD), GaussianProcess(schedules.Linear()), x, t, None, data=x,
      decoder=exact_decoder, eps=eps, eps_0=eps))()
  bound = jnp.dot(jnp.tile(weights, 4) / 4, loss)
  entropy = 0.5 * np.log(2 * np.pi * np.e * STD**2)  # E[-log p(x)]
  np.testing.assert_allclose(bound - entropy, GAP, rtol=1e-4)


@pytest.mark.long
def test_the_library_s_own_draws_estimate_all_terms_without_bias():
  """Independent times and noise, within four standard errors; and terms that are uncorrelated."""
  n = 40_000
  process = GaussianProcess(schedules.Linear(3.0, -2.0), flow)
  key_x, key_t, key = jax.random.split(jax.random.key(0), 3)
  x = STD * jax.random.rademacher(key_x, (n, 1), float)  # x^2 is the same for all: see below
  t, keys = jax.random.uniform(key_t, (n,)), jax.random.split(key, n)

  @jax.jit
  def both():
    arguments = oracles.Gaussian(0.0, STD), process, x, t, keys
    return [f(*arguments, data=x, decoder=exact_decoder, **more)
            for f, more in ((vlb.continuous, {}), (vlb.discrete, {'steps': 4}))]

  (continuous, terms), (discrete, discrete_terms) = both()
  for loss, parts in (continuous, terms), (discrete, discrete_terms):
    assert set(parts) == {'reconstruction', 'latent', 'diffusion'}
    np.testing.assert_allclose(loss, sum(parts.values()), rtol=1e-12, atol=1e-12)
  posterior_variance = STD**2 / (1 + STD**2 * np.exp(3.0))
  grid = np.array([3.0, 1.75, 0.5, -0.75, -2.0])
  expected = {
      'diffusion': 0.5 * np.log((1 + STD**2 * np.exp(3.0)) / (1 + STD**2 * np.exp(-2.0))),
      'reconstruction': 0.5 * np.log(2 * np.pi * np.e * posterior_variance),
  }
  chain = 0.5 * np.expm1(1.25) * error_of_eps(grid[1:]).sum()
  for sample, mean in ((terms['diffusion'], expected['diffusion']),
                       (terms['reconstruction'], expected['reconstruction']),
                       (discrete_terms['diffusion'], chain)):
    assert abs(np.mean(sample) - mean) < 4 * np.std(sample) / n**0.5
  # Noise shared by two terms would show here, as both are quadratic in it.
  assert abs(np.corrcoef(terms['diffusion'], terms['reconstruction'])[0, 1]) < 4 / n**0.5


@pytest.mark.long
def test_noise_handed_in_is_used_and_example_i_draws_from_its_own_key():
  process, n = GaussianProcess(schedules.Linear()), 6
  x = STD * jax.random.normal(jax.random.key(1), (n, 2))
  keys, t = jax.random.split(jax.random.key(2), n), jnp.linspace(0.1, 0.9, n)
  loss = lambda x, t, keys, **more: weighted_diffusion(
      oracles.Gaussian(0.0, STD), process, x, t, keys, **more)[0]
  np.testing.assert_allclose(loss(x, t, keys)[2:4], loss(x[2:4], t[2:4], keys[2:4]), rtol=1e-12)
  other = loss(x, t, keys, eps=jnp.zeros_like(x))
  # With no noise in z the estimate of it is all the error.
  level = process(t).expand(x)
  wrong = oracles.Gaussian(0.0, STD)(level.alpha * x, level).eps
  np.testing.assert_allclose(other, 0.5 * 18.3 * np.sum(wrong**2, axis=1), rtol=1e-9)


@pytest.mark.long
def test_a_schedule_per_pixel_is_summed_pixel_by_pixel():
  """Two pixels with ends of their own: every term is the sum of the two single ones."""
  high, low = jnp.array([6.0, 4.0]), jnp.array([-3.0, -1.0])
  nodes, weights = gauss_legendre(60)
  x, t, eps = points(nodes)
  x, eps = jnp.tile(x, 2), jnp.tile(eps, 2)
  process = GaussianProcess(lambda t: high + (low - high) * t[..., None])
  loss, terms = vlb.continuous(oracles.Gaussian(0.0, STD), process, x, t, None, data=x,
                               decoder=exact_decoder, eps=eps, eps_0=eps)
  assert loss.shape == (240,)
  expected = 0.5 * np.log((1 + STD**2 * np.exp(high)) / (1 + STD**2 * np.exp(low)))
  np.testing.assert_allclose(jnp.dot(jnp.tile(weights, 4) / 4, terms['diffusion']),
                             expected.sum(), rtol=1e-9)
  for i in range(2):
    alone = GaussianProcess(schedules.Linear(high[i], low[i]))
    _, single = vlb.continuous(oracles.Gaussian(0.0, STD), alone, x[:, :1], t, None, data=x[:, :1],
                               decoder=exact_decoder, eps=eps[:, :1], eps_0=eps[:, :1])
    terms = jax.tree.map(lambda both, one: both - one, terms, single)
  jax.tree.map(lambda left: np.testing.assert_allclose(left, 0.0, atol=1e-9), terms)


@pytest.mark.long
def test_a_weighting_of_one_over_the_error_leaves_half_the_range_of_logsnr():
  weight = lambda level: 1.0 + jnp.exp(-level.logsnr) / STD**2
  nodes, weights = gauss_legendre(400)
  x, t, eps = points(nodes)
  for schedule in schedules.Linear(4.0, -2.0), schedules.Cosine(4.0, -2.0):
    loss, _ = weighted_diffusion(oracles.Gaussian(0.0, STD), GaussianProcess(schedule), x, t, None,
                                 weight=weight, eps=eps)
    np.testing.assert_allclose(jnp.dot(jnp.tile(weights, 4) / 4, loss), 3.0, rtol=1e-9)
