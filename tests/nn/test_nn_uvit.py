"""U-ViT against outputs of the public code."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published
from vdm_jax.errors import InputError
from vdm_jax.nn.transformers.uvit import UViT
from vdm_jax.published import uvit

DATA = Path(__file__).parents[1] / 'data'
NETS = {
    'labels': UViT(patch=2, features=32, depth=4, attention_heads=2, classes=10, remat='none'),
    'plain': UViT(patch=4, features=32, depth=2, attention_heads=4, conv=False, remat='none')}
TINY = UViT(patch=2, features=16, depth=4, attention_heads=2, classes=3, heads=1, remat='none')
to_nhwc = lambda u: np.moveaxis(u, 1, -1)


def read(name):
  with np.load(DATA / 'uvit_small.npz') as file:
    return {path.removeprefix(name + '/'): file[path] for path in file.files
            if path.startswith(name + '/')}


def shapes_of(net, shape):
  cond = jnp.zeros(1, int) if net.classes else None
  init = lambda key: net.init(key, jnp.zeros((1, *shape)), jnp.zeros(1), cond)['params']
  return jax.eval_shape(init, jax.random.key(0))


def assert_close(u, v, tolerance, name=''):
  """To `tolerance` of the largest number."""
  np.testing.assert_allclose(u, v, rtol=0, atol=tolerance * np.abs(v).max(), err_msg=name)


def tiny_arguments():
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda u: (0.2 * rng.normal(size=u.shape)).astype(np.float32),
                        shapes_of(TINY, (4, 4, 1)))
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
  return params, draw(2, 4, 4, 1), jnp.array([3.0, 700.0]), jnp.array([1, -1]), draw(2, 4, 4, 2)


@pytest.mark.long
@pytest.mark.parametrize('name', NETS)
def test_the_published_output_and_its_gradients_repeat(name, differs):
  """Of each gradient its norm, and its inner product with a fixed direction."""
  r, net = read(name), NETS[name]
  shapes = json.loads(str(r['shapes']))
  flat = {name: published.array(name, tuple(shape)) for name, shape in shapes.items()}
  params = uvit.from_flat(flat, shapes_of(net, to_nhwc(r['x']).shape[1:]))
  back = uvit.to_flat(params)
  assert back.keys() == flat.keys()
  for path, u in back.items():
    np.testing.assert_array_equal(u, flat[path], err_msg=path)

  cotangent = to_nhwc(published.array('cotangent', r['out'].shape))
  (_, y), (gradient, by_z) = published.value_and_gradients(net)(
      params, to_nhwc(r['x']), r['t'], r.get('y'), cotangent)
  assert_close(y, to_nhwc(r['out']), 1e-5)
  differs('parity', 'nn/transformers/uvit.py', y, to_nhwc(r['out']))
  assert_close(by_z, to_nhwc(r['grad_x']), 2e-5)
  got = uvit.to_flat(gradient)
  names = json.loads(str(r['grad_names']))
  assert got.keys() == set(names)
  for path, norm, product in zip(names, r['grad_norm'], r['grad_probe'], strict=True):
    u, probe = np.float64(got[path]), published.array('probe/' + path, got[path].shape)
    np.testing.assert_allclose(np.linalg.norm(u), norm, rtol=1e-4, err_msg=path)
    assert abs(np.sum(u * probe) - product) < 1e-4 * norm * np.linalg.norm(probe), path


# Counted by instantiating the public code with its published settings.
COUNTS = {
    'cifar10_uvit': 44_255_328, 'celeba64_uvit': 44_292_228,
    'imagenet64_uvit_mid': 130_940_292, 'imagenet64_uvit_large': 286_827_652,
    'imagenet256_uvit_large': 286_763_172, 'imagenet256_uvit_huge': 500_832_016,
    'imagenet512_uvit_large': 286_861_524, 'imagenet512_uvit_huge': 500_942_656}


@pytest.mark.long
def test_every_published_network_has_its_number_of_parameters():
  assert COUNTS.keys() == uvit.MODELS.keys() == uvit.SHAPES.keys()
  for name, count in COUNTS.items():
    leaves = jax.tree.leaves(shapes_of(uvit.MODELS[name], uvit.SHAPES[name]))
    assert sum(u.size for u in leaves) == count, name


@pytest.mark.long
def test_deep_blocks_read_the_shallow_ones_in_reverse_order():
  """With depth 4, what the first shallow block makes enters by the second deep block's skip."""
  params, z, time, cond, _ = tiny_arguments()
  apply = jax.jit(lambda params: TINY.apply({'params': params}, z, time, cond))
  skip = params['deep']['skip']['kernel']
  half = TINY.features  # after it are the inputs that come from the skip connection
  # The deep blocks read their skip connections alone, so the last one's is all that counts,
  # whatever the second shallow block does, and not what the first does.
  skip[:, :half] = 0.0
  y = apply(params)
  for changed, same in ((0, False), (1, True)):
    factor = np.where(np.arange(2) == changed, 2.0, 1.0).astype(np.float32)
    shallow = jax.tree.map(lambda u, f=factor: u * f.reshape(2, *[1] * (u.ndim - 1)),
                           params['shallow'])
    off = np.abs(apply({**params, 'shallow': shallow}) - y).max()
    assert off == 0.0 if same else off > 1e-2


@pytest.mark.first(2)
@pytest.mark.parametrize('settings, cond, message', [
    ({'patch': 3}, None, 'patch=3: images of 4 x 4 pixels cannot be cut'),
    ({'depth': 3}, None, 'choose an even number'),
    ({'attention_heads': 3}, None, 'attention_heads=3: it does not divide the 16 features'),
    ({'classes': 0}, jnp.zeros(2, int), 'set `classes`'),
    ({'label_dropout': 0.0}, None, 'give labels'),
])
def test_bad_settings_say_what_to_do(settings, cond, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(TINY.clone(**settings).init, jax.random.key(0), jnp.zeros((2, 4, 4, 1)),
                   jnp.zeros(2), cond)


def test_a_network_for_another_size_of_image_is_refused():
  r = read('labels')
  flat = {name: published.array(name, tuple(shape))
          for name, shape in json.loads(str(r['shapes'])).items()}
  with pytest.raises(InputError, match=r'pos_embed is \(1, 18, 32\), which does not fit positions'):
    uvit.from_flat(flat, shapes_of(NETS['labels'], (16, 16, 3)))
