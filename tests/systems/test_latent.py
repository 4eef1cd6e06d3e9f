"""Latent diffusion: an autoencoder with its judge, and a model of its latents with a likelihood."""
import contextlib
import functools
import io
import json
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import stats

from tests.support import commands, latent_config, published, recordings, vgg
from tests.support.gaussian import chain_nats
from tests.support.latent_config import LAST, Judge, Linear, Quantising
from vdm_jax import data, decoders, oracles, random, runs, samplers, schedules
from vdm_jax.errors import InputError
from vdm_jax.likelihood import bounds, ode, paths
from vdm_jax.nn.lpips import LPIPS
from vdm_jax.objectives import autoencoding, vlb
from vdm_jax.published import lpips
from vdm_jax.runs import needs, reconstructing, sampling, training, workdir
from vdm_jax.samplers.analytic import reverse_variance
from vdm_jax.schedules import TableSchedule
from vdm_jax.systems import compose
from vdm_jax.systems.flows.rectified_flow import OneStep
from vdm_jax.systems.latent import autoencoder, latent
from vdm_jax.train import parallel
from vdm_jax.train import step as step_lib
from vdm_jax.typing import Context, Reconstructs

FILE = latent_config.__file__
D, JUDGE = 64, Judge()


def first_stage(net=None, real=False, distance=None, judge=JUDGE, **model):
  """real: of real numbers, whose likelihood compiles in a tenth of the time.

  distance: the parameters of LPIPS, which sees images of 16x16 pixels.
  """
  config, net = latent_config.get_config('autoencoder'), net or Linear()
  config.model.update(model, vgg='' if distance is None else 'not read')
  if real:
    spec = data.Spec('numbers', (data.fields.reals('image', (net.side, net.side, 1)),))
    with config.unlocked():
      config.data.update(spec.to_config())
  return autoencoder.experiment(config, net=net, judge=judge, last_kernel=LAST,
                                distance=None if distance is None else lambda: distance)


def numbers(step=0, side=8):
  """A batch of real numbers."""
  shape = 8, side, side, 1
  return {'image': np.random.default_rng(step).standard_normal(shape).astype(np.float32)}


def started(experiment):
  return jax.jit(experiment.init)(jax.random.key(0))


def context(n=8, step=0, aux=None, train=True):
  return Context((jnp.arange(n) + 0.5) / n, jax.random.split(jax.random.key(1), n),
                 jnp.int32(step), aux=aux, train=train)


def apply(net, params, method, *args):
  return net.apply({'params': params['net']}, *args, method=method)


# --------------------------------------------------------------- the first stage


@pytest.fixture(scope='module')
def layers():
  """Random parameters of LPIPS, large enough that each image has a distance."""
  return vgg.parameters()


def lpips_of(layers, x, y):
  return jax.jit(LPIPS().apply)({'params': layers}, x, y)


@pytest.mark.long
@pytest.mark.parametrize('kind', [Linear, Quantising])
def test_the_loss_is_the_published_one_of_its_kind(kind):
  net = kind()
  experiment = first_stage(net, adversarial=0.5, adversarial_from=3, kl=0.1, codebook=2.0)
  params = started(experiment)
  batch, n = experiment.data.batch(0), 8
  loss = jax.jit(lambda step: experiment.loss(
      params, batch, context(aux={'weight': 3.0})._replace(step=step)))
  before, after = loss(2), loss(3)
  x = 2.0 * batch['image'] / 16.0 - 1.0  # 17 levels; the outermost are -1 and 1
  if kind is Linear:
    mean, log_variance = apply(net, params, 'encode', x)
    eps = random.normal(random.stream(context().keys, 'y'), mean)
    found = apply(net, params, 'decode', mean + jnp.exp(0.5 * log_variance) * eps)
    nats = autoencoding.kl(mean, log_variance)
    expected = jnp.abs(x - found).sum((1, 2, 3)) + 0.1 * nats
  else:
    h = apply(net, params, 'encode', x)
    q, _ = apply(net, params, 'quantise', h)
    found = apply(net, params, 'decode_quantised', q)
    expected = jnp.abs(x - found).mean((1, 2, 3)) + 2.0 * autoencoding.codebook(h, q)
    nats = np.full(n, 4 * np.log(5.0))
  np.testing.assert_allclose(before[0], expected, rtol=1e-5)
  g = -Judge().apply({'params': params['discriminator']}, found)[:, 0, 0]
  np.testing.assert_allclose(after[0], expected + 0.5 * 3.0 * g, rtol=1e-4)
  np.testing.assert_allclose(after[1]['latent'], nats / (D * np.log(2)), rtol=1e-5)
  p = decoders.DiscretisedNormal(17).log_prob(batch['image'], found * 16 / 17,
                                              autoencoder.FIRST_STD)
  np.testing.assert_allclose(after[1]['reconstruction'], -p / (D * np.log(2)), rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize('kind', [Linear, Quantising])
def test_lpips_is_added_at_each_number_of_an_image_in_the_kl_kind_and_once_in_the_vq_kind(
    kind, layers):
  net, n, w = kind(side=16), 3, 0.7
  perceptual, plain = (first_stage(net, real=True, kl=0.1, **more) for more in (
      {'perceptual': w, 'distance': layers}, {}))
  params = started(perceptual)
  batch = {'image': numbers(side=16)['image'][:n]}
  x, keys = batch['image'], context(n).keys
  losses, terms = jax.jit(lambda layers: perceptual.loss(
      params, batch, context(n, aux={'lpips': layers})))(layers)
  without, others = jax.jit(lambda: plain.loss(params, batch, context(n)))()
  if kind is Linear:
    mean, log_variance = apply(net, params, 'encode', x)
    eps = random.normal(random.stream(keys, 'y'), mean)
    found = apply(net, params, 'decode', mean + jnp.exp(0.5 * log_variance) * eps)
  else:
    found = apply(net, params, 'decode', apply(net, params, 'encode', x))
  distance = lpips_of(layers, x, found)
  assert float(distance.min()) > 1e-3
  np.testing.assert_allclose(terms['perceptual'], distance, rtol=1e-4)
  numbers_of_an_image = 256 if kind is Linear else 1
  np.testing.assert_allclose(losses - without, numbers_of_an_image * w * distance, rtol=1e-3)
  assert 'perceptual' not in others


@pytest.mark.long
def test_the_weight_of_the_judge_counts_lpips(layers):
  """The gradient of the reconstruction by the last kernel is of both of its parts."""
  net, n, w = Linear(side=16), 2, 0.7
  experiment = first_stage(net, real=True, perceptual=w, distance=layers, adversarial=0.5,
                           adversarial_from=0)
  params = started(experiment)
  batch = {'image': numbers(side=16)['image'][:n]}
  of = parallel.jit_layout(experiment.update, jax.devices()[:1])
  state = of.put(step_lib.init(params, experiment.tx, experiment.ema, experiment.aux))
  _, metrics = of.step(state, of.place(batch), jax.random.key(2))
  keys = random.per_example(jax.random.fold_in(jax.random.key(2), 0), jnp.arange(n) + 1)
  x, params = batch['image'], started(experiment)

  def means(kernel, layers):
    """Of the sums |x - x'|, of 256 w LPIPS, and of the adversarial term."""
    moved = {'net': params['net'] | {'decoder': params['net']['decoder'] | {'kernel': kernel}}}
    mean, log_variance = apply(net, moved, 'encode', x)
    eps = random.normal(random.stream(keys, 'y'), mean)
    found = apply(net, moved, 'decode', mean + jnp.exp(0.5 * log_variance) * eps)
    judged = Judge().apply({'params': params['discriminator']}, found)
    return jnp.stack([jnp.abs(x - found).sum((1, 2, 3)).mean(),
                      256 * w * lpips_of(layers, x, found).mean(), -judged.mean()])
  absolute, perceptual, g = jax.jit(jax.jacrev(means))(
      params['net']['decoder']['kernel'], layers)
  length = jnp.linalg.norm
  expected = length(absolute + perceptual) / (length(g) + 1e-4)
  np.testing.assert_allclose(metrics['adversarial_weight'], expected, rtol=1e-3)
  assert abs(expected - length(absolute) / (length(g) + 1e-4)) > 0.01 * expected


class Recorded(nn.Module):
  """x' = conv(recorded features), whatever y; y has the recorded moments."""
  moments: np.ndarray
  features: np.ndarray

  def setup(self):
    self.decoder = nn.Conv(3, (3, 3), use_bias=False)

  def encode(self, x):
    return tuple(np.split(self.moments, 2, axis=-1))

  def decode(self, y):
    return self.decoder(self.features)

  def __call__(self, x):
    return self.decode(self.encode(x)[0])


class RecordedCodes(Recorded):
  """The same, with a codebook whose only entry is what is encoded: its loss is 0."""
  entries: int = 1

  def encode(self, x):
    return jnp.zeros((2, 4, 4, 4))

  def quantise(self, h):
    return h, jnp.zeros(h.shape[:-1], int)

  def decode_quantised(self, q):
    return self.decode(q)


@pytest.mark.long
@pytest.mark.parametrize('kind, name, weight', [(Recorded, 'kl', 0.5), (RecordedCodes, 'vq', 0.75)])
def test_losses_and_the_weight_of_the_judge_repeat_the_recordings_of_the_public_code(
    kind, name, weight):
  r = recordings.shared('autoencoder_loss_small')
  net = kind(published.last(r['kl/moments']), published.last(r['in/reconstruction']))
  judge, discriminator = published.discriminator_of_losses(r)
  layers = published.lpips_of_losses(r)
  config = latent_config.get_config('autoencoder')
  config.model.update(kl=1e-6, perceptual=1.0, vgg='not read', adversarial=weight,
                      adversarial_from=100)
  with config.unlocked():
    config.data.update(data.Spec(
        'recorded', (data.fields.reals('image', (32, 32, 3)),)).to_config())
  experiment = autoencoder.experiment(config, net=net, judge=judge, last_kernel=LAST,
                                      distance=lambda: layers)
  params = {'net': {'decoder': {'kernel': r['kl/last_layer'].transpose(2, 3, 1, 0)}},
            'log_std': np.float32(0.0), 'discriminator': discriminator}
  batch = {'image': published.last(r['in/x'])}
  of = parallel.jit_layout(experiment.update, jax.devices()[:1])
  state = of.put(step_lib.init(jax.tree.map(np.array, params), experiment.tx, experiment.ema,
                               experiment.aux))
  _, metrics = of.step(state, of.place(batch), jax.random.key(2))
  d = metrics['adversarial_weight']
  recorded = {100: r['vq/d_weight']} if name == 'vq' else {
      step: r[f'kl/step{step}/d_weight'] for step in (99, 100)}
  for expected in recorded.values():
    np.testing.assert_allclose(weight * d, expected, rtol=1e-4)

  def loss(kernel, step, layers):
    moved = params | {'net': {'decoder': {'kernel': kernel}}}
    of = context(2, aux={'weight': d, 'lpips': layers})._replace(step=step)
    return jnp.mean(experiment.loss(moved, batch, of)[0])
  both = jax.jit(jax.value_and_grad(loss))
  kernel = params['net']['decoder']['kernel']
  if name == 'vq':
    found, _ = both(kernel, 100, layers)
    np.testing.assert_allclose(found, r['vq/loss'] - r['vq/codebook_loss'], rtol=1e-4)
    return
  for step in recorded:
    found, slope = both(kernel, step, layers)
    np.testing.assert_allclose(found, r[f'kl/step{step}/loss'], rtol=1e-4)
    published.assert_close(slope.transpose(3, 2, 0, 1), r[f'kl/step{step}/grad_last_layer'], 1e-4)


@pytest.mark.long
def test_the_quality_of_a_codebook_counts_its_indices():
  net, x = Quantising(), data.fields.reals('image', (8, 8, 1))
  of = autoencoder.of(net, autoencoder.init(net, x, jax.random.key(0)), x, (2, 2, 2))
  found = jax.jit(lambda batch: of.quality(batch, context().keys))(numbers())
  assert found['index'].shape == (8, 2, 2) and 0 <= found['index'].min()
  assert found['index'].max() < net.entries
  np.testing.assert_allclose(found['latent'], 4 * np.log(5.0), rtol=1e-6)
  assert 'psnr' not in found  # of real numbers


@pytest.mark.long
def test_the_width_of_the_likelihood_is_fitted_and_moves_nothing_else():
  experiment = first_stage(real=True)
  params, batch = started(experiment), numbers()

  def both(params):
    losses, terms = experiment.loss(params, batch, context())
    return jnp.mean(losses), jnp.mean(terms['reconstruction'])
  _, pull_back = jax.vjp(jax.jit(both), params)
  (slopes,), (bits,) = pull_back((1.0, 0.0)), pull_back((0.0, 1.0))
  np.testing.assert_allclose(slopes['log_std'], bits['log_std'] * np.log(2), rtol=1e-4)
  assert all(not np.any(u) for u in jax.tree.leaves(bits['net']))
  assert params.keys() == {'net', 'log_std'} and experiment.update is None  # no judge


def judged():
  return first_stage(real=True, adversarial=0.5, adversarial_from=1)


def steps(layout, accumulate=1):
  """(state, metrics) after one step, and after two."""
  experiment = judged()
  make, devices = {'one': (parallel.jit_layout, jax.devices()[:1]),
                   'jit': (parallel.jit_layout, None), 'fsdp': (parallel.fsdp_layout, None),
                   'pmap': (parallel.pmap_layout, None)}[layout]
  of = make(functools.partial(experiment.update, accumulate=accumulate), devices)
  state = of.put(step_lib.init(started(experiment), experiment.tx, experiment.ema, experiment.aux))
  seen = []
  for i in range(2):
    state, metrics = of.step(state, of.place(numbers(i)), jax.random.key(2))
    seen.append(jax.device_get((of.view(state), metrics)))
  return seen


@pytest.fixture(scope='module')
def alone():
  return steps('one')


@pytest.mark.long
def test_the_weight_of_the_judge_is_of_the_global_batch(alone):
  """A weight of the mean of devices' weights, or of a part of the batch, would be another."""
  (state, metrics), _ = alone
  experiment = judged()
  params, batch = started(experiment), numbers()
  of = context(aux={'weight': 0.0})._replace(keys=random.per_example(
      jax.random.fold_in(jax.random.key(2), 0), jnp.arange(8) + 1))

  def length(term):
    def mean(kernel):
      moved = params | {'net': params['net'] | {'decoder': params['net']['decoder'] | {
          'kernel': kernel}}}
      return jnp.mean(experiment.loss(moved, batch, of)[1][term])
    return jnp.linalg.norm(jax.jit(jax.grad(mean))(params['net']['decoder']['kernel']))
  expected = D * length('l1') / (length('adversarial') + 1e-4)  # sums of |x - x'|
  np.testing.assert_allclose(metrics['adversarial_weight'], expected, rtol=1e-4)
  np.testing.assert_allclose(state.aux['weight'], expected, rtol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize('layout,accumulate', [
    ('pmap', 2), ('pmap', 1), ('one', 4), ('jit', 1), ('fsdp', 1)])
def test_both_players_move_the_same_on_any_devices(alone, layout, accumulate):
  _, (state, metrics) = steps(layout, accumulate)
  expected, expected_metrics = alone[1]
  np.testing.assert_allclose(metrics['adversarial_weight'],
                             expected_metrics['adversarial_weight'], rtol=1e-3)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), state.params,
               expected.params)


@pytest.mark.long
def test_the_judge_and_its_weight_wait_for_their_step(alone):
  experiment, ((one, _), (two, _)) = judged(), alone
  start = started(experiment)
  jax.tree.map(np.testing.assert_array_equal, one.params['discriminator'],
               jax.device_get(start['discriminator']))
  moved = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), two.params, one.params)
  assert min(jax.tree.leaves(moved)) > 0.0
  assert experiment.settled == 1


@pytest.mark.long
@pytest.mark.parametrize('norm,alone', [('example', True), ('batch', False)])
def test_the_norm_of_the_judge_says_whether_the_other_images_of_a_batch_move_what_it_finds(norm,
                                                                                           alone):
  experiment = first_stage(real=True, judge=None, adversarial=0.5, discriminator_features=4,
                           discriminator_layers=1, discriminator_norm=norm)
  params = started(experiment)
  found = jax.jit(lambda batch: experiment.loss(params, batch, context(aux={'weight': 1.0}))[1][
      'adversarial'])
  one, other = numbers(0)['image'], numbers(1)['image'].copy()
  other[0] = one[0]
  apart = np.abs(found({'image': one}) - found({'image': other}))
  assert (apart[0] < 1e-6) == alone and apart[1:].min() > 1e-5


@pytest.mark.first(3)
@pytest.mark.parametrize('field,value,says', [
    ('kind', 'vqq', 'did you mean vq'), ('perceptual', 1.0, 'weights of VGG-16'),
    ('kl', -1.0, 'negative'), ('adversarial', -0.5, 'negative'),
    ('discriminator_norm', 'layer', "norm='layer': there is no such choice; choose one of example, "
     'batch')])
def test_what_no_autoencoder_can_have_is_refused_in_a_line(field, value, says):
  config = latent_config.get_config('autoencoder')
  config.model.update({field: value})
  with pytest.raises(InputError, match=says) as error:
    autoencoder.experiment(config)
  assert '\n' not in str(error.value)


def test_groups_that_divide_no_features_are_named_as_a_field_of_the_config():
  config = latent_config.get_config('autoencoder')
  config.model.update(features=9, groups=8, multipliers=(1, 2))
  with pytest.raises(InputError, match=r'^config\.model\.groups=8: it does not divide 9 and 18'):
    autoencoder.experiment(config)
  config = pca_config()
  config.autoencoder.model.update(features=9, groups=8, multipliers=(1, 2))
  with config.unlocked():
    config.data.update(data.Spec('grey', (data.fields.reals('x', (8, 8, 1)),)).to_config())
  with pytest.raises(InputError, match=r'^config\.autoencoder\.model\.groups=8: it does not'):
    latent.experiment(config, net=Exact(), schedule=schedules.Linear(13.3, -5.0))


def test_weights_of_vgg_that_are_others_than_their_name_says_are_refused_with_their_field(tmp_path):
  (tmp_path / 'vgg16-397923af.pth').write_bytes(b'PK\x03\x04 and nothing else')
  for name, says in (('vgg16-397923af.pth', 'SHA-256 begins with .* and its name says 397923af'),
                     ('vgg.pth', 'there is no file .*vgg.pth')):
    with pytest.raises(InputError, match=f'^config.model.vgg=.*{name}.*: .*{says}') as error:
      lpips.reader(str(tmp_path / name))()
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('shape', [(16, 16, 2), (16, 16, 4), (8, 8, 1)])
def test_lpips_is_of_images_of_one_or_three_channels(shape):
  config = latent_config.get_config('autoencoder')
  config.model.update(perceptual=1.0, vgg='vgg.pth')
  with config.unlocked():
    config.data.update(data.Spec('own', (data.fields.reals('image', shape),)).to_config())
  with pytest.raises(InputError, match='config.model.perceptual=1.0: LPIPS is of images of 1 or 3'):
    autoencoder.experiment(config, net=Linear(), distance=dict)


@pytest.mark.long
def test_a_network_whose_last_kernel_is_elsewhere_is_refused_where_a_judge_needs_it():
  config = latent_config.get_config('autoencoder')
  autoencoder.experiment(config, net=Linear())
  config.model.adversarial = 0.5
  with pytest.raises(InputError, match='the network has no decoder/conv_out; name the last kernel'):
    autoencoder.experiment(config, net=Linear())


# --------------------------------------------------------------- the second stage

# Of 4 numbers, which 2 latents explain.
VARIANCES, NOISE = np.float32([4.0, 1.0, 0.25, 0.05]), np.float32(0.15)
WIDTHS = np.sqrt(VARIANCES[:2] - NOISE)


class PCA(nn.Module):
  """The exact autoencoder of probabilistic PCA: x = W y + N(0, NOISE), y ~ N(0, scale^2).

  wider: the variance of its encoder, in units of the exact one.
  """
  scale: float = 1.0
  random: bool = True
  wider: float = 1.0

  @nn.compact
  def encode(self, x):
    self.param('unused', nn.initializers.zeros, (1,))
    mean = self.scale * x[:, :2] * WIDTHS / VARIANCES[:2]
    log_variance = jnp.log(self.wider * self.scale**2 * NOISE / VARIANCES[:2])
    return (mean, jnp.broadcast_to(log_variance, mean.shape)) if self.random else mean

  def decode(self, y):
    return jnp.pad(y / self.scale * WIDTHS, ((0, 0), (0, 2)))

  def __call__(self, x):
    return self.encode(x)


class Exact(nn.Module):
  """E[eps | z] where z_0 ~ N(0, 1): sigma z.  share: of a head for the variance."""
  share: float | None = None

  @nn.compact
  def __call__(self, z, logsnr, cond=None, keys=None):
    self.param('unused', nn.initializers.zeros, (1,))
    eps = jnp.sqrt(jax.nn.sigmoid(-logsnr)).reshape(-1, *(1,) * (z.ndim - 1)) * z
    if self.share is None:
      return eps
    return jnp.concatenate([eps, jnp.full_like(z, 2.0 * self.share - 1.0)], axis=-1)


def pca_config():
  config = latent.default_config()
  spec = data.Spec('normal', (data.fields.reals('x', (4,)),))
  with config.unlocked():
    config.data.update(spec.to_config())
  return config


def pca(net=None, schedule=None, s=1.0, share=None):
  experiment = latent.experiment(pca_config(), net=Exact(share), autoencoder=net or PCA(),
                                 schedule=schedule or schedules.Linear(13.3, -5.0),
                                 heads=() if share is None else ('variance',))
  unused = {'unused': np.zeros(1)}
  params = {'net': unused, 'scale': jnp.float32(s),
            'autoencoder': {'net': unused, 'log_std': 0.5 * jnp.log(NOISE)}}
  return experiment, params


def draws(n=200_000):
  x = np.random.default_rng(0).standard_normal((n, 4)) * np.sqrt(VARIANCES)
  return ({'x': x.astype(np.float32)}, (jnp.arange(n) + 0.5) / n,
          random.per_example(random.key(3), jnp.arange(n)))


@pytest.fixture(scope='module')
def bound():
  experiment, params = pca()
  return jax.jit(lambda *args: experiment.model(params).bound(*args))(*draws())


@pytest.mark.long
def test_the_terms_of_probabilistic_pca_are_those_of_its_closed_form(bound):
  nats, terms = bound
  latents = terms['reconstruction'] + terms['latent'] + terms['diffusion']
  for name, values, expected in (
      ('decoding', terms['decoding'], 1.881514), ('encoding', terms['encoding'], -0.247610),
      ('latents', latents, 2 * 1.418939), ('all', nats, 4.471781)):
    parts = np.reshape(values, (-1, 100)).mean(axis=0)  # the times of each part are even in 0 .. 1
    error = np.std(parts, ddof=1) / 10
    assert abs(np.mean(values) - expected) < 4 * error, name
    assert error < 0.05, name
  np.testing.assert_allclose(nats, sum(terms.values()), rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_the_bound_of_probabilistic_pca_is_its_gap_above_the_entropy_of_the_images(bound):
  """Two variances of the data, 0.25 and 0.05, are one in the model: 1/2 log(0.15^2 / 0.0125)."""
  own = -stats.norm.logpdf(draws()[0]['x'], 0, np.sqrt(VARIANCES)).sum(axis=1)
  entropy, error = np.mean(own), np.std(own) / np.sqrt(len(own))
  assert abs(entropy - 4.177888) < 4 * error < 0.02
  mean, error = mean_and_error(bound[0] - own)
  assert abs(mean - 0.293893) < 4 * error < 0.15


@pytest.mark.long
def test_each_term_of_the_latents_is_that_of_its_closed_form(bound):
  """Of N(0, 1) between the log-SNRs 13.3 and -5; a number of the latent is half of a term."""
  _, terms = bound
  for name, expected in (('diffusion', 6.646643), ('latent', 0.003358),
                         ('reconstruction', -5.231061)):
    mean, error = mean_and_error(terms[name] / 2)
    assert abs(mean - expected) < 4 * error + 1e-5, name
    assert error < 0.03, name


def latent_nats(model, denoise, std):
  """The exact mean of the bound of y ~ N(0, std^2), of one number: {term: nats}.

  The terms are polynomials of degree 2 in y and eps, so the means over y = +-std and eps = +-1 are
  the expectations.  The integral over the time is a Gauss-Legendre sum.
  """
  nodes, weights = np.polynomial.legendre.leggauss(64)
  t, y, eps = (u.ravel() for u in np.meshgrid(0.5 * (nodes + 1.0), [-std, std], [-1.0, 1.0],
                                              indexing='ij'))
  y, eps = y[:, None], eps[:, None]
  _, terms = jax.jit(lambda t, y, eps: vlb.continuous(
      denoise, model.process, y, t, None, data=y, decoder=decoders.normal, eps=eps, eps_0=eps))(
          t, y, eps)
  return {name: np.sum(np.repeat(weights / 8.0, 4) * term) for name, term in terms.items()}


def test_the_bound_of_the_latents_is_their_entropy_but_for_the_noise_that_is_left(x64):
  """Its excess is 1/2 log(1 + exp(-13.3)), of the noise that is left at t = 0: in float64."""
  experiment, params = pca()
  model = experiment.model(params)
  terms = latent_nats(model.inner, model.inner.denoise, 1.0)
  expected = {'reconstruction': -5.231061, 'latent': 0.003358, 'diffusion': 6.646643}
  assert terms.keys() == expected.keys()
  for name, nats in expected.items():
    assert terms[name] == pytest.approx(nats, abs=1e-6), name
  entropy = 0.5 * np.log(2 * np.pi * np.e)
  assert sum(terms.values()) - entropy == pytest.approx(8.372e-7, abs=1e-10)


@pytest.mark.long
def test_latents_that_are_not_scaled_pay_for_a_prior_that_is_not_theirs(x64):
  """y ~ N(0, 5.49^2): the entropy has ln 5.49 more, which the encoder pays back, and z_1 is not
  N(0, 1).
  """
  experiment, params = pca(PCA(5.49))
  terms = latent_nats(experiment.model(params).inner, oracles.Gaussian(0.0, 5.49), 5.49)
  assert sum(terms.values()) == pytest.approx(1.418939 + np.log(5.49) + 0.008429, abs=1e-6)
  batch, _, keys = draws(100)
  encoding = lambda of, params: jax.jit(of.model(params).enter)(batch, keys)[1]['encoding']
  np.testing.assert_allclose(encoding(experiment, params), encoding(*pca()) - 2 * np.log(5.49),
                             atol=1e-5)


# The first two principal components of four numbers.
AXES = np.linalg.qr(np.random.default_rng(7).standard_normal((4, 4)))[0]


class Principal(nn.Module):
  """Principal component analysis: y are the first two components of x, of standard deviation 5.49.
  """

  @nn.compact
  def encode(self, x):
    self.param('unused', nn.initializers.zeros, (1,))
    return 5.49 * x @ AXES[:, :2].astype(np.float32) / np.sqrt(VARIANCES[:2])

  def decode(self, y):
    return (y / 5.49 * np.sqrt(VARIANCES[:2])) @ AXES[:, :2].T.astype(np.float32)

  def __call__(self, x):
    return self.encode(x)


@pytest.mark.long
def test_decoded_samples_have_the_covariance_of_the_principal_components_and_its_rank():
  """With the published variance of a step, a chain of N(0, 1) is exact however few its steps."""
  experiment, params = pca(Principal(), s=1 / 5.49)
  n = 50_000
  x = np.asarray(experiment.model(params).sample(
      jax.random.key(0), n, steps=5, sampler=lambda *of: samplers.ancestral(*of, share=1.0)),
                 np.float64)
  products = x[:, :, None] * x[:, None, :]
  error = products.std(axis=0) / np.sqrt(n)
  expected = AXES[:, :2] @ np.diag(VARIANCES[:2]) @ AXES[:, :2].T
  assert np.all(np.abs(products.mean(axis=0) - expected) < 4 * error)
  assert np.all(error < 0.03)
  assert np.abs(x @ AXES[:, 2:]).max() < 1e-5
  assert np.linalg.matrix_rank(products.mean(axis=0), tol=1e-3) == 2


@pytest.mark.long
def test_a_scale_of_the_latents_is_paid_back(bound):
  """y is 5.49 times as large, and s makes z of it as before: the same images, the same nats."""
  experiment, params = pca(PCA(5.49), s=1 / 5.49)
  nats, terms = jax.jit(lambda *args: experiment.model(params).bound(*args))(*draws())
  np.testing.assert_allclose(nats, bound[0], atol=2e-3)
  np.testing.assert_allclose(terms['encoding'], bound[1]['encoding'], atol=1e-4)
  m = experiment.model(params)
  x = draws()[0]['x'][:50]
  np.testing.assert_allclose(m.decode(m.encode(x)),
                             np.pad(x[:, :2] * (1 - NOISE / VARIANCES[:2]), ((0, 0), (0, 2))),
                             atol=1e-5)


@pytest.mark.long
def test_the_flow_of_the_latents_gives_the_evidence_of_the_images():
  """The flow of N(0, 1) is the identity, so only the draw of y is left of the variance: an ELBO."""
  experiment, params = pca()
  model = experiment.model(params)
  batch, _, keys = draws(400)
  estimate = ode.estimator(model.dequantise, probe='exact', steps=2)
  nats = jax.jit(lambda batch, keys: estimate(model, batch, keys))(batch, keys)['nats']
  assert abs(np.mean(nats) - 4.471781) < 4 * np.std(nats) / 20
  # Of exact encoders each draw is the evidence: log p(x) whatever y.
  evidence = -stats.norm.logpdf(batch['x'], 0, np.sqrt([4.0, 1.0, NOISE, NOISE])).sum(axis=1)
  np.testing.assert_allclose(nats, evidence, atol=5e-3)


@pytest.mark.long
@pytest.mark.parametrize('share', [None, 0.5])
def test_a_chain_that_begins_at_the_latents_themselves_has_the_bound_of_its_variance(share):
  """The network's own variance if it has one, else that of q(z_t | z_s): 10 steps tell them apart.
  """
  betas = np.linspace(0.02, 0.6, 10)
  experiment, params = pca(schedule=TableSchedule.from_betas(betas), share=share)
  model, (batch, t, keys) = experiment.model(params), draws(20_000)
  _, terms = jax.jit(lambda *args: model.bound(*args, 10))(batch, t, keys)
  assert terms.keys() == {'decoding', 'encoding', 'reconstruction', 'latent', 'diffusion'}
  latents = terms['reconstruction'] + terms['latent'] + terms['diffusion']
  parts = np.reshape(latents, (-1, 100)).mean(axis=0)  # the steps of each part are even in 1 .. 10
  error = np.std(parts, ddof=1) / 10
  expected = {of: 2 * chain_nats(betas, of) for of in (None, 0.0, 0.5)}
  apart = min(abs(expected[share] - u) for of, u in expected.items() if of != share)
  assert abs(np.mean(parts) - expected[share]) < 4 * error < 0.5 * apart
  # A draw evaluates its step and the first one.
  assert (model.bound_variance, model.bound_evaluations) == ('published', 2)


@pytest.mark.long
def test_a_chain_of_two_steps_with_the_best_variance_has_the_bound_of_continuous_time():
  """Bao et al. (2022), theorem 1: so latents cost their entropy, and the images the evidence."""
  experiment, params = pca()
  batch, _, keys = draws(20_000)
  run = lambda **kernel: jax.jit(lambda batch, keys: bounds.at_times(2, 2, **kernel)(
      experiment.model(params), batch, keys))(batch, keys)
  found, own = run(variance=of_normal), run()
  error = np.std(found['nats']) / np.sqrt(20_000)
  assert abs(np.mean(found['nats']) - 4.471781) < 4 * error < 0.1
  assert np.mean(own['nats']) > 4.471781 + 8 * error  # of the variance of q(z_s | z_t, x)
  terms = ('decoding', 'encoding', 'reconstruction', 'latent', 'diffusion')
  np.testing.assert_allclose(found['nats'], sum(found[name] for name in terms), rtol=1e-4,
                             atol=1e-4)
  with pytest.raises(InputError, match='variance: this option applies only to a chain of steps'):
    bounds.at_times(0, 2, of_normal)(experiment.model(params), batch, keys)


@pytest.mark.long
@pytest.mark.parametrize('variance, of, other', [(vlb.fixed_large, None, 0.0),
                                                 (vlb.fixed_small, 0.0, None)])
def test_a_chain_that_ends_in_the_latents_has_the_bound_of_the_variance_that_is_asked_for(
    variance, of, other):
  betas = np.linspace(0.02, 0.6, 10)
  experiment, params = pca(schedule=TableSchedule.from_betas(betas))
  batch, _, keys = draws(20_000)
  last = decoders.at_mean(experiment.model(params).inner.decoder)
  found = jax.jit(lambda batch, keys: bounds.at_times(10, 9, variance, last)(
      experiment.model(params), batch, keys))(batch, keys)
  latents = sum(found[name] for name in ('reconstruction', 'latent', 'diffusion'))
  error = np.std(latents) / np.sqrt(20_000)
  expected, apart = (2 * chain_nats(betas, share) for share in (of, other))
  assert abs(np.mean(latents) - expected) < 4 * error < 0.5 * abs(expected - apart)
  assert set(np.asarray(found['evaluations'])) == {10}  # each step once


@pytest.mark.long
def test_the_variances_of_a_model_of_latents_are_those_of_draws_of_them(monkeypatch):
  """Of z ~ N(0, 1) the variance is 1 at each level; of their means, which are 0 here, 1 - sigma^2.
  """
  experiment, params = pca()
  model = experiment.model(params)._replace(
      encode=lambda images: jnp.zeros_like(images[:, :2]),
      dequantise=lambda images, keys: (random.normal(keys, images[:, :2]), None))
  class Rows:
    def __len__(self):
      return 512
    def get(self, rows):
      return {'x': np.zeros((len(rows), 4), np.float32)}
  monkeypatch.setattr(needs, 'split', lambda trained, name: Rows())
  trained = types.SimpleNamespace(params=params, experiment=types.SimpleNamespace(
      model=lambda params: model))
  found = sampling.variances_of(trained, np.array([0.0, 0.5, 1.0]), 0)
  assert np.all(np.abs(found.variance - 1.0) < 4.0 * found.standard_error + 1e-3)
  assert np.all(found.standard_error < 0.1)


@pytest.mark.long
def test_validation_reports_the_bound_on_the_data_and_training_calls_no_decoder(bound):
  experiment, params = pca()
  batch, t, keys = draws(64)
  of = Context(t, keys, jnp.int32(0), train=False)
  losses, terms = jax.jit(lambda: experiment.loss(params, batch, of))()
  nats, parts = jax.jit(lambda: experiment.model(params).bound(batch, t, keys))()
  bits = 4 * np.log(2)
  for name in ('decoding', 'encoding', 'latent', 'diffusion'):
    np.testing.assert_allclose(terms[name] * bits, parts[name], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
      terms['bits_per_dim'], sum(terms[name] for name in parts), rtol=1e-4, atol=1e-5)
  # The loss is the system's own, of the latents: bits per number of them.
  np.testing.assert_allclose(losses / 2, terms['bits_per_dim'] - terms['decoding']
                             - terms['encoding'], rtol=1e-4, atol=1e-5)
  _, training = jax.jit(lambda: experiment.loss(params, batch, of._replace(train=True)))()
  assert not {'decoding', 'bits_per_dim'} & training.keys()


def remade(change):
  """The experiment of `pca`, of another system: `change` makes it of the usual one."""
  config = pca_config()
  build = lambda inner: change(compose.experiment(
      inner, net=Exact(), schedule=schedules.Linear(13.3, -5.0)))
  return latent.of(config, build, autoencoder=PCA()), pca()[1]


@pytest.mark.long
def test_all_parts_of_a_bound_of_the_system_s_own_are_reported_per_number_of_the_data():
  def change(base):
    def model(params, keys=None):
      def bound(batch, t, keys, steps=0):
        terms = {'auxiliary': jnp.full(len(t), 3.0), 'diffusion': jnp.full(len(t), 5.0)}
        return sum(terms.values()), terms
      return base.model(params, keys)._replace(bound=bound)
    return base._replace(model=model, loss=compose.bound_loss(model, (2,)))
  experiment, params = remade(change)
  batch, t, keys = draws(4)
  _, terms = experiment.loss(params, batch, Context(t, keys, jnp.int32(0), train=False))
  bits = terms.pop('bits_per_dim')
  np.testing.assert_allclose(terms['auxiliary'], 3.0 / (4 * np.log(2)), rtol=1e-6)
  np.testing.assert_allclose(bits, sum(terms.values()), rtol=1e-5)


def test_a_system_without_a_denoiser_is_refused_and_one_with_an_unknown_prior_has_no_likelihood():
  with pytest.raises(InputError, match='makes a OneStep, and latents need a model that denoises'):
    remade(lambda base: base._replace(model=lambda params, keys=None: OneStep(None, (2,))))
  unknown = lambda base: base._replace(model=lambda params, keys=None: base.model(
      params, keys)._replace(prior=lambda keys, like: like))
  experiment, params = remade(unknown)
  with pytest.raises(InputError, match='draws z_1 by a network, whose density nobody knows'):
    bounds.require_likelihood(experiment.model(params))


def test_latents_without_a_density_are_drawn_and_have_no_likelihood():
  experiment, params = pca(PCA(random=False))
  model = experiment.model(params)
  with pytest.raises(InputError, match='function of the data.*no likelihood; sample from it'):
    bounds.require_likelihood(model)
  assert model.bound is None and model.dequantise is None
  batch, t, keys = draws(8)
  _, terms = jax.eval_shape(lambda: experiment.loss(
      params, batch, Context(t, keys, jnp.int32(0), train=False)))
  assert 'bits_per_dim' not in terms


# ------------------------------------------------------- indices of a codebook

# Two independent positions of three entries in the plane, used with these odds.
CODEBOOK = np.float32([[1.0, 0.0], [-1.0, 0.5], [0.2, -1.2]])
ODDS = np.array([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]])
ENTROPY = -(ODDS * np.log(ODDS)).sum()
SPREAD, GRAIN = 0.1, 0.05  # of h around the codebook, and of p(x | y)


class Coded(nn.Module):
  """x of two positions are h themselves; `scale` times as large in the latent."""
  scale: float = 1.0

  def setup(self):
    self.codebook = self.param('codebook', lambda key: self.scale * jnp.asarray(CODEBOOK))

  def encode(self, x):
    return self.scale * x

  def quantise(self, h):
    index = jnp.argmin(jnp.square(h[..., None, :] - self.codebook).sum(-1), axis=-1)
    return self.codebook[index], index

  def decode(self, h):
    return self.quantise(h)[0] / self.scale

  def __call__(self, x):
    return self.decode(self.encode(x))


def coded(scale=1.0, s=1.0, quantised=True, schedule=None, odds=ODDS, inputs=None, **changes):
  """The experiment whose network knows the law of the vectors, and its parameters.

  inputs: of a network that knows it not, and which the loss calls too.
  """
  config = latent.default_config()
  config.model.quantised = quantised
  spec = data.Spec('coded', (data.fields.reals('x', (2, 1, 2)),))
  with config.unlocked():
    config.data.update(spec.to_config())
  pairs = np.stack(np.meshgrid(range(3), range(3), indexing='ij'), -1).reshape(-1, 2)
  oracle = oracles.Mixture(np.prod([odds[i][pairs[:, i]] for i in (0, 1)], axis=0),
                           CODEBOOK[pairs][:, :, None], np.zeros(len(pairs)))

  def build(inner):
    linear = schedules.Linear(12.0, -12.0)
    if inputs is not None:
      return compose.experiment(inner, net=Exact(), schedule=schedule or linear, inputs=inputs)
    base = compose.experiment(inner, net=Exact(), schedule=schedule or linear)
    return base._replace(model=lambda params, keys=None: base.model(params, keys)._replace(
        denoise=oracle, **changes))
  experiment = latent.of(config, build, autoencoder=Coded(scale))
  params = {'net': {'unused': np.zeros(1)}, 'scale': jnp.float32(s), 'autoencoder': {
      'net': {'codebook': jnp.asarray(scale * CODEBOOK)}, 'log_std': jnp.log(GRAIN)}}
  return experiment, params


def coded_data(n):
  rng = np.random.default_rng(0)
  index = np.stack([rng.choice(3, n, p=odds) for odds in ODDS], axis=1)
  x = CODEBOOK[index] + SPREAD * rng.uniform(-1, 1, (n, 2, 2))
  return {'x': np.float32(x[:, :, None])}, index


def mean_and_error(values, parts=100):
  """The times of each part are even in 0 .. 1."""
  of = np.reshape(values, (-1, parts)).mean(axis=0)
  return of.mean(), np.std(of, ddof=1) / np.sqrt(parts)


@pytest.mark.long
@pytest.mark.parametrize('scale', [1.0, 5.49])
def test_the_bound_of_exact_indices_is_their_entropy_whatever_the_scale(scale):
  n = 100_000
  batch, index = coded_data(n)
  experiment, params = coded(scale, 1 / scale)
  model = experiment.model(params)
  keys = random.per_example(random.key(3), jnp.arange(n))
  t = (jnp.arange(n) + 0.5) / n
  nats, terms = jax.jit(lambda *args: experiment.model(params).bound(*args))(batch, t, keys)
  assert terms.keys() == {'decoding', 'reconstruction', 'latent', 'diffusion'}
  mean, error = mean_and_error(terms['reconstruction'] + terms['latent'] + terms['diffusion'])
  assert abs(mean - ENTROPY) < 4 * error < 0.15
  assert np.mean(terms['reconstruction']) < 1e-3  # at this noise the entries are apart
  decoding = -stats.norm.logpdf(batch['x'][:, :, 0], CODEBOOK[index], GRAIN).sum((1, 2))
  np.testing.assert_allclose(terms['decoding'], decoding, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(nats, sum(terms.values()), rtol=1e-4, atol=1e-4)
  assert model.index_nats == pytest.approx(2 * np.log(3))


@pytest.mark.long
def test_a_network_of_equal_odds_pays_them_and_a_chain_pays_at_least_the_entropy():
  """Of equal odds, each image costs 2 log 3, whatever its indices; few steps cost more."""
  n = 100_000
  batch, _ = coded_data(n)
  keys, t = random.per_example(random.key(3), jnp.arange(n)), (jnp.arange(n) + 0.5) / n
  experiment, params = coded(odds=np.full((2, 3), 1 / 3))
  inside, _ = experiment.model(params).enter(batch, keys)
  nats, _ = jax.jit(lambda *args: experiment.model(params).inner.bound(*args))(inside, t, keys)
  mean, error = mean_and_error(nats)
  assert abs(mean - 2 * np.log(3)) < 4 * error < 0.15
  experiment, params = coded()
  nats, _ = jax.jit(lambda *args: experiment.model(params).inner.bound(*args, 5))(inside, t, keys)
  mean, error = mean_and_error(nats)
  assert mean - ENTROPY > 8 * error


@pytest.mark.long
@pytest.mark.parametrize('quantised', [True, False])
def test_whole_paths_of_indices_and_single_times_are_one_bound_and_more_paths_tighten_it(quantised):
  batch, _ = coded_data(1000)
  keys = random.per_example(random.key(4), jnp.arange(1000))
  experiment, params = coded(quantised=quantised)
  model = experiment.model(params)
  expected = np.float32(CODEBOOK)[np.asarray(model.enter(batch, keys)[0]['x'])]
  np.testing.assert_allclose(model.encode(batch['x']), expected if quantised else batch['x'],
                             atol=1e-6)
  times = jax.jit(lambda keys: bounds.at_times(4, 4)(experiment.model(params), batch, keys))(
      random.per_example(random.key(5), jnp.arange(1000)))['nats']
  several = jax.jit(lambda keys: paths.importance_weighted(8, 4)(
      experiment.model(params), batch, keys))(keys)
  difference = np.asarray(several['single'] - times)
  assert abs(difference.mean()) < 4 * difference.std() / np.sqrt(1000)
  decoding = np.asarray(model.enter(batch, keys)[1]['decoding'])
  gain = np.asarray(several['single'] - several['nats'])
  assert gain.mean() > 4 * gain.std() / np.sqrt(1000)
  left = np.asarray(several['nats']) - decoding - ENTROPY
  assert left.mean() > -4 * left.std() / np.sqrt(1000)


@pytest.mark.long
def test_the_flow_of_exact_indices_costs_no_less_than_their_entropy():
  batch, _ = coded_data(200)
  keys = random.per_example(random.key(4), jnp.arange(200))
  experiment, params = coded()
  found = jax.jit(lambda keys: ode.estimator(probe='exact', steps=40)(
      experiment.model(params), batch, keys))(keys)
  decoding = np.asarray(experiment.model(params).enter(batch, keys)[1]['decoding'])
  nats = np.asarray(found['nats']) - decoding
  error = nats.std() / np.sqrt(200)
  assert abs(nats.mean() - ENTROPY) < 4 * error < 0.3


@pytest.mark.long
def test_a_published_chain_of_indices_ends_in_their_law():
  """Its last step is a choice of an entry.

  Near the data x is known, and a variance r times that of q costs 1/2 (log r + 1 / r - 1) nats for
  each of 4 numbers.  Elsewhere r is about 1, and 1000 steps cost the entropy.
  """
  n, betas = 100_000, schedules.linear_betas(1000)
  batch, _ = coded_data(n)
  keys, t = random.per_example(random.key(3), jnp.arange(n)), (jnp.arange(n) + 0.5) / n
  experiment, params = coded(schedule=TableSchedule.from_betas(betas))
  _, terms = jax.jit(lambda *args: experiment.model(params).bound(*args, 1000))(batch, t, keys)
  mean, error = mean_and_error(terms['reconstruction'] + terms['latent'] + terms['diffusion'])
  variances = 1.0 - np.cumprod(1.0 - betas)
  r = variances[1:] / variances[:-1]
  wide = 4 * 0.5 * (np.log(r) + 1 / r - 1).sum()
  assert abs(mean - ENTROPY - wide) < 0.05 + 4 * error < 0.3 < 0.5 * wide
  # Entries are far apart beside the noise of the first step: it names them.
  assert abs(np.mean(terms['reconstruction'])) < 1e-3


@pytest.mark.long
def test_validation_of_vectors_reports_the_bound_of_their_indices_by_one_call_of_the_network():
  calls = []

  def counted(z, level):
    calls.append(z.shape)
    return z, level.logsnr
  experiment, params = coded(inputs=counted)
  batch, _ = coded_data(16)
  t, keys = (jnp.arange(16) + 0.5) / 16, jax.random.split(jax.random.key(1), 16)
  of = Context(t, keys, jnp.int32(0), train=False)
  calls.clear()
  _, terms = jax.jit(lambda: experiment.loss(params, batch, of))()
  assert len(calls) == 1
  nats, parts = jax.jit(lambda: experiment.model(params).bound(batch, t, keys))()
  expected = {'bits_per_dim': nats, **parts}
  for name, u in expected.items():
    np.testing.assert_allclose(terms[name], u / (4 * np.log(2)), rtol=1e-5, atol=1e-6)
  _, training = jax.eval_shape(lambda: experiment.loss(params, batch, of._replace(train=True)))
  assert not expected.keys() & training.keys()
  # A network of h is not told the codebook, and its bound is left to the ledger.
  experiment, params = coded(quantised=False, inputs=counted)
  calls.clear()
  _, terms = jax.eval_shape(lambda: experiment.loss(params, batch, of))
  assert not expected.keys() & terms.keys() and len(calls) == 1


@pytest.mark.long
@pytest.mark.parametrize('quantised', [True, False])
def test_a_codebook_trains_alike_on_images_and_on_the_encoder_s_kept_output(quantised):
  experiment, params = coded(quantised=quantised)
  batch, _ = coded_data(16)
  of = Context((jnp.arange(16) + 0.5) / 16, jax.random.split(jax.random.key(1), 16), jnp.int32(0))
  loss = jax.jit(lambda batch: experiment.loss(params, batch, of)[0])
  np.testing.assert_allclose(loss({'latent_mean': batch['x']}), loss(batch), rtol=1e-6)


def test_vectors_of_a_codebook_need_one_a_fixed_schedule_and_the_usual_bound():
  config = pca_config()
  config.model.quantised = True
  with pytest.raises(InputError, match='config.model.quantised=True: this autoencoder has no code'):
    latent.experiment(config, net=Exact(), autoencoder=PCA(), schedule=schedules.Linear(13.3, -5.0))
  with pytest.raises(InputError, match='the end of a learned schedule has no optimum'):
    coded(schedule=schedules.LearnedLinear(13.3, -5.0))
  experiment, params = coded(bound=lambda *args: None)
  with pytest.raises(InputError, match='bounds a density of the latents.*are discrete'):
    bounds.require_likelihood(experiment.model(params))


# ------------------------------------------------------- importance weights


def evidence_gap(estimate, net, n):
  experiment, params = pca(net)
  batch, _, keys = draws(n)
  nats = jax.jit(lambda keys: estimate(experiment.model(params), batch, keys))(keys)['nats']
  exact = -stats.norm.logpdf(batch['x'], 0, np.sqrt([4.0, 1.0, NOISE, NOISE])).sum(axis=1)
  return nats - exact


def of_normal(estimate, at_t, at_s):
  """The variance of q(z_s | z_t) where z_0 ~ N(0, 1): with it a chain of few steps is exact."""
  return reverse_variance(at_t, at_s, jax.nn.sigmoid(-at_t.logsnr))


@pytest.mark.long
@pytest.mark.parametrize('estimate', [
    lambda k: paths.importance_weighted(k, 2, of_normal),
    lambda k: ode.estimator(probe='exact', steps=2, importance=k)], ids=['iw', 'ode'])
def test_importance_weights_close_the_gap_of_an_encoder_that_is_not_exact(estimate):
  """q has twice the variance of p(y | x), so K = 1 costs KL(q || p), and the gap of K draws is
  E[(p / q)^2 - 1] / 2K nats for many: 1/3 / 2K here, (2 / sqrt(3))^2 = 4/3.
  """
  n, k = 2000, 32
  one, many = (evidence_gap(estimate(count), PCA(wider=2.0), n) for count in (1, k))
  error = lambda u: np.std(u) / np.sqrt(n)
  assert abs(one.mean() - 2 * 0.5 * (2.0 - 1.0 - np.log(2.0))) < 4 * error(one)
  assert abs(many.mean() - 1 / 3 / (2 * k)) < 4 * error(many) < 0.2 * one.mean()
  assert many.mean() > -4 * error(many)


@pytest.mark.long
@pytest.mark.parametrize('k', [1, 3])
def test_with_the_exact_encoder_each_number_of_paths_is_the_evidence(k):
  gap = evidence_gap(paths.importance_weighted(k, 2, of_normal), PCA(), 200)
  np.testing.assert_allclose(gap, 0.0, atol=2e-2)  # rounding, beside the 0.3 nats of a wider one


# ---------------------------------------------------------------------- runs


def run_config(stage='latent', **changes):
  config = latent_config.get_config(stage)
  config.update_from_flattened_dict(
      {name.replace('__', '.'): value for name, value in changes.items()})
  return config


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """The runs of an autoencoder, and of its latents."""
  place = tmp_path_factory.mktemp('latent')
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(place)
    for name, config in (
        ('first', run_config('autoencoder', train__pictures_every=4)),
        ('second', run_config(model__autoencoder='first', train__steps=2))):
      said = io.StringIO()
      with contextlib.redirect_stdout(said):
        runs.train(config, FILE, place / name)
      (place / f'{name}.txt').write_text(said.getvalue())
  return place


@pytest.mark.long
def test_the_training_of_an_autoencoder_without_lpips_says_so(trained):
  said = (trained / 'first.txt').read_text().splitlines()
  line, = [line for line in said if 'LPIPS' in line]
  assert line.startswith('LPIPS is off: --config.model.perceptual is 0.  It compares images of')
  assert 'LPIPS' not in (trained / 'second.txt').read_text()  # of latents


@pytest.mark.parametrize('shape,says', [
    ((28, 28, 1), 'To use it, set 1, and name the files of its weights: '
     '--config.model.vgg=vgg16-397923af.pth,vgg.pth.'),
    ((32, 8, 3), 'It compares images of 1 or 3 channels with sides of 16 or more, and these are '
     '32 x 8 x 3.'),
    ((32, 32, 4), 'It compares images of 1 or 3 channels with sides of 16 or more, and these are '
     '32 x 32 x 4.')])
def test_how_lpips_is_turned_on_is_said_where_it_can_be(shape, says):
  config = latent_config.get_config('autoencoder')
  assert training._without_lpips(config, shape) == (
      f'LPIPS is off: --config.model.perceptual is 0.  {says}')
  config.model.update(perceptual=1.0, vgg='vgg.pth')
  assert not training._without_lpips(config, shape)


@pytest.mark.long
def test_a_run_of_an_autoencoder_is_loaded_measured_and_drawn(trained):
  model = workdir.load(trained / 'first')
  assert isinstance(model, Reconstructs)
  assert repr(model).startswith('Autoencoder(shape=(8, 8, 1), latent_shape=(2, 2, 2), levels=17')
  assert (trained / 'first' / 'samples' / 'step_4.png').exists()
  assert isinstance(runs.made(trained / 'first'), Reconstructs)
  assert not isinstance(runs.made(trained / 'second'), Reconstructs)
  result = reconstructing.evaluate(trained / 'first', examples=20)
  rows = {row['name']: row['mean'] for row in result.rows}
  assert list(rows) == [name for name in reconstructing.MEANINGS if name != 'entries_used']
  np.testing.assert_allclose(rows['bits_per_dim'], rows['reconstruction'] + rows['latent'])
  kept = json.loads((trained / 'first' / 'reconstruction_20_examples.json').read_text())
  assert kept['rows'] == result.rows and kept['dataset']['examples'] == 20
  images = load_images(trained / 'first', 20)
  y, _ = model.draw(images, random.per_example(
      jax.random.fold_in(random.key(0), 0), jnp.arange(20)))
  np.testing.assert_allclose(rows['latent_std'], np.std(y), rtol=1e-5)
  for command in ('evaluate', 'sample'):
    with pytest.raises(InputError, match='this run made an Autoencoder, which bounds the '
                       'likelihood and reconstructs examples'):
      needs.require(model, command, 'run')


def load_images(directory, count):
  return workdir.load_trained(directory).experiment.data.split('test').get(
      np.arange(count))['image']


@pytest.mark.long
def test_an_autoencoder_and_its_judge_resume_bit_for_bit(tmp_path):
  fields = {'model__adversarial': 0.5, 'model__adversarial_from': 1}
  runs.train(run_config('autoencoder', **fields), FILE, tmp_path / 'whole')
  for count in (2, 4):
    runs.train(run_config('autoencoder', **fields, train__steps=count), FILE, tmp_path / 'parts')
  whole, parts = (commands.final_state(tmp_path / name) for name in ('whole', 'parts'))
  assert float(whole.aux['weight']) > 0.0 and whole.opt.keys() == {'autoencoder', 'discriminator'}
  jax.tree.map(np.testing.assert_array_equal, whole, parts)


@pytest.mark.long
def test_a_run_of_latents_keeps_its_autoencoder_and_the_scale_of_its_first_batch(trained):
  first, second = (workdir.load_trained(trained / name) for name in ('first', 'second'))
  own = {name: first.params[name] for name in ('net', 'log_std')}
  jax.tree.map(np.testing.assert_array_equal, second.params['autoencoder'], own)
  assert second.config.autoencoder.model == first.config.model
  assert second.config.model.autoencoder == str(trained / 'first')
  model = first.experiment.model(first.params)
  images = second.experiment.data.batch(0)['image']
  y, _ = model.draw(images, random.per_example(random.key(second.config.seed),
                                               jnp.arange(len(images))))
  np.testing.assert_allclose(second.params['scale'] * np.std(y), 1.0, rtol=1e-5)
  raw = workdir.load_trained(trained / 'second', average='raw').params
  jax.tree.map(np.testing.assert_array_equal, raw['autoencoder'], own)
  opt = commands.final_state(trained / 'second').opt
  assert not [path for path, _ in jax.tree_util.tree_flatten_with_path(opt)[0]
              if 'autoencoder' in jax.tree_util.keystr(path)]


@pytest.mark.long
@pytest.mark.parametrize('changes,says', [
    ({}, 'needs a trained autoencoder, and none is named'),
    ({'model__autoencoder': 'none'}, '^config.model.autoencoder=.none.: it holds no run'),
    ({'model__autoencoder': 'second'}, 'this run made a Model.*a model that reconstructs examples '
     'is needed to diffuse its latents'),
    ({'model__autoencoder': 'first', 'data__levels': 18}, 'it encodes image 8 x 8 x 1, 17 levels, '
     'and the data here are image 8 x 8 x 1, 18 levels')])
def test_a_run_of_latents_that_cannot_begin_writes_nothing(trained, tmp_path, monkeypatch, changes,
                                                           says):
  monkeypatch.chdir(trained)
  with pytest.raises(InputError, match=says) as error:
    runs.train(run_config(**changes), FILE, tmp_path / 'run')
  assert '\n' not in str(error.value)
  assert not (tmp_path / 'run').exists()


@pytest.mark.long
def test_a_run_of_latents_goes_on_without_its_autoencoder_but_not_with_another(
    trained, tmp_path, monkeypatch):
  shutil.copytree(trained / 'first', tmp_path / 'first')
  shutil.copytree(trained / 'second', tmp_path / 'second')
  monkeypatch.chdir(tmp_path)
  shutil.copytree(trained / 'first', tmp_path / 'other')
  shutil.rmtree(tmp_path / 'other' / 'checkpoints' / '4')  # the weights of step 2
  with pytest.raises(InputError, match='its weights are not those that this run began with; leave '
                     'it out'):
    runs.train(run_config(model__autoencoder='other'), FILE, tmp_path / 'second')
  shutil.rmtree(tmp_path / 'first')
  runs.train(run_config(train__steps=3), FILE, tmp_path / 'second')
  assert workdir.steps_made(tmp_path / 'second') == 3


@pytest.mark.long
def test_a_run_of_latents_draws_images_and_has_a_ledger_in_bits_of_the_images(trained, tmp_path):
  shutil.copytree(trained / 'second', tmp_path / 'second')
  model = workdir.load(tmp_path / 'second')
  assert model.sample(jax.random.key(0), 2, steps=2).shape == (2, 8, 8, 1)
  runs.sample(tmp_path / 'second', tmp_path / 'drawn.png', count=2)
  ledger = runs.evaluate(tmp_path / 'second', examples=3, times=2,
                         estimates=['vlb@5', 'ode@2/variational'])
  rows = {row['estimate']: row for row in ledger.rows}
  assert rows.keys() == {'vlb', 'vlb@5', 'ode@2/variational'}
  assert list(rows['vlb']['parts']) == ['decoding', 'encoding', 'reconstruction', 'latent',
                                        'diffusion']
  assert rows['vlb']['dequantiser'] == 'of the model'
  checked = runs.evaluate(tmp_path / 'second', examples=8, times=2,
                          estimates=['vlb@3', 'iw@2x3', 'iw@4x3', 'vlb@12/large',
                                     'iw@2x12/large', 'vlb@12/analytic', 'vlb@12/large/ddpm'])
  assert {check['name'] for check in checked.checks} >= {
      'iw@2x3, its paths one by one = vlb@3', 'iw@4x3 <= iw@2x3',
      'iw@2x12/large, its paths one by one = vlb@12/large'}
  assert {row['estimate']: row['variance'] for row in checked.rows} == {
      'vlb': None, 'vlb@3': 'small', 'iw@2x3': 'small', 'iw@4x3': 'small', 'vlb@12/large': 'large',
      'iw@2x12/large': 'large', 'vlb@12/analytic': 'analytic', 'vlb@12/large/ddpm': 'large'}
  assert all(check['passed'] for check in checked.checks if check['serious'])
  for name in ('ode/uniform', 'immse', 'indices'):
    with pytest.raises(InputError, match=name):
      runs.evaluate(tmp_path / 'second', examples=3, estimates=[name])


@pytest.mark.long
def test_a_ledger_of_a_codebook_has_the_bits_of_its_indices(trained, tmp_path):
  runs.train(run_config('vq'), FILE, tmp_path / 'first')
  runs.train(run_config(model__autoencoder=str(tmp_path / 'first'), model__quantised=True,
                        train__steps=2), FILE, tmp_path / 'second')
  ledger = runs.evaluate(tmp_path / 'second', examples=8, times=2,
                         estimates=['vlb@3', 'iw@2x3', 'ode@2'])
  rows = {row['estimate']: row for row in ledger.rows}
  assert list(rows) == ['vlb', 'indices', 'indices/uniform', 'vlb@3', 'iw@2x3', 'ode@2']
  assert [row['kind'] for row in ledger.rows[:3]] == ['upper bound', 'upper bound', 'exact']
  assert rows['vlb']['decoder'] == 'of the codebook' and rows['vlb']['dequantiser'] is None
  # 4 positions of 5 entries, per number of 64.
  assert rows['indices/uniform']['bits_per_dim'] == pytest.approx(4 * np.log2(5) / D)
  assert list(rows['vlb']['parts']) == ['decoding', 'reconstruction', 'latent', 'diffusion']
  assert rows['vlb']['bits_per_dim'] - rows['vlb']['parts']['decoding'] == pytest.approx(
      rows['indices']['bits_per_dim'], rel=1e-5)
  assert 'iw@2x3, its paths one by one = vlb@3' in [check['name'] for check in ledger.checks]
  assert 'indices <= indices/uniform' in [check['name'] for check in ledger.checks]
  assert all(check['passed'] for check in ledger.checks if check['serious'])


@pytest.mark.long
def test_a_run_of_latents_may_start_from_another_one_with_its_autoencoder(trained, tmp_path):
  shutil.copytree(trained / 'second', tmp_path / 'second')
  runs.train(run_config(train__steps=2), FILE, tmp_path / 'third', init_from=tmp_path / 'second')
  kept = [workdir.load_trained(tmp_path / name).params for name in ('second', 'third')]
  for name in ('autoencoder', 'scale'):
    jax.tree.map(np.testing.assert_array_equal, *(of[name] for of in kept))
