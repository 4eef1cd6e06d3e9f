"""Losses of autoencoders, LPIPS and the discriminator: the public code, closed forms, examples."""
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published, vgg
from tests.support.published import last
from vdm_jax.errors import InputError
from vdm_jax.nn.autoencoders.patchgan import PatchDiscriminator
from vdm_jax.nn.lpips import LPIPS
from vdm_jax.objectives import autoencoding
from vdm_jax.published import lpips, patchgan
from vdm_jax.units import mean_over_data

ORACLES = Path(__file__).parents[3] / 'shared' / 'oracles'
there = pytest.mark.skipif(not ORACLES.exists(), reason='../shared/oracles is not there')
assert_close = functools.partial(published.assert_close, tolerance=1e-4)
NUMBERS = 3 * 32 * 32


@pytest.fixture(scope='module')
def recorded():
  with np.load(ORACLES / 'autoencoder_loss_small.npz') as file:
    return {name: file[name] for name in file.files}


@pytest.fixture(scope='module')
def distance(recorded):
  """x, y -> LPIPS, with the recording's weights."""
  params = published.lpips_of_losses(recorded)
  return functools.partial(jax.jit(LPIPS().apply), {'params': params})


def judged(recorded):
  """The recording's discriminator, images -> logits."""
  net, params = published.discriminator_of_losses(recorded)
  return jax.jit(lambda x: net.apply({'params': params}, x))


@there
@pytest.mark.long
def test_lpips_and_its_gradient_repeat_the_public_code(recorded, distance, differs):
  x, y = last(recorded['in/x']), last(recorded['in/reconstruction'])
  got = distance(x, y)
  assert_close(got, recorded['lpips/out'])
  differs('parity', 'nn/lpips.py', got, recorded['lpips/out'])
  slope = jax.grad(lambda y: jnp.sum(distance(x, y)))(y)
  assert_close(slope, last(recorded['lpips/grad_reconstruction']))


@pytest.mark.long
def test_lpips_of_files_is_lpips_of_the_enlarged_images_also_inside_jit(tmp_path):
  """The weights of VGG-16 and of the layers in two files; they are random, and not negative."""
  rng = np.random.default_rng(0)
  x, y = (jnp.asarray(rng.uniform(-1, 1, (2, 8, 8, 3)), jnp.float32) for _ in range(2))
  params = vgg.parameters()
  files = vgg.write(tmp_path, params)
  distance = jax.jit(lpips.distance(','.join(map(str, files)), size=16))
  wanted = LPIPS().apply({'params': params}, enlarged(x), enlarged(y))
  np.testing.assert_allclose(distance(x, y), wanted, rtol=1e-4)
  assert float(wanted.min()) > 1e-4
  with pytest.raises(InputError, match='config.model.lpips=.*: there is no file .*nowhere.pth'):
    lpips.distance(f'{files[0]},{tmp_path / "nowhere.pth"}')(x, y)
  with pytest.raises(InputError, match='lin0.model.1.weight'):
    lpips.distance(str(files[0]))(x, y)


def enlarged(x):
  """[B, 8, 8, C] -> [B, 16, 16, C]: a new pixel lies a quarter of a pixel from an old one."""
  for axis in (1, 2):
    ends = jnp.take(x, jnp.array([0]), axis), jnp.take(x, jnp.array([7]), axis)
    before, after = (jnp.concatenate([ends[0], jnp.take(x, jnp.arange(7), axis)], axis),
                     jnp.concatenate([jnp.take(x, jnp.arange(1, 8), axis), ends[1]], axis))
    pair = jnp.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], axis + 1)
    x = pair.reshape(*x.shape[:axis], 16, *x.shape[axis + 1:])
  return x


@there
def test_the_discriminator_repeats_the_public_code(recorded, differs):
  discriminate = judged(recorded)
  for name, images in (('real', 'in/x'), ('fake', 'in/reconstruction')):
    got, want = discriminate(last(recorded[images])), recorded[f'discriminator/logits_{name}'][:, 0]
    assert_close(got, want)
    differs('parity', 'nn/autoencoders/patchgan.py', got, want)


@there
def test_buffers_of_the_public_files_are_left_out(recorded):
  flat = published.state_dict(recorded, 'lpips')
  more = {'scaling_layer.shift': np.zeros((1, 3, 1, 1)), 'lins.0.model.1.weight': np.zeros(3),
          'classifier.0.bias': np.zeros(3)}
  jax.tree.map(np.testing.assert_array_equal, lpips.from_flat(flat | more), lpips.from_flat(flat))
  flat = published.state_dict(recorded, 'discriminator')
  net = PatchDiscriminator(features=8, layers=2)
  like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))['params']
  more = {f'main.3.{name}': np.zeros(16) for name in ('running_mean', 'running_var')}
  jax.tree.map(np.testing.assert_array_equal, patchgan.from_flat(flat | more, like),
               patchgan.from_flat(flat, like))


class Terms(NamedTuple):
  """Of a last layer W alone, on the recorded features: kernel -> means over the images."""
  decoded: Callable
  absolute: Callable   # mean |x - x'|
  perceptual: Callable
  adversarial: Callable


@pytest.fixture(scope='module')
def terms(recorded, distance):
  x, features = last(recorded['in/x']), last(recorded['in/reconstruction'])
  discriminate = judged(recorded)

  def decoded(kernel):
    return jax.lax.conv_general_dilated(features, kernel, (1, 1), 'SAME',
                                        dimension_numbers=('NHWC', 'OIHW', 'NHWC'))
  return Terms(
      decoded, lambda kernel: jnp.mean(mean_over_data(jnp.abs(x - decoded(kernel)))),
      lambda kernel: jnp.mean(distance(x, decoded(kernel))),
      lambda kernel: jnp.mean(autoencoding.generator(discriminate(decoded(kernel)))))


@pytest.fixture(scope='module')
def slopes(recorded, terms):
  """The gradients by W of the mean reconstruction, |x - x'| + LPIPS, and of the adversarial term.
  """
  kernel = recorded['kl/last_layer']
  return (jax.grad(lambda kernel: terms.absolute(kernel) + terms.perceptual(kernel))(kernel),
          jax.grad(terms.adversarial)(kernel))


@pytest.mark.long
@there
def test_the_kl_loss_and_its_adaptive_weight_repeat_the_public_code(recorded, terms, slopes):
  """The code averages sums over images, and adds LPIPS to each number of an image."""
  r = {key.removeprefix('kl/'): u for key, u in recorded.items() if key.startswith('kl/')}
  kernel, found = r['last_layer'], terms.decoded(r['last_layer'])
  discriminate = judged(recorded)
  moments = last(r['moments'])
  kl = autoencoding.kl(*np.split(moments, 2, axis=-1)).mean()
  assert_close(kl, r['step99/kl_loss'])
  assert_close(found, last(r['reconstruction']))
  mean = terms.absolute(kernel) + terms.perceptual(kernel)
  assert_close(mean, r['step99/rec_loss'])
  assert_close(NUMBERS * mean, r['step99/nll_loss'])
  g = terms.adversarial(kernel)
  assert_close(g, r['step99/g_loss'])
  by_mean, by_g = slopes
  by_sum = NUMBERS * by_mean
  d = 0.5 * autoencoding.balance(by_sum, by_g)
  assert_close(d, r['step100/d_weight'])
  cost = NUMBERS * mean + 1e-6 * kl
  assert_close(cost, r['step99/loss'])  # before the discriminator
  assert_close(by_sum, r['step99/grad_last_layer'])
  assert_close(cost + d * g, r['step100/loss'])
  assert_close(by_sum + d * by_g, r['step100/grad_last_layer'])
  hinge = autoencoding.hinge(discriminate(last(recorded['in/x'])), discriminate(found)).mean()
  assert_close(hinge, r['step100/disc_loss'])


@pytest.mark.long
@there
def test_the_vq_loss_and_its_adaptive_weight_repeat_the_public_code(recorded, terms, slopes):
  """The code takes means; its weights are 0.75 and 1.  The loss of the codebook was given to it."""
  r = {key.removeprefix('vq/'): u for key, u in recorded.items() if key.startswith('vq/')}
  kernel = recorded['kl/last_layer']
  perceptual, g = terms.perceptual(kernel), terms.adversarial(kernel)
  assert_close(perceptual, r['p_loss'])
  reconstruction = terms.absolute(kernel) + perceptual
  assert_close(reconstruction, r['nll_loss'])
  assert_close(g, r['g_loss'])
  d = 0.75 * autoencoding.balance(*slopes)
  assert_close(d, r['d_weight'])
  assert_close(reconstruction + d * g + r['codebook_loss'], r['loss'])


@there
def test_the_divergence_of_a_latent_repeats_the_public_code():
  with np.load(ORACLES / 'latent_diffusion_small.npz') as file:
    moments, want = last(file['kl/moments']), file['kl/kl']
  assert_close(autoencoding.kl(*np.split(moments, 2, axis=-1)), want)


@there
@pytest.mark.parametrize('legacy', [True, False])
def test_the_loss_of_the_codebook_repeats_the_public_code(legacy):
  with np.load(ORACLES / 'latent_diffusion_small.npz') as file:
    h, q = file['vq/h'], file['vq/quantised']
    want = file['vq/loss_legacy' if legacy else 'vq/loss']
  assert_close(autoencoding.codebook(h, q, legacy=legacy).mean(), want)


@pytest.mark.parametrize('legacy, by_h, by_q', [(False, 0.25, 1.0), (True, 1.0, 0.25)])
def test_beta_weighs_the_move_of_h_to_the_codebook_and_in_the_legacy_the_other(legacy, by_h, by_q):
  """Of one number: gradients 2 beta (h - q) by h, and 2 (q - h) by q."""
  h, q = jnp.array([[3.0]]), jnp.array([[1.0]])
  slopes = jax.grad(lambda h, q: autoencoding.codebook(h, q, legacy=legacy).sum(), (0, 1))(h, q)
  np.testing.assert_allclose([slopes[0][0, 0], slopes[1][0, 0]], [4.0 * by_h, -4.0 * by_q])


def test_the_adaptive_weight_makes_both_gradients_equally_long():
  weight = autoencoding.balance(np.float32([30.0, 0.0]), np.float32([3.0, 4.0]))
  np.testing.assert_allclose(weight, 30.0 / (5.0 + 1e-4), rtol=1e-6)
  assert autoencoding.balance(np.float32([1e9]), np.zeros(1, np.float32)) == 1e4


@pytest.mark.parametrize('shape', [(2,), (16, 16), (16, 16, 2), (16, 16, 4)])
def test_lpips_refuses_what_is_no_image_before_its_files_are_read(shape):
  x = np.zeros((1, *shape), np.float32)
  with pytest.raises(InputError, match='config.model.lpips=.none.: LPIPS is of images of 1 or 3'):
    lpips.distance('none')(x, x)
  with pytest.raises(InputError, match='^LPIPS is of images of 1 or 3 channels with sides of 16'):
    LPIPS().apply({}, x, x)


@pytest.mark.long
def test_lpips_of_an_image_and_itself_is_zero_and_so_is_its_gradient_also_on_black():
  x = jnp.concatenate([jnp.zeros((1, 16, 16, 1)), jnp.ones((1, 16, 16, 1))])
  like = jax.eval_shape(LPIPS().init, jax.random.key(0), x, x)
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: 0.05 * rng.standard_normal(leaf.shape, np.float32), like)
  run = jax.jit(jax.value_and_grad(lambda y: jnp.sum(LPIPS().apply(params, x, y))))
  value, slope = run(x)
  assert value == 0.0 and np.all(slope == 0.0)


@pytest.mark.long
def test_logits_of_an_example_depend_on_it_alone_unless_the_norm_is_published():
  x = np.random.default_rng(0).standard_normal((3, 16, 16, 2)).astype(np.float32)
  for norm, alone in (('example', True), ('batch', False)):
    net = PatchDiscriminator(features=4, layers=2, norm=norm)
    params = net.init(jax.random.key(0), x)
    run = jax.jit(net.apply)
    assert np.allclose(run(params, x)[:1], run(params, x[:1]), atol=1e-5) == alone
  with pytest.raises(InputError, match="norm='layer': there is no such choice"):
    PatchDiscriminator(norm='layer').init(jax.random.key(0), x)


def test_means_and_sums_are_of_an_example():
  u = jnp.arange(12.0).reshape(2, 2, 3)
  np.testing.assert_allclose(mean_over_data(u), [2.5, 8.5])
