"""The U-Nets of Nichol and Dhariwal: parity with recorded outputs, published sizes, and settings.

tests/data/openai_unets.npz holds outputs for weights that `published.array` makes from their names;
larger networks, with theirs, are compared where the full recordings lie beside the repository.
"""
import ast
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published
from tests.support.published import assert_close, last, shapes_of
from vdm_jax.errors import InputError
from vdm_jax.nn.unets import adm
from vdm_jax.published import openai

DATA = Path(__file__).parents[1] / 'data' / 'openai_unets.npz'
FULL = Path(__file__).parents[3] / 'shared' / 'oracles'
SHARED = {'features': 32, 'blocks': 1, 'multipliers': (1, 2), 'attention_resolutions': (4,)}
CASES = {
    'adm': adm.UNet(**SHARED, classes=5, head_features=16, resblock_updown=True, qkv_order='new',
                    heads=1),
    'iddpm': adm.UNet(**{**SHARED, 'blocks': 2}, classes=5, attention_heads=4, heads=1),
    'lsun': adm.UNet(**{**SHARED, 'features': 64, 'multipliers': (1, 1),
                        'attention_resolutions': (8,)}, scale_shift=False, heads=1),
    'upsampler': adm.UNet(**SHARED, classes=5, attention_heads=4, resblock_updown=True, heads=1,
                          super_resolution=True),
    'classifier': adm.UNetClassifier(**SHARED, classes=7, head_features=16, resblock_updown=True),
}
# On the way down a resampling alone.
TINY = {'features': 8, 'multipliers': (1, 2), 'blocks': 0, 'attention_resolutions': (2,),
        'groups': 2, 'attention_heads': 2, 'heads': 1, 'weight_gradient': 'xla'}


@pytest.fixture(scope='module')
def recorded():
  with np.load(DATA) as file:
    return {name: file[name] for name in file.files}


def recorded_case(recorded, name):
  """The weights of a recording, by their published names, and the network's arguments."""
  shapes = json.loads(str(recorded[f'{name}/shapes']))
  flat = {key: published.array(key, tuple(shape)) for key, shape in shapes.items()}
  cond = recorded.get(f'{name}/label')
  if name == 'upsampler':
    cond = {'low_res': last(recorded[f'{name}/low_res']), 'label': cond}
  return flat, (last(recorded[f'{name}/z']), recorded[f'{name}/time'], cond)


@pytest.mark.long
@pytest.mark.parametrize('name', CASES)
def test_the_output_of_the_public_code_repeats(recorded, name, differs):
  flat, args = recorded_case(recorded, name)
  net, want = CASES[name], recorded[f'{name}/out']
  params = openai.from_flat(flat, shapes_of(net, *args))
  got = jax.jit(net.apply)({'params': params}, *args)
  assert_close(got, want if name == 'classifier' else last(want))
  differs('parity', 'nn/unets/adm.py', got, want if name == 'classifier' else last(want))


@pytest.mark.long
@pytest.mark.parametrize('name', CASES)
def test_parameters_go_back_to_their_published_names_and_shapes(recorded, name):
  flat, args = recorded_case(recorded, name)
  back = openai.to_flat(openai.from_flat(flat, shapes_of(CASES[name], *args)))
  assert back.keys() == flat.keys()
  for key, array in flat.items():
    np.testing.assert_array_equal(back[key], array, err_msg=key)


@pytest.mark.long
@pytest.mark.parametrize('file, name, settings', [
    ('guided_diffusion_small', 'adm_full',
     {'head_features': 16, 'resblock_updown': True, 'qkv_order': 'new'}),
    ('improved_diffusion_small', 'iddpm', {'attention_heads': 4})])
def test_the_full_recordings_repeat(file, name, settings):
  path = FULL / f'{file}.npz'
  if not path.exists():
    pytest.skip(f'the full recording {path.name} is not in ../shared/oracles')
  with np.load(path) as stored:
    r = {key.removeprefix(f'{name}/'): stored[key] for key in stored.files}
  config = ast.literal_eval(str(r['config']))
  net = adm.UNet(features=config['model_channels'], multipliers=config['channel_mult'],
                 blocks=config['num_res_blocks'], attention_resolutions=(16, 8), classes=10,
                 heads=1, **settings)
  args = last(r['in/x']), r['in/timesteps'], r['in/y'].astype(np.int32)
  flat = {key.removeprefix('param/'): u for key, u in r.items() if key.startswith('param/')}
  params = openai.from_flat(flat, shapes_of(net, *args))
  got, seen = jax.jit(lambda *args: net.apply(*args, capture_intermediates=True))(
      {'params': params}, *args)
  assert_close(got, last(r['out']))
  seen = seen['intermediates']
  for ours, theirs in (('conv_in', 'input_blocks.0'), ('down_1_attention', 'input_blocks.1'),
                       ('mid_1', 'middle_block'), ('upsample_1', 'output_blocks.1'),
                       ('up_3_attention', 'output_blocks.3')):
    assert_close(seen[ours]['__call__'][0], last(r[f'inter/{theirs}']))


# Counted by instantiating the public code with its published settings.
COUNTS = {
    'cifar10_uncond_50M_500K': 52_546_438,
    'imagenet64_uncond_100M_1500K': 121_063_942,
    'imagenet64_cond_270M_250K': 273_049_350,
    'upsample_cond_500K': 279_792_390,
    'lsun_uncond_100M_1200K_bs128': 113_676_678,
    '64x64_diffusion': 295_904_454,
    '128x128_diffusion': 421_529_606,
    '256x256_diffusion': 553_838_086,
    '256x256_diffusion_uncond': 552_814_086,
    '512x512_diffusion': 558_997_638,
    '64_256_upsampler': 311_795_910,
    '128_512_upsampler': 308_835_270,
    'lsun_bedroom': 552_814_086,
    '64x64_classifier': 65_438_568,
    '128x128_classifier': 42_568_040,
    '256x256_classifier': 54_096_360,
    '512x512_classifier': 54_448_360,
}


@pytest.mark.first(1)
@pytest.mark.parametrize('name', published.some(
    COUNTS, 'upsample_cond_500K', '64x64_diffusion', '64x64_classifier'))
def test_published_networks_have_their_published_sizes(name):
  net = openai.MODELS[name]
  images, cond = jnp.zeros((1, *openai.SHAPES[name])), None
  if getattr(net, 'super_resolution', False):
    cond = {'low_res': images[:, ::4, ::4]}
  shapes = shapes_of(net, images, jnp.zeros(1), cond)
  assert sum(u.size for u in jax.tree.leaves(shapes)) == COUNTS[name]


def test_every_published_file_has_a_network_whose_size_is_known():
  known = [(openai.MODELS[name].clone(dropout=0.0), openai.SHAPES[name]) for name in COUNTS]
  assert all((net.clone(dropout=0.0), openai.SHAPES[name]) in known
             for name, net in openai.MODELS.items())


def test_weights_of_another_network_are_refused_by_name(recorded):
  flat, args = recorded_case(recorded, 'adm')
  like = shapes_of(CASES['adm'].clone(resblock_updown=False), *args)
  with pytest.raises(InputError, match=r'missing: input_blocks.2.0.op.weight(.|\n)*'
                                       r'left over: input_blocks.2.0.in_layers.0.weight'):
    openai.from_flat(flat, like)


# ------------------------------------------------------- settings


@pytest.mark.long
def test_untrained_blocks_are_the_identity():
  h, embedding = jnp.ones((1, 4, 4, 8)), jnp.ones((1, 32))
  for block, inputs in ((adm.ResBlock(8, groups=2), (h, embedding)),
                        (adm.AttentionBlock(groups=2), (h,))):
    y = jax.jit(block.init_with_output)(jax.random.key(0), *inputs)[0]
    np.testing.assert_array_equal(y, h)


def test_what_does_not_fit_is_an_error_that_names_the_remedy():
  z, time, label = jnp.zeros((2, 4, 4, 1)), jnp.zeros(2), jnp.zeros(2, jnp.int32)

  def attempt(net, cond=None, z=z):
    return jax.eval_shape(net.init, jax.random.key(0), z, time, cond)
  for net, cond, message in (
      (adm.UNet(**{**TINY, 'groups': 3}), None, 'groups=3: .*choose a divisor'),
      (adm.UNet(**{**TINY, 'attention_heads': 3}), None, 'attention_heads=3: .*choose a divisor'),
      (adm.UNet(**TINY, head_features=3), None, 'head_features=3: .*choose a divisor'),
      (adm.UNet(**{**TINY, 'features': 7, 'groups': 1}), None, 'features=7: .* even'),
      (adm.UNet(**{**TINY, 'multipliers': (1, 1, 1, 1)}), None, '4 x 4 .*cannot be halved 3 times'),
      (adm.UNet(**TINY), label, 'set `classes`'),
      (adm.UNet(**TINY, classes=3), label.astype(jnp.float32), 'one integer per example'),
      (adm.UNet(**TINY, classes=3), label[:1], 'one integer per example'),
      (adm.UNet(**TINY, super_resolution=True), label[:0], 'low_res'),
      (adm.UNet(**TINY, super_resolution=True), None, 'low_res'),
      (adm.UNetClassifier(**SHARED, head_features=0), None, 'head_features=0'),
  ):
    with pytest.raises(InputError, match=message):
      attempt(net, cond)
