"""Latents decoded in tiles: the same images where the decoder is local, in bounded memory."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.nn.autoencoders.taesd import TinyAutoencoder
from vdm_jax.nn.autoencoders.tiling import decode_tiled
from vdm_jax.nn.blocks.layers import upsample

RNG = np.random.default_rng(0)
KERNELS = [np.float32(RNG.standard_normal(shape) / 5.0)
           for shape in [(3, 3, 3, 16), (3, 3, 16, 16), (1, 1, 16, 3)]]


def decode(y):
  """A 3x3 convolution, a doubling and a 3x3 convolution: a pixel looks two positions far."""
  conv = lambda h, kernel: jax.lax.conv_general_dilated(
      h, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  h = jax.nn.relu(conv(y, KERNELS[0]) + 0.3)
  return conv(jax.nn.relu(conv(upsample(h), KERNELS[1]) + 0.3), KERNELS[2])


def mean(y):
  """A decoder that sees all of y: each pixel is the mean."""
  return jnp.broadcast_to(jnp.mean(y, axis=(1, 2), keepdims=True), upsample(y).shape)


@pytest.mark.long
@pytest.mark.parametrize('height, width, tile, overlap', [(21, 13, 10, 5), (7, 30, 9, 4)])
def test_a_local_decoder_gives_the_same_images_in_tiles(height, width, tile, overlap):
  y = jax.random.normal(jax.random.key(0), (2, height, width, 3))
  whole = decode(y)
  tiled = jax.jit(lambda margin: decode_tiled(decode, y, tile, overlap, margin), static_argnums=0)
  np.testing.assert_allclose(tiled(2), whole, atol=1e-5)
  assert jnp.abs(tiled(1) - whole).max() > 0.01  # it looks two positions far, not one


def tiny(features, weigh):
  """The decoder of a `TinyAutoencoder` of three doublings; weigh: of each random parameter."""
  net = TinyAutoencoder(latent_channels=2, features=features, weight_gradient='xla')
  like = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))['params']
  rng = np.random.default_rng(1)
  params = jax.tree.map(lambda u: weigh(np.float32(rng.standard_normal(u.shape)), u.shape), like)
  return lambda y: net.apply({'params': params}, y, method=net.decode)


@pytest.mark.long
def test_a_pixel_of_a_tiny_autoencoder_sees_18_or_19_positions_to_each_side():
  """A number of neither sign hides another, so the gradient is 0 exactly where nothing is seen."""
  decode_row = tiny(2, lambda u, shape: np.abs(u) / np.sqrt(np.prod(shape[:-1])))
  y, seen = jnp.full((1, 1, 45, 2), 0.1), jnp.zeros((1, 8, 360, 3))
  pixels = 8 * 22 + np.arange(8)  # those of position 22
  pull_back = jax.jit(lambda cotangent: jax.vjp(decode_row, y)[1](cotangent)[0])
  for pixel, (left, right) in ((pixels[0], (19, 18)), (pixels[-1], (18, 19))):
    gradient = pull_back(seen.at[0, 0, pixel].set(1.0))[0, 0].sum(-1)
    positions = np.flatnonzero(gradient)
    assert (22 - positions.min(), positions.max() - 22) == (left, right)


@pytest.mark.long
def test_a_tiny_autoencoder_gives_the_same_images_in_tiles_of_its_margin():
  decode = tiny(4, lambda u, shape: u * np.sqrt(2.0 / np.prod(shape[:-1])) if len(shape) > 1
                else 0.1 * u)
  y = jax.random.normal(jax.random.key(0), (1, 3, 44, 2))
  whole = jax.jit(decode)(y)
  tiled = jax.jit(lambda margin: decode_tiled(decode, y, 40, 38, margin), static_argnums=0)
  scale = jnp.abs(whole).max()
  assert jnp.abs(tiled(19) - whole).max() < 1e-5 * scale
  assert jnp.abs(tiled(2) - whole).max() > 1e-3 * scale


def test_a_decoder_that_sees_all_is_blended_linearly():
  """Two tiles of 8 positions with means a and b, which share 4 positions: 8 pixels."""
  y = jnp.arange(12.0)[None, None, :, None] * jnp.ones((1, 2, 1, 1))
  images = decode_tiled(mean, y, 8, 4, 1)
  a, b = 3.5, 7.5
  share = np.clip((np.arange(24) + 0.5 - 8.0 - 2.0) / 4.0, 0.0, 1.0)  # over 4 of the 8 pixels
  np.testing.assert_allclose(images[0, 0, :, 0], a + share * (b - a), rtol=1e-6)
  np.testing.assert_allclose(images[0, 0], images[0, -1])
  # Without an overlap the tiles stand side by side.
  side_by_side = decode_tiled(mean, y, 6, 0)[0, 0, :, 0]
  np.testing.assert_allclose(side_by_side, np.repeat([2.5, 8.5], 12), rtol=1e-6)


def test_memory_depends_on_the_tile_which_is_traced_once():
  traces = []

  def counted(y):
    traces.append(y.shape)
    return decode(y)
  y = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  temporary = lambda run: jax.jit(run).lower(y).compile().memory_analysis().temp_size_in_bytes
  # The features of the images: 128 x 128 x 16 numbers of 4 bytes.
  assert temporary(decode) >= 2**20
  assert temporary(lambda y: decode_tiled(counted, y, 12, 4)) < 2**19
  assert set(traces) == {(1, 12, 12, 3)} and len(traces) <= 3  # of 49 tiles


def test_a_latent_no_larger_than_a_tile_is_decoded_whole():
  y = jax.random.normal(jax.random.key(0), (1, 5, 6, 3))
  np.testing.assert_array_equal(decode_tiled(decode, y, 8, 2), decode(y))


@pytest.mark.parametrize('shape, tile, overlap, margin, message', [
    ((1, 8, 8, 3), 0, 0, None, 'tile=0: it must be at least 1'),
    ((1, 8, 8, 3), 4, 4, None, r'overlap=4: it must be in 0 \.\. 3'),
    ((1, 8, 8, 3), 4, 3, 2, r'margin=2: it must be in 0 \.\. 1, half the overlap'),
    ((8, 3), 4, 2, None, 'images')])
def test_sizes_that_do_not_fit_are_refused(shape, tile, overlap, margin, message):
  with pytest.raises(InputError, match=message):
    decode_tiled(decode, jnp.zeros(shape), tile, overlap, margin)


def test_a_decoder_of_uneven_images_is_refused():
  with pytest.raises(InputError, match='decode: it maps latents of 4 x 4 positions to'):
    decode_tiled(lambda y: upsample(y)[:, 1:], jnp.zeros((1, 8, 8, 3)), 4, 2)
