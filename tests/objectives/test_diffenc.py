"""DiffEnc: against the VDM it is without an encoder, the published form, and its own chain."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate
from scipy.special import expit

from tests.support.sampling import spread
from vdm_jax import denoisers, oracles, random, schedules, targets
from vdm_jax.decoders import Pixels
from vdm_jax.nn.small.diffenc import NoiseLevelEncoder
from vdm_jax.objectives import diffenc, vlb
from vdm_jax.processes import GaussianProcess, flow, vp
from vdm_jax.samplers import ancestral, ddim

pytestmark = pytest.mark.usefixtures('x64')

SHAPE = (2, 3, 1)
PROCESS = GaussianProcess(schedules.Cosine(5.0, -4.0))
PIXELS = Pixels(8)


def drawn(n=12):
  """What every objective takes: data, x, t, keys."""
  data = jnp.asarray(np.random.default_rng(0).integers(0, 8, (n, *SHAPE)))
  t = (jnp.arange(n) + 0.5) / n
  return data, PIXELS.encode(data).astype(jnp.float64), t, jax.random.split(jax.random.key(0), n)


def tangled(z, logsnr, cond=None):
  """Some v for every z and logsnr, of no particular meaning."""
  return jnp.tanh(1.3 * z + 0.1 * logsnr.reshape(-1, 1, 1, 1)) + 0.2 * jnp.roll(z, 1, axis=1)


def inner(x, logsnr):
  """Some encoding that depends on the level and on other pixels."""
  return jnp.sin(2.0 * x + 0.3 * logsnr.reshape(-1, 1, 1, 1)) + 0.5 * jnp.roll(x, 1, axis=2)


@pytest.mark.long
@pytest.mark.parametrize('curve', [vp, flow])
@pytest.mark.parametrize('steps', [0, 7])
def test_an_encoder_that_leaves_the_data_alone_gives_the_bound_of_the_vdm(curve, steps):
  data, x, t, keys = drawn()
  process = GaussianProcess(PROCESS.schedule, curve)
  denoise = denoisers.denoiser(tangled, targets.v)
  args = denoise, process, x, t, keys
  given = {'data': data, 'decoder': PIXELS.log_prob}
  identity = diffenc.blend(lambda x, logsnr: x)

  @jax.jit
  def both():
    if steps:
      return (vlb.discrete(*args, steps=steps, **given),
              diffenc.discrete(*args, steps=steps, encoder=identity, **given))
    return vlb.continuous(*args, **given), diffenc.continuous(*args, encoder=identity, **given)

  theirs, ours = both()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), ours, theirs)


@pytest.mark.long
def test_the_diffusion_term_is_the_published_one_in_v_and_the_inner_encoding():
  """1/2 gamma' alpha^2 |v - v_hat + sigma (x_hat - x_t + y + dy/dgamma)|^2, gamma = -logsnr."""
  data, x, t, keys = drawn()
  denoise = diffenc.counter_term(denoisers.denoiser(tangled, targets.v))
  _, terms = diffenc.continuous(denoise, PROCESS, x, t, keys, encoder=diffenc.blend(inner),
                                data=data, decoder=PIXELS.log_prob)
  gamma, rate = jax.vmap(jax.value_and_grad(lambda t: -PROCESS.schedule(t)))(t)
  wide = gamma.reshape(-1, 1, 1, 1)
  alpha, sigma = jnp.sqrt(jax.nn.sigmoid(-wide)), jnp.sqrt(jax.nn.sigmoid(wide))
  y, dy = jax.jvp(lambda gamma: inner(x, -gamma), (gamma,), (jnp.ones_like(gamma),))
  x_t = alpha**2 * x + sigma**2 * y
  eps = random.normal(random.stream(keys, 'eps'), x)
  z = alpha * x_t + sigma * eps
  v, v_hat = alpha * eps - sigma * x_t, tangled(z, -gamma)
  x_hat = alpha * z - sigma * v_hat
  error = v - v_hat + sigma * (x_hat - x_t + y + dy)
  expected = 0.5 * rate * alpha[:, 0, 0, 0]**2 * jnp.sum(error**2, axis=(1, 2, 3))
  np.testing.assert_allclose(terms['diffusion'], expected, rtol=1e-9)


@pytest.mark.long
def test_the_ends_are_those_of_the_encoded_data():
  """x_1 costs what a VDM pays for data x_1, and so does the reconstruction from x_0."""
  data, x, t, keys = drawn()
  encoder = diffenc.blend(inner)
  denoise = denoisers.denoiser(tangled, targets.v)
  given = {'data': data, 'decoder': PIXELS.log_prob}
  _, got = diffenc.continuous(denoise, PROCESS, x, t, keys, encoder=encoder, **given)
  ends = PROCESS(jnp.array([0.0, 1.0])).logsnr
  for logsnr, name in zip(ends, ('reconstruction', 'latent'), strict=True):
    there = encoder(x, jnp.full(len(x), logsnr))
    assert np.abs(there - x).max() > 1e-3
    _, alone = vlb.continuous(denoise, PROCESS, there, t, keys, **given)
    np.testing.assert_allclose(got[name], alone[name], rtol=1e-12)


def mean_over_times(function, n):
  """Of the diffusion term at n even times, with the same noise everywhere."""
  x = jnp.array([[0.7, -0.4]])
  eps = jnp.array([[0.3, -1.1]])
  repeat = lambda u: jnp.repeat(u, n, axis=0)
  t = (jnp.arange(n) + 0.5) / n
  inner = lambda x, logsnr: jnp.sin(2.0 * x + 0.3 * logsnr[:, None])
  denoise = diffenc.counter_term(oracles.Gaussian(0.1, 0.6))

  @jax.jit
  def mean():
    _, terms = function(denoise, PROCESS, repeat(x), t, None, encoder=diffenc.blend(inner),
                        data=repeat(x), decoder=lambda data, z, level: jnp.zeros(len(z)),
                        eps=repeat(eps), eps_0=repeat(eps))
    return jnp.mean(terms['diffusion'])
  return mean()


@pytest.mark.long
def test_a_chain_of_many_steps_has_the_bound_of_continuous_time_at_the_rate_of_its_steps():
  limit = mean_over_times(diffenc.continuous, 4000)
  of = lambda steps: mean_over_times(
      lambda *args, **given: diffenc.discrete(*args, steps=steps, **given), steps)
  off = np.array([of(steps) - limit for steps in (200, 400, 800)])
  assert np.all(np.abs(off) < 0.1 * limit)
  np.testing.assert_allclose(off[:-1] / off[1:], 2.0, rtol=0.03)


@pytest.mark.long
def test_the_term_of_one_step_is_the_divergence_of_two_gaussians():
  """q(z_s | z_t, x) from the joint normal of (z_s, z_t), against the ancestral step from w_hat."""
  steps, x, eps = 4, jnp.array([[0.7]]), jnp.array([[-0.6]])
  encoder = diffenc.blend(lambda x, logsnr: jnp.sin(2.0 * x + 0.3 * logsnr[:, None]))
  denoise = diffenc.counter_term(oracles.Gaussian(0.1, 0.6))
  _, terms = diffenc.discrete(denoise, PROCESS, x, jnp.array([0.6]), None, steps=steps,
                              encoder=encoder, data=x, eps=eps, eps_0=eps,
                              decoder=lambda data, z, level: jnp.zeros(len(z)))
  at_t, at_s = PROCESS(jnp.array([0.75])), PROCESS(jnp.array([0.5]))
  x_t, x_s = (encoder(x, level.logsnr)[0, 0] for level in (at_t, at_s))
  # z_t given z_s has the slope alpha_t / alpha_s, as in a VDM: so is the covariance.
  covariance = at_t.alpha / at_s.alpha * at_s.sigma**2
  gain = covariance / at_t.sigma**2
  variance = at_s.sigma**2 - gain * covariance
  z = at_t.alpha * x_t + at_t.sigma * eps[0, 0]
  mean = at_s.alpha * x_s + gain * (z - at_t.alpha * x_t)
  w_hat = denoise(z[None], at_t).x[0, 0]
  of_model = gain * z + (at_s.alpha - gain * at_t.alpha) * w_hat
  expected = steps * (mean - of_model)**2 / (2.0 * variance)
  np.testing.assert_allclose(terms['diffusion'], expected, rtol=1e-9)


def test_the_derivative_of_the_fading_encoder_is_what_the_counter_term_stands_for():
  """x_t = alpha^2 x: w = x_t + sigma^2 x_t, so the counter-term of an exact x_hat is exact."""
  x = jnp.array([[0.8], [-0.3]])
  logsnr = jnp.array([2.0, -1.0])
  fading = diffenc.blend(lambda x, logsnr: jnp.zeros_like(x))
  x_t, change = jax.jvp(lambda u: fading(x, u), (logsnr,), (jnp.ones(2),))
  level = GaussianProcess(schedules.Linear(2.0, -1.0))(jnp.array([0.0, 1.0]))
  known = lambda z, level, cond=None: oracles.Estimate(x_t, (z - level.expand(z).alpha * x_t)
                                                       / level.expand(z).sigma)
  z = jnp.ones((2, 1))
  got = diffenc.counter_term(known)(z, level)
  np.testing.assert_allclose(got.x, x_t + change, rtol=1e-12)
  wide = level.expand(z)
  np.testing.assert_allclose(wide.alpha * got.x + wide.sigma * got.eps, z, rtol=1e-12)


def expected_bound(encoder_rate, n=300):
  """E of the whole bound for x ~ N(0, 1/4), x_t = (1 - rate sigma^2) x, and the best linear w_hat.

  Everything is Gaussian, so x = +-1/2 with eps = +-1 average every term exactly.
  """
  std, process = 0.5, GaussianProcess(schedules.Linear(4.0, -6.0))
  share = lambda logsnr: 1.0 - encoder_rate * jax.nn.sigmoid(-logsnr)
  encoder = diffenc.blend(lambda x, logsnr: (1.0 - encoder_rate) * x)

  def denoise(z, level, cond=None):
    a, da = jax.jvp(share, (level.logsnr,), (jnp.ones_like(level.logsnr),))
    gain = (a + da) * a * std**2 * level.alpha / ((level.alpha * a * std)**2 + level.sigma**2)
    w = gain[:, None] * z
    wide = level.expand(z)
    return oracles.Estimate(w, (z - wide.alpha * w) / wide.sigma)

  def decoder(data, z, level):  # q(x | z_0) itself
    a = share(level.logsnr) * level.alpha
    variance = 1.0 / (1.0 / std**2 + a**2 / level.sigma**2)
    mean = (variance * a / level.sigma**2)[:, None] * z
    return jnp.sum(-0.5 * ((data - mean)**2 / variance[:, None]
                           + jnp.log(2 * jnp.pi * variance[:, None])), axis=-1)

  nodes, weights = np.polynomial.legendre.leggauss(n)
  t, weights = jnp.asarray(0.5 * (nodes + 1.0)), jnp.asarray(0.5 * weights)
  sign = jnp.repeat(jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]), n, 0)
  x, eps = std * sign[:, :1], sign[:, 1:]
  nats, _ = diffenc.continuous(denoise, process, x, jnp.tile(t, 4), None, encoder=encoder, data=x,
                               decoder=decoder, eps=eps, eps_0=eps)
  return jnp.dot(jnp.tile(weights, 4) / 4, nats)


@pytest.mark.long
def test_it_is_a_bound_that_the_identity_makes_tight():
  entropy = 0.5 * np.log(2 * np.pi * np.e * 0.25)
  bounds = [float(expected_bound(rate)) for rate in (0.0, 0.5, 1.0)]
  # With nothing encoded the rest is KL(q(z_1) || p(z_1)), here below 1e-5.
  np.testing.assert_allclose(bounds[0], entropy, atol=1e-5)
  assert min(bounds[1:]) > entropy - 1e-9


def test_the_ancestral_sampler_ends_in_the_data_and_a_deterministic_one_misses_half_of_the_drift():
  """x ~ N(0, 1/4), x_t = alpha^2 x and the exact w_hat: standard deviations at t = 0.

  The deviation of z_t / alpha changes by the noise's share and the encoder's; the latter is
  d log = alpha^2 share dshare std^2 / (alpha^2 share^2 std^2 + sigma^2), share = alpha^2.
  """
  std, process = 0.5, GaussianProcess(schedules.Linear(8.0, -8.0))

  def denoise(z, level, cond=None):
    wide = level.expand(z)
    share = wide.alpha**2
    x = wide.alpha * share * std**2 / ((wide.alpha * share * std)**2 + wide.sigma**2) * z
    w = share * (1.0 + wide.sigma**2) * x
    return oracles.Estimate(w, (z - wide.alpha * w) / wide.sigma)

  np.testing.assert_allclose(spread(ancestral(denoise, process), 2000), std, rtol=3e-3)
  a = lambda logsnr: expit(logsnr)  # alpha^2
  drift = lambda l: a(l)**2 * a(l) * expit(-l) * std**2 / (a(l)**3 * std**2 + expit(-l))
  half = 0.5 * integrate.quad(drift, -8.0, 8.0)[0]
  missed = std * np.exp(-half)
  np.testing.assert_allclose(spread(ddim(denoise, process), 2000), missed, rtol=3e-3)
  assert missed < 0.45


@pytest.mark.long
def test_the_encoder_of_the_digits_starts_as_the_identity_and_learns_the_level():
  net = NoiseLevelEncoder(features=8, blocks=1, groups=2)
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 1), jnp.float32)
  params = jax.jit(net.init)(jax.random.key(1), x, jnp.zeros(2))['params']
  apply = jax.jit(lambda params, logsnr: net.apply({'params': params}, x, logsnr))
  np.testing.assert_array_equal(apply(params, jnp.array([5.0, -3.0])), x)
  rng = np.random.default_rng(0)  # one number for a whole layer would leave with its norm
  moved = jax.tree.map(lambda u: u + 0.3 * rng.normal(size=u.shape).astype(np.float32), params)
  at = [apply(moved, jnp.full(2, logsnr)) for logsnr in (5.0, -3.0)]
  assert np.abs(at[0] - at[1]).max() > 1e-3
