"""EDM's networks: the public code's outputs and counts, and what the settings promise."""
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import published
from vdm_jax import denoisers, inputs, processes, targets
from vdm_jax.errors import InputError
from vdm_jax.nn.unets.edm import DhariwalUNet, SongUNet
from vdm_jax.published import edm
from vdm_jax.typing import Level

RECORDED = Path(__file__).parents[1] / 'data' / 'edm_networks.npz'
TINY = {'features': 8, 'multipliers': (1, 2), 'blocks': 1, 'attention_resolutions': (4,),
        'remat': 'none', 'weight_gradient': 'xla'}
SMALL = {'multipliers': (1,), 'attention_resolutions': ()}
NCSNPP = {'embedding': 'fourier', 'encoder': 'residual', 'fir': (1, 3, 3, 1)}


def song(**settings):
  return SongUNet(**{**TINY, **settings})


def adm(**settings):
  return DhariwalUNet(**{**TINY, **settings})


CASES = {
    'ddpmpp': song(multipliers=(2, 2, 2), classes=5),
    'ncsnpp': song(**NCSNPP),
    'skip': song(**{**NCSNPP, 'encoder': 'skip', 'decoder': 'skip'}, blocks=2, classes=5,
                 augment=0),
    'adm': adm(features=64, classes=5),
    'adm_augment': adm(features=32, attention_resolutions=(), augment=9),
}


@pytest.fixture(scope='module')
def recorded():
  with np.load(RECORDED) as file:
    return {name: file[name] for name in file.files}


def shapes_of(net, size=8):
  z = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  return jax.eval_shape(net.init, jax.random.key(0), z, jnp.ones(1))['params']


def parameters(net, size=4):
  """Away from the initial values, which nearly mute every branch."""
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda u: (0.3 * rng.normal(size=u.shape)).astype(np.float32),
                      shapes_of(net, size))


def arguments(batch=2, size=4):
  z = jax.random.normal(jax.random.key(1), (batch, size, size, 3))
  return z, jnp.linspace(-0.7, 0.9, batch), jax.random.split(jax.random.key(2), batch)


def relative(value, expected):
  return np.abs(value - expected).max() / np.abs(expected).max()


# ------------------------------------------------------------ the public code


@pytest.mark.long
@pytest.mark.parametrize('name', CASES)
def test_preconditioned_it_denoises_as_the_public_code_did(recorded, name, differs):
  """F and D of EDMPrecond with labels 3, 0 and none, at sigma = 0.05, 0.9 and 30.

  D by way of `inputs.edm` and `targets.edm`, as it was recorded and, the images rescaled, on
  the curve `vp`.
  """
  net = CASES[name]
  params = edm.from_flat(published.state_dict(recorded, name), shapes_of(net))
  noisy, sigma, d, f = (recorded[f'{name}/{u}'] for u in ('x', 'sigma', 'D', 'F'))
  cond = recorded.get(f'{name}/labels')
  apply = jax.jit(lambda *args: net.apply({'params': params}, *args))
  denoise = denoisers.denoiser(apply, targets.edm(0.5), inputs.edm(0.5))

  def level(curve):
    logsnr = -2.0 * jnp.log(sigma)
    nothing = jnp.zeros_like(logsnr)  # of time and its derivatives, which no target reads
    return Level(nothing, logsnr, *curve(logsnr), nothing, nothing, nothing)
  own, vp = level(processes.ve), level(processes.vp)
  got = apply(*inputs.edm(0.5)(noisy, own), cond)
  assert relative(got, f) < 1e-5
  differs('parity', 'nn/unets/edm.py', got, f)
  scaled = noisy * vp.expand(noisy).alpha
  for x in (denoise(noisy, own, cond).x,
            denoisers.on_curve(denoise, processes.ve)(scaled, vp, cond).x):
    for mine, theirs in zip(x, d, strict=True):  # of each noise level
      assert relative(mine, theirs) < 1e-5


@pytest.mark.first(2)
@pytest.mark.parametrize('name', CASES)
def test_written_out_again_the_published_parameters_are_the_same(recorded, name):
  flat = published.state_dict(recorded, name)
  again = edm.to_flat(edm.from_flat(flat, shapes_of(CASES[name])), size=8)
  assert again.keys() == {k for k in flat if not k.endswith('resample_filter')}
  for k, value in again.items():
    np.testing.assert_array_equal(value, flat[k], err_msg=k)


@pytest.mark.long
def test_missing_and_left_over_parameters_are_named(recorded):
  flat = published.state_dict(recorded, 'ncsnpp')
  with pytest.raises(InputError) as error:
    edm.from_flat(flat, shapes_of(song(**NCSNPP, classes=5)))
  assert 'missing: map_label.weight (here label/kernel (5, 16))' in str(error.value)
  with pytest.raises(InputError, match='left over: enc.4x4_aux_residual.weight'):
    edm.from_flat(flat, shapes_of(song(**{**NCSNPP, 'encoder': 'standard'})))
  with pytest.raises(InputError, match='give the state dict of a SongUNet'):
    edm.from_flat({}, shapes_of(song()))


@pytest.mark.first(1)
@pytest.mark.parametrize('name, count', published.some([
    # Counted by instantiating the public code with the options of its README, and with the fixed
    # frequencies, 128 numbers, where there are any.
    ('edm-cifar10-32x32-cond-vp', 55_735_299),
    ('edm-cifar10-32x32-uncond-vp', 55_733_891),
    ('edm-cifar10-32x32-cond-ve', 56_400_643 + 128),
    ('edm-cifar10-32x32-uncond-ve', 56_397_827 + 128),
    ('edm-ffhq-64x64-uncond-vp', 61_805_571),
    ('edm-ffhq-64x64-uncond-ve', 62_761_091 + 128),
    ('edm-afhqv2-64x64-uncond-vp', 61_805_571),
    ('edm-afhqv2-64x64-uncond-ve', 62_761_091 + 128),
    ('edm-imagenet-64x64-cond-adm', 295_899_267)],
    'edm-cifar10-32x32-cond-vp', 'edm-cifar10-32x32-uncond-ve', 'edm-imagenet-64x64-cond-adm'))
def test_a_published_network_has_its_number_of_parameters(name, count):
  size = 32 if 'cifar' in name else 64
  assert sum(u.size for u in jax.tree.leaves(shapes_of(edm.MODELS[name], size))) == count


# ----------------------------------------------------------------- the settings


@pytest.mark.parametrize('net, remedy', [
    (song(encoder='none'), "encoder='none': there is no such choice; choose one of standard"),
    (song(decoder='residual'), "decoder='residual': .*choose one of standard, skip"),
    (song(embedding='sigma'), "embedding='sigma': there is no such choice; choose one of posi"),
    (song(multipliers=(1,) * 5), '8 x 8 pixels cannot be halved 4 times; .* multiples of 16'),
    (adm(features=32, multipliers=(1, 3)), 'head_features=64: it does not divide the 96 features'),
])
def test_settings_that_do_not_fit_are_named_with_the_remedy(net, remedy):
  with pytest.raises(InputError, match=remedy):
    shapes_of(net)


@pytest.mark.parametrize('net, cond, remedy', [
    (song(), jnp.zeros(2, jnp.int32), 'takes no labels; give None'),
    (song(classes=3), jnp.zeros(2), 'one integer per example'),
    (adm(features=64, classes=3), jnp.zeros((2, 3), jnp.int32), 'one integer per example'),
])
def test_labels_that_do_not_fit_are_refused(net, cond, remedy):
  z, time, _ = arguments()
  with pytest.raises(InputError, match=remedy):
    jax.eval_shape(net.init, jax.random.key(0), z, time, cond)
