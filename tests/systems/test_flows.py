"""Systems of flows: what they learn in the plane, and couplings that know no layout."""
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from tests.support import commands, configs
from vdm_jax import inputs, interpolants, oracles, random, runs, schedules, train
from vdm_jax.denoisers import denoiser
from vdm_jax.errors import InputError
from vdm_jax.ledger import Options, families
from vdm_jax.likelihood import bounds, immse, paths, replaced_schedules
from vdm_jax.model import Model
from vdm_jax.nn.small.mlp import MLP
from vdm_jax.objectives import flow_matching
from vdm_jax.processes import GaussianProcess, RectifiedFlow, diffuse, flow
from vdm_jax.samplers import ancestral, catalogue, sample
from vdm_jax.samplers import interpolants as samplers
from vdm_jax.systems import networks
from vdm_jax.systems.flows import flow_matching as flow_matching_system
from vdm_jax.systems.flows import interpolants as between
from vdm_jax.systems.flows import mean_flow, rectified_flow
from vdm_jax.targets import flow as flow_target
from vdm_jax.train import parallel
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Context, Estimate
from vdm_jax.values import Bound


def built(name, batch_size=8, **model):
  module, config = configs.read(name)
  config.model.update(features=8, blocks=1, **model)
  config.data.update(batch_size=batch_size, validation=8)
  return module.build(config)


@pytest.mark.long
def test_the_network_s_minimiser_in_the_plane_reaches_the_closed_form():
  """Flow matching of a mixture whose velocity is known: the error falls to a few per cent."""
  mixture = oracles.Mixture(np.array([0.4, 0.6]), np.array([[-0.7, 0.2], [0.6, -0.3]]),
                            np.array([0.2, 0.3]))
  process = GaussianProcess(schedules.Polynomial(1.0, 10.0, -20.0), flow)
  net = MLP(features=64, blocks=2, adds_z=False, logsnr_max=0.0, logsnr_min=1.0)
  draw = lambda keys: jnp.asarray(mixture.means)[
      (random.uniform(random.stream(keys, 'which'), jnp.zeros((len(keys), 1))) < 0.6).astype(int)
  ] + jnp.asarray(mixture.stds)[
      (random.uniform(random.stream(keys, 'which'), jnp.zeros((len(keys), 1))) < 0.6).astype(int)
  ][:, None] * random.normal(random.stream(keys, 'x'), jnp.zeros((len(keys), 2)))

  def of(params):
    return denoiser(Bound(params, net), flow_target, inputs.lines())

  def loss(params, batch, context):
    return flow_matching.objective(of(params), process, draw(random.stream(context.keys, 'data')),
                                   context.t, context.keys)

  start = net.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1))['params']
  batches = itertools.repeat({'none': np.zeros(256, np.float32)}, 800)
  params = train.fit(loss, start, optax.adam(optax.cosine_decay_schedule(4e-3, 800)), batches,
                     ema=0.98, progress=False)
  n = 4000
  keys = random.per_example(random.key(5), jnp.arange(n))
  t = (jnp.arange(n) + 0.5) / n
  z = diffuse(draw(keys), random.normal(random.stream(keys, 'e'), jnp.zeros((n, 2))), process(t))
  velocity = jax.jit(lambda params: flow_matching.velocity(of(params), process, z, t))
  exact = flow_matching.velocity(mixture, process, z, t)
  share = lambda params: float(jnp.square(velocity(params) - exact).mean()
                               / jnp.square(exact).mean())
  assert share(start) > 0.9
  assert share(params) < 0.03


def stepped(experiment, layout, batch):
  update = experiment.update or step_lib.make_step(experiment.loss, experiment.tx, experiment.ema)
  run = layout(update)
  params = experiment.init(random.key(0))
  state, metrics = run.step(run.put(step_lib.init(params, experiment.tx, experiment.ema)),
                            run.place(batch), random.key(3))
  return jax.device_get(run.view(state)).params, float(metrics['eps_error'])


@pytest.fixture(scope='module')
def batch():
  return built('plane/flows').data.batch(0)


@pytest.mark.long
def test_groups_are_of_the_global_batch_whatever_the_devices_and_microbatches(batch):
  """Two groups of four on four devices of two examples, on one, and in two microbatches."""
  experiment = built('plane/flows:minibatch_ot', group=4)
  one = stepped(experiment, lambda update: parallel.jit_layout(update, jax.devices()[:1]), batch)
  four = stepped(experiment, parallel.pmap_layout, batch)
  np.testing.assert_allclose(one[1], four[1], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one[0], four[0])
  split = experiment._replace(update=step_lib.update_of(experiment, 2))
  two = stepped(split, lambda update: parallel.jit_layout(update, jax.devices()[:1]), batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one[0], two[0])


@pytest.mark.long
def test_groups_of_one_are_flow_matching_with_independent_noise(batch):
  alone = built('plane/flows:minibatch_ot', group=1)
  layout = lambda update: parallel.jit_layout(update, jax.devices()[:1])
  params, error = stepped(alone, layout, batch)
  plain = alone._replace(update=None)  # whose loss draws its own
  own = plain.init(random.key(0))
  key = jax.random.fold_in(random.key(3), 0)
  context = Context(random.stratified(random.unit(key), jnp.arange(8), 8),
                    random.per_example(key, jnp.arange(8) + 1), jnp.int32(0))
  model = plain.model(own)
  loss, terms = flow_matching.objective(model.denoise, model.process,
                                        model.encode(jnp.asarray(batch['image'])), context.t,
                                        context.keys)
  np.testing.assert_allclose(terms['eps_error'].mean() / 2, error, rtol=1e-5)


def test_a_group_that_does_not_divide_the_batch_is_refused_when_it_is_built():
  with pytest.raises(InputError, match='config.model.group=64: it does not divide config.data.bat'):
    built('plane/flows:minibatch_ot')


@pytest.mark.long
def test_the_learned_coupling_starts_independent_and_its_encoder_is_trained(batch):
  experiment = built('plane/flows:curvature')
  params = experiment.init(random.key(0))
  keys = random.per_example(random.key(1), jnp.arange(8))
  context = Context(jnp.linspace(0.1, 0.9, 8), keys, jnp.int32(0))
  mean = lambda params: experiment.loss(params, batch, context)[0].mean()
  terms = experiment.loss(params, batch, context)[1]
  np.testing.assert_allclose(terms['divergence'], 0.0, atol=1e-7)
  grads = jax.grad(mean)(params)
  assert optax.tree.norm(grads['encoder']) > 0 < optax.tree.norm(grads['net'])


def reflowed(s):
  """The exact reflowed flow of N(0, s^2): x = s eps, so that z_t = ((1 - t) s + t) eps."""
  def denoise(z, level, cond=None):
    level = level.expand(z)
    eps = z / (s * level.alpha + level.sigma)
    return Estimate(s * eps, eps)
  same = lambda u: u
  return Model(denoise=denoise, process=RectifiedFlow(), decoder=lambda data, z, level: z[:, 0],
               encode=same, decode=same, cond=lambda batch: None, shape=(1,), coupled=True)


@pytest.mark.long
@pytest.mark.parametrize('s', [0.1, 0.5])
def test_a_flow_of_coupled_noise_has_the_data_s_deviation_by_its_own_sampler_alone(s):
  """Its eps_hat is not -sigma times a score: ancestral steps, were they allowed, end elsewhere."""
  model, n, key = reflowed(s), 4000, jax.random.key(0)
  error = 4 / (2 * n)**0.5
  method = catalogue.usual(model)
  x = model.sample(key, n, sampler=method.make, steps=25)
  assert not method.stochastic and abs(x.std() / s - 1.0) < error
  wrong = model.sample(key, n, sampler=ancestral, steps=250)
  assert wrong.std() / s < 0.7 + error
  for name in ('ancestral', 'euler_maruyama', 'dpmpp_2m_sde', 'ddim_half'):
    with pytest.raises(InputError, match=f'sampler={name!r}: it adds noise by the score, and this'):
      model.sample(key, 2, sampler=name, steps=2)
  catalogue.require_suited(catalogue.method('ancestral'), model._replace(coupled=False))


def test_a_flow_of_coupled_noise_has_the_likelihood_of_its_flow_alone():
  model, batch = reflowed(0.5), {'image': np.zeros((1, 1), np.float32)}
  for name in ('vlb', 'immse', 'vlb@10', 'iw@2x3', 'codec@4'):
    with pytest.raises(InputError, match=f'estimates={name!r}: it is of the reverse SDE, and this'):
      families.needs(families.parse([name])[-1:], Options(), model, batch)
  names = lambda *asked: [one.name for one in families.flow_estimates(families.parse(asked))]
  assert names() == ['ode'] and names('ode/uniform', 'ode@9') == ['ode/uniform', 'ode@9']
  assert names('iw@2x3') == ['ode', 'iw@2x3']  # which is refused then
  assert not families.needs(families.flow_estimates(families.parse([])), Options(), model, batch)


@pytest.mark.parametrize('ask', ['nats', 'one_draw', 'iw', 'immse', 'codec', 'schedules'])
def test_a_flow_of_coupled_noise_has_no_bound_and_no_code(ask):
  model, batch = reflowed(0.5), {'image': np.zeros((2, 1), np.float32)}
  keys, t = jax.random.split(jax.random.key(0), 2), jnp.full(2, 0.5)
  if ask == 'schedules':
    assert not replaced_schedules.has_replaceable_schedule(model._replace(
        process=GaussianProcess(schedules.Linear())))
    return
  with pytest.raises(InputError, match='flow of coupled noise, which has no score') as error:
    {'nats': lambda: model.nats(batch, key=keys[0]), 'codec': lambda: model.codec(4, 4),
     'one_draw': lambda: bounds.one_draw(model, batch, t, keys),
     'iw': lambda: paths.importance_weighted(2, 3)(model, batch, keys),
     'immse': lambda: immse.estimator(None, 1)(model, batch, keys)}[ask]()
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('system,coupled,model', [
    ('ot', False, {}), ('minibatch_ot', True, {'group': 4}), ('minibatch_ot', False, {'group': 1}),
    ('curvature', True, {})])
def test_a_flow_says_whether_its_noise_is_coupled(system, coupled, model):
  assert built(f'plane/flows:{system}', **model).model({'net': {}}).coupled == coupled


@pytest.mark.long
def test_mean_flow_is_validated_by_its_error_and_not_by_its_weighted_loss(batch):
  """Whose value is error / (error + 1e-3), about 1 for any network."""
  experiment = built('plane/flows:mean_flow', power=1.0)
  keys = random.per_example(random.key(1), jnp.arange(8))
  context = Context(jnp.linspace(0.1, 0.9, 8), keys, jnp.int32(0))
  params = experiment.init(random.key(0))
  weighted, terms = experiment.loss(params, batch, context)
  np.testing.assert_allclose(weighted, 1.0, atol=0.1)
  validated, _ = experiment.loss(params, batch, context._replace(train=False))
  np.testing.assert_allclose(validated, terms['velocity_error'], rtol=1e-5)
  assert validated.std() > 0.1


@pytest.mark.long
def test_the_network_of_mean_flow_changes_with_t_about_as_fast_as_its_sines_of_10_t():
  """Its derivative in t is in the target of the loss; with sines of 1000 t that hides the data."""
  _, config = configs.read('plane/flows:mean_flow')
  z = jax.random.normal(jax.random.key(0), (256, 2))
  t = jnp.linspace(0.0, 1.0, 256)

  def rate(net):
    params = net.init(jax.random.key(1), z, t, t)['params']
    at = lambda leaf: leaf if leaf.any() else 0.1 * jax.random.normal(jax.random.key(2), leaf.shape)
    params = jax.tree.map(at, params)  # what starts at zero is some way off it
    u, slope = jax.jvp(lambda t: net.apply({'params': params}, z, t, t), (t,), (jnp.ones_like(t),))
    return float(jnp.sqrt(jnp.square(slope).mean() / jnp.square(u - u.mean(0)).mean()))

  net = networks.mlp(config)
  slow, usual = mean_flow.told_slow_time(net, 100.0), flow_matching_system.told_time(net)
  assert rate(slow) < 10.0 < rate(usual)


def test_a_mean_flow_older_than_its_scale_of_time_reads_t_itself_and_a_new_one_t_over_100():
  """The sample is z - u(z, r=0, t=1), and the same network reads another time."""
  _, config = configs.read('plane/flows:mean_flow')
  read = []

  class Told(nn.Module):
    logsnr_max: float = 0.0
    logsnr_min: float = 1.0
    adds_z: bool = False

    @nn.compact
    def __call__(self, z, t, condition, keys=None):
      read.append(np.asarray((t - self.logsnr_max) / (self.logsnr_min - self.logsnr_max)))
      return z

  draw = lambda: mean_flow.experiment(config, net=Told()).model({'net': {}}).sample(
      jax.random.key(0), 2)
  draw()
  np.testing.assert_allclose(read.pop(), 0.01)
  with config.unlocked():
    del config.model.time_scale
  draw()
  np.testing.assert_allclose(read.pop(), 1.0)
  with pytest.raises(InputError, match='time_scale=0.0: it divides the time'):
    built('plane/flows:mean_flow', time_scale=0.0)


@pytest.mark.long
def test_scripts_sample_a_mean_flow_and_refuse_it_elsewhere_in_a_line(tmp_path):
  """With nothing written.  Other models without a denoiser: tests/runs/test_needs.py."""
  _, config = configs.read('plane/flows:mean_flow')
  config.model.update(features=8, blocks=1)
  config.data.update(batch_size=8, validation=8)
  config.train.update(steps=2, checkpoint_every=2, validate_every=2, pictures_every=0, log_every=1,
                      validation_repeats=1)
  run, images, out = (tmp_path / name for name in ('run', 'a.npz', 'out'))
  runs.train(config, configs.file('plane/flows'), run)
  at = f'--workdir={run}'
  script = lambda name, *flags: commands.start(f'scripts/{name}.py', *flags, count=1, devices=1)
  (code, *said), = commands.finish(script('sample', at, '--count=4', f'--out={images}'))
  assert code == 0, said
  with np.load(images) as file:
    assert file['images'].shape == (4, 2)
  files = sorted(run.rglob('*'))
  for running in (script('evaluate', at), script('make_pairs', at, '--count=4', f'--out={out}'),
                  script('compress', 'encode', at, str(images), f'--out={out}.vdmz')):
    (code, _, error), = commands.finish(running)
    assert code != 0 and 'Traceback' not in error
    assert 'this run made a OneStep, which samples; a model that ' in error.splitlines()[-1]
  assert sorted(run.rglob('*')) == files and not list(tmp_path.glob('out*'))


@pytest.mark.parametrize('metric', ['lpips', pytest.param('l1', marks=pytest.mark.long)])
def test_one_step_is_trained_by_a_perceptual_distance_of_images_between_their_ends(metric):
  """|u - v|_1 of u in [-1, 1] instead of LPIPS: D |u - v|_1 is D to_ends times the metric l1."""
  module, config = configs.read('plane/flows:distilled')
  config.model.update(features=8, blocks=1, metric=metric)
  seen, net, rng = [], networks.mlp(config), np.random.default_rng(0)

  def perceptual(u, v):
    seen.append((u, v))
    return jnp.sum(jnp.abs(u - v), axis=-1)

  if metric == 'lpips':
    with pytest.raises(InputError, match="config.model.metric='lpips': the weights of LPIPS are"):
      module.build(config)
  made = rectified_flow.distilled(config, net=net, perceptual=perceptual)
  flow = flow_matching_system.experiment(config, net=net, condition=None)
  params = jax.tree.map(lambda u: u + 0.3 * rng.standard_normal(u.shape).astype(np.float32),
                        made.init(random.key(0)))
  batch = made.data.spec.random(4)
  context = Context(jnp.linspace(0.1, 0.9, 4), random.per_example(random.key(1), jnp.arange(4)),
                    jnp.int32(0))

  def loss(params):
    losses, terms = made.loss(params, batch, context)
    return losses.mean(), (losses, terms)

  slope, (losses, terms) = jax.grad(loss, has_aux=True)(params)
  assert any(np.any(u != 0.0) for u in jax.tree.leaves(slope))
  model = flow.model(params)
  x_hat = model.denoise(batch['z_1'], model.process(jnp.ones(4))).x
  apart = jnp.abs(batch['x'] - x_hat)
  np.testing.assert_allclose(terms['x_error'], jnp.mean(jnp.square(apart), axis=-1), rtol=1e-4)
  scale = 256 / 255 if metric == 'lpips' else 0.5
  np.testing.assert_allclose(losses, scale * jnp.sum(apart, axis=-1) / np.log(2.0), rtol=1e-4)
  assert bool(seen) == (metric == 'lpips')
  for u, v in seen:
    np.testing.assert_allclose(u, 256 / 255 * batch['x'], rtol=1e-6)
    assert np.shape(v) == (4, 2)


def test_one_step_shows_what_it_is():
  made = rectified_flow.OneStep(lambda key: key, (8, 8, 1))
  assert repr(made) == 'OneStep(shape=(8, 8, 1): sample)'


M, S, K, R = np.array([0.3, -0.2]), 0.2, np.array([-0.4, 0.5]), 0.4
MADE = interpolants.interpolant(interpolants.linear, interpolants.brownian(0.3))


class Exact(nn.Module):
  """E[velocity | z], E[noise | z] between N(M, S^2) and N(K, R^2), as a network of no weights."""
  logsnr_max: float = 0.0
  logsnr_min: float = 0.0
  adds_z: bool = False

  @nn.compact
  def __call__(self, z, t):
    self.param('none', nn.initializers.zeros, (1,))
    z = z[:, :2]
    at = MADE(t).expand(z)
    pull = (z - at.a * M - at.b * K) / ((at.a * S)**2 + (at.b * R)**2 + at.gamma**2)
    slope = at.da * at.a * S**2 + at.db * at.b * R**2
    return jnp.concatenate([at.da * M + at.db * K + slope * pull, at.gamma * pull], axis=-1)


@pytest.mark.long
@pytest.mark.parametrize('diffusivity', [0.0, 5.0])
def test_samples_of_an_exact_interpolant_have_the_data_s_mean_and_deviation(diffusivity):
  """From the base N(K, R^2), by the flow and by the SDE of e = 5 gamma^2."""
  _, config = configs.read('plane/flows:between')
  config.model.update(diffusivity=diffusivity, sampling_steps=200)
  base = lambda keys, like: K + R * random.normal(random.stream(keys, 'base'), like)
  experiment = between.experiment(config, net=Exact(), base=base, interpolant=MADE)
  model = experiment.model(experiment.init(random.key(0)))
  images = jax.jit(lambda key: model.sample(key, 4000))(random.key(2))
  x = (np.asarray(images) + 0.5) / 128 - 1.0
  assert (np.abs(x.mean(0) - M) < 4 * S / 4000**0.5 + 0.01).all()
  assert (np.abs(x.std(0) - S) < 4 * S / 8000**0.5 + 0.01).all()


@pytest.mark.long
def test_a_flow_s_denoiser_samples_by_any_sde_of_its_own_score():
  """One-sided: the drifts of a trained model, and of an oracle's at e = g^2 / 2."""
  process = GaussianProcess(schedules.Polynomial(1.0, 10.0, -20.0), flow)
  oracle, n = oracles.Gaussian(0.2, 0.5), 4000
  keys = random.per_example(random.key(0), jnp.arange(n))
  z = random.normal(random.stream(keys, 'z'), jnp.zeros((n, 1)))
  drifts = samplers.of_process(oracle, process)
  x = jax.jit(lambda z: sample(samplers.euler(drifts, lambda t: t), keys, z,
                               np.linspace(1.0, 0.0, 201)))(z)
  assert abs(x.mean() - 0.2) < 4 * 0.5 / n**0.5 + 0.01
  assert abs(x.std() - 0.5) < 4 * 0.5 / (2 * n)**0.5 + 0.01
