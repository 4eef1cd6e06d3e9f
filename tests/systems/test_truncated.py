"""Truncated chains as experiments: what is trained, what is measured, and what is learned."""
import copy

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import stats

from tests.support import configs
from vdm_jax import decoders, random, runs, schedules
from vdm_jax.errors import InputError
from vdm_jax.nn.small.discriminator import Discriminator
from vdm_jax.objectives import adversarial, truncated_dpm, vlb
from vdm_jax.processes import GaussianProcess
from vdm_jax.runs import workdir
from vdm_jax.samplers import catalogue
from vdm_jax.schedules import TableSchedule
from vdm_jax.systems.chains import truncated
from vdm_jax.train import loop, parallel
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Context
from vdm_jax.units import bits_per_dim
from vdm_jax.values import Bound

BARS = np.cumprod(1.0 - np.linspace(1e-4, 0.02, 1000))
SMALL = {'features': 8, 'blocks': 0, 'truncated_at': 100, 'discriminator_features': 8,
         'discriminator_layers': 1}


def built(prior='adversarial', **model):
  module, config = configs.read(f'plane/truncated:{prior}')
  config.model.update(**SMALL | model)
  config.data.update(batch_size=8, validation=40)
  return module.build(config), config


@pytest.fixture(scope='module')
def gaussian():
  experiment, _ = built('gaussian')
  params = jax.jit(experiment.init)(jax.random.key(0))
  batch = experiment.data.batch(0)
  return experiment, params, batch


def context(n, train=True, step=0):
  return Context((jnp.arange(n) + 0.5) / n, jax.random.split(jax.random.key(1), n),
                 jnp.int32(step), train=train)


@pytest.mark.parametrize('field,value,says', [
    ('truncated_at', 1, 'does not truncate a chain of 1000 steps.*from 2 to 999'),
    ('truncated_at', 1000, 'does not truncate'), ('truncated_at', -5, 'does not truncate'),
    ('class_conditional', True, 'does not read labels'), ('variances', True, 'train variances')])
@pytest.mark.parametrize('prior', ['adversarial', 'gaussian'])
def test_what_cannot_be_truncated_is_refused_in_a_line(prior, field, value, says):
  with pytest.raises(InputError, match=f'config.model.{field}={value}: .*{says}') as error:
    built(prior, **{field: value})
  assert '\n' not in str(error.value)


class Reader(nn.Module):
  """Says what it was told."""

  @nn.compact
  def __call__(self, z, time, cond=None, keys=None):
    self.param('unused', nn.initializers.zeros_init(), (1,))
    return jnp.broadcast_to(time[:, None], z.shape)


@pytest.mark.long
def test_the_steps_are_the_first_of_the_chain_and_the_generator_is_told_the_one_after_them():
  _, config = built()
  experiment = truncated.adversarial_prior(config, net=Reader())
  model = experiment.model(experiment.init(jax.random.key(0)))
  assert model.steps == 100
  to_ends = 256 / 255
  for i in (1, 2, 50, 100):
    level = model.process(jnp.float32(i / 100))
    np.testing.assert_allclose(level.alpha, to_ends * BARS[i - 1]**0.5, rtol=1e-5)
    np.testing.assert_allclose(level.sigma, (1.0 - BARS[i - 1])**0.5, rtol=1e-4)
  keys = jax.random.split(jax.random.key(0), 4)
  # Told 99, the network says eps_hat = 99, and x_hat is clipped.
  clipped = model.denoise(jnp.zeros((4, 2)), model.process(jnp.ones(4)))
  np.testing.assert_allclose(clipped.x, -1.0 / to_ends, rtol=1e-5)
  np.testing.assert_array_equal(model.prior(keys, jnp.zeros((4, 2))), 100.0)


@pytest.mark.long
def test_the_denoiser_is_trained_by_l_simple_of_these_steps():
  experiment, _ = built()
  params = jax.jit(experiment.init)(jax.random.key(0))
  batch, of = experiment.data.batch(0), context(8)
  losses, _ = jax.jit(lambda params: experiment.loss(params, batch, of))(params)
  model = experiment.model(params)
  x = model.encode(batch[model.field])
  eps = random.normal(random.stream(of.keys, 'eps'), x)
  number = np.ceil(np.asarray(of.t) * 100)
  alpha = 256 / 255 * BARS[number.astype(int) - 1]**0.5
  z = alpha[:, None] * x + (1.0 - BARS[number.astype(int) - 1])[:, None]**0.5 * eps
  # The untrained perceptron returns its input.
  np.testing.assert_allclose(losses, np.sum((eps - z)**2, axis=1) / (2 * np.log(2)), rtol=1e-3)


class Scaled(nn.Module):
  """A prior N(0, scale^2)."""
  scale: float

  @nn.compact
  def __call__(self, z, time, cond=None, keys=None):
    self.param('unused', nn.initializers.zeros_init(), (1,))
    return self.scale * z


@pytest.mark.long
@pytest.mark.parametrize('prior,std', [('adversarial', 1.3), ('gaussian', 1.0)])
def test_validation_reports_the_energy_distance_of_the_prior_from_where_the_chain_ends(prior, std):
  """For one point x in the plane and a normal prior, all distances are of Rice's distribution.

  |N(m, v I)| has the mean sqrt(v) rice(|m| / sqrt(v)); terms of neighbours have a draw in common.
  """
  _, config = built(prior)
  make = {'adversarial': truncated.adversarial_prior, 'gaussian': truncated.gaussian_prior}[prior]
  experiment = make(config, net=Scaled(std))
  params, n = experiment.init(random.key(0)), 20_000
  batch = {'image': np.tile(np.array([[200, 90]], np.int32), (n, 1))}

  def terms(train):
    of = context(n, train)
    return jax.jit(lambda: experiment.loss(params, batch, of)[1])()
  assert 'prior_energy' not in terms(True)
  got = np.asarray(terms(False)['prior_energy']).reshape(200, -1).mean(axis=1)  # of blocks
  x = (np.array([200, 90]) - 127.5) / 127.5
  sigma = (1.0 - BARS[99])**0.5
  mean = lambda m, v: v**0.5 * stats.rice(np.linalg.norm(m) / v**0.5).mean()
  exact = (2 * mean(BARS[99]**0.5 * x, std**2 + sigma**2) - mean(0 * x, 2 * std**2)
           - mean(0 * x, 2 * sigma**2))
  assert exact > 0.2
  assert abs(got.mean() - exact) < 4 * got.std(ddof=1) / 200**0.5


# -------------------------------------------------------------- a Gaussian


@pytest.mark.long
def test_the_bound_has_the_divergence_from_the_fitted_prior_beside_the_steps_of_its_chain(gaussian):
  experiment, params, batch = gaussian
  params = copy.copy(params)
  params['prior'] = {'mean': jnp.array([0.2, -0.1]), 'log_std': jnp.array([-0.5, 0.3])}
  model, of = experiment.model(params), context(8)
  x = model.encode(batch[model.field])
  nats, terms = jax.jit(lambda: model.bound(batch, of.t, of.keys, 100))()
  np.testing.assert_allclose(nats, sum(terms.values()), rtol=1e-5)
  p = stats.norm([0.2, -0.1], np.exp([-0.5, 0.3]))
  nodes, weights = np.polynomial.hermite_e.hermegauss(6)
  std = (1.0 - BARS[99])**0.5
  z = 256 / 255 * BARS[99]**0.5 * np.asarray(x)[..., None] + std * nodes
  divergence = (stats.norm.logpdf(nodes * std, scale=std)
                - p.logpdf(np.moveaxis(z, -1, 0)).transpose(1, 2, 0)) @ (weights / weights.sum())
  np.testing.assert_allclose(terms['latent'], divergence.sum(axis=1), rtol=1e-4)
  _, others = jax.jit(lambda: vlb.discrete(
      model.denoise, model.process, x, of.t, of.keys, steps=100, data=batch[model.field],
      decoder=None, last=decoders.DiscretisedNormal(256).log_prob))()
  np.testing.assert_allclose(terms['diffusion'], others['diffusion'], rtol=1e-5)
  with pytest.raises(InputError, match='ask for vlb@100'):
    model.bound(batch, of.t, of.keys, 50)


@pytest.mark.long
def test_validation_reports_the_bound_and_training_the_divergence(gaussian):
  experiment, params, batch = gaussian
  trained, of_training = jax.jit(lambda: experiment.loss(params, batch, context(8)))()
  validated, of_validation = jax.jit(
      lambda: experiment.loss(params, batch, context(8, train=False)))()
  np.testing.assert_allclose(trained, validated, rtol=1e-6)
  assert of_training.keys() == {'eps_error', 'latent'}
  nats, _ = jax.jit(lambda: experiment.model(params).bound(batch, *context(8)[:2], 100))()
  np.testing.assert_allclose(of_validation['bits_per_dim'], bits_per_dim(nats, (2,)), rtol=1e-5)


@pytest.mark.long
def test_its_prior_learns_the_mean_and_the_spread_of_where_the_chain_ends():
  experiment, config = built('gaussian')
  field = experiment.model(experiment.init(jax.random.key(0))).field
  rows = experiment.data.split('train').get(np.arange(4096))
  batch = {field: jnp.asarray(rows[field])}
  x = np.asarray(experiment.model(experiment.init(jax.random.key(0))).encode(batch[field]))
  params = jax.jit(experiment.init)(jax.random.key(0))
  tx = optax.adam(0.05)
  of = context(len(x))

  def loss(prior):
    return experiment.loss({**params, 'prior': prior}, batch, of)[0].mean()

  @jax.jit
  def fit(prior):
    def body(carry, _):
      updates, state = tx.update(jax.grad(loss)(carry[0]), carry[1])
      return (optax.apply_updates(carry[0], updates), state), None
    return jax.lax.scan(body, (prior, tx.init(prior)), length=300)[0][0]
  prior = fit(params['prior'])
  alpha = 256 / 255 * BARS[99]**0.5
  np.testing.assert_allclose(prior['mean'], alpha * x.mean(axis=0), atol=2e-3)
  np.testing.assert_allclose(np.exp(prior['log_std']),
                             np.sqrt(alpha**2 * x.var(axis=0) + 1.0 - BARS[99]), rtol=2e-3)


@pytest.mark.long
def test_the_ledger_asks_for_the_bound_of_its_steps(gaussian):
  from vdm_jax.ledger import Options, families
  experiment, params, batch = gaussian
  model = experiment.model(params)
  first, *others = families.chain_estimates(families.parse([]), Options(), model, batch)
  assert (first.name, others) == ('vlb@100', [])
  assert families.needs([first], Options(), model, batch) == set()


# ------------------------------------------------------------- a generator


@pytest.mark.long
def test_a_run_of_three_players_that_is_resumed_is_the_same_bit_for_bit(tmp_path):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  states = {}
  for directory, stops in ((whole, (8,)), (parts, (4, 8))):
    for steps in stops:
      experiment, config = built()
      config.optimizer.warmup_steps = 2
      config.train.update(steps=steps, log_every=4, validate_every=4, checkpoint_every=4,
                          pictures_every=0, validation_repeats=1)
      loop.train(experiment, config, directory)
    layout = parallel.jit_layout(experiment.update)
    shapes = jax.eval_shape(lambda key, of=experiment: step_lib.init(
        of.init(key), of.tx, of.ema), jax.random.key(0))
    checkpoints = loop.Checkpoints(directory, 5)
    states[directory] = jax.device_get(checkpoints.restore(layout.target(shapes)).state)
    checkpoints.close()
  assert int(states[whole].step) == 8
  jax.tree.map(np.testing.assert_array_equal, states[whole], states[parts])


@pytest.mark.long
@pytest.mark.parametrize('prior', ['adversarial', 'gaussian'])
def test_a_trained_run_is_sampled_from_the_prior_that_it_learned(prior, tmp_path):
  """Its images are those of the chain from this prior, made here by hand, and not from N(0, 1)."""
  _, config = built(prior)
  config.optimizer.update(learning_rate=0.1, warmup_steps=0)
  config.model.generator_learning_rate = 0.1
  config.ema = {'ema': 0.0}
  config.train.update(steps=2, log_every=2, validate_every=2, checkpoint_every=2, pictures_every=0,
                      validation_repeats=1)
  runs.train(config, configs.file('plane/truncated'), tmp_path / 'run')
  assert 10 == runs.sample(tmp_path / 'run', tmp_path / 'a.npz', count=8, seed=3,
                           method=catalogue.method('ancestral', 10))
  with np.load(tmp_path / 'a.npz') as file:
    images = file['images'].astype(int)
  trained = workdir.load_trained(tmp_path / 'run')
  model, params = trained.experiment.model(trained.params), trained.params

  def learned(keys, like):
    z = random.normal(random.stream(keys, 'z_1'), like)
    if prior == 'gaussian':
      return params['prior']['mean'] + jnp.exp(params['prior']['log_std']) * z
    return truncated.points(config).apply({'params': params['net']}, z, jnp.full(len(z), 100.0))

  def by_hand(prior):
    drawn = model._replace(prior=prior).sample(random.key(3), 8, sampler='ancestral', steps=10)
    return np.asarray(drawn).astype(int)
  assert np.abs(images - by_hand(learned)).max() <= 1
  assert np.abs(images - by_hand(None)).max() > 4


@pytest.mark.long
def test_its_three_losses_are_named_and_the_generator_s_gradient_leaves_the_judge_alone():
  experiment, config = built()
  state = step_lib.init(experiment.init(jax.random.key(0)), experiment.tx, experiment.ema)
  update = jax.jit(lambda *args: experiment.update(*args, parallel.Axis(), accumulate=2))
  after, metrics = update(state, experiment.data.batch(0), jax.random.key(2))
  assert metrics.keys() >= {'denoiser_eps_error', 'generator_loss', 'discriminator_real',
                            'discriminator_fake', 'discriminator_r1'}
  # The judge's own gradient of step 0 has R1, in which it is 16 times gamma / 2.
  np.testing.assert_allclose(
      metrics['discriminator_loss'], metrics['discriminator_real'] + metrics['discriminator_fake']
      + metrics['discriminator_r1'], rtol=1e-5)
  assert after.opt['discriminator'] is not None
  assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.long
def test_a_generator_learns_two_points_where_a_gaussian_cannot():
  """x = +-1, std 0.1, at the 100th step.  Its energy distance to the truth is within sampling."""
  process = GaussianProcess(TableSchedule.from_betas(schedules.linear_betas()))
  level = process(jnp.full(256, 0.1))
  net, judge = nn.Sequential([nn.Dense(32), nn.tanh, nn.Dense(32), nn.tanh, nn.Dense(1)]), \
      Discriminator(32, 2)
  params = {'net': net.init(jax.random.key(0), jnp.zeros((1, 1)))['params'],
            'discriminator': judge.init(jax.random.key(1), jnp.zeros((1, 1)))['params']}

  def fake(params, keys, name):
    return Bound(params['net'], net)(random.normal(random.stream(keys, name),
                                                   jnp.zeros((len(keys), 1))))

  def of_generator(params, batch, context):
    return adversarial.generator(Bound(params['discriminator'], judge),
                                 fake(params, context.keys, 'generator')), {}

  def of_discriminator(params, batch, context):
    real = truncated_dpm.truth(batch, level, context.keys)
    of = Bound(params['discriminator'], judge)
    losses, terms = adversarial.discriminator(of, real, fake(params, context.keys, 'judge'))
    return losses + adversarial.lazy_r1(of, real, context.step, gamma=0.2, every=4), terms

  rate = optax.cosine_decay_schedule(2e-3, 4000)
  players = {'generator': step_lib.Player(of_generator, optax.adam(rate, b1=0.0), ('net',)),
             'discriminator': step_lib.Player(of_discriminator, optax.adam(rate, b1=0.0),
                                              ('discriminator',))}
  update = step_lib.players(players, {'ema': 0.998})

  def data(key, n):
    sign = jnp.where(jax.random.bernoulli(key, 0.5, (n, 1)), 1.0, -1.0)
    return sign + 0.1 * jax.random.normal(jax.random.fold_in(key, 1), (n, 1))

  @jax.jit
  def train(state):
    def body(state, k):
      state, _ = update(state, data(jax.random.fold_in(jax.random.key(5), k), 256),
                        jax.random.key(6), parallel.Axis())
      return state, None
    return jax.lax.scan(body, state, jnp.arange(4000))[0]
  state = train(step_lib.init(params, step_lib.optimisers(players)))

  n = 4000
  keys = jax.random.split(jax.random.key(7), n)
  z = np.asarray(fake(state.ema['ema'], keys, 'z_1'))[:, 0]
  truth = np.asarray(truncated_dpm.truth(data(jax.random.key(8), n), process(jnp.full(n, 0.1)),
                                         keys))[:, 0]
  gaussian = truth.mean() + truth.std() * np.random.default_rng(0).standard_normal(n)
  apart = stats.energy_distance(z, truth), stats.energy_distance(gaussian, truth)
  assert apart[0] < 0.25 * apart[1], apart
  assert abs((z > 0).mean() - 0.5) < 0.1
