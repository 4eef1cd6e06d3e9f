"""The decoder of captions reads the image and the tokens before, and nothing after."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.errors import InputError
from vdm_jax.nn.text.captioner import CaptionDecoder, ImageGrid

GRID = ImageGrid(features=16, channels=(8, 8))
NET = CaptionDecoder(features=16, depth=2, attention_heads=2, levels=5, length=4)
IMAGES = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
TOKENS = jnp.array([[1, 2, 3, 4], [4, 3, 0, 0]])


@pytest.fixture(scope='module')
def captioner():
  """(images, tokens) -> logits, with weights that are all random."""
  seen, grid = jax.jit(GRID.init_with_output)(jax.random.key(1), IMAGES)
  net = jax.jit(NET.init)(jax.random.key(2), seen, TOKENS)
  noise = lambda u: u + 0.2 * jax.random.normal(jax.random.key(u.size), u.shape)
  grid, net = jax.tree.map(noise, (grid, net))
  return jax.jit(lambda images, tokens: NET.apply(net, GRID.apply(grid, images), tokens))


@pytest.mark.long
def test_the_logits_of_a_token_change_with_each_token_before_and_with_none_after(captioner):
  logits = captioner(IMAGES, TOKENS)
  assert logits.shape == (2, 4, 5)
  for i in range(4):
    other = captioner(IMAGES, TOKENS.at[:, i].set((TOKENS[:, i] + 1) % 5))
    np.testing.assert_array_equal(other[:, :i + 1], logits[:, :i + 1])
    assert (jnp.abs(other - logits)[:, i + 1:].max(axis=-1) > 1e-4).all()


@pytest.mark.long
def test_every_logit_depends_on_every_part_of_the_own_image_alone(captioner):
  logits = captioner(IMAGES, TOKENS)
  for y, x in ((0, 0), (7, 7), (3, 4)):
    other = captioner(IMAGES.at[0, y, x].add(3.0), TOKENS)
    assert (jnp.abs(other - logits)[0].max(axis=-1) > 1e-5).all()
    np.testing.assert_array_equal(other[1], logits[1])


def test_the_convolutions_halve_an_image_and_other_shapes_are_refused():
  shape = lambda images: jax.eval_shape(
      lambda u: GRID.init_with_output(jax.random.key(0), u)[0], images).shape
  assert shape(jnp.zeros((3, 16, 8, 1))) == (3, 4 * 2, 16)
  with pytest.raises(InputError):
    shape(jnp.zeros((3, 16)))
  with pytest.raises(InputError, match='4 tokens'):
    NET.init(jax.random.key(0), jnp.zeros((2, 4, 16)), TOKENS[:, :3])
