"""Networks on patches: where each pixel goes, and that it comes back."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from vdm_jax.errors import InputError
from vdm_jax.nn.unets.patched import Patched


class Keeps(nn.Module):
  """The channels from `first` on, below `last`; 0 for the others."""
  first: int
  last: int

  @nn.compact
  def __call__(self, z, time, cond=None, keys=None):
    self.sow('intermediates', 'z', z)
    channel = jnp.arange(z.shape[-1])
    return jnp.where((self.first <= channel) & (channel < self.last), z, 0.0)


def run(net, z):
  return Patched(net).apply({}, z, jnp.zeros(len(z)), mutable=['intermediates'])


@pytest.mark.long
def test_a_patch_is_four_pixels_of_all_channels_and_each_returns_to_its_place():
  z = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
  y, seen = run(Keeps(0, 12), z)
  np.testing.assert_array_equal(y, z)
  inner, = seen['intermediates']['net']['z']
  assert inner.shape == (2, 2, 3, 12)
  np.testing.assert_array_equal(inner[1, 1, 2], z[1, 2:, 4:].reshape(-1))
  upper_right, _ = run(Keeps(3, 6), z)
  want = np.zeros_like(z)
  want[:, ::2, 1::2] = z[:, ::2, 1::2]
  np.testing.assert_array_equal(upper_right, want)


def test_sides_that_patches_do_not_fill_are_refused():
  with pytest.raises(InputError, match='cannot be cut into patches of 2 x 2'):
    run(Keeps(0, 12), jnp.zeros((1, 4, 5, 3)))
