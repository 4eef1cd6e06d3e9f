"""A published chain of steps as an experiment like any other."""
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from flax import linen as nn
from scipy.stats import norm

from vdm_jax import data, decoders, oracles
from vdm_jax.data import fields
from vdm_jax.decoders import DiscretisedNormal
from vdm_jax.errors import InputError
from vdm_jax.ledger import Options, families
from vdm_jax.objectives import proposals, vlb
from vdm_jax.processes import GaussianProcess, diffuse, ve
from vdm_jax.samplers import ddim
from vdm_jax.samplers.drawing import draw
from vdm_jax.schedules import BetaLinear, Linear
from vdm_jax.systems.chains import ddpm as chain
from vdm_jax.typing import Context, Model


class Reader(nn.Module):
  """Says what it was told: y = scale times the step, and zero for the variances."""
  heads: int = 0
  scale: float = 1.0

  @nn.compact
  def __call__(self, z, time, cond=None, keys=None):
    self.param('unused', nn.initializers.zeros_init(), (1,))
    y = self.scale * jnp.broadcast_to(time[:, None, None, None], z.shape)
    return jnp.concatenate([y] + [jnp.zeros_like(z)] * self.heads, axis=-1)


def config_of(levels=256, **model) -> ml_collections.ConfigDict:
  config = chain.default_config()
  config.data.update(name='made', shape=(2, 2, 1), levels=levels, classes=0)
  config.model.update(**model)
  return config


def build(config, net=None):
  experiment = chain.experiment(config, net=net or Reader(int(config.model.variances)))
  params = jax.jit(experiment.init)(jax.random.key(0))
  return experiment, experiment.model(params)


@pytest.mark.long
@pytest.mark.parametrize('betas,alpha_bar', [
    # Ho et al. (2020): betas in equal steps.  Nichol and Dhariwal (2021), eq. 17.
    ('linear', lambda i: np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))[i - 1]),
    ('cosine', lambda i: np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2)**2
     / np.cos(0.008 / 1.008 * np.pi / 2)**2)])
def test_a_step_has_the_published_signal_and_noise_for_images_between_minus_one_and_one(
    betas, alpha_bar):
  _, model = build(config_of(betas=betas))
  images = jnp.arange(256).reshape(64, 2, 2, 1)
  published = 2.0 * np.arange(256.0).reshape(64, 2, 2, 1) / 255.0 - 1.0
  for i in (1, 2, 17, 500, 900, 990):
    level = model.process(jnp.float32(i / 1000))
    expected = np.sqrt(alpha_bar(i))
    np.testing.assert_allclose(level.alpha * model.encode(images), expected * published,
                               rtol=1e-5, atol=2e-6 * expected)
    np.testing.assert_allclose(level.sigma, np.sqrt(1.0 - alpha_bar(i)), rtol=2e-5)


def test_the_network_reads_the_number_of_the_step_from_zero_on():
  _, model = build(config_of(clip=False))
  times = jnp.array([0.001, 0.002, 0.5, 1.0, 0.0])
  told = jax.jit(lambda t: model.denoise(jnp.zeros((5, 2, 2, 1)), model.process(t)).eps)(times)
  np.testing.assert_allclose(told[:4, 0, 0, 0], [0.0, 1.0, 499.0, 999.0], atol=2e-3)
  # Beyond the least noisy step there is no other.
  np.testing.assert_array_equal(told[4], 0.0)


@pytest.mark.parametrize('clip', [False, True])
def test_a_model_says_whether_its_estimates_are_clipped_and_the_steps_of_its_chain(clip):
  _, model = build(config_of(clip=clip, timesteps=400))
  x = jax.jit(lambda z: model.denoise(z, model.process(jnp.float32(0.5))).x)(
      1e3 * jnp.ones((1, 2, 2, 1)))
  within = bool((np.abs(x) <= 1.0 + 1e-6).all())
  assert (model.clips, model.steps) == (within, 400) == (clip, 400)


def test_data_that_the_model_decodes_to_numbers_with_fractions_are_latents():
  config = config_of()
  net = Reader()
  for made, fractions in ((chain.latent_experiment(config, net=net), True),
                          (chain.experiment(config, net=net), False)):
    model = made.model(jax.jit(made.init)(jax.random.key(0)))
    decoded = model.decode(jnp.zeros((1, 2, 2, 1)))
    assert model.is_latent == jnp.issubdtype(decoded.dtype, jnp.floating) == fractions


@pytest.mark.long
def test_other_numbers_of_steps_end_at_about_the_same_level():
  ends = [float(build(config_of(timesteps=steps))[1].process(jnp.float32(1.0)).logsnr)
          for steps in (1000, 4000)]
  np.testing.assert_allclose(ends, -10.1177 + 2.0 * np.log(256 / 255), rtol=2e-2)


@pytest.mark.long
@pytest.mark.parametrize('levels', [17, 256])
@pytest.mark.parametrize('learned', [False, True])
def test_the_first_step_ends_in_the_published_discretised_normal(levels, learned):
  """Ho et al. (2020), eq. 13, with images between -1 and 1: the mean is the clipped x_hat, and the
  variance that of q(x_1 | x_2, x_0), by which their code replaces beta_1 and beta_tilde_1."""
  _, model = build(config_of(levels, variances=learned), Reader(int(learned), scale=0.0))
  data = np.random.default_rng(0).integers(0, levels, (levels, 2, 2, 1))
  eps = 0.3 * np.random.default_rng(1).standard_normal(data.shape)

  @jax.jit
  def bound(data, eps):
    return vlb.discrete(
        model.denoise, model.process, model.encode(data), jnp.full(levels, 5e-4), None, steps=1000,
        data=data, decoder=None, variance=vlb.learned if learned else vlb.fixed_large,
        last=DiscretisedNormal(levels).log_prob, eps=eps)

  _, terms = bound(data, np.float32(eps))
  betas = np.linspace(1e-4, 0.02, 1000)
  kept = np.cumprod(1.0 - betas)
  variance = betas[1] * (1.0 - kept[0]) / (1.0 - kept[1])
  # Half way to beta_1 where it is learned: the network says 0 (Nichol and Dhariwal 2021, eq. 15).
  std = np.sqrt(np.sqrt(variance * betas[0]) if learned else variance)
  image = 2.0 * data / (levels - 1) - 1.0
  # The estimate of the noise is zero, so that of x_0 is z / sqrt(alpha bar).
  mean = np.clip(image + np.sqrt((1.0 - kept[0]) / kept[0]) * eps, -1.0, 1.0)
  half = 1.0 / (levels - 1)
  upper = np.where(data == levels - 1, np.inf, (image + half - mean) / std)
  lower = np.where(data == 0, -np.inf, (image - half - mean) / std)
  exact = np.log(np.diff(norm.cdf([lower, upper]), axis=0)[0]).sum(axis=(1, 2, 3))
  np.testing.assert_allclose(terms['reconstruction'] / 1000, -exact, rtol=1e-3, atol=2e-3)


def of_reals(**model):
  config = chain.default_config(**model)
  spec = data.Spec('made', (fields.reals('image', (2, 2, 1)),))
  with config.unlocked():
    config.data.update(spec.to_config())
  return config


@pytest.mark.long
def test_a_chain_of_real_numbers_ends_in_a_normal_and_scales_nothing():
  """The chain of latent diffusion.  Of an estimate of noise that is 0, the last step is known."""
  config = of_reals(betas='scaled_linear', beta_ends=(0.0015, 0.0195), clip=False)
  experiment, model = build(config, Reader(scale=0.0))
  betas = np.linspace(0.0015**0.5, 0.0195**0.5, 1000)**2
  kept = np.cumprod(1.0 - betas)
  level = model.process(jnp.array([0.001, 1.0]))
  np.testing.assert_allclose(level.alpha**2, kept[[0, -1]], rtol=1e-4)
  np.testing.assert_allclose(level.alpha**2 + level.sigma**2, 1.0, rtol=1e-6)
  n = 2000
  batch = {'image': jax.random.normal(jax.random.key(1), (n, 2, 2, 1))}
  np.testing.assert_array_equal(model.encode(batch['image']), batch['image'])
  context = Context(jnp.full(n, 0.5), jax.random.split(jax.random.key(2), n), jnp.int32(0),
                    train=False)
  params = jax.jit(experiment.init)(jax.random.key(0))
  _, terms = jax.jit(lambda params: experiment.loss(params, batch, context))(params)
  # x - x_hat is the noise of step 1; the variance is that of q(x_1 | x_2, x_0), as in their code.
  variance, noise = betas[1] * (1.0 - kept[0]) / (1.0 - kept[1]), (1.0 - kept[0]) / kept[0]
  nats = 0.5 * np.log(2.0 * np.pi * variance) + 0.5 * noise / variance
  error = 4.0 * terms['reconstruction'].std() / np.sqrt(n)
  assert abs(terms['reconstruction'].mean() - nats / np.log(2.0)) < error < 0.1


@pytest.mark.parametrize('config, message', [
    (lambda: of_reals(), 'clip=True: the data are real numbers'),
    (lambda: of_reals(betas='scaled_linear', clip=False), 'betas=.scaled_linear.: it needs')])
def test_a_chain_of_real_numbers_needs_its_settings(config, message):
  with pytest.raises(InputError, match=message):
    build(config(), Reader())


@pytest.mark.long
def test_samples_end_in_the_estimate_where_the_last_noise_is_visible():
  """Data that are all at one level, noise of three levels at the end: its samples have none."""
  pixels, at = decoders.Pixels(), 100
  exact = oracles.Gaussian(float(pixels.encode(jnp.array(at))), 0.0)
  model = Model(denoise=exact, process=GaussianProcess(Linear(8.0, -8.0), ve),
                decoder=pixels.log_prob, encode=pixels.encode, decode=pixels.decode,
                cond=lambda batch: None, shape=(4, 4, 1))

  def drawn(model):
    (batch,) = draw(lambda params: model, {}, ddim, times=np.linspace(1.0, 0.0, 5), start=0, stop=8,
                    seed=0, batch_size=8, cond=lambda numbers: {'label': numbers})
    return batch

  plain, ends = drawn(model), drawn(model._replace(ends_denoised=True))
  assert plain.data.std() > 1.0
  np.testing.assert_array_equal(ends.data, at)
  assert (plain.evaluations, ends.evaluations) == (4, 5)


@pytest.mark.long
def test_the_loss_is_the_mean_square_error_of_the_noise_and_the_hybrid_adds_the_bound():
  images = np.random.default_rng(0).integers(0, 17, (8, 2, 2, 1))
  losses = {}
  for variances in (False, True):
    experiment, _ = build(config_of(17, variances=variances), Reader(int(variances), scale=0.0))
    context = Context((jnp.arange(8) + 0.5) / 8, jax.random.split(jax.random.key(1), 8),
                      jnp.int32(0))
    params = jax.jit(experiment.init)(jax.random.key(0))
    losses[variances] = jax.jit(lambda params, loss=experiment.loss, context=context: loss(
        params, {'image': jnp.asarray(images)}, context))(params)
  simple, terms = losses[False]
  hybrid, more = losses[True]
  # In units of bits/dim; the estimate is zero, so the error is the noise itself: same draws.
  np.testing.assert_allclose(simple * np.log(2.0), terms['eps_error'], rtol=1e-5)
  np.testing.assert_allclose(hybrid, simple + 0.001 / np.log(2.0) * more['bits_per_dim'],
                             rtol=1e-5)


@pytest.mark.long
def test_it_is_trained_as_it_is_and_measured_as_it_is_used():
  """An estimate of x far outside the data costs the bound in training, and where it is clipped as
  in the published evaluation (Ho et al. 2020) no more than the data are wide."""
  images = jnp.asarray(np.random.default_rng(0).integers(0, 17, (8, 2, 2, 1)))
  experiment, model = build(config_of(17), Reader(scale=0.3))
  t, keys = (jnp.arange(8) + 0.5) / 8, jax.random.split(jax.random.key(1), 8)
  params = jax.jit(experiment.init)(jax.random.key(0))

  @jax.jit
  def bounds():
    loss = lambda train: experiment.loss(params, {'image': images}, Context(
        t, keys, jnp.int32(0), train=train))[1]['bits_per_dim']
    used, _ = vlb.discrete(model.denoise, model.process, model.encode(images), t, keys, steps=1000,
                           data=images, decoder=model.decoder, variance=vlb.fixed_large,
                           last=DiscretisedNormal(17).log_prob)
    return loss(False), used / (4 * jnp.log(2.0)), loss(True)

  validated, used, trained = bounds()
  np.testing.assert_allclose(validated, used, rtol=1e-5)
  assert np.all(trained > 10.0 * validated)


@pytest.mark.long
@pytest.mark.parametrize('variances', [False, True])
def test_validation_evaluates_the_first_step_of_every_example(variances):
  """In training it is one of T steps, drawn: what is missed by 999 of 1,000 examples."""
  n, images = 4000, jnp.full((4000, 2, 2, 1), 3)
  experiment, _ = build(config_of(256, variances=variances, clip=False),
                        Reader(int(variances), scale=0.0))
  params = jax.jit(experiment.init)(jax.random.key(0))

  @jax.jit
  def reconstruction(t, key):
    context = lambda train: Context(jnp.full(n, t), jax.random.split(key, n), jnp.int32(0),
                                    train=train)
    terms = [experiment.loss(params, {'image': images}, context(which))[1] for which in (
        False, True)]
    return [of['reconstruction'] for of in terms]

  apart, drawn = reconstruction(0.7, jax.random.key(1))
  assert np.all(apart > 0.0) and np.all(drawn == 0.0)
  _, drawn = reconstruction(5e-4, jax.random.key(2))  # a time of the first of 1,000 steps
  difference = apart - drawn / 1000
  assert abs(difference.mean()) < 4 * difference.std() / n**0.5 < 0.1 * apart.mean()


def test_the_bound_of_a_chain_takes_the_place_of_that_of_continuous_time():
  _, model = build(config_of(variances=True))
  batch = {'image': np.zeros((1, 2, 2, 1), np.uint8)}
  asked = families.parse(['vlb@100/ddpm'])
  found = families.chain_estimates(asked, Options(), model, batch)
  assert [e.name for e in found] == ['vlb@1000/learned/ddpm', 'vlb@100/ddpm']
  for name in ('vlb@100', 'immse', 'ode', 'iw@2x10'):
    with pytest.raises(InputError, match=f'estimates={name!r}.*ask for vlb@1000/learned/ddpm'):
      families.chain_estimates(families.parse([name]), Options(), model, batch)
  found = families.chain_estimates(families.parse(['ode']), Options(ode_start=1e-3), model, batch)
  assert [e.name for e in found] == ['vlb@1000/learned/ddpm', 'ode']


@pytest.mark.parametrize('field,value,remedy', [('timesteps', 1, 'two steps or more'),
                                                ('timesteps', 20, 'config.model.betas=cosine'),
                                                ('betas', 'square', 'cosine or scaled_linear')])
def test_a_chain_that_cannot_be_is_refused(field, value, remedy):
  with pytest.raises(InputError, match=f'^config.model.{field}={value!r}: .*{remedy}'):
    build(config_of(**{field: value}))


@pytest.mark.long
def test_a_bound_beside_another_loss_is_the_bound():
  """At even log-SNR its estimate has little noise, also under the schedule of the VP SDE."""
  process, std, n = GaussianProcess(BetaLinear(t_min=1e-4)), 0.5, 4000
  exact, u = oracles.Gaussian(0.0, std), (jnp.arange(n) + 0.5) / n
  x = std * jax.random.normal(jax.random.key(1), (n, 2))
  eps = jax.random.normal(jax.random.key(2), x.shape)

  @jax.jit
  def diffusion(t, share):
    level = process(t)
    error = jnp.sum(jnp.square(eps - exact(diffuse(x, eps, level), level).eps), axis=-1)
    terms = vlb.bound_terms(process, x, t, jax.random.split(jax.random.key(0), n), x,
                            lambda data, z, level: jnp.zeros(len(z)), error, share)
    return terms['diffusion']

  high, low = (float(process(jnp.float32(end)).logsnr) for end in (0.0, 1.0))
  # 1/2 int E|eps - eps_hat|^2 dlogsnr, with E = snr v / (1 + snr v) for each of two dimensions.
  expected = np.log1p(std**2 * np.exp(high)) - np.log1p(std**2 * np.exp(low))
  even = diffusion(*proposals.by_logsnr(process)(u))
  assert abs(even.mean() - expected) < 4.0 * even.std() / np.sqrt(n)
  assert diffusion(u, 1.0).std() > 5.0 * even.std()
