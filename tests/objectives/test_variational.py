"""ELBOs of linear models, whose evidence is known; and the diffusion bound as one of them."""
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from tests.support import configs
from vdm_jax import oracles, processes, schedules
from vdm_jax.decoders import Pixels
from vdm_jax.errors import InputError
from vdm_jax.objectives import variational, vlb
from vdm_jax.objectives.variational import Normal
from vdm_jax.systems.variational import autoencoders

pytestmark = pytest.mark.usefixtures('x64')


def keys_of(n, seed=0):
  return jax.random.split(jax.random.key(seed), n)


class Points(NamedTuple):
  """A normal distribution of which `sample` is mean + std u, u given: averages by quadrature."""
  mean: jax.Array
  std: jax.Array
  u: jax.Array

  def sample(self, keys):
    return self.mean + self.std * self.u

  def log_prob(self, z):
    return Normal(self.mean, self.std).log_prob(z)


# ------------------------------------------------------------- divergence


@pytest.mark.parametrize('q,p', [((0.0, 1.0), (0.0, 1.0)), ((0.3, 0.7), (-1.0, 2.0)),
                                 ((-2.0, 1.5), (0.5, 0.4))])
def test_the_divergence_of_two_gaussians_is_its_integral(q, p):
  def integrand(z):
    return stats.norm.pdf(z, *q) * (stats.norm.logpdf(z, *q) - stats.norm.logpdf(z, *p))
  expected = integrate.quad(integrand, q[0] - 12 * q[1], q[0] + 12 * q[1], epsabs=1e-12)[0]
  made = [Normal(jnp.full((1, 1), mean), jnp.asarray(std)) for mean, std in (q, p)]
  np.testing.assert_allclose(variational.gaussian_kl(*made), [expected], atol=1e-10)


def test_the_divergence_is_a_sum_over_all_dimensions_also_where_a_std_is_shared():
  q, p = Normal(jnp.ones((3, 2, 2)), jnp.asarray(0.5)), Normal(jnp.zeros((3, 2, 2)),
                                                               jnp.asarray(1.0))
  # log 2 + (1/4 + 1) / 2 - 1/2 in each of four
  np.testing.assert_allclose(variational.gaussian_kl(q, p), np.full(3, 4 * (np.log(2.0) + 0.125)))


# --------------------------------------------- one layer, a linear Gaussian


# z ~ N(0, 1) in two dimensions, x = W z + mean + N(0, NOISE^2) in three.  The columns of W are
# orthogonal, so that the posterior is a product.
W = np.array([[1.0, 0.5], [1.0, -0.5], [0.5, 0.0]])
MEAN, NOISE = np.array([0.3, -0.2, 0.1]), 0.6
X = np.random.default_rng(0).normal(size=(40, 3))


def linear_decoder(data, z):
  return Normal(z @ W.T + MEAN, jnp.asarray(NOISE)).log_prob(data)


def exact_posterior():
  covariance = np.linalg.inv(np.eye(2) + W.T @ W / NOISE**2)
  assert abs(covariance[0, 1]) < 1e-15
  return (X - MEAN) @ W @ covariance.T / NOISE**2, np.sqrt(np.diag(covariance))


def evidence():
  return stats.multivariate_normal(MEAN, W @ W.T + NOISE**2 * np.eye(3)).logpdf(X)


STANDARD = Normal(jnp.zeros((len(X), 2)), 1.0)


@pytest.mark.long
def test_with_the_exact_posterior_every_draw_of_the_elbo_is_the_evidence():
  mean, std = exact_posterior()
  losses, terms = variational.elbo(jnp.asarray(X), keys_of(len(X)), decoder=linear_decoder,
                                   encoder=Normal(jnp.asarray(mean), jnp.asarray(std)),
                                   prior=STANDARD)
  np.testing.assert_allclose(-losses, evidence(), rtol=0, atol=1e-10)
  np.testing.assert_allclose(terms['reconstruction'] + terms['latent'], losses, rtol=1e-14)


@pytest.mark.long
@pytest.mark.parametrize('divergence', [variational.one_sample, variational.gaussian_kl])
def test_a_posterior_mean_off_by_delta_costs_delta_squared_by_twice_the_variance(divergence):
  (mean, std), delta = exact_posterior(), np.array([0.3, -0.2])
  # All integrands are quadratic, of which the mean over signs is that over the normal draws.
  losses = [variational.elbo(
      jnp.asarray(X), keys_of(len(X)), decoder=linear_decoder, prior=STANDARD,
      encoder=Points(mean + delta, std, np.array(u)), divergence=divergence)[0]
            for u in ((1, 1), (1, -1), (-1, 1), (-1, -1))]
  gap = np.mean(losses, axis=0) + evidence()
  np.testing.assert_allclose(gap, np.sum(delta**2 / (2 * std**2)), rtol=1e-10)


@pytest.mark.long
def test_the_library_s_own_draws_estimate_the_same_number():
  (mean, std), n, delta = exact_posterior(), 20_000, 0.3
  x = jnp.asarray(np.repeat(X[:1], n, axis=0))
  q = Normal(jnp.asarray(np.repeat(mean[:1] + delta, n, axis=0)), jnp.asarray(std))
  for divergence in (variational.one_sample, variational.gaussian_kl):
    losses = variational.elbo(x, keys_of(n), encoder=q, decoder=linear_decoder,
                              prior=Normal(jnp.zeros((n, 2)), 1.0), divergence=divergence)[0]
    expected = np.sum(delta**2 / (2 * std**2)) - evidence()[0]
    assert abs(losses.mean() - expected) < 4 * losses.std(ddof=1) / n**0.5


@pytest.mark.long
def test_beta_weighs_the_latent_term_of_the_loss_and_leaves_the_terms():
  mean, std = exact_posterior()
  run = lambda beta: variational.elbo(
      jnp.asarray(X), keys_of(len(X)), encoder=Normal(jnp.asarray(mean), jnp.asarray(std)),
      decoder=linear_decoder, prior=STANDARD, beta=beta)
  (one, terms), (four, same) = run(1.0), run(4.0)
  np.testing.assert_allclose(four - one, 3.0 * terms['latent'], rtol=1e-10)
  assert all(np.array_equal(terms[name], same[name]) for name in terms)


@pytest.mark.long
def test_the_best_linear_autoencoder_is_probabilistic_principal_components():
  """Tipping and Bishop (1999), eq. 4 and 8 at their maximum; a q of independent dimensions."""
  rng, d, k = np.random.default_rng(1), 4, 2
  x = rng.normal(size=(60, d)) @ np.diag([2.0, 1.3, 0.6, 0.4]) @ rng.normal(size=(d, d))
  eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
  noise = eigenvalues[k:].mean()
  expected = -0.5 * (d * np.log(2 * np.pi) + np.log(eigenvalues[:k]).sum()
                     + (d - k) * np.log(noise) + d)
  shapes = {'W': (d, k), 'mean': (d,), 'V': (k, d), 'bias': (k,), 'log_std': (k,), 'log_noise': ()}
  flat, unravel = jax.flatten_util.ravel_pytree(
      {name: jnp.asarray(0.3 * rng.normal(size=shape)) for name, shape in shapes.items()})
  points = np.sqrt(k) * np.concatenate([np.eye(k), -np.eye(k)])  # E u u^T = 1

  @jax.jit
  @jax.value_and_grad
  def loss(flat):
    m = unravel(flat)
    decoder = lambda data, z: Normal(z @ m['W'].T + m['mean'],
                                     jnp.exp(m['log_noise'])).log_prob(data)
    one = lambda u: variational.elbo(
        jnp.asarray(x), keys_of(len(x)), decoder=decoder, prior=Normal(jnp.zeros((len(x), k)), 1.0),
        encoder=Points(x @ m['V'].T + m['bias'], jnp.exp(m['log_std']), u),
        divergence=variational.gaussian_kl)[0]
    return jnp.mean(jax.vmap(one)(points))

  found = optimize.minimize(lambda u: jax.tree.map(np.asarray, loss(u)), flat, jac=True,
                            method='BFGS', options={'gtol': 1e-5})
  np.testing.assert_allclose(-found.fun, expected, rtol=1e-7)
  np.testing.assert_allclose(np.exp(2 * unravel(found.x)['log_noise']), noise, rtol=1e-3)


# --------------------------------------------------------------- two layers


# z_2 ~ N(0, 1), z_1 | z_2 ~ N(0.8 z_2, 0.5^2), x ~ N(0.9 z_1 - 0.4 z_2, 0.7^2), in order (x, z_1,
# z_2): covariances by hand.
PRIOR = np.array([[0.8**2 + 0.5**2, 0.8], [0.8, 1.0]])
LOADING = np.array([0.9, -0.4])
TO_X = PRIOR @ LOADING
VARIANCE = LOADING @ TO_X + 0.7**2
POSTERIOR = PRIOR - np.outer(TO_X, TO_X) / VARIANCE
Y = np.random.default_rng(2).normal(size=(30, 1))


def two_layers(q=Normal):
  """(encoder from the top, encoder from below, decoder, prior), the encoders the true posterior."""
  at = lambda i: jnp.asarray(TO_X[i] / VARIANCE * Y)
  std = lambda i: jnp.sqrt(POSTERIOR[i, i])
  def given(i, j):
    slope = POSTERIOR[i, j] / POSTERIOR[j, j]
    return lambda other: q(at(i) + slope * (other[0] - at(j)),
                           jnp.sqrt(POSTERIOR[i, i] - slope * POSTERIOR[i, j]))
  down = [lambda _: q(at(1), std(1)), given(0, 1)]
  up = [lambda _: q(at(0), std(0)), given(1, 0)]
  decoder = lambda data, z: Normal(0.9 * z[1] - 0.4 * z[0], jnp.asarray(0.7)).log_prob(data)
  prior = [lambda _: Normal(jnp.zeros_like(Y), 1.0), lambda above: Normal(0.8 * above[0], 0.5)]
  return down, up, decoder, prior


@pytest.mark.long
def test_two_layers_with_the_true_posterior_give_the_evidence_in_either_order():
  down, up, decoder, prior = two_layers()
  expected = stats.norm.logpdf(Y[:, 0], 0.0, np.sqrt(VARIANCE))
  y, keys = jnp.asarray(Y), keys_of(len(Y))
  losses, terms = variational.hierarchical(y, keys, encoder=down, decoder=decoder, prior=prior)
  np.testing.assert_allclose(-losses, expected, atol=1e-10)
  for conditionals, upward in ((down, False), (up, True)):
    one, _ = variational.elbo(y, keys, encoder=variational.Joint(conditionals, upward),
                              decoder=decoder, prior=variational.Joint(prior))
    np.testing.assert_allclose(-one, expected, atol=1e-10)
  np.testing.assert_allclose(terms['z_1'] + terms['z_2'], terms['latent'], rtol=1e-12)
  four, _ = variational.hierarchical(y, keys, encoder=down, decoder=decoder, prior=prior, beta=4.0)
  np.testing.assert_allclose(four - losses, 3.0 * terms['latent'], rtol=1e-9)


@pytest.mark.long
def test_the_layers_draw_noise_of_their_own():
  """Layers without divergence, and z_1 z_2 for the reconstruction: 0 in the mean, 1 if shared."""
  n = 20_000
  standard = [lambda _: Normal(jnp.zeros((n, 1)), 1.0)] * 2
  decoder = lambda data, z: -(z[0] * z[1])[:, 0]
  data = jnp.zeros((n, 1))
  for losses, _ in (
      variational.hierarchical(data, keys_of(n), encoder=standard, prior=standard, decoder=decoder),
      variational.elbo(data, keys_of(n), encoder=variational.Joint(standard), decoder=decoder,
                       prior=variational.Joint(standard))):
    assert abs(losses.mean()) < 4 * losses.std(ddof=1) / n**0.5


@pytest.mark.long
def test_the_divergences_of_the_layers_sum_to_that_of_all_latents():
  totals, layers = [], []
  for sign in (-1.0, 1.0):  # of z_2, on which the divergence at z_1 depends as a quadratic
    down, _, decoder, prior = two_layers(lambda mean, std, u=sign: Points(mean, std, u))
    _, terms = variational.hierarchical(jnp.asarray(Y), keys_of(len(Y)), encoder=down,
                                        decoder=decoder, prior=prior,
                                        divergence=variational.gaussian_kl)
    totals.append(terms['latent'])
    layers.append(terms['z_2'])
  mean = np.outer(Y[:, 0], TO_X / VARIANCE)
  inverse = np.linalg.inv(PRIOR)
  expected = 0.5 * (np.trace(inverse @ POSTERIOR) - 2 + np.sum(mean @ inverse * mean, axis=1)
                    + np.log(np.linalg.det(PRIOR) / np.linalg.det(POSTERIOR)))
  np.testing.assert_allclose(np.mean(totals, axis=0), expected, rtol=1e-10)
  of_z2 = 0.5 * (POSTERIOR[1, 1] - 1 + mean[:, 1]**2 - np.log(POSTERIOR[1, 1]))
  np.testing.assert_allclose(layers[0], of_z2, rtol=1e-10)


# ------------------------------------------------------------ Markov chains


@pytest.mark.long
def test_the_reverse_of_a_gaussian_chain_has_the_joint_density_of_the_chain():
  rng = np.random.default_rng(3)
  scales, stds = rng.uniform(0.3, 1.2, (3, 4)), rng.uniform(0.2, 1.0, (3, 4))
  chain = variational.gaussian_chain(
      Normal(jnp.asarray(rng.normal(size=(8, 4))), jnp.asarray(rng.uniform(0.2, 1.0, 4))),
      scales, stds)
  path = [jnp.asarray(rng.normal(size=(8, 4))) for _ in range(4)]
  up = chain.first.log_prob(path[0]) + sum(
      step(path[i]).log_prob(path[i + 1]) for i, step in enumerate(chain.up))
  down = chain.last.log_prob(path[-1]) + sum(
      step(path[i + 1]).log_prob(path[i]) for i, step in enumerate(chain.posterior))
  np.testing.assert_allclose(up, down, rtol=1e-11)


CURVES = {'vp': processes.vp, 've': processes.ve, 'flow': processes.flow}


def denoise(z, level, cond=None):
  """No oracle, and not even linear: what holds here holds of any network."""
  wide = level.expand(z)
  x = jnp.tanh(z) * jax.nn.sigmoid(0.3 * wide.logsnr)
  return oracles.Estimate(x=x, eps=(z - wide.alpha * x) / wide.sigma)


@pytest.mark.long
@pytest.mark.parametrize('curve', CURVES.values(), ids=CURVES)
def test_a_markovian_vae_with_the_gaussian_process_is_the_bound_of_t_steps_term_by_term(curve):
  steps, pixels = 5, Pixels(17)
  process = processes.GaussianProcess(schedules.Cosine(7.0, -5.0), curve)
  data = jnp.asarray(np.random.default_rng(4).integers(0, 17, (6, 2, 3, 1)))
  x, keys = pixels.encode(data).astype(float), keys_of(6)
  @jax.jit
  def chain(keys):
    encoder, first = variational.process_chain(process, x, steps), process(jnp.zeros(6))
    _, terms = variational.markovian(
        data, keys, encoder=encoder, decoder=lambda data, z: pixels.log_prob(data, z, first),
        prior=Normal(jnp.zeros_like(x), processes.prior_std(process)),
        generator=variational.denoising_generator(denoise, process, x, steps))
    return terms, encoder.sample(keys)

  @jax.jit
  def diffusion(t, eps, eps_0):
    return vlb.discrete(denoise, process, x, t, keys, steps=steps, data=data,
                        decoder=pixels.log_prob, eps=eps, eps_0=eps_0)[1]

  terms, path = chain(keys)
  def noise(i):
    level = process(jnp.full(6, i / steps)).expand(x)
    return (path[i] - level.alpha * x) / level.sigma

  total = 0.0
  for i in range(1, steps + 1):
    one = diffusion(jnp.full(6, (i - 0.5) / steps), noise(i), noise(0))
    assert np.all(np.abs(one['diffusion']) > 1e-4)
    np.testing.assert_allclose(terms[f'z_{i}'], one['diffusion'] / steps, rtol=1e-6)
    total += one['diffusion'] / steps
  np.testing.assert_allclose(terms['diffusion'], total, rtol=1e-6)
  for name in ('reconstruction', 'latent'):
    np.testing.assert_allclose(terms[name], one[name], rtol=1e-6)


def test_the_path_of_the_chain_is_distributed_as_the_process():
  n, steps = 20_000, 3
  process = processes.GaussianProcess(schedules.Linear(4.0, -3.0))
  draw = lambda keys: variational.process_chain(process, jnp.full((n, 1), 0.7), steps).sample(keys)
  path = jax.jit(draw)(keys_of(n))
  for i, z in enumerate(path):
    level = process(jnp.asarray(i / steps))
    eps = np.asarray((z - level.alpha * 0.7) / level.sigma)
    assert abs(eps.mean()) < 4 / n**0.5
    assert abs(eps.var() - 1.0) < 4 * (2 / n)**0.5


@pytest.mark.long
def test_of_a_chain_the_sampled_divergences_have_the_mean_of_the_closed_forms():
  n, steps = 20_000, 3
  process = processes.GaussianProcess(schedules.Linear(3.0, -3.0))
  x = jnp.full((n, 1), 0.7)
  args = {'encoder': variational.process_chain(process, x, steps),
          'decoder': lambda data, z: jnp.zeros(n), 'prior': Normal(jnp.zeros((n, 1)), 1.0),
          'generator': variational.denoising_generator(denoise, process, x, steps)}
  _, closed = variational.markovian(x, keys_of(n), **args)
  _, drawn = variational.markovian(x, keys_of(n), **args, divergence=variational.one_sample)
  for name in ('latent', 'z_1', 'z_2', 'z_3'):
    difference = drawn[name] - closed[name]
    assert abs(difference.mean()) < 4 * difference.std(ddof=1) / n**0.5
    assert difference.std() > 1e-3


def test_the_bound_of_t_steps_falls_to_that_of_continuous_time_as_one_over_t():
  high, low, std = 4.0, -3.0, 0.5
  process = processes.GaussianProcess(schedules.Linear(high, low))
  # Quadratic in (x, eps), so that signs average exactly.
  signs = jnp.array([[std, 1.0], [std, -1.0], [-std, 1.0], [-std, -1.0]])

  steps = np.array([64, 128, 256, 512])
  t = jnp.repeat((jnp.arange(512) + 0.5) / 512, 4)  # all steps of each chain, equally often

  @jax.jit
  def bound(steps):
    x, eps = (jnp.tile(column, 512)[:, None] for column in signs.T)
    _, terms = vlb.discrete(oracles.Gaussian(0.0, std), process, x, t, keys_of(len(t)),
                            steps=steps, eps=eps, eps_0=eps, data=x,
                            decoder=lambda data, z, level: jnp.zeros(len(z)))
    return terms['diffusion'].mean()

  limit = 0.5 * np.log((1 + std**2 * np.exp(high)) / (1 + std**2 * np.exp(low)))
  gap = np.array([bound(n) for n in steps]) - limit
  assert np.all(gap > 0)
  slope = np.polyfit(np.log(steps), np.log(gap), 1)[0]
  assert abs(slope + 1.0) < 0.02
  # Richardson: what is left when 1 / T is taken away is of second order.
  assert abs(2 * gap[3] - gap[2]) < 0.01 * gap[3]


# ------------------------------------------------------------------ systems


@pytest.mark.long
@pytest.mark.parametrize('name,layers', [('vae', 1), ('hvae', 2), ('mhvae', 4)])
def test_an_autoencoder_of_the_configs_has_latents_images_and_a_bound(name, layers, tmp_path):
  with jax.enable_x64(False):
    module, config = configs.read(f'systems:{name}')
    config.data.data_dir = str(tmp_path)
    config.model.update(features=8, latents=(3,) * layers)
    experiment = module.build(config)

    @jax.jit
    def run(params, keys):
      model = experiment.model(params)
      images = model.sample(keys)
      latents = model.encode(images, keys)
      return images, latents, model.decode(latents), *model.bound(images, keys)

    params = jax.jit(experiment.init)(jax.random.key(0))
    images, latents, decoded, nats, terms = run(params, keys_of(5))
    assert images.shape == (5, 8, 8, 1) and 0 <= images.min() and images.max() <= 16
    assert [z.shape for z in latents] == [(5, 3)] * layers
    assert decoded.shape == images.shape
    parts = [terms[name] for name in ('reconstruction', 'latent', 'diffusion') if name in terms]
    np.testing.assert_allclose(nats, sum(parts), rtol=1e-6)
    # An image depends on its own key alone.
    np.testing.assert_array_equal(run(params, keys_of(5)[::-1])[0], images[::-1])


@pytest.mark.long
def test_a_markov_chain_of_latents_is_generated_from_the_top_down():
  """Each network says its own layer, whatever it is told: the image is of what p_z_1 says."""
  with jax.enable_x64(False):
    _, config = configs.read('systems:mhvae')
    config.model.update(features=8, latents=(3,) * 3)
    experiment = autoencoders.markovian(config)

    @jax.jit
    def images(keys):
      params = experiment.init(jax.random.key(0))
      for l in (1, 2):  # means of 5 and -5, of the least width
        heads = params['net'][f'p_z_{l}']['heads']
        bias = jnp.concatenate([jnp.full(3, 5.0 if l == 1 else -5.0), jnp.full(3, -20.0)])
        params['net'][f'p_z_{l}']['heads'] = {'kernel': 0.0 * heads['kernel'], 'bias': bias}
      heads = params['net']['p_x']['heads']
      dims = heads['bias'].size // 2
      params['net']['p_x']['heads'] = heads | {'bias': heads['bias'].at[dims:].set(-20.0)}
      model = experiment.model(params)
      top = jnp.full((4, 3), 5.0)
      return model.sample(keys), model.decode((0.0 * top, -top, top)), model.decode((-top,) * 3)

    sampled, expected, other = (np.asarray(u, int) for u in images(keys_of(4)))
    assert np.abs(sampled - expected).max() <= 1
    assert np.abs(expected - other).max() > 3


@pytest.mark.first(1)
@pytest.mark.parametrize('name,field,value', [
    ('vae', 'latents', ()), ('vae', 'latents', (0,)), ('vae', 'beta', -1.0),
    ('mhvae', 'latents', (8, 16)), ('mhvae', 'beta', 2.0)])
def test_a_value_that_an_autoencoder_cannot_use_is_refused_by_its_name(name, field, value):
  module, config = configs.read(f'systems:{name}')
  config.model[field] = value
  with pytest.raises(InputError, match=f'^config.model.{field}='):
    module.build(config)
