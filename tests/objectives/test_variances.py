"""The bound of a chain with every variance of its reverse kernel, and with the data at its end."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from tests.support.gaussian import true_variances
from tests.support.images import Split
from vdm_jax import oracles, schedules
from vdm_jax.decoders import DiscretisedNormal, Pixels
from vdm_jax.errors import InputError
from vdm_jax.likelihood.bounds import analytic_variance, at_times, evaluate_bound
from vdm_jax.objectives import vlb
from vdm_jax.processes import GaussianProcess
from vdm_jax.typing import Model

pytestmark = pytest.mark.usefixtures('x64')

# Data N(0, 1/4) in one dimension, log-SNR 13.3 to -5: nats of the diffusion term.
STD = 0.5
PROCESS = GaussianProcess(schedules.Linear(13.3, -5.0))
CONTINUOUS = 5.956015
SMALL, LARGE = 15.727564, 6.072638  # of ten steps; test_golden has the fixed variances' others


def nothing(data, z, level):
  return jnp.zeros(len(z))


def with_head(u, denoise=None):
  """The Gaussian's own denoiser, or another one, with a head for the variance: `u` everywhere."""
  denoise = denoise or oracles.Gaussian(0.0, STD)
  def headed(z, level, cond=None):
    return denoise(z, level)._replace(extra={'variance': jnp.full_like(z, u)})
  return headed


def diffusion(steps, variance, denoise=None):
  """The sum over all steps, with x = +-std and eps = +-1: it is quadratic in both."""
  sign = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
  t = jnp.tile((jnp.arange(steps) + 0.5) / steps, 4)
  sign = jnp.repeat(jnp.asarray(sign), steps, axis=0)
  x, eps = STD * sign[:, :1], sign[:, 1:]
  _, terms = vlb.discrete(denoise or oracles.Gaussian(0.0, STD), PROCESS, x, t, None, steps=steps,
                          data=x, decoder=nothing, variance=variance, eps=eps, eps_0=eps)
  return jnp.mean(terms['diffusion'])


def test_float32_keeps_the_digits_of_a_long_chain_with_the_best_variance():
  """Where log r and 1 / r - 1 cancel: r differs from 1 by the square root of the divergence."""
  variances = jax.tree.map(lambda u: np.asarray(u, np.float32), true_variances(1000))
  with jax.enable_x64(False):
    got = jax.jit(lambda: diffusion(1000, analytic_variance(variances)))()
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, CONTINUOUS, atol=2e-4)


def test_the_ends_of_a_learned_variance_are_the_two_fixed_ones():
  got = jax.jit(lambda: [diffusion(10, vlb.learned, with_head(u)) for u in (-1.0, 1.0)])()
  np.testing.assert_allclose(got, [SMALL, LARGE], atol=6e-7)


@pytest.mark.long
def test_between_them_the_term_is_the_divergence_of_two_normal_densities():
  """In the notation of Ho et al. (2020), eq. 6-7, the divergence by quadrature; v = 0.65."""
  x, eps, steps, u = 0.3, -0.8, 5, 0.3
  logsnr = np.linspace(13.3, -5.0, steps + 1)
  kept = 1 / (1 + np.exp(-logsnr))  # alpha bar
  got = vlb.discrete(with_head(u), PROCESS, jnp.full((steps, 1), x),
                     (jnp.arange(steps) + 0.5) / steps, None, steps=steps, data=None,
                     decoder=nothing, variance=vlb.learned, eps=jnp.full((steps, 1), eps),
                     eps_0=jnp.zeros((steps, 1)))[1]['diffusion'] / steps
  for i in range(1, steps + 1):
    beta = 1 - kept[i] / kept[i - 1]
    tilde = (1 - kept[i - 1]) / (1 - kept[i]) * beta
    z = kept[i]**0.5 * x + (1 - kept[i])**0.5 * eps
    x_hat = kept[i]**0.5 * STD**2 * z / (kept[i] * STD**2 + 1 - kept[i])
    mean = lambda x, i=i, beta=beta, z=z: (
        kept[i - 1]**0.5 * beta * x + (1 - beta)**0.5 * (1 - kept[i - 1]) * z) / (1 - kept[i])
    q = stats.norm(mean(x), tilde**0.5)
    p = stats.norm(mean(x_hat), (beta**0.65 * tilde**0.35)**0.5)
    integrand = lambda y, p=p, q=q: q.pdf(y) * (q.logpdf(y) - p.logpdf(y))
    low, high = q.mean() - 12 * q.std(), q.mean() + 12 * q.std()
    np.testing.assert_allclose(got[i - 1], integrate.quad(integrand, low, high)[0], rtol=1e-6)


# ------------------------------------------------ a chain that ends in the data

KEPT = np.array([1.0, 0.97, 0.6, 0.05])  # alpha bar of three steps from clean data
LEVELS = 4


def bound_of_ddpm(v):
  """For each level of a single pixel (recon, diffusion), in nats; its denoiser knows all four.

  In the notation of Ho et al. (2020), eq. 5-13; the noise by quadrature.
  """
  centres = (2 * np.arange(LEVELS) + 1) / LEVELS - 1
  eps, h = np.linspace(-8, 8, 641, retstep=True)
  weight = np.exp(-0.5 * eps**2) * h / np.sqrt(2 * np.pi)
  tilde = lambda i: (1 - KEPT[i] / KEPT[i - 1]) * (1 - KEPT[i - 1]) / (1 - KEPT[i])
  reconstruction, diffusion = np.zeros(LEVELS), np.zeros(LEVELS)
  for i in (1, 2, 3):
    beta = 1 - KEPT[i] / KEPT[i - 1]
    small = tilde(max(i, 2))  # that of the first step is that of the second, as in their code
    # A fixed variance has the same first step, whichever it is.
    variance = small if v == 1 and i == 1 else beta**v * small**(1 - v)
    z = KEPT[i]**0.5 * centres[:, None] + (1 - KEPT[i])**0.5 * eps
    near = np.exp(-0.5 * (z[..., None] - KEPT[i]**0.5 * centres)**2 / (1 - KEPT[i]))
    x_hat = near @ centres / near.sum(axis=-1)
    if i == 1:
      edges = np.concatenate([[-np.inf], centres[:-1] + 1 / LEVELS, [np.inf]])
      share = np.diff(stats.norm.cdf(edges, x_hat[..., None], variance**0.5), axis=-1)
      reconstruction = -np.log(share[np.arange(LEVELS), :, np.arange(LEVELS)]) @ weight
    else:
      gap = KEPT[i - 1]**0.5 * beta / (1 - KEPT[i]) * (centres[:, None] - x_hat)
      diffusion += 0.5 * (np.log(variance / small) + (small + gap**2) / variance - 1) @ weight
  return reconstruction, diffusion


def ddpm(u=0.0):
  centres = Pixels(LEVELS).encode(jnp.arange(LEVELS)).astype(float)[:, None]
  schedule = schedules.TableSchedule.from_alphas(KEPT[1:])
  return with_head(u, oracles.Empirical(centres)), GaussianProcess(schedule), centres


def terms_of(steps, noise, **options):
  """The terms of `discrete`, [steps, levels, noise], each step at each level and each noise."""
  denoise, process, centres = ddpm(options.pop('u', 0.0))
  shape = (steps, LEVELS, len(noise))
  flat = lambda u: jnp.broadcast_to(u, shape).reshape(-1, 1)
  t = flat(((jnp.arange(steps) + 0.5) / steps)[:, None, None])[:, 0]
  data = flat(jnp.arange(LEVELS)[:, None])
  _, terms = vlb.discrete(denoise, process, centres[data[:, 0]], t, None, steps=steps, data=data,
                          decoder=None, last=DiscretisedNormal(LEVELS).log_prob,
                          eps=flat(jnp.asarray(noise)), **options)
  return {name: u.reshape(shape) for name, u in terms.items()}


@pytest.mark.long
@pytest.mark.parametrize('v', [0.0, 0.65, 1.0])
def test_a_chain_that_ends_in_the_data_has_the_bound_of_ddpm_and_of_iddpm(v):
  """Fixed small and large variance, and one between them as Nichol and Dhariwal (2021) learn it."""
  eps, h = np.linspace(-8, 8, 641, retstep=True)
  weight = np.exp(-0.5 * eps**2) * h / np.sqrt(2 * np.pi)
  variance = {0.0: vlb.fixed_small, 0.65: vlb.learned, 1.0: vlb.fixed_large}[v]
  terms = jax.jit(lambda: terms_of(3, eps, variance=variance, u=2 * v - 1))()
  reconstruction, diffusion = bound_of_ddpm(v)
  np.testing.assert_allclose(terms['reconstruction'].mean(axis=0) @ weight, reconstruction,
                             rtol=1e-7)
  np.testing.assert_allclose(terms['diffusion'].mean(axis=0) @ weight, diffusion, rtol=1e-7)
  centres = (2 * np.arange(LEVELS) + 1) / LEVELS - 1
  divergence = 0.5 * (KEPT[3] * centres**2 - KEPT[3] - np.log(1 - KEPT[3]))
  np.testing.assert_allclose(terms['latent'], np.tile(divergence[:, None], (3, 1, 641)), rtol=1e-7)


@pytest.mark.long
def test_the_gradient_of_such_a_chain_is_finite_at_every_step_in_float32():
  """The data have no noise, the divergence of their step is infinite: neither may reach the sum."""
  with jax.enable_x64(False):
    def loss(scale):
      denoise, process, centres = ddpm()
      wrong = lambda z, level, cond=None: jax.tree.map(lambda u: scale * u, denoise(z, level))
      t, data = jnp.array([0.1, 0.5, 0.9]), jnp.array([[0], [2], [3]])
      return vlb.discrete(wrong, process, centres[data[:, 0]], t, None, steps=3, data=data,
                          decoder=None, last=DiscretisedNormal(LEVELS).log_prob,
                          variance=vlb.learned, eps=jnp.ones((3, 1)))[0]
    (value, up, down), (slope, _, _) = jax.jit(lambda scale: jax.jvp(
        jax.vmap(loss), (scale,), (jnp.ones(3),)))(1.1 + 1e-2 * jnp.array([0.0, 1.0, -1.0]))
  np.testing.assert_allclose(slope, (up - down) / 2e-2, rtol=2e-2)
  assert np.all(np.abs(value) < 100)


def test_a_chain_that_ends_in_the_data_needs_two_steps():
  with pytest.raises(InputError, match='steps=1: a chain that ends in the data has 2 or more'):
    jax.eval_shape(lambda: terms_of(1, [0.0]))


# ---------------------------------------------------------- over images


GAUSSIAN = Model(denoise=oracles.Gaussian(0.0, STD), process=PROCESS, decoder=nothing,
                 encode=lambda x: x, decode=lambda x: x, cond=lambda batch: None, shape=(1,))


@pytest.mark.long
def test_a_pass_over_images_draws_the_bound_of_the_variance_that_is_asked_for():
  """With as many times as steps each step is drawn once; the noise remains."""
  images = np.repeat([[STD], [-STD]], 200, axis=0)
  for variance, expected in ((None, SMALL), (vlb.fixed_large, LARGE),
                             (analytic_variance(true_variances(10)), CONTINUOUS)):
    found = evaluate_bound(lambda params: GAUSSIAN, {}, Split(images), jax.random.key(0), steps=10,
                           times=10, batch_size=4000, progress=False, variance=variance)
    got = found.terms['diffusion'][0]
    assert abs(got.mean() - expected) < 4 * got.std(ddof=1) / 20


@pytest.mark.long
@pytest.mark.parametrize('times', [1, 2, 5])
def test_the_first_step_of_every_image_and_some_of_the_others_are_the_sum_of_all(times):
  """One draw of the three steps would have no first step in two images of three."""
  denoise, process, _ = ddpm()
  model = Model(denoise=denoise, process=process, decoder=None, encode=Pixels(LEVELS).encode,
                decode=None, cond=lambda batch: None, shape=(1,))
  images = np.repeat(np.arange(LEVELS), 400).astype(np.uint8)[:, None]
  found = evaluate_bound(lambda params: model, {}, Split(images), jax.random.key(0), steps=3,
                         times=times, batch_size=1 << 14, progress=False,
                         last=DiscretisedNormal(LEVELS).log_prob)
  reconstruction, diffusion = bound_of_ddpm(0.0)
  expected = {'reconstruction': reconstruction, 'diffusion': diffusion}
  for name, u in expected.items():
    got = found.terms[name].reshape(LEVELS, 400)
    error = got.std(axis=1, ddof=1) / 20
    assert np.all(np.abs(got.mean(axis=1) - u) < 4 * error) and np.all(error < 0.15 * u.mean())
  assert np.all(found.terms['reconstruction'] > 0.0)
  # The draws of the divergences, of which a density over log-SNR is made, are those of their sum.
  np.testing.assert_allclose(found.diffusion.mean(axis=-1), found.terms['diffusion'], rtol=1e-6)
  assert found.diffusion.shape == found.logsnr.shape == (1, len(images), times)


@pytest.mark.long
def test_as_many_draws_as_later_steps_draw_each_of_them_once():
  batch, keys = {'image': jnp.zeros((50, 1))}, jax.random.split(jax.random.key(0), 50)
  found = at_times(5, 4, None, DiscretisedNormal(LEVELS).log_prob)(GAUSSIAN, batch, keys)
  steps = np.ceil(5 * (13.3 - np.asarray(found['logsnr'])) / 18.3)  # log-SNR is linear in time
  np.testing.assert_array_equal(np.sort(steps, axis=1), np.tile([2, 3, 4, 5], (50, 1)))
  np.testing.assert_array_equal(found['evaluations'], 5)


@pytest.mark.parametrize('own,steps,message', [
    (True, 5, r'variance, last: this model has a bound of its own; .*_replace\(bound=None\)'),
    (False, 0, 'variance, last: this option applies only to a chain of steps; give `steps`'),
])
def test_a_variance_that_would_be_ignored_is_an_error(own, steps, message):
  model = GAUSSIAN._replace(bound=lambda *args: None) if own else GAUSSIAN
  keys = jax.random.split(jax.random.key(0), 2)
  estimator = at_times(steps, 2, vlb.fixed_large, DiscretisedNormal(5).log_prob)
  with pytest.raises(InputError, match=message):
    jax.eval_shape(lambda image: estimator(model, {'image': image}, keys), jnp.zeros((2, 1)))
