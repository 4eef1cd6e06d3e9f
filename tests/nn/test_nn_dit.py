"""DiT against outputs of the public code, and what its paper says of it."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published
from vdm_jax import denoisers, guidance, processes, schedules, targets
from vdm_jax.errors import InputError
from vdm_jax.nn.blocks import transformer
from vdm_jax.nn.transformers.dit import Block, DiT, positions
from vdm_jax.published import dit
from vdm_jax.typing import Model

DATA = Path(__file__).parents[1] / 'data'
FULL = Path(__file__).parents[3] / 'shared' / 'oracles' / 'dit_small.npz'
SMALL = DiT(patch=2, features=48, depth=3, attention_heads=4, classes=10, heads=1, remat='none')
TINY = DiT(patch=2, features=16, depth=2, attention_heads=2, classes=3, heads=1, remat='none')
to_nhwc = lambda u: np.moveaxis(u, 1, -1)


def read(path):
  with np.load(path) as file:
    return {name: file[name] for name in file.files}


def shapes_of(net, shape):
  init = lambda key: net.init(key, jnp.zeros((1, *shape)), jnp.zeros(1))['params']
  return jax.eval_shape(init, jax.random.key(0))


def random_parameters(net, shape):
  """Away from the initial zeros, which would hide most of the network."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda u: (0.3 * rng.normal(size=u.shape)).astype(np.float32),
                      shapes_of(net, shape))


def assert_close(u, v, tolerance, name=''):
  """To `tolerance` of the largest number."""
  np.testing.assert_allclose(u, v, rtol=0, atol=tolerance * np.abs(v).max(), err_msg=name)


@pytest.fixture(scope='module')
def recorded():
  r = read(DATA / 'dit_small.npz')
  flat = {name: published.array(name, tuple(shape))
          for name, shape in json.loads(str(r['shapes'])).items() if name != 'pos_embed'}
  return r, dit.from_flat(flat, shapes_of(SMALL, (8, 8, 4)))


@pytest.mark.long
def test_the_published_output_and_its_gradients_repeat(recorded, differs):
  """Of each gradient its norm, and its inner product with a fixed direction."""
  r, params = recorded
  cotangent = to_nhwc(published.array('cotangent', r['out'].shape))
  (_, y), (gradient, by_z) = published.value_and_gradients(SMALL)(
      params, to_nhwc(r['x']), r['t'], r['y'], cotangent)
  assert_close(y, to_nhwc(r['out']), 1e-5)
  differs('parity', 'nn/transformers/dit.py', y, to_nhwc(r['out']))
  assert_close(by_z, to_nhwc(r['grad_x']), 2e-5)
  flat = dit.to_flat(gradient)
  names = json.loads(str(r['grad_names']))
  assert flat.keys() == set(names)
  for name, norm, product in zip(names, r['grad_norm'], r['grad_probe'], strict=True):
    probe = published.array('probe/' + name, flat[name].shape)
    got = np.float64(flat[name])
    np.testing.assert_allclose(np.linalg.norm(got), norm, rtol=1e-4, err_msg=name)
    assert abs(np.sum(got * probe) - product) < 1e-4 * norm * np.linalg.norm(probe), name


@pytest.mark.long
def test_the_published_values_within_the_network_repeat(recorded):
  r, params = recorded
  seen = jax.jit(lambda *args: SMALL.apply(
      {'params': params}, *args, capture_intermediates=True)[1]['intermediates'])(
          to_nhwc(r['x']), r['t'], r['y'])
  out = {name: seen[name]['__call__'][0] for name in ('patches', 'time', 'label')}
  assert_close(out['patches'], r['inter/x_embedder'], 1e-5)
  assert_close(out['time'], r['inter/t_embedder'], 1e-4)
  np.testing.assert_array_equal(out['label'], params['label']['embedding'][r['y']])
  # The blocks leave no record.
  h, c = out['patches'] + positions(4, 4, 48), out['time'] + out['label']
  for i in range(3):
    h = Block(4).apply({'params': jax.tree.map(lambda u, i=i: u[i], params['blocks'])}, h, c)
    if f'inter/blocks.{i}' in r:
      assert_close(h, r[f'inter/blocks.{i}'], 2e-5, f'block {i}')


@pytest.mark.long
def test_full_recorded_gradients_repeat_for_every_parameter():
  if not FULL.exists():
    pytest.skip(f'the full recording {FULL.name} is not in ../shared/oracles')
  r = {name.removeprefix('dit_small/'): u for name, u in read(FULL).items()}
  flat = {name[6:]: u for name, u in r.items() if name.startswith('param/')}
  like = shapes_of(SMALL, (8, 8, 4))
  params = dit.from_flat(flat, like)  # with pos_embed
  (_, y), (gradient, by_z) = published.value_and_gradients(SMALL)(
      params, to_nhwc(r['in/x']), r['in/t'], r['in/y'].astype(np.int32), to_nhwc(r['cotangent']))
  assert_close(y, to_nhwc(r['out']), 1e-5)
  assert_close(by_z, to_nhwc(r['grad_x']), 2e-5)
  for name, u in dit.to_flat(gradient).items():
    assert_close(u, r['grad/' + name], 1e-4, name)


@pytest.mark.long
@pytest.mark.parametrize('channels', [3, 4])
def test_classifier_free_guidance_repeats_the_published_one(recorded, channels):
  """The public code guides the first three of four channels alone; four are recorded too.

  Its scale 4 is 1 + w here.
  """
  r, params = recorded
  net = lambda *args: SMALL.apply({'params': params}, *args)
  told = denoisers.denoiser(net, targets.eps, lambda z, level: (z, jnp.full(1, 100.0)),
                              heads=('variance',))
  process = processes.GaussianProcess(schedules.Linear())
  model = Model(told, process, None, None, None, lambda label: label, (8, 8, 4),
                null=lambda label: jnp.full_like(label, -1))
  guided = guidance.Guidance(3.0, channels=channels % 4).of(model)  # 0: all
  level = process(jnp.full(1, 0.4))
  label = guided.cond(jnp.array([3]))
  estimate = jax.jit(lambda z: guided.denoise(z, level, label))(to_nhwc(r['cfg_x']))
  want = to_nhwc(r[f'cfg_out_{channels}'])
  got = jnp.concatenate([estimate.eps, estimate.extra['variance']], axis=-1)
  assert_close(got, want, 2e-5)


def test_an_image_cut_into_patches_and_put_together_is_the_image():
  z = np.random.default_rng(0).normal(size=(2, 6, 4, 3))
  h = transformer.patchify(z, 2)
  assert h.shape == (2, 6, 12)
  # The second patch of the first row holds rows 0, 1 and columns 2, 3.
  np.testing.assert_array_equal(h[0, 1], z[0, :2, 2:].ravel())
  np.testing.assert_array_equal(transformer.unpatchify(h, 2, 6, 4), z)


@pytest.mark.long
def test_at_first_every_block_is_the_identity():
  z = jax.random.normal(jax.random.key(0), (2, 4, 6, 1))
  params = jax.jit(TINY.init)(jax.random.key(1), z, jnp.ones(2))['params']
  h, c = jax.random.normal(jax.random.key(2), (2, 6, 16)), jnp.ones((2, 16))
  for i in range(2):
    block = jax.tree.map(lambda u, i=i: u[i], params['blocks'])
    np.testing.assert_array_equal(Block(2).apply({'params': block}, h, c), h)
  # Xavier: uniform within sqrt(6 / (inputs + outputs)), of the fused map and of the patches too.
  for kernel, bound in ((params['blocks']['attention']['qkv']['kernel'], np.sqrt(6 / 64)),
                        (params['patches']['kernel'], np.sqrt(6 / 20))):
    assert 0.8 * bound < np.abs(kernel).max() <= bound


def test_the_positions_of_an_image_tell_its_columns_then_its_rows():
  table = positions(3, 5, 8).reshape(3, 5, 8)
  np.testing.assert_array_equal(table[0], table[2] * [1, 1, 1, 1, 0, 0, 0, 0]
                                + table[0, :1] * [0, 0, 0, 0, 1, 1, 1, 1])
  np.testing.assert_allclose(table[2, 3], [np.sin(3), np.sin(0.03), np.cos(3), np.cos(0.03),
                                           np.sin(2), np.sin(0.02), np.cos(2), np.cos(0.02)],
                             rtol=1e-6)


@pytest.mark.long
def test_labels_are_not_told_at_the_rate_whatever_the_batch():
  rate, n = 0.25, 400
  net = transformer.Labels(2, 1, rate)
  params = {'params': {'embedding': jnp.array([[0.0], [1.0], [2.0]])}}
  keys = jax.random.split(jax.random.key(0), n)
  out = net.apply(params, jnp.zeros(n, int), jnp.zeros(n), keys)[:, 0]
  assert set(np.asarray(out)) == {0.0, 2.0}
  assert abs(np.mean(out == 2.0) - rate) < 4 * np.sqrt(rate * (1 - rate) / n)
  some = slice(7, 60, 3)
  np.testing.assert_array_equal(
      net.apply(params, jnp.zeros(n, int)[some], jnp.zeros(n)[some], keys[some])[:, 0], out[some])
  # Without keys, what is said is told.
  cond = jnp.array([0, 1, -1])
  np.testing.assert_array_equal(net.apply(params, cond, jnp.zeros(3))[:, 0], [0.0, 1.0, 2.0])
  np.testing.assert_array_equal(net.apply(params, None, jnp.zeros(3))[:, 0], 2.0)
  assert np.isnan(net.apply(params, jnp.array([3]), jnp.zeros(1))).all()


# Peebles and Xie's code, instantiated with its settings; without the table of positions.
COUNTS = {'S': (32_865_056, 32_920_448, 33_142_016),
          'B': (130_315_808, 130_426_496, 130_869_248),
          'L': (457_840_672, 457_988_224, 458_578_432),
          'XL': (674_834_720, 675_000_704, 675_664_640)}


@pytest.mark.long
def test_every_published_size_has_its_number_of_parameters():
  for size, counts in COUNTS.items():
    for patch, count in zip((2, 4, 8), counts, strict=True):
      leaves = jax.tree.leaves(shapes_of(dit.MODELS[f'DiT-{size}/{patch}'], (32, 32, 4)))
      assert sum(u.size for u in leaves) == count, (size, patch)
  for name, shape in dit.SHAPES.items():
    leaves = jax.tree.leaves(shapes_of(dit.MODELS[name], shape))
    assert sum(u.size for u in leaves) == COUNTS['XL'][0]


@pytest.mark.long
def test_every_parameter_goes_to_its_published_name_and_back(recorded):
  r, params = recorded
  flat = dit.to_flat(params)
  shapes = json.loads(str(r['shapes']))
  assert flat.keys() | {'pos_embed'} == shapes.keys()
  for name, u in flat.items():
    np.testing.assert_array_equal(u, published.array(name, tuple(shapes[name])), err_msg=name)


@pytest.mark.long
def test_positions_that_are_not_the_fixed_ones_are_refused(recorded):
  _, params = recorded
  flat = dit.to_flat(params)
  table = positions(4, 4, 48)[None]
  jax.tree.map(np.testing.assert_array_equal,
               dit.from_flat({**flat, 'pos_embed': table}, params), params)
  for wrong in (table + 0.01, table[:, :-1], table[:, ::-1]):
    with pytest.raises(InputError, match='pos_embed .* is not the fixed table'):
      dit.from_flat({**flat, 'pos_embed': wrong}, params)


@pytest.mark.parametrize('settings, cond, message', [
    ({'patch': 3}, None, 'patch=3: images of 4 x 4 pixels cannot be cut'),
    ({'features': 18}, None, 'features=18'),
    ({'attention_heads': 3}, None, 'attention_heads=3: it does not divide the 16 features'),
    ({'classes': 0}, jnp.zeros(2, int), 'set `classes`'),
    ({'label_dropout': 0.0}, None, 'give labels'),
    ({}, jnp.zeros(2), 'one integer per example'),
])
def test_bad_settings_say_what_to_do(settings, cond, message):
  with pytest.raises(InputError, match=message):
    jax.eval_shape(TINY.clone(**settings).init, jax.random.key(0), jnp.zeros((2, 4, 4, 1)),
                   jnp.zeros(2), cond)
