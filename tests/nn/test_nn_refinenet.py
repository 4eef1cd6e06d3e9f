"""NCSN and NCSNv2 repeat the public code's outputs, from parameters of the public names."""
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published
from vdm_jax.errors import InputError
from vdm_jax.nn.unets import refinenet
from vdm_jax.nn.unets.refinenet import RefineNet
from vdm_jax.published import ncsnv2

DATA = Path(__file__).parents[1] / 'data'
SMALL = {'ncsn': RefineNet(features=8, levels=5),
         'ncsnv2': RefineNet(features=8),
         'ncsnv2_deeper': ncsnv2.MODELS['ncsnv2-bedroom'].clone(features=8),
         'ncsnv2_deepest': ncsnv2.MODELS['ncsnv2-ffhq'].clone(features=8)}


@functools.cache
def recorded():
  with np.load(DATA / 'ncsn_refinenet.npz') as file:
    return {name: file[name] for name in file.files}


def case(name):
  """The public parameters, and the recorded input, as ours has it, and output."""
  r = recorded()
  shapes = json.loads(r[f'{name}/shapes'].tobytes())
  flat = {key: published.array(key, tuple(shape)) for key, shape in shapes}
  nhwc = lambda u: u.transpose(0, 2, 3, 1)
  time = r[f'{name}/level'] if name == 'ncsn' else r[f'{name}/sigma']
  return flat, nhwc(r[f'{name}/x']), np.float32(time), nhwc(r[f'{name}/y'])


@functools.cache
def shapes_of(net, size=8, channels=3):
  z = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
  return jax.eval_shape(net.init, jax.random.key(0), z, jax.ShapeDtypeStruct((1,), jnp.float32)
                        )['params']


def parameters(name, net=None):
  net = net or SMALL[name]
  flat, z, time, y = case(name)
  return ncsnv2.from_flat(flat, shapes_of(net, z.shape[1]), net), z, time, y


def assert_close(got, want, tolerance):
  """To `tolerance` of the largest number."""
  np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


@pytest.mark.long
@pytest.mark.parametrize('name', SMALL)
def test_the_output_of_the_public_code_repeats(name, differs):
  params, z, time, y = parameters(name)
  got = jax.jit(SMALL[name].apply)({'params': params}, z, time)
  assert got.dtype == jnp.float32
  assert_close(got, y, 2e-5)
  differs('parity', 'nn/unets/refinenet.py', got, y)


@pytest.mark.long
@pytest.mark.parametrize('name', SMALL)
def test_parameters_go_back_to_their_public_names(name):
  flat, *_ = case(name)
  back = ncsnv2.to_flat(parameters(name)[0], SMALL[name])
  flat.pop('sigmas', None)
  assert back.keys() == flat.keys()
  for key, array in flat.items():
    np.testing.assert_array_equal(back[key], array)


@pytest.mark.long
def test_a_prefix_of_parallel_training_is_taken_off_and_what_does_not_fit_is_named():
  net = SMALL['ncsnv2']
  flat, *_ = case('ncsnv2')
  prefixed = {f'module.{name}': array for name, array in flat.items()}
  jax.tree.map(np.testing.assert_array_equal, ncsnv2.from_flat(prefixed, shapes_of(net), net),
               parameters('ncsnv2')[0])
  del prefixed['module.res2.0.conv2.conv.weight']
  with pytest.raises(InputError, match=r'missing: res2\.0\.conv2\.conv\.weight'):
    ncsnv2.from_flat(prefixed, shapes_of(net), net)
  deeper = SMALL['ncsnv2_deeper']
  with pytest.raises(InputError, match=r'missing: res5.*compare|compare.*\n.*missing: refine'):
    ncsnv2.from_flat(flat, shapes_of(deeper), deeper)


# Counted by instantiating the public code.
COUNTS = {'ncsn-mnist': 7_638_657, 'ncsn-cifar10': 30_117_635, 'ncsn-celeba': 30_117_635,
          'ncsnv2-cifar10': 29_694_083, 'ncsnv2-celeba': 29_694_083, 'ncsnv2-church': 83_445_379,
          'ncsnv2-bedroom': 83_445_379, 'ncsnv2-tower': 83_445_379, 'ncsnv2-ffhq': 94_132_611}


@pytest.mark.long
@pytest.mark.parametrize('name', published.some(
    ncsnv2.MODELS, 'ncsn-mnist', 'ncsnv2-church', 'ncsnv2-ffhq'))
def test_published_models_have_their_number_of_parameters(name):
  height, width, channels = ncsnv2.SHAPES[name]
  assert height == width
  shapes = shapes_of(ncsnv2.MODELS[name], 32 if channels == 3 else 28, channels)
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == COUNTS[name]
  levels = ncsnv2.MODELS[name].levels
  assert levels in (0, ncsnv2.LEVELS[name][2])


@pytest.mark.long
def test_the_score_of_ncsnv2_is_divided_by_sigma_and_reads_it_nowhere_else():
  params, z, time, _ = parameters('ncsnv2')
  apply = jax.jit(SMALL['ncsnv2'].apply)
  one, ten = (apply({'params': params}, z, c * time) for c in (1.0, 10.0))
  assert_close(10.0 * ten, one, 1e-6)


@pytest.mark.long
def test_an_image_is_seen_alone_and_its_level_is_the_nearest_there_is():
  params, z, time, y = parameters('ncsn')
  apply = jax.jit(SMALL['ncsn'].apply)
  assert_close(apply({'params': params}, z[::-1], time[::-1]), y[::-1], 2e-5)
  assert_close(apply({'params': params}, z, time + np.float32([0.4, 3.0])), y, 2e-5)


def test_resizing_puts_corners_on_corners_and_is_exact_on_planes():
  height, width = np.mgrid[0:1:3j, 0:1:2j]
  plane = lambda u, v: 2.0 + 3.0 * u - 5.0 * v
  fine = plane(*np.mgrid[0:1:7j, 0:1:4j])
  got = refinenet._resize(jnp.float32(plane(height, width))[None, :, :, None], 7, 4)
  np.testing.assert_allclose(got[0, :, :, 0], fine, rtol=0, atol=2e-6)


@pytest.mark.long
def test_initial_values_are_those_of_the_paper():
  block = refinenet.ResBlock(16, levels=5, weight_gradient='xla')
  params = block.init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)), jnp.zeros(1, jnp.int32)
                      )['params']
  table = np.asarray(params['norm1']['embedding'])
  assert table.shape == (5, 48) and not table[:, 32:].any()
  scales = table[:, :32]
  assert abs(scales.mean() - 1.0) < 4.5 * 0.02 / np.sqrt(scales.size)
  assert abs(scales.std() / 0.02 - 1.0) < 4.5 / np.sqrt(2 * scales.size)
  kernel = np.asarray(params['conv1']['kernel'])
  bound = 1.0 / np.sqrt(np.prod(kernel.shape[:-1]))  # uniform within it
  assert 0.98 * bound < np.abs(kernel).max() <= bound


def test_what_it_cannot_do_is_said():
  net = SMALL['ncsnv2']
  z, time = jnp.zeros((1, 8, 8, 3)), jnp.ones(1)
  start = lambda net, *args: jax.eval_shape(net.init, jax.random.key(0), *args)
  with pytest.raises(InputError, match='no labels'):
    start(net, z, time, jnp.zeros(1, jnp.int32))
  with pytest.raises(InputError, match='one of each'):
    start(net.clone(dilations=(1, 2)), z, time)
  with pytest.raises(InputError, match='7 x 8 pixels'):
    start(net, z[:, 1:], time)
