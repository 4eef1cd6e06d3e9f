"""Upsamplers of a cascade: the small images, their noise in closed form, and a cascade of runs."""
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import configs
from tests.support.published import shapes_of
from vdm_jax import data, guidance, random, runs, schedules
from vdm_jax.data import images, shapes
from vdm_jax.errors import InputError
from vdm_jax.nn.unets import adm
from vdm_jax.nn.unets.glide import GLIDEUNet
from vdm_jax.processes import GaussianProcess
from vdm_jax.samplers import catalogue
from vdm_jax.systems import compose
from vdm_jax.systems.guided import upsampling
from vdm_jax.systems.variational import vdm
from vdm_jax.typing import Context

ENDS = 13.3, -9.0
N, NOISE = 20_000, 0.5


def test_a_small_image_has_the_means_of_blocks_and_halves_round_up():
  image = np.array([[0, 1, 7, 9], [1, 0, 8, 8], [255, 255, 3, 4], [255, 254, 3, 4]], np.uint8)
  for of in (np, jnp):
    small = images.block_means(of.asarray(image[None, :, :, None]), 2)
    assert small.dtype == np.uint8
    np.testing.assert_array_equal(small[0, ..., 0], [[1, 8], [255, 4]])  # 0.5, 8, 254.75, 3.5


def test_data_of_arrays_become_small_images_and_sizes_that_do_not_divide_are_refused():
  config = data.default_config()
  config.update(name='shapes', tokeniser='words', image_size=8)
  split = data.Data(config).split('test')
  assert split.spec.shape == (8, 8, 3) and split.spec.levels == 256
  small = split.get(np.arange(3))
  config.image_size = 0
  large = data.Data(config).split('test').get(np.arange(3))
  np.testing.assert_array_equal(small['caption'], large['caption'])
  means = np.mean(np.float64(large['image']).reshape(3, 8, 2, 8, 2, 3), axis=(2, 4))
  np.testing.assert_array_equal(small['image'], np.floor(means + 0.5))
  config.image_size = 5
  with pytest.raises(InputError, match='config.data.image_size=5: shapes has examples of'):
    data.resolve(config)


def experiment(noise=NOISE, factor=2):
  """A system whose loss tells what its network is told: 4 x 4 numbers of levels, factor 2."""
  config = vdm.default_config(upsampling=factor, low_res_noise=noise)
  config.data.update(name='made', shape=(4, 4, 1), levels=256)
  process = GaussianProcess(schedules.Cosine(*ENDS))

  def objective(denoise, process, x, t, keys, cond):
    seen = cond['low_res'].reshape(len(x), 4)
    return 16 * math.log(2.0) * seen[:, 0], {
        'square': 16 * jnp.square(seen[:, 0]), 'product': 16 * seen[:, 0] * seen[:, 1],
        's': 16 * cond.get('low_res_noise', jnp.zeros(len(x)))}
  beside = ('low_res', *['low_res_noise'] * (noise > 0.0))
  return upsampling.experiment(config, factor, process, noise, lambda inner: compose.experiment(
      inner, net=adm.UNet(), schedule=process.schedule, objective=objective, condition=None,
      beside=beside))


def told(noise, u):
  """The means over many examples of what the network is told in training, of images of level u."""
  one = experiment(noise)
  batch = {'image': jnp.full((N, 4, 4, 1), u, jnp.uint8)}
  context = Context(jnp.full(N, 0.5), random.per_example(random.key(0), jnp.arange(N)),
                    jnp.int32(0))
  losses, terms = jax.jit(lambda: one.loss({'net': {}}, batch, context))()
  return {'mean': np.float64(losses), **{name: np.float64(u) for name, u in terms.items()}}


@pytest.mark.long
def test_training_is_told_the_small_image_with_noise_of_uniform_time_in_closed_form():
  """On this schedule alpha_s = cos(a s + b) and sigma_s = sin(a s + b), and s ~ U[0, S]."""
  b = math.atan(math.exp(-0.5 * ENDS[0]))
  a = math.atan(math.exp(-0.5 * ENDS[1])) - b
  y = 2.0 * 204 / 255 - 1.0
  sine = lambda k: (math.sin(k * (a * NOISE + b)) - math.sin(k * b)) / (k * a * NOISE)
  alpha, square = sine(1), 0.5 + 0.5 * sine(2)  # the means of alpha_s and alpha_s^2
  found = told(NOISE, 204)
  for name, want in (('mean', alpha * y), ('square', square * y**2 + 1.0 - square),
                     ('product', square * y**2), ('s', NOISE / 2)):  # noise is independent
    each = found[name]
    assert abs(each.mean() - want) < 4 * each.std() / N**0.5, name
  assert found['s'].min() >= 0.0 and found['s'].max() <= NOISE
  plain = told(0.0, 204)
  np.testing.assert_allclose(plain['mean'], y, rtol=1e-6)
  np.testing.assert_array_equal(plain['s'], 0.0)


@pytest.mark.long
def test_sampling_is_told_the_given_image_with_noise_of_the_given_time():
  model = experiment().model({'net': {}})
  batch = model.conditions(np.arange(N), low_res=np.full((2, 2, 1), 204), low_res_noise=0.3)
  keys = random.per_example(random.key(1), jnp.arange(N))
  cond = model.latent(keys).cond(batch)
  np.testing.assert_allclose(cond['low_res_noise'], 0.3, rtol=1e-6)
  seen = np.float64(cond['low_res']).reshape(N, 4)
  logsnr = float(schedules.Cosine(*ENDS)(jnp.float32(0.3)))
  alpha, variance = (1.0 + math.exp(-logsnr))**-0.5, 1.0 / (1.0 + math.exp(logsnr))
  off = seen - alpha * (2.0 * 204 / 255 - 1.0)
  assert abs(off.mean()) < 4 * (variance / off.size)**0.5
  assert abs(off.var() - variance) < 4 * variance * (2 / off.size)**0.5
  # Evaluated, it is told the clean image, of the data or as given.
  clean = model.cond({'image': np.full((1, 4, 4, 1), 204, np.uint8)})
  np.testing.assert_allclose(clean['low_res'], 2.0 * 204 / 255 - 1.0, rtol=1e-6)
  assert clean['low_res_noise'] == 0.0
  with pytest.raises(InputError, match='config.model.upsampling=3: blocks of so many pixels'):
    experiment(factor=3)
  with pytest.raises(InputError, match='config.model.low_res_noise=1.5'):
    experiment(1.5)


@pytest.mark.long
def test_the_network_reads_the_time_of_the_noise_by_an_embedding_of_its_own():
  net = adm.UNet(features=8, multipliers=(1, 2), blocks=0, groups=4, attention_resolutions=(),
                 super_resolution=True)
  noisy = net.clone(low_res_noise=True)
  rng = np.random.default_rng(0)
  z, time = rng.normal(size=(2, 8, 8, 3)).astype(np.float32), np.array([5.0, 300.0], np.float32)
  cond = {'low_res': rng.normal(size=(2, 4, 4, 3)).astype(np.float32)}
  with_time = lambda u: {**cond, 'low_res_time': np.full(2, u, np.float32)}
  params = jax.tree.map(lambda u: 0.3 * rng.normal(size=u.shape).astype(np.float32),
                        shapes_of(noisy, z, time, with_time(0.0)))
  run = jax.jit(lambda params, cond: noisy.apply({'params': params}, z, time, cond))
  assert np.abs(run(params, with_time(10.0)) - run(params, with_time(500.0))).max() > 1e-3
  own = params.pop('low_res_embedding')
  silent = {**params, 'low_res_embedding': {
      **own, 'dense1': jax.tree.map(np.zeros_like, own['dense1'])}}
  np.testing.assert_allclose(run(silent, with_time(500.0)), net.apply(
      {'params': params}, z, time, cond), rtol=1e-4, atol=1e-5)
  # GLIDE's network takes a time from 0 to 1, and real numbers as they are.
  told = {'low_res': cond['low_res'], 'low_res_noise': np.full(2, 0.5, np.float32)}
  seen = []
  watch = lambda net, cond: seen.append({name: cond[name] for name in told if name in cond} | {
      'time': cond['low_res_time']}) or z

  class Told(adm.UNet):
    def __call__(self, z, time, cond=None, keys=None):
      return watch(self, cond)
  GLIDEUNet(Told()).apply({'params': {}}, z, time, told)
  np.testing.assert_array_equal(seen[0]['time'], 500.0)
  np.testing.assert_array_equal(seen[0]['low_res'], cond['low_res'])
  with pytest.raises(InputError, match='low_res_noise=True: this network reads no small image'):
    shapes_of(noisy.clone(super_resolution=False), z, time, with_time(0.0))


@pytest.mark.long
def test_a_cascade_of_runs_draws_small_images_and_then_large_ones(tmp_path):
  def trained(stage):
    module, config = configs.read(f'text/cascade_shapes:{stage}')
    config.model.features = 16
    config.text.update(features=8, depth=1, outputs=64)
    config.data.update(batch_size=4, validation=4)
    config.train.update(steps=2, log_every=2, validate_every=2, checkpoint_every=2,
                        validation_repeats=1, splits=('validation',))
    runs.train(config, configs.file('text/cascade_shapes'), tmp_path / stage)
    return tmp_path / stage
  base, large = trained('base'), trained('upsampler')
  draw = {'count': 4, 'batch_size': 4, 'method': catalogue.method('ddim', 2),
          'prompts': shapes.CAPTIONS[:2]}
  runs.sample(base, tmp_path / 'small.npz', **draw)
  small = np.load(tmp_path / 'small.npz')['images']
  assert small.shape == (4, 8, 8, 3)

  def upsampled(name, noise, w=None):
    runs.sample(large, tmp_path / f'{name}.npz', condition={
        'low_res': str(tmp_path / 'small.npz'), 'low_res_noise': noise},
                guided=None if w is None else guidance.Guidance(w), **draw)
    return np.load(tmp_path / f'{name}.npz')
  plain = upsampled('plain', '0.2')
  assert plain['images'].shape == (4, 16, 16, 3)
  np.testing.assert_array_equal(plain['low_res'], small)
  np.testing.assert_allclose(plain['low_res_noise'], 0.2, rtol=1e-6)
  guided = upsampled('guided', '0.2', 0.0)  # of weight 0, so the same noise gives the same images
  assert np.abs(np.int32(plain['images']) - guided['images']).max() <= 1
