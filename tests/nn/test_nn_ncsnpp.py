"""NCSN++ and DDPM++: the public code's outputs and counts, and what the settings promise."""
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published
from vdm_jax import denoisers, processes, schedules, targets
from vdm_jax import inputs as views
from vdm_jax.errors import InputError
from vdm_jax.nn.blocks import layers
from vdm_jax.nn.unets.ncsnpp import NCSNpp, ResBlock, downsample, upsample
from vdm_jax.published import score_sde

RECORDED = Path(__file__).parents[1] / 'data' / 'score_sde_ncsnpp.npz'
TINY = {'features': 8, 'multipliers': (1, 2), 'blocks': 1, 'attention_resolutions': (4,)}
SMALL = {'multipliers': (1,), 'attention_resolutions': ()}
DDPMPP = {'fir': (), 'progressive_input': 'none', 'embedding': 'positional',
          'scale_by_sigma': False}
CASES = {
    've': {},
    'vp': {**DDPMPP, 'multipliers': (1, 2, 2)},
    'skip': {'progressive': 'output_skip', 'progressive_input': 'input_skip', 'blocks': 2,
             'multipliers': (1, 1, 2)},
    'cat': {'progressive': 'residual', 'progressive_input': 'input_skip', 'combine': 'cat',
            'scale_by_sigma': False},
    'ddpm': {**DDPMPP, 'block': 'ddpm', 'rescale': False, 'progressive': 'output_skip',
             'progressive_input': 'residual'},
    'ddpm_fir': {'block': 'ddpm', 'progressive': 'residual'},
    'ddpm_pool': {'block': 'ddpm', 'fir': (), 'resample_conv': False, 'progressive_input': 'none',
                  'scale_by_sigma': False},
}


@pytest.fixture(scope='module')
def recorded():
  with np.load(RECORDED) as file:
    return {name: file[name] for name in file.files}


def network(**settings):
  return NCSNpp(**{**TINY, 'remat': 'none', 'weight_gradient': 'xla', **settings})


def shapes_of(net, size=8, channels=3):
  z = jax.ShapeDtypeStruct((1, size, size, channels), jnp.float32)
  return jax.eval_shape(net.init, jax.random.key(0), z, jnp.ones(1))['params']


def parameters(net, size=4):
  """Away from the initial values, which nearly mute every branch."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda u: (0.3 * rng.normal(size=u.shape)).astype(np.float32),
                      shapes_of(net, size))


def inputs(batch=2, size=4):
  z = jax.random.normal(jax.random.key(1), (batch, size, size, 3))
  return z, jnp.linspace(0.2, 3.0, batch), jax.random.split(jax.random.key(2), batch)


def relative(value, expected):
  return np.abs(value - expected).max() / np.abs(expected).max()


# ------------------------------------------------------------ the public code


@pytest.mark.long
@pytest.mark.parametrize('name', CASES)
def test_with_the_same_parameters_it_returns_what_the_public_code_returned(recorded, name, differs):
  net = network(**CASES[name])
  params = score_sde.from_flat(published.state_dict(recorded, name), shapes_of(net))
  y = jax.jit(net.apply)({'params': params}, recorded[f'{name}/z'], recorded[f'{name}/time'])
  assert relative(y, recorded[f'{name}/y']) < 1e-5
  differs('parity', 'nn/unets/ncsnpp.py', y, recorded[f'{name}/y'])


@pytest.mark.first(1)
@pytest.mark.parametrize('name', CASES)
def test_written_out_again_the_published_parameters_are_the_same(recorded, name):
  flat = published.state_dict(recorded, name)
  params = score_sde.from_flat({f'module.{k}': v for k, v in flat.items()},
                               shapes_of(network(**CASES[name])))
  again = score_sde.to_flat(params)
  assert again.keys() == {f'module.{k}' for k in flat if k != 'sigmas'}
  for k, value in again.items():
    np.testing.assert_array_equal(value, flat[k.removeprefix('module.')], err_msg=k)


def test_missing_left_over_and_misshapen_parameters_are_named(recorded):
  flat = published.state_dict(recorded, 've')
  flat['all_modules.99.weight'] = flat.pop('all_modules.3.weight')
  flat['all_modules.1.bias'] = np.zeros(3)
  with pytest.raises(InputError) as error:
    score_sde.from_flat(flat, shapes_of(network()))
  text = str(error.value)
  assert 'missing: all_modules.3.weight (here trunk/conv_in/kernel (3, 3, 3, 8))' in text
  assert 'left over: all_modules.99.weight' in text
  assert 'shape: all_modules.1.bias is (3,), which does not fit dense0/bias (32,)' in text


@pytest.mark.parametrize('name', CASES)
def test_averages_go_to_the_trained_parameters_in_their_order(recorded, name):
  flat = published.state_dict(recorded, name)
  trained = json.loads(str(recorded[f'{name}/trained']))
  averages = [np.full_like(flat[k], i) for i, k in enumerate(trained)]
  found = score_sde.averaged(flat, averages)
  assert found.keys() == flat.keys()
  for i, k in enumerate(trained):
    assert np.all(found[k] == i), k
  for k in flat.keys() - set(trained):
    np.testing.assert_array_equal(found[k], flat[k])
  with pytest.raises(InputError, match='from the same checkpoint'):
    score_sde.averaged(flat, averages[1:])


NCSNPP_VP = NCSNpp(embedding='positional', scale_by_sigma=False)
# Counted by instantiating the public code, with the configs of these names.
COUNTS = {'ve/cifar10_ncsnpp_continuous': 62_758_915,
          've/cifar10_ncsnpp_deep_continuous': 107_587_075,
          'vp/cifar10_ddpmpp_continuous': 61_804_419,
          'vp/cifar10_ddpmpp_deep_continuous': 106_632_579,
          've/ffhq_256_ncsnpp_continuous': 65_574_549,
          'vp/cifar10_ncsnpp_continuous': 62_693_251,
          'vp/cifar10_ncsnpp_deep_continuous': 107_521_411}


@pytest.mark.long
@pytest.mark.parametrize('name', published.some(
    COUNTS, 've/cifar10_ncsnpp_continuous', 've/ffhq_256_ncsnpp_continuous'))
def test_a_published_network_has_its_number_of_parameters(name):
  net = score_sde.MODELS.get(name) or NCSNPP_VP.clone(blocks=8 if 'deep' in name else 4)
  shapes = shapes_of(net, 256 if '256' in name else 32)
  assert sum(u.size for u in jax.tree.leaves(shapes)) == COUNTS[name]


def test_sub_vp_networks_are_those_of_vp():
  for name in ('cifar10_ddpmpp_continuous', 'cifar10_ddpmpp_deep_continuous'):
    assert score_sde.MODELS[f'subvp/{name}'] == score_sde.MODELS[f'vp/{name}']


@pytest.mark.long
@pytest.mark.parametrize('curve', [processes.ve, processes.vp])
def test_a_ve_network_of_data_in_0_1_denoises_data_in_minus_1_1(curve):
  """The public network of N(m, s^2), in closed form: it reads 2 z - 1 and returns the score."""
  m, s = 0.3, 0.2

  def net(z, time, cond=None):
    time = time[:, None]
    return -(0.5 * (z + 1.0) - m) / (s**2 + time**2)
  denoise = denoisers.on_curve(
      denoisers.denoiser(net, targets.half_score, views.sigma()), processes.ve)
  process = processes.GaussianProcess(schedules.Linear(), curve)
  level = process(jnp.array([0.2, 0.5, 0.8]))
  z = jax.random.normal(jax.random.key(0), (3, 5)) * jnp.hypot(level.alpha, level.sigma)[:, None]
  alpha, sigma = level.alpha[:, None], level.sigma[:, None]
  mean, variance = 2.0 * m - 1.0, (2.0 * s)**2
  posterior = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (z - alpha * mean)
  np.testing.assert_allclose(denoise(z, level).x, posterior, rtol=2e-5, atol=2e-5)


# -------------------------------------------------------------------- the parts


@pytest.mark.long
def test_without_a_wider_filter_pixels_are_repeated_and_averaged():
  h = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
  np.testing.assert_allclose(upsample(h), layers.upsample(h), rtol=1e-6)
  np.testing.assert_allclose(downsample(h), layers.downsample(h), rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_the_filter_1_3_3_1_keeps_slopes():
  """Of a ramp it makes the ramp at the new pixels' centres, but for one at the border."""
  rows, columns = np.meshgrid(np.arange(8.0), np.arange(8.0), indexing='ij')
  h = jnp.asarray(2.0 * rows - 3.0 * columns, jnp.float32)[None, :, :, None]
  fir = (1, 3, 3, 1)
  for resized, places in ((upsample(h, fir), np.arange(16) / 2 - 0.25),
                          (downsample(h, fir), 2 * np.arange(4) + 0.5)):
    rows, columns = np.meshgrid(places, places, indexing='ij')
    assert resized.shape == (1, len(places), len(places), 1)
    np.testing.assert_allclose(resized[0, 1:-1, 1:-1, 0], (2 * rows - 3 * columns)[1:-1, 1:-1],
                               rtol=1e-5, atol=1e-5)


@pytest.mark.long
def test_at_first_a_block_keeps_its_input_over_sqrt_2():
  h = jax.random.normal(jax.random.key(3), (2, 4, 4, 8))
  block = ResBlock(8)
  params = block.init(jax.random.key(0), h, jnp.ones((2, 32)))
  np.testing.assert_allclose(block.apply(params, h, jnp.ones((2, 32))), h / np.sqrt(2), atol=1e-3)


# ----------------------------------------------------------------- the settings


@pytest.mark.long
def test_heads_are_further_outputs_of_which_the_first_is_divided_by_sigma():
  net = network(**SMALL, heads=1)
  plain = net.clone(scale_by_sigma=False)
  params, (z, time, _) = {'params': parameters(net)}, inputs()
  y, expected = (jax.jit(u.apply)(params, z, time) for u in (net, plain))
  assert y.shape == (2, 4, 4, 6)
  np.testing.assert_allclose(y[..., 3:], expected[..., 3:], rtol=1e-6)
  np.testing.assert_allclose(y[..., :3] * time[:, None, None, None], expected[..., :3], rtol=1e-5)


@pytest.mark.first(2)
@pytest.mark.parametrize('settings, remedy', [
    ({'embedding': 'positional'}, "scale_by_sigma=True: it needs embedding = 'fourier'"),
    ({'embedding': 'sigma'}, "embedding='sigma': .* choose one of fourier"),
    ({'block': 'adm'}, "block='adm': .* choose one of biggan, ddpm"),
    ({'progressive': 'input_skip'}, "progressive='input_skip': .* choose one of none"),
    ({'progressive_input': 'sum'}, "progressive_input='sum': .* choose one of none"),
    ({'combine': 'mean'}, "combine='mean': .* choose one of sum, cat"),
    ({'multipliers': (1, 1, 1, 1, 1)}, '8 x 8 pixels cannot be halved 4 times; .* multiples of 16'),
    ({'features': 2}, 'features=2: the embedding of time|choose features and multipliers'),
])
def test_settings_that_do_not_fit_are_named_with_the_remedy(settings, remedy):
  with pytest.raises(ValueError, match=remedy):
    shapes_of(network(**settings))
