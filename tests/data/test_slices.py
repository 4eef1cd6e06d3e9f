"""Pictures of slices with a texture: what their formula promises."""
import numpy as np

from vdm_jax import data
from vdm_jax.data import slices


def test_slices_are_bodies_inside_the_circle():
  x = slices.draw(2000, 0, np.arange(200))
  row, column = np.mgrid[:32, :32] - 16
  outside = row**2 + column**2 > 16**2
  assert x.shape == (200, 32, 32, 1) and x.dtype == np.uint8
  assert not x[:, outside].any() and x[:, 16, 16].all()
  # A body has semi-axes from 8 to 13.6 pixels; dark ellipses may be 0.
  assert 0.8 * np.pi * 8**2 < (x > 0).sum(axis=(1, 2, 3)).min()
  assert (x > 0).sum(axis=(1, 2, 3)).max() < 1.05 * np.pi * 13.6**2


def test_a_picture_depends_on_its_split_and_number_alone():
  rows = np.array([7, 3, 1999])
  x = slices.draw(2000, 0, rows)
  np.testing.assert_array_equal(x[1:2], slices.draw(2000, 0, rows[1:2]))
  np.testing.assert_array_equal(x[:2], slices.draw(5000, 0, rows[:2]))
  assert (x != slices.draw(2000, 1, rows)).any(axis=(1, 2, 3)).all()


def test_the_data_have_the_name_of_the_formula():
  config = data.default_config()
  config.update(name='textured_ellipses', validation=100)
  spec = data.resolve(config)
  assert spec.x.shape == (32, 32, 1) and spec.x.levels == 256
