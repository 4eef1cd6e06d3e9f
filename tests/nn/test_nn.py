"""The networks: sizes, starting points, dependence on what they should depend on and no more."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax.errors import InputError
from vdm_jax.nn.blocks import layers
from vdm_jax.nn.small.mlp import MLP
from vdm_jax.nn.unets.vdm import UNet

SMALL = {'features': 16, 'blocks': 0, 'groups': 4, 'fourier': (1, 2)}


def randomised(net, *args, **kwargs):
  """Random parameters: the zeros among the initial ones would hide most of a network."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    noise = rng.normal(size=leaf.shape).astype(np.float32)
    match path[-1].key:
      case 'kernel':
        return noise / np.sqrt(np.prod(leaf.shape[:-1]))
      case 'scale':
        return 1.0 + 0.1 * noise
      case 'bias':
        return 0.1 * noise
  shapes = jax.eval_shape(lambda key: net.init(key, *args, **kwargs), jax.random.key(0))['params']
  return jax.tree_util.tree_map_with_path(draw, shapes)


def inputs(shape):
  z = jax.random.normal(jax.random.key(2), shape)
  return z, jnp.linspace(12.0, -4.0, shape[0]), jax.random.split(jax.random.key(3), shape[0])


def apply(net):
  return jax.jit(lambda params, *args, **kw: net.apply({'params': params}, *args, **kw))


# ----------------------------------------------------------------- sizes


@pytest.mark.long
@pytest.mark.parametrize('settings,size,count', [
    ({'features': 128, 'blocks': 32}, 32, 30_578_179),
    ({'features': 256, 'blocks': 32}, 32, 122_137_603),
    ({'features': 256, 'blocks': 32, 'attention_everywhere': True}, 32, 139_276_803),
    ({'features': 256, 'blocks': 64}, 64, 237_603_843)],
    ids=['cifar10', 'imagenet32', 'cifar10_aug_paper', 'imagenet64'])
def test_official_settings_give_the_official_number_of_parameters(settings, size, count):
  shapes = jax.eval_shape(UNet(**settings).init, jax.random.key(0),
                          jnp.zeros((1, size, size, 3)), jnp.zeros(1))
  assert sum(u.size for u in jax.tree.leaves(shapes)) == count


@pytest.mark.first(1)
@pytest.mark.parametrize('settings', [{}, {'fourier': (), 'attention_everywhere': True},
                                      {'dtype': jnp.bfloat16, 'blocks': 2}], ids=str)
@pytest.mark.parametrize('shape', [(2, 8, 8, 1), (2, 5, 7, 4), (1, 1, 1, 3)], ids=str)
def test_the_unet_takes_images_of_any_size_and_number_of_channels(settings, shape):
  net = UNet(**SMALL | settings)
  z, logsnr, _ = inputs(shape)
  y, _ = jax.eval_shape(net.init_with_output, jax.random.key(0), z, logsnr)
  assert (y.shape, y.dtype) == (shape, jnp.float32)


# ---------------------------------------------------------------- layers


def test_fourier_features_are_sines_then_cosines_channel_by_channel():
  z = jnp.array([[2.0**-8, 0.0]])  # a quarter and a half period of the exponents 6 and 7
  np.testing.assert_allclose(layers.fourier_features(z, (6, 7)),
                             [[1, 0, 0, 0, 0, -1, 1, 1]], atol=1e-6)


def test_the_embedding_spans_frequencies_from_1_to_1e_4():
  t = jnp.array([0.0, jnp.pi / 2, 1e4 * jnp.pi / 2])
  h = layers.sinusoidal_embedding(t, 4)
  np.testing.assert_allclose(h[0], [0, 0, 1, 1], atol=1e-7)
  np.testing.assert_allclose(h[1, [0, 2]], [1, 0], atol=1e-6)
  np.testing.assert_allclose(h[2, [1, 3]], [1, 0], atol=1e-6)


@pytest.mark.long
def test_attention_with_equal_scores_adds_the_mean_value_of_all_positions():
  block = layers.AttentionBlock(groups=2)
  h = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
  params = block.init(jax.random.key(1), h)['params']
  np.testing.assert_array_equal(block.apply({'params': params}, h), h)
  eye = {'kernel': jnp.eye(4), 'bias': jnp.zeros(4)}
  nothing = {'kernel': jnp.zeros((4, 4)), 'bias': jnp.zeros(4)}
  params |= {'query': nothing, 'value': eye, 'out': eye, 'norm': params['norm']}
  x = np.asarray(h, np.float64).reshape(2, 15, 2, 2)  # two groups of two channels
  mean, var = x.mean((1, 3), keepdims=True), x.var((1, 3), keepdims=True)
  value = ((x - mean) / np.sqrt(var)).reshape(2, 15, 4).mean(1)
  got = block.apply({'params': params}, h) - h
  np.testing.assert_allclose(got, np.broadcast_to(value[:, None, None], h.shape), atol=1e-5)


@pytest.mark.gpu
def test_flash_attention_agrees_with_xla_s_to_the_resolution_of_bfloat16():
  h = jax.random.normal(jax.random.key(0), (2, 16, 16, 64), jnp.bfloat16)
  blocks = [layers.AttentionBlock(8, jnp.bfloat16, how) for how in ('cudnn', 'xla')]
  params = randomised(blocks[0], h, training=True)

  def value_and_grad(block):
    return jax.jit(jax.value_and_grad(lambda params: jnp.mean(jnp.square(
        block.apply({'params': params}, h, True).astype(jnp.float32)))))(params)
  got, want = map(value_and_grad, blocks)
  norm = lambda tree: np.sqrt(sum(np.sum(np.square(u)) for u in jax.tree.leaves(tree)))
  np.testing.assert_allclose(got[0], want[0], rtol=2.0**-7)
  assert norm(jax.tree.map(np.subtract, got[1], want[1])) < 2.0**-6 * norm(want[1])


# --------------------------------------------------------------- dropout


def test_without_keys_dropout_is_the_identity():
  h = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)
  np.testing.assert_array_equal(layers.Dropout(0.25).apply({}, h, None), h)


class TwoDropouts(nn.Module):

  @nn.compact
  def __call__(self, h, keys):
    return layers.Dropout(0.25, name='a')(h, keys), layers.Dropout(0.25, name='b')(h, keys)


@pytest.mark.long
def test_dropout_keeps_its_share_and_the_mean_and_differs_from_site_to_site():
  n = 40_000
  keys = jax.random.split(jax.random.key(0), 4)
  a, b = TwoDropouts().apply({}, jnp.ones((4, n)), keys)
  np.testing.assert_allclose(np.unique(a), [0.0, 4 / 3], rtol=1e-6)
  for mask in (a > 0, b > 0):
    assert abs(mask.mean() - 0.75) < 4 * np.sqrt(0.75 * 0.25 / mask.size)
  # Independent masks agree with probability 0.75^2 + 0.25^2, from site to site and row to row.
  p = 0.625
  for u, w in ((a, b), (a[:2], a[2:])):
    agree = (u > 0) == (w > 0)
    assert abs(agree.mean() - p) < 4 * np.sqrt(p * (1 - p) / agree.size)


# ---------------------------------------------------------- dependencies


@pytest.mark.long
def test_conditioning_needs_several_channels_to_a_group():
  """A norm over one channel takes away whatever was added to all its pixels alike."""
  z, logsnr, _ = inputs((2, 4, 4, 3))

  def change(groups):
    net = UNet(**SMALL | {'groups': groups})
    params = randomised(net, z, logsnr)
    run = apply(net)
    return np.abs(run(params, z, logsnr + 1.0) - run(params, z, logsnr)).max()

  assert change(4) > 1e-2
  assert change(16) < 1e-5


@pytest.mark.long
def test_conditioning_is_nothing_a_scalar_or_labels():
  logsnr = jnp.linspace(12.0, -4.0, 4)

  def run(classes, *conds):
    net = layers.Embedding(8, classes, 13.3, -5.0)
    params = randomised(net, logsnr)
    return jax.jit(lambda: [net.apply({'params': params}, logsnr, cond) for cond in conds])()

  none, some = run(0, None, jnp.array([0.0, 1.0, -1.0, 2.0]))
  np.testing.assert_array_equal(some[0], none[0])
  assert np.abs(some - none)[1:].max(axis=1).min() > 1e-3

  none, labelled, several = run(3, None, jnp.array([-1, 2, 0, 1]), 1.0 * jnp.eye(3)[jnp.array(
      [0, 2, 0, 1])].at[0].set(0.0))
  np.testing.assert_array_equal(labelled[0], none[0])
  assert np.abs(labelled - none)[1:].max(axis=1).min() > 1e-3
  np.testing.assert_allclose(several, labelled, rtol=1e-6, atol=1e-6)


@pytest.mark.long
def test_a_bfloat16_trunk_leaves_z_and_the_output_in_float32():
  """y - z comes from the trunk; some 40 roundings of it, each 2^-9 at most, add up like noise.

  z itself must come through unrounded: in bfloat16 it would be off by up to 2^-9 |z|.
  """
  settings = SMALL | {'blocks': 1}
  z, logsnr, _ = inputs((2, 4, 4, 3))
  wide, narrow = UNet(**settings), UNet(**settings, dtype=jnp.bfloat16)
  params = randomised(wide, z, logsnr)
  y = apply(wide)(params, z, logsnr)
  rough = apply(narrow)(params, z, logsnr)
  assert rough.dtype == jnp.float32
  rms = lambda u: np.sqrt(np.mean(np.square(u)))
  error = rms(rough - y) / rms(y - z)
  assert 1e-5 < error < np.sqrt(40) * 2.0**-9, error

  muted = params | {'conv_out': jax.tree.map(jnp.zeros_like, params['conv_out'])}
  np.testing.assert_array_equal(apply(narrow)(muted, z, logsnr), z)


# ---------------------------------------------------------------- errors


@pytest.mark.parametrize('net,cond,message', [
    (UNet(**SMALL | {'groups': 5}), None, 'groups=5: it does not divide 16 features'),
    (MLP(features=15), None, 'features=15'),
    (MLP(features=16), jnp.zeros((2, 1)), r'cond: its shape is \(2, 1\)'),
    (MLP(features=16, classes=3), jnp.zeros(2), 'one integer per example')], ids=str)
def test_what_does_not_fit_is_refused_by_name(net, cond, message):
  z = jnp.zeros((2, 4, 4, 3)) if isinstance(net, UNet) else jnp.zeros((2, 2))
  with pytest.raises(InputError, match=message):
    jax.eval_shape(net.init, jax.random.key(0), z, jnp.zeros(2), cond)
