"""The Haar transform and its gates: of a public library, and the laws that it obeys."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.support import recordings
from vdm_jax.errors import InputError
from vdm_jax.nn.blocks import wavelets
from vdm_jax.nn.unets import ddpm

X = np.random.default_rng(0).standard_normal((3, 6, 4, 2))


@pytest.mark.long
def test_the_bands_are_those_of_pywavelets(x64):
  arrays = recordings.shared('wavelets')
  bands = wavelets.haar(jnp.asarray(arrays['x']))
  names = ('LL', 'cV', 'cH', 'HH')  # cV is high along the width, cH along the height
  for band, name in zip(bands, names, strict=True):
    np.testing.assert_allclose(band, arrays[f'haar/{name}'], atol=1e-12)
  gates = arrays['haar/gates'][jnp.array([0, 2, 1, 3])]  # theirs: LL, cH, cV, HH
  np.testing.assert_allclose(jnp.sum(gates * bands, axis=0), arrays['haar/sum_gated'], atol=1e-12)
  np.testing.assert_allclose(wavelets.inverse_haar(gates * bands), arrays['haar/idwt_gated'],
                             atol=1e-12)


@pytest.mark.long
def test_the_inverse_restores_the_image_and_no_energy_is_lost(x64):
  bands = wavelets.haar(jnp.asarray(X))
  np.testing.assert_allclose(wavelets.inverse_haar(bands), X, atol=1e-14)
  np.testing.assert_allclose(jnp.sum(bands**2), np.sum(X**2), rtol=1e-13)


@pytest.mark.long
def test_an_image_without_edges_has_one_band_alone():
  bands = wavelets.haar(jnp.full((1, 4, 4, 1), 3.0))
  np.testing.assert_array_equal(bands[0], 6.0)
  np.testing.assert_array_equal(bands[1:], 0.0)
  stripes = jnp.tile(jnp.array([1.0, -1.0]), 2)[None, None, :, None] * jnp.ones((1, 4, 1, 1))
  assert [float(jnp.abs(band).max()) for band in wavelets.haar(stripes)] == [0.0, 2.0, 0.0, 0.0]


def test_sides_that_are_odd_are_refused():
  with pytest.raises(InputError, match='5 x 4 pixels cannot be halved'):
    wavelets.haar(jnp.zeros((1, 5, 4, 1)))


@pytest.mark.long
def test_open_gates_sum_the_bands_and_put_the_quarters_together():
  """A bias of 30 opens every gate."""
  down, up = wavelets.WaveletDown(), wavelets.WaveletUp()

  def opened(module, h):
    params = jax.tree.map(jnp.zeros_like, module.init(jax.random.key(0), h))
    params['params']['gates']['gates']['bias'] += 30.0
    return module.apply(params, h)
  x = jnp.asarray(X, jnp.float32)
  # LL + LH + HL + HH is twice the first pixel of each block.
  np.testing.assert_allclose(opened(down, x), 2.0 * x[:, ::2, ::2], atol=1e-5)
  bands = jnp.concatenate(list(wavelets.haar(x)), axis=-1)
  np.testing.assert_allclose(opened(up, bands), x, atol=1e-5)


@pytest.mark.long
def test_a_gate_is_of_its_own_example():
  down = wavelets.WaveletDown()
  x = jnp.asarray(X, jnp.float32)
  params = down.init(jax.random.key(0), x)
  np.testing.assert_allclose(down.apply(params, x)[1:2], down.apply(params, x[1:2]), rtol=1e-5)
  gates = wavelets.Gates(2).apply({'params': params['params']['gates']}, x)
  assert gates.shape == (4, 3, 1, 1, 2) and 0.0 < gates.min() and gates.max() < 1.0


@pytest.mark.long
def test_a_network_that_resamples_by_wavelets_has_the_parameters_of_the_gates():
  """With C channels: down 5 C^2 + 5 C of the gates; up 4 C^2 + 4 C, and gates of 8 C^2 + 5 C.

  In the place of two convolutions of 9 C^2 + C.
  """
  count = {}
  for how in ('convolution', 'wavelets'):
    net = ddpm.UNet(features=16, multipliers=(1, 1), blocks=1, attention_resolutions=(), groups=4,
                    resampling=how)
    shapes = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))
    count[how] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    y = jax.eval_shape(net.apply, shapes, jnp.zeros((2, 4, 4, 1)), jnp.zeros(2))
    assert y.shape == (2, 4, 4, 1)
  c = 16
  assert count['wavelets'] - count['convolution'] == (17 * c * c + 14 * c) - 2 * (9 * c * c + c)
  with pytest.raises(InputError, match="resampling='nearest'"):
    net.clone(resampling='nearest').init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), jnp.zeros(1))
